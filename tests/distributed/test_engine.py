"""The plain torch engine, in float64, against autograd on the whole batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rlhf.distributed import collectives
from rlhf.distributed.engine import TorchEngine

ROWS = 6


def model() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def engine_of(module: nn.Module, clip: float | None = 0.5) -> TorchEngine:
    decayed = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "lr": 0.1}, {"params": others, "lr": 0.02}]
    return TorchEngine(module, torch.optim.AdamW(groups, weight_decay=0.1), name="critic", clip=clip)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Inputs and uneven weights of a step's rows; the rows of one rank's micro-batch weigh nothing."""
    generator = torch.Generator().manual_seed(step)
    weights = torch.tensor([1.0, 0.0, 7.0, 0.0, 2.0, 5.0], dtype=torch.float64)
    return torch.randn(ROWS, 3, generator=generator, dtype=torch.float64), weights / weights.sum()


def train(engine: TorchEngine, steps: range, micro_batches: tuple[int, ...] = (1, 3, 2)) -> list[float]:
    norms = []
    mine = torch.arange(collectives.rank(), ROWS, collectives.world_size())
    for step in steps:
        x, weights = batch(step)
        for rows in mine.tensor_split(micro_batches[step]):
            engine.backward((weights[rows] * engine(x[rows]).square().sum(1)).sum())
        norms.append(engine.step())
    return norms


def whole_batch(steps: range) -> tuple[list[float], dict[str, Tensor]]:
    """The same updates written out in plain torch."""
    module = model()
    optimizer = engine_of(module)._optimizer
    norms = []
    for step in steps:
        x, weights = batch(step)
        (weights * module(x).square().sum(1)).sum().backward()
        gradients = [p.grad for p in module.parameters()]
        norm = torch.sqrt(sum(g.square().sum() for g in gradients))
        for gradient in gradients:
            gradient.mul_(min(1.0, 0.5 / (float(norm) + 1e-6)))
        optimizer.step()
        optimizer.zero_grad()
        norms.append(float(norm))
    return norms, module.state_dict()


def test_micro_batches_do_not_change_the_update() -> None:
    engine = engine_of(model())
    norms, state = whole_batch(range(3))
    assert train(engine, range(3)) == pytest.approx(norms, rel=1e-12)
    torch.testing.assert_close(engine.state(), state)


def test_no_clip_leaves_the_gradient() -> None:
    module = nn.Linear(1, 1, bias=False).double()
    module.weight.data.fill_(3.0)
    engine = TorchEngine(module, torch.optim.SGD(module.parameters(), lr=0.5), name="actor", clip=None)
    engine.backward(4 * module.weight.sum())
    assert engine.step() == 4.0
    assert module.weight.item() == 3.0 - 0.5 * 4.0


def test_clip_bounds_the_joint_norm_of_all_parameters() -> None:
    module = nn.Linear(1, 1).double()
    for parameter in module.parameters():
        parameter.data.fill_(2.0)
    engine = TorchEngine(module, torch.optim.SGD(module.parameters(), lr=1.0), name="actor", clip=1.0)
    engine.backward(3 * module.weight.sum() + 4 * module.bias.sum())
    assert engine.step() == 5.0
    moved = [2.0 - parameter.item() for parameter in module.parameters()]
    assert moved == pytest.approx([3 / 5, 4 / 5], rel=1e-6)  # torch divides by norm + 1e-6


def test_gradients_are_forgotten_after_a_step() -> None:
    engine = engine_of(model())
    train(engine, range(1))
    assert all(p.grad is None for p in engine.module.parameters())


def test_gradient_that_is_not_finite_moves_nothing() -> None:
    engine = engine_of(model())
    train(engine, range(2))
    before = engine.state()
    x, weights = batch(0)
    engine.backward((weights * engine(x).square().sum(1)).sum() * float("nan"))
    with pytest.raises(FloatingPointError, match="critic: gradient norm of step 3 is nan"):
        engine.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.state().items())


def test_loss_without_a_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="critic: backward needs a loss that depends on the module"):
        engine_of(model()).backward(torch.tensor(1.0))


