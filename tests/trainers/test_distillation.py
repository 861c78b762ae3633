"""Distillation through its trainer, against rows that are compared one by one on their whole logits."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.divergences import Divergence, ForwardKL, JensenShannon, ReverseKL
from rlhf.algorithms.mixtures import Constant, Geometric, Linear
from rlhf.batch import Rollout
from rlhf.distributed import checkpoints, collectives
from rlhf.distributed.engine_config import EngineConfig, Plain, ZeRO
from rlhf.ops.divergences import Diverged
from rlhf.run_folder import RunFolder
from rlhf.trainers.faults import NonFinite
from rlhf.trainers.loop import Cadence, run

TIMINGS = ("time/", "throughput/", "memory/")


def mean(metrics: Any, name: str) -> float:
    total, count = metrics.pairs[name]
    return total / count


def own_logits(actor: Any, rollout: Rollout, row: int) -> Tensor:
    """(t, V) logits before each token of one response, from transformers, alone and unpadded."""
    tokens = rollout.tokens[row][rollout.attention_mask[row]]
    length = int(rollout.lengths[row])
    return actor.model(input_ids=tokens[None]).logits[0, -length - 1 : -1]


def definition(divergence: Divergence, p: Tensor, q: Tensor) -> Tensor:
    """(t,) with probabilities of student and teacher."""
    forward, reverse = (q * (q / p).log()).sum(-1), (p * (p / q).log()).sum(-1)
    if isinstance(divergence, JensenShannon):
        m = divergence.beta * q + (1 - divergence.beta) * p
        to_teacher, to_student = (q * (q / m).log()).sum(-1), (p * (p / m).log()).sum(-1)
        return divergence.beta * to_teacher + (1 - divergence.beta) * to_student
    return forward if isinstance(divergence, ForwardKL) else reverse


def expected_tokens(trainer: Any, rollout: Rollout) -> dict[str, Tensor]:
    """(tokens of all responses,) what both models say of each."""
    student, teacher = trainer.models.student.module, trainer.models.teacher.module
    found: dict[str, list[Tensor]] = {}
    for row in range(len(rollout)):
        p, q = (
            (own_logits(actor, rollout, row).double() / trainer.temperature).softmax(-1)
            for actor in (student, teacher)
        )
        numbers = {
            "loss": definition(trainer.divergence, p, q),
            "actor/kl_teacher_forward": definition(ForwardKL(), p, q),
            "actor/kl_teacher_reverse": definition(ReverseKL(), p, q),
            "actor/entropy": -(p * p.log()).sum(-1),
            "teacher/entropy": -(q * q.log()).sum(-1),
        }
        for name, values in numbers.items():
            found.setdefault(name, []).append(values)
    return {name: torch.cat(values) for name, values in found.items()}


def gradient_norm(loss: Tensor, module: Any) -> float:
    module.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm()
    module.zero_grad(set_to_none=True)
    return float(norm)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), JensenShannon(beta=0.3)])
def test_a_step_descends_the_mean_divergence_over_the_tokens_of_the_responses(
    toy: ModuleType, divergence: Divergence, packed: bool
) -> None:
    trainer = toy.distillation(
        divergence=divergence,
        mixture=Constant(beta=0.5),
        engine=Plain(clip=None),
        micro_batch=3,
        temperature=1.3,
        packed=packed,
    )
    rollout = trainer.collect().rollout
    assert len(set(rollout.lengths.tolist())) > 1
    expected = expected_tokens(trainer, rollout)
    norm = gradient_norm(expected["loss"].mean(), trainer.models.student.module)
    metrics = trainer.step()
    for name, values in expected.items():
        assert mean(metrics, name) == pytest.approx(values.mean().item(), rel=1e-4), name
        assert metrics.pairs[name][1] == int(rollout.lengths.sum())
    assert mean(metrics, "actor/grad_norm") == pytest.approx(norm, rel=1e-4)
    assert mean(metrics, "rollout/length") == pytest.approx(rollout.lengths.double().mean().item())
    assert mean(metrics, "rollout/ended_fraction") == pytest.approx(rollout.ended.double().mean().item())


class One(ForwardKL):
    """Each token costs 1."""

    def __call__(self, student: Tensor, teacher: Tensor) -> Diverged:
        return Diverged(torch.ones_like(student[..., 0]), torch.zeros_like(student))


def test_denominator_counts_exactly_the_tokens_in_the_loss(toy: ModuleType) -> None:
    """TRL#6478: the prompt, padding and what follows the end token are in no denominator."""
    trainer = toy.distillation(divergence=One(), micro_batch=3)
    losses: list[float] = []
    student = trainer.models.student
    backward = student.backward

    def noted(loss: Tensor) -> None:
        losses.append(float(loss.detach()))
        backward(loss)

    student.backward = noted
    trainer.step()
    assert len(losses) == 3
    assert sum(losses) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), JensenShannon()])
