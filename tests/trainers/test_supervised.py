import copy
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.distributed.engine_config import Plain
from rlhf.trainers.schedules import Cosine

EPS = 1e-5


def own_loss(model: Any, rows: Any) -> Tensor:
    """Mean −log p over the targets: each text alone, unpadded, through transformers' own forward."""
    losses = []
    for row in rows.encoded:
        logprobs = model.model(torch.tensor([row.tokens])).logits[0].log_softmax(-1)
        positions = [position for position, target in enumerate(row.targets) if target]
        losses += [-logprobs[position - 1, row.tokens[position]] for position in positions]
    return torch.stack(losses).mean()


def mean(metrics: Any, name: str) -> float:
    total, count = metrics.pairs[name]
    return total / count


@pytest.mark.parametrize("source", ["LLAMA", "GPT2"])
def test_loss_is_minus_the_mean_logprob_of_the_targets(toy: ModuleType, source: str) -> None:
    trainer = toy.supervised(source=getattr(toy, source), batch_size=12, micro_batch_size=5)
    expected = own_loss(trainer.engine.module, trainer.train)
    assert mean(trainer.step(), "loss") == pytest.approx(float(expected.detach()), rel=1e-6)


def test_step_is_the_adam_step_of_that_loss(toy: ModuleType) -> None:
    trainer = toy.supervised(engine=Plain(clip=None), batch_size=12, lr=1e-3)
    before = copy.deepcopy(trainer.engine.module)
    own_loss(before, trainer.train).backward()
    metrics = trainer.step()
    for (name, start), after in zip(
        before.named_parameters(), trainer.engine.module.parameters(), strict=True
    ):
        moved = start - 1e-3 * start.grad / (start.grad.abs() + EPS)  # Adam's first step
        # A gradient off by 1e-8 moves g / (|g| + eps) by up to 1e-3.
        torch.testing.assert_close(after, moved, rtol=0, atol=2e-6, msg=lambda text, name=name: name + text)
    norm = torch.cat([parameter.grad.flatten() for parameter in before.parameters()]).norm()
    assert mean(metrics, "actor/grad_norm") == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize("micro", [1, 4, 6])
