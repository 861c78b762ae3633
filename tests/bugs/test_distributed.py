"""Distributed training and resuming, as it broke in other frameworks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from rlhf.algorithms.policy_losses import Reinforce
from rlhf.distributed import checkpoints, collectives
from rlhf.distributed.engine_config import EngineConfig, Plain, Precision, ZeRO

V, ROWS, T, LR = 9, 8, 5, 0.02
STAGES = (0, 1, 2, 3)


class Model(nn.Module):
    """Log-probabilities of the next token from the last one, by way of three trainable layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, V)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T-1) log-probability of each token but the first."""
        logprobs = self.head(self.norm(self.embedding(tokens[:, :-1]))).log_softmax(-1)
        return logprobs.gather(-1, tokens[:, 1:, None])[..., 0]


def engine_of(config: EngineConfig) -> Any:
    module = Model()
    return config.train(module, torch.optim.AdamW(module.parameters(), lr=LR, eps=1e-5), "actor")


def zero(stage: int) -> ZeRO:
    return ZeRO(stage=stage, clip=None, persistence_threshold=0)


def batch() -> tuple[Tensor, Tensor]:
    """Tokens and the mask of what is predicted; rank 0 holds the even rows, which are the longer ones."""
    tokens = torch.arange(ROWS * T).view(ROWS, T) * 7 % V
    lengths = torch.tensor([4, 1, 4, 0, 3, 1, 4, 2])
    return tokens, torch.arange(T - 1) < lengths[:, None]


def update(engine: Any, micro_batches: int) -> float:
    """One step on minus the token mean of the whole batch; the gradient's norm."""
    tokens, mask = batch()
    weights = mask / collectives.all_sum(mask[collectives.rank() :: collectives.world_size()].sum())
    mine = torch.arange(collectives.rank(), ROWS, collectives.world_size())
    for rows in mine.tensor_split(micro_batches):
        engine.backward(-(weights[rows] * engine(tokens[rows])).sum())
    return engine.step()


def gradient() -> list[Tensor]:
    """Of minus the mean log-probability over the 19 tokens, in one forward of plain torch."""
    module = Model()
    tokens, mask = batch()
    (-module(tokens)[mask].mean()).backward()
    return [parameter.grad for parameter in module.parameters()]


def norm(gradients: list[Tensor]) -> float:
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


def stepped() -> dict[str, Tensor]:
    """The parameters after one AdamW step on that gradient."""
    module = Model()
    optimizer = torch.optim.AdamW(module.parameters(), lr=LR, eps=1e-5)
    for parameter, grad in zip(module.parameters(), gradient(), strict=True):
        parameter.grad = grad
    optimizer.step()
    return module.state_dict()