def test_a_student_that_is_its_teacher_stays(toy: ModuleType, divergence: Divergence) -> None:
    trainer = toy.distillation(divergence=divergence, teacher=toy.actor("student"))
    before = toy.parameters(trainer.models.student)
    metrics = trainer.step()
    assert mean(metrics, "loss") == 0
    assert mean(metrics, "actor/grad_norm") == 0
    assert toy.equal(before, toy.parameters(trainer.models.student))


def test_the_mixture_says_who_writes(toy: ModuleType) -> None:
    shares = {}
    for beta in (0.0, 0.3, 1.0):
        trainer = toy.distillation(mixture=Constant(beta=beta), prompts=40, batch_size=40)
        own = trainer.collect()
        shares[beta] = own.by_teacher[own.rollout.mask].double().mean().item()
        assert not own.by_teacher[~own.rollout.mask].any()
        assert mean(trainer.step(), "rollout/teacher_fraction") == pytest.approx(shares[beta])
    assert shares[0.0] == 0
    assert shares[1.0] == 1
    assert 0.15 < shares[0.3] < 0.45  # of some 150 tokens: ± 4 standard errors


def test_rounds_follow_the_schedule_of_the_mixture(toy: ModuleType) -> None:
    trainer = toy.distillation(mixture=Linear(rounds=1), prompts=16, batch_size=16)
    shares = [mean(trainer.step(), "rollout/teacher_fraction") for _ in range(3)]
    assert shares == [1, 0, 0]


def test_a_teacher_that_is_to_write_must_be_there(toy: ModuleType) -> None:
    trainer = toy.distillation(mixture=Constant(beta=0.5))
    trainer.models.sampling_teacher = None
    with pytest.raises(ValueError, match=r"the teacher is to write 0\.5 of round 1, and there is no copy"):
        trainer.step()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("packed", [False, True])
def test_sampler_and_scorer_are_one_policy_whoever_wrote(toy: ModuleType, beta: float, packed: bool) -> None:
    trainer = toy.distillation(mixture=Constant(beta=beta), packed=packed, keep_rounds=None, steps=2)
    for _ in range(2):
        metrics = trainer.step()
        assert metrics.maxima["ledger/logprob_gap_max"] < 1e-4
        assert mean(metrics, "ledger/logprob_gap_mean") < 1e-5


def test_at_another_temperature_than_the_samplers_there_is_no_ledger(toy: ModuleType) -> None:
    metrics = toy.distillation(temperature=2.0).step()
    assert not [name for name in (*metrics.pairs, *metrics.maxima) if name.startswith("ledger/")]


@pytest.mark.parametrize(("keep", "expected"), [(1, [8, 8, 8]), (2, [8, 16, 16]), (None, [8, 16, 24])])
def test_as_many_rounds_are_kept_as_wanted(toy: ModuleType, keep: int | None, expected: list[int]) -> None:
    trainer = toy.distillation(keep_rounds=keep)
    assert [mean(trainer.step(), "rollout/kept") for _ in range(3)] == expected


def test_every_kept_row_is_visited_once_before_one_comes_again(toy: ModuleType) -> None:
    trainer = toy.distillation(keep_rounds=None, steps=5, batch_size=4, prompts=10, total=9)
    trainer.step()
    trainer.rounds.add(trainer.collect())  # 20 rows
    orders = [
        [group for batch in trainer.rounds.batches(number, 5, 4) for group in batch.rollout.group.tolist()]
        for number in (1, 1, 2)
    ]
    assert [sorted(order) for order in orders] == [list(range(20))] * 3
    assert orders[0] == orders[1] != orders[2]  # the order is the round's