def test_micro_batches_do_not_change_the_update(toy: ModuleType, micro: int) -> None:
    updated, losses = [], []
    for size in (2, micro):  # of 6 rows: in threes, one by one, four and two, at once
        trainer = toy.supervised(batch_size=6, micro_batch_size=size, lr=1e-3)
        losses.append(mean(trainer.step(), "loss"))
        updated.append(toy.parameters(trainer.engine))
    torch.testing.assert_close(updated[0], updated[1], rtol=0, atol=1e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_targets_alone_reach_the_head(toy: ModuleType) -> None:
    trainer = toy.supervised(batch_size=12, micro_batch_size=12)
    states: list[Tensor] = []

    def watch(_head: Any, inputs: tuple[Tensor, ...], _output: Any) -> None:
        inputs[0].retain_grad()
        states.append(inputs[0])

    trainer.engine.module.head.register_forward_hook(watch)
    batch = trainer._next_batch()
    trainer.step()
    (state,) = states
    assert state.grad is not None
    assert len(state) == int(batch.mask[:, 1:].sum()) < int(batch.attention_mask[:, 1:].sum())
    assert (state.grad != 0).any(1).all()


def test_pad_is_never_read(toy: ModuleType) -> None:
    losses = []
    for pad in (toy.PAD, 999):
        rows = toy.supervised_set()
        rows.pad_id = pad
        losses.append(mean(toy.supervised(train=rows).step(), "loss"))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("micro", [1, 2, 5, 7])
def test_evaluation_counts_each_row_once(toy: ModuleType, micro: int) -> None:
    held_out = toy.supervised_set(7, "held out")
    trainer = toy.supervised(test=held_out, micro_batch_size=micro)
    metrics = trainer.evaluate()
    assert mean(metrics, "eval/loss") == pytest.approx(
        float(own_loss(trainer.engine.module, held_out).detach()), rel=1e-6
    )
    assert metrics.pairs["eval/loss"][1] == sum(sum(row.targets) for row in held_out.encoded)


def test_evaluation_changes_nothing(toy: ModuleType) -> None:
    first, second = (toy.supervised(test=toy.supervised_set(5, "held out")) for _ in range(2))
    first.evaluate()
    first.step(), second.step()
    assert toy.equal(toy.parameters(first.engine), toy.parameters(second.engine))


def test_without_held_out_rows_nothing_is_evaluated(toy: ModuleType) -> None:
    assert toy.supervised().evaluate().pairs == {}


def test_steps_visit_every_row_once_an_epoch(toy: ModuleType) -> None:
    trainer = toy.supervised(batch_size=4)  # of 12 rows
    seen = []
    for _ in range(3):
        seen += trainer._next_batch().tokens.tolist()
        trainer.done += 1
    texts = sorted(tuple(token for token in row if token != toy.PAD) for row in seen)
    assert texts == sorted(tuple(row.tokens) for row in trainer.train.encoded)


def test_schedule_sets_the_learning_rate_of_every_step(toy: ModuleType) -> None:
    trainer = toy.supervised(total=5, lr=0.01)
    rates = [mean(trainer.step(), "actor/lr") for _ in range(5)]
    assert rates == pytest.approx([0.01, 0.008, 0.006, 0.004, 0.002])


def test_continuing_is_bitwise_the_same_as_not_stopping(toy: ModuleType, tmp_path: Path) -> None:
    schedule = Cosine(warmup=0.3)
    whole, stopped, resumed = (toy.supervised(total=5, schedule=schedule) for _ in range(3))
    expected = [mean(whole.step(), "loss") for _ in range(5)]
    losses = [mean(stopped.step(), "loss") for _ in range(2)]
    stopped.save(tmp_path)
    resumed.load(tmp_path)
    assert resumed.done == 2
    losses += [mean(resumed.step(), "loss") for _ in range(3)]
    assert losses == expected
    assert toy.equal(toy.parameters(resumed.engine), toy.parameters(whole.engine))


def test_recomputing_activations_changes_memory_and_not_the_update(toy: ModuleType) -> None:
    updated, forwards = [], []
    for checkpointing in (False, True):
        trainer = toy.supervised(gradient_checkpointing=checkpointing)
        trainer.engine.module.eval()  # as a model read from a folder comes
        trainer = rebuilt(trainer)
        calls: list[int] = []
        trainer.engine.module.model.model.layers[0].mlp.register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        trainer.step()
        forwards.append(len(calls))
        updated.append(toy.parameters(trainer.engine))
    assert forwards == [2, 4]  # once more in each of the two backward passes
    assert toy.equal(updated[0], updated[1])


def rebuilt(trainer: Any) -> Any:
    return type(trainer)(
        engine=trainer.engine,
        train=trainer.train,
        test=None,
        schedule=trainer.schedule,
        batch_size=trainer.batch_size,
        micro_batch_size=trainer.cut.rows,
        total=trainer.total,
        seed=trainer.seed,
        runtime=trainer.runtime,
        export=trainer.export,
    )


def test_time_is_accounted_for(toy: ModuleType) -> None:
    metrics = toy.supervised().step()
    parts = [
        mean(metrics, name) for name in metrics.pairs if name.startswith("time/") and name != "time/step"
    ]
    assert sum(parts) == pytest.approx(mean(metrics, "time/step"))


def test_headline_shows_the_held_out_perplexity(toy: ModuleType) -> None:
    trainer = toy.supervised()
    assert trainer.headline({"loss": 1.25}) == "loss 1.250"
    line = trainer.headline({"loss": 1.25, "eval/loss": math.log(7)})
    assert line == "loss 1.250, held-out perplexity 7.0"


def test_this_stage_samples_nothing(toy: ModuleType) -> None:
    assert toy.supervised().samples() == []