def run_stage(stage: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for micro_batches in (1, 2, 4):
        engine = engine_of(zero(stage))
        found[f"norm {micro_batches}"] = update(engine, micro_batches)
        found[f"state {micro_batches}"] = engine.state()
    found["varying"] = [update(engine, micro_batches) for micro_batches in (3, 1, 4)]
    steady = engine_of(zero(stage))
    found["steady"] = [update(steady, 2) for _ in range(4)][1:]
    engine.scale_lr(0.5)
    engine.save(folder / f"zero{stage}")
    found["continued"] = [update(engine, 2) for _ in range(2)]
    resumed = engine_of(zero(stage))
    resumed.load(folder / f"zero{stage}")
    found["lr"] = resumed.lr
    found["resumed"] = [update(resumed, 2) for _ in range(2)]
    return found


def run_save(folder: Path) -> dict[str, Any]:
    """What each rank hears of a checkpoint that works and of one that fails on rank 1 only."""
    engine = engine_of(zero(2))

    def fails_on_rank_1(path: Path) -> None:
        engine.save(path / "actor")
        if collectives.rank() == 1:
            raise OSError("no space left on device")

    written = checkpoints.write(folder, 1, lambda path: engine.save(path / "actor"), keep=1)
    try:
        checkpoints.write(folder, 2, fails_on_rank_1, keep=1)
        error = "none"
    except RuntimeError as caught:
        error = str(caught)
    return {"written": written, "error": error, "latest": checkpoints.latest(folder)}


def reward_loss(toy: ModuleType, engine: EngineConfig, micro_batch: int) -> float:
    """Loss of the first step over all twelve pairs."""
    trainer = toy.reward_model(engine=engine, batch_size=12, micro_batch_size=micro_batch)
    return trainer.step().reduce(collectives.all_sum, collectives.all_max)["loss"]


@dataclass(kw_only=True, slots=True)
class Noting(Reinforce):
    """A policy loss that notes the advantages of the real tokens."""

    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        self.seen.append(advantages[mask])
        return Reinforce.__call__(self, logprobs, old_logprobs, advantages, mask)


def whitened(toy: ModuleType) -> Tensor:
    """The advantages that this rank's share of a rollout is updated with."""
    loss = Noting()
    toy.policy_gradient(toy.ppo(policy_loss=loss, epochs=1, minibatches=1)).step()
    return torch.cat(loss.seen)


def work(folder: Path) -> dict[str, Any]:
    found: dict[Any, Any] = {stage: run_stage(stage, folder) for stage in STAGES}
    found["save"] = run_save(folder / "checkpoints")
    from tests.trainers import toy

    found["reward"] = {
        f"zero{stage}, {micro}": reward_loss(toy, zero(stage), micro) for stage in STAGES for micro in (2, 10)
    }
    found["whitened"] = whitened(toy)
    return found


@pytest.fixture(scope="module")
def pair(two_ranks: Callable[[str, str], list[Any]]) -> list[Any]:
    return two_ranks(__file__, "work")


def test_zero2_accumulation_keeps_every_micro_batch(pair: list[Any]) -> None:
    assert pair[0][2]["norm 4"] == pytest.approx(norm(gradient()), rel=1e-5)
    for name, tensor in stepped().items():
        torch.testing.assert_close(pair[0][2]["state 4"][name], tensor, rtol=0.0, atol=1e-5)  # a step is 2e-2


@pytest.mark.parametrize("stage", STAGES)
def test_number_of_micro_batches_may_vary(pair: list[Any], stage: int) -> None:
    assert pair[0][stage]["varying"] == pytest.approx(pair[0][stage]["steady"], rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_every_trainable_parameter_gets_a_gradient_and_moves(pair: list[Any], stage: int) -> None:
    before = Model().state_dict()
    for name, tensor in pair[0][stage]["state 2"].items():
        assert not torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("stage", STAGES)
def test_two_uneven_ranks_match_one_process(pair: list[Any], stage: int) -> None:
    for rank in range(2):
        assert pair[rank][stage]["norm 1"] == pytest.approx(norm(gradient()), rel=1e-5)
    for name, tensor in stepped().items():
        torch.testing.assert_close(pair[0][stage]["state 1"][name], tensor, rtol=0.0, atol=1e-5)


def test_bf16_without_sharding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ZeRO\.precision must be float32 at stage 0, got bfloat16"):
        ZeRO(stage=0, precision=Precision.bfloat16)


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_steps_do_not_change_the_gradient(pair: list[Any], stage: int) -> None:
    for micro_batches in (1, 2, 4):
        assert pair[0][stage][f"norm {micro_batches}"] == pytest.approx(norm(gradient()), rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_resume_restores_optimizer_and_schedule(pair: list[Any], stage: int) -> None:
    assert pair[0][stage]["lr"] == LR * 0.5
    assert pair[0][stage]["resumed"] == pair[0][stage]["continued"]  # the second depends on Adam's moments


def test_every_rank_enters_and_leaves_save(pair: list[Any]) -> None:
    for rank in range(2):
        found = pair[rank]["save"]
        assert found["written"].name == "step_000001"
        assert "no space left on device" in found["error"]
        assert found["latest"] == found["written"]


def test_uneven_micro_batches_give_the_token_mean_of_the_minibatch() -> None:
    engine = engine_of(Plain(clip=None))
    tokens, mask = batch()
    for rows in torch.arange(ROWS).tensor_split(3):  # of 9, 4 and 6 tokens
        engine.backward(-(mask[rows] / mask.sum() * engine(tokens[rows])).sum())
    for parameter, expected in zip(engine.module.parameters(), gradient(), strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_layout_does_not_change_the_reward_loss(pair: list[Any]) -> None:
    from tests.trainers import toy

    model, rows = toy.scalar("reward").double(), toy.preference_set()

    def score(text: Any) -> Tensor:
        tokens = torch.tensor([text.tokens])
        return model(tokens, torch.ones_like(tokens, dtype=torch.bool))[0, -1]

    losses = [
        softplus(score(bad) - score(good)) for good, bad in zip(rows.chosen, rows.rejected, strict=True)
    ]
    expected = torch.stack(losses).mean().item()
    for rank in range(2):
        for layout, loss in pair[rank]["reward"].items():
            assert loss == pytest.approx(expected, rel=1e-5), layout
    assert reward_loss(toy, Plain(), 5) == pytest.approx(expected, rel=1e-5)


def test_whitening_uses_every_rank(pair: list[Any]) -> None:
    from tests.trainers import toy

    shares = [pair[rank]["whitened"] for rank in range(2)]
    together = torch.cat(shares).double()
    assert float(together.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(together.std(correction=0)) == pytest.approx(1.0, rel=1e-6)
    assert min(abs(float(share.mean())) for share in shares) > 0.01  # neither rank's mean is 0 by itself
    alone = whitened(toy)
    torch.testing.assert_close(together.float().sort().values, alone.sort().values, rtol=0, atol=1e-5)