def test_training_brings_the_student_near(toy: ModuleType) -> None:
    for divergence in (ForwardKL(), ReverseKL(), JensenShannon()):
        trainer = toy.distillation(
            divergence=divergence, prompts=16, batch_size=16, micro_batch=16, total=60, lr=0.03
        )
        losses = [mean(trainer.step(), "loss") for _ in range(60)]
        assert sum(losses[-5:]) < 0.6 * sum(losses[:5]), divergence


def test_evaluation_is_of_the_student_alone_and_changes_nothing(toy: ModuleType) -> None:
    held_out = toy.prompt_set(6, "held out")
    first, second = (toy.distillation(mixture=Constant(beta=1.0), test=held_out) for _ in range(2))
    metrics = first.evaluate()
    assert metrics.pairs == first.evaluate().pairs
    assert mean(metrics, "eval/loss") > 0
    assert mean(metrics, "eval/loss") == mean(metrics, "eval/actor/kl_teacher_forward")
    assert metrics.pairs["eval/rollout/length"][1] == 6
    first.step(), second.step()
    assert toy.equal(toy.parameters(first.models.student), toy.parameters(second.models.student))
    assert toy.distillation().evaluate().pairs == {}


def test_samples_show_both_kls_before_the_student_moves(toy: ModuleType) -> None:
    trainer = toy.distillation()
    rollout = trainer.collect().rollout
    expected = expected_tokens(trainer, rollout)["actor/kl_teacher_reverse"]
    first = float(expected[: int(rollout.lengths[0])].sum().detach())
    trainer.step()
    shown = trainer.samples()
    assert len(shown) == 4
    assert shown[0].keys() == {"prompt", "response", "ended", "kl_forward", "kl_reverse"}
    assert shown[0]["kl_reverse"] == pytest.approx(first, rel=1e-4)


def poisoned(toy: ModuleType) -> Any:
    teacher = toy.actor("teacher", toy.TEACHER)
    teacher.model.transformer.ln_f.bias.data[0] = float("nan")
    return teacher


def test_a_teacher_that_is_not_finite_stops_the_run(toy: ModuleType) -> None:
    trainer = toy.distillation(teacher=poisoned(toy))
    before = toy.parameters(trainer.models.student)
    with pytest.raises(FloatingPointError, match=r"round 1: the (student|teacher)'s log-prob of token 0 of "):
        trainer.step()
    assert toy.equal(before, toy.parameters(trainer.models.student))


def test_or_its_steps_are_skipped(toy: ModuleType) -> None:
    trainer = toy.distillation(teacher=poisoned(toy), non_finite=NonFinite.skip)
    before = toy.parameters(trainer.models.student)
    metrics = trainer.step()
    assert "loss" not in metrics.pairs
    assert mean(metrics, "faults/skipped_steps") == 1
    assert toy.equal(before, toy.parameters(trainer.models.student))


# Layout and resuming


def played(trainer: Any, path: Path, *, resume: bool) -> dict[str, Any]:
    folder = RunFolder(path, writes=collectives.is_main())
    collectives.on_main(lambda: folder.claim("", resume=resume))
    run(trainer, folder, Cadence(evaluate_every=1, checkpoint_every=1, keep_checkpoints=9), resume=resume)
    folder.close()
    collectives.barrier()
    rows = [json.loads(line) for line in (path / "metrics.jsonl").open()]
    return {
        "weights": trainer.models.student.state(),
        "metrics": [{n: v for n, v in row.items() if not n.startswith(TIMINGS)} for row in rows],
        "samples": (path / "samples.jsonl").read_text(),
    }


@pytest.mark.parametrize("keep", [1, 3, None])
def test_continuing_is_bitwise_the_same_as_not_stopping(
    toy: ModuleType, tmp_path: Path, keep: int | None
) -> None:
    def build() -> Any:
        return toy.distillation(
            mixture=Geometric(decay=0.6),
            keep_rounds=keep,
            steps=2,
            batch_size=6,
            test=toy.prompt_set(4, "held out"),
            total=4,
        )

    whole = played(build(), tmp_path / "whole", resume=False)
    for later in (3, 4):
        shutil.rmtree(tmp_path / "whole" / "checkpoints" / f"step_{later:06d}")
    again = played(build(), tmp_path / "whole", resume=True)
    assert len(again["metrics"]) == 4
    assert again["metrics"] == whole["metrics"]
    assert again["samples"] == whole["samples"]
    assert toy.equal(again["weights"], whole["weights"])