def test_learning_rates_keep_their_ratio() -> None:
    engine = engine_of(model())
    engine.scale_lr(0.5)
    engine.scale_lr(0.25)  # of the initial one, not of the last
    assert [group["lr"] for group in engine._optimizer.param_groups] == [0.1 * 0.25, 0.02 * 0.25]
    assert engine.lr == 0.1 * 0.25


def test_continuing_is_bitwise_the_uninterrupted_run(tmp_path: Path) -> None:
    engine = engine_of(model())
    train(engine, range(1))
    engine.scale_lr(0.5)
    engine.save(tmp_path / "critic")
    norms = train(engine, range(1, 3))
    resumed = engine_of(model())
    resumed.load(tmp_path / "critic")
    assert train(resumed, range(1, 3)) == norms
    assert all(torch.equal(tensor, engine.state()[name]) for name, tensor in resumed.state().items())
    assert resumed.lr == 0.05


def test_checkpoint_holds_every_tensor_by_name(tmp_path: Path) -> None:
    engine = engine_of(model())
    train(engine, range(2))
    engine.save(tmp_path)
    held = load_file(tmp_path / "part_0.safetensors")
    names = {f"{kind}/{n}" for kind in ("value", "exp_avg", "exp_avg_sq") for n in engine.state()}
    assert held.keys() == names
    for name, parameter in engine.module.named_parameters():
        assert torch.equal(held[f"value/{name}"], parameter)
        assert torch.equal(held[f"exp_avg/{name}"], engine._optimizer.state[parameter]["exp_avg"])
        assert torch.equal(held[f"exp_avg_sq/{name}"], engine._optimizer.state[parameter]["exp_avg_sq"])
    saved = {"engine": "plain torch", "world_size": 1, "steps": 2, "lr_scale": 1.0}
    assert json.loads((tmp_path / "engine.json").read_text()) == saved


def test_continuing_before_the_first_step_starts_afresh(tmp_path: Path) -> None:
    engine_of(model()).save(tmp_path)
    resumed = engine_of(model())
    train(resumed, range(2))  # forgotten
    resumed.load(tmp_path)
    assert train(resumed, range(3)) == train(engine_of(model()), range(3))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(nn.Linear(3, 4)), r"critic: .* holds exp_avg/2\.bias, unlike the model"),
        (
            nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)),
            r"critic: value/0\.weight in .* is \(4, 3\)",
        ),
    ],
)
def test_checkpoint_of_another_model_is_refused_by_parameter(
    other: nn.Module, message: str, tmp_path: Path
) -> None:
    engine = engine_of(model())
    train(engine, range(1))
    engine.save(tmp_path)
    with pytest.raises(ValueError, match=message):
        engine_of(other.double()).load(tmp_path)


def test_engine_json_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text('{"engine": "ZeRO-2"}')
    with pytest.raises(ValueError, match=r"critic: .*engine\.json is not what an engine writes: .*steps"):
        engine_of(model()).load(tmp_path)


def test_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"engine\.json does not exist"):
        engine_of(model()).load(tmp_path)


def work(folder: Path) -> dict[str, Any]:
    module = model()
    if not collectives.is_main():
        module[0].weight.data.zero_()  # the ranks start from rank 0's weights
    engine = engine_of(module)
    norms = train(engine, range(1))
    engine.save(folder / "critic")
    norms += train(engine, range(1, 3))
    resumed = engine_of(model())
    resumed.load(folder / "critic")
    return {
        "norms": norms,
        "state": engine.state(),
        "own": module.state_dict(),
        "resumed_norms": train(resumed, range(1, 3)),
    }


@pytest.fixture(scope="module")
def pair(two_ranks: Callable[[str, str], list[Any]]) -> list[Any]:
    return two_ranks(__file__, "work")


def test_two_ranks_make_the_update_of_one(pair: list[Any]) -> None:
    norms, state = whole_batch(range(3))
    for rank in range(2):
        assert pair[rank]["norms"] == pytest.approx(norms, rel=1e-12)
        torch.testing.assert_close(dict(pair[rank]["own"]), dict(state))
        assert pair[rank]["resumed_norms"] == pair[rank]["norms"][1:]
    torch.testing.assert_close(pair[0]["state"], dict(state))
    assert pair[1]["state"] == {}