ENGINES: dict[str, EngineConfig] = {
    "plain": Plain(),
    "zero2": ZeRO(stage=2),
    "zero3": ZeRO(stage=3, persistence_threshold=0),
}
LR = 1e-3


def first_rounds(toy: ModuleType, engine: EngineConfig, *, packed: bool) -> dict[str, Any]:
    """Two rounds, all rows in each step, so that the order of rows does not matter; numbers of both."""
    trainer = toy.distillation(
        divergence=JensenShannon(),
        mixture=Linear(rounds=4),
        engine=engine,
        keep_rounds=None,
        test=toy.prompt_set(8, "held out"),
        lr=LR,
        samples=2,
        batch_size=16,
        total=4,
        packed=packed,
    )
    found = []
    for _ in range(2):
        metrics = trainer.evaluate()
        metrics.merge(trainer.step())
        found.append(metrics.reduce(collectives.all_sum, collectives.all_max))
    rows = trainer.rounds._kept[-1].rollout
    return {"metrics": found, "state": trainer.models.student.state(), "rows": (rows.group, rows.tokens)}


def work(folder: Path) -> dict[str, Any]:
    """What each of two ranks finds."""
    from tests.trainers import toy

    found: dict[str, Any] = {
        name: first_rounds(toy, engine, packed=name != "zero2") for name, engine in ENGINES.items()
    }
    found["resumed"] = resumed(toy, ENGINES["zero3"], folder / "zero3")
    return found


def resumed(toy: ModuleType, engine: EngineConfig, folder: Path) -> list[dict[str, Tensor]]:
    """Weights after three rounds at once, and after one, a checkpoint and two more."""
    whole, stopped, continued = (
        toy.distillation(mixture=Constant(beta=0.5), engine=engine, keep_rounds=2) for _ in range(3)
    )
    for _ in range(3):
        whole.step()
    stopped.step()
    continued.load(checkpoints.write(folder, 1, stopped.save, keep=1))
    for _ in range(2):
        continued.step()
    return [trainer.models.student.state() for trainer in (whole, continued)]


@pytest.fixture(scope="module")
def found(two_ranks: Callable[[str, str], list[Any]]) -> list[Any]:
    return two_ranks(__file__, "work")


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_do_what_one_does(found: list[Any], toy: ModuleType, engine: str) -> None:
    both, alone = found[0][engine], first_rounds(toy, Plain(), packed=False)
    assert torch.equal(both["rows"][0], alone["rows"][0])
    assert torch.equal(both["rows"][1], alone["rows"][1])
    for one, other, expected in zip(
        both["metrics"], found[1][engine]["metrics"], alone["metrics"], strict=True
    ):
        assert one == other
        assert one.keys() == expected.keys()
        for name, value in expected.items():
            if not name.startswith(TIMINGS) and "ledger" not in name:
                assert one[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name, tensor in alone["state"].items():
        # Adam turns the rounding of a gradient near 0 into some thousandths of the learning rate.
        torch.testing.assert_close(both["state"][name], tensor, rtol=1e-5, atol=1e-2 * LR, msg=name)


def test_two_ranks_continue_bitwise(found: list[Any], toy: ModuleType) -> None:
    whole, continued = found[0]["resumed"]
    assert toy.equal(whole, continued)


def test_micro_batches_and_packing_do_not_change_the_update(toy: ModuleType) -> None:
    updates = []
    for layout in ({}, {"micro_batch": 8}, {"micro_batch": 1}, {"packed": True}, {"micro_batch_tokens": 20}):
        trainer = toy.distillation(mixture=Constant(beta=0.5), lr=LR, **layout)
        trainer.step()
        updates.append(copy.deepcopy(trainer.models.student.module.state_dict()))
    for other in updates[1:]:
        for name, tensor in updates[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-2 * LR, msg=name)


def test_recomputing_activations_changes_nothing(toy: ModuleType) -> None:
    states = []
    for checkpointing in (False, True):
        trainer = toy.distillation(gradient_checkpointing=checkpointing)
        trainer.step()
        states.append(trainer.models.student.module.state_dict())
    assert toy.equal(*states)
