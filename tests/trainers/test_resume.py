"""N steps are k steps, a new process and N - k steps, bit for bit, whatever was looked at on the way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rlhf.algorithms.kl import AdaptiveKLInReward
from rlhf.distributed import checkpoints, collectives
from rlhf.distributed.engine_config import EngineConfig, Plain, ZeRO
from rlhf.run_folder import RunFolder
from rlhf.trainers.loop import Cadence, run

STEPS = 4
ENGINES: dict[str, EngineConfig] = {
    "plain": Plain(),
    **{f"zero{stage}": ZeRO(stage=stage, persistence_threshold=0) for stage in (1, 2, 3)},
}
STAGES = ("supervised", "reward_model", "preference", "kto", "ppo")
EVERY = [(stage, engine) for stage in STAGES for engine in ENGINES]
SOME = [
    ("supervised", "zero2"),
    ("reward_model", "zero1"),
    ("preference", "zero2"),
    ("kto", "zero3"),
    ("ppo", "plain"),
    ("ppo", "zero2"),
    ("ppo", "zero3"),
]
TIMINGS = ("time/", "throughput/", "memory/")


def build(toy: ModuleType, stage: str, engine: str) -> Any:
    """A run over data whose epochs end inside a step, with rows held out."""
    if stage != "ppo":
        names = {"supervised": "supervised_set", "kto": "labelled_set", "reward_model": "ranking_set"}
        rows = getattr(toy, names.get(stage, "preference_set"))
        return getattr(toy, stage)(
            engine=ENGINES[engine], batch_size=10, test=rows(6, "held out"), total=STEPS, lr=3e-3
        )
    return toy.policy_gradient(
        toy.ppo(kl=AdaptiveKLInReward(target=0.1, horizon=50)),
        engine=ENGINES[engine],
        reference=toy.actor("reference"),
        test=toy.prompt_set(4, "held out"),
        total=STEPS,
    )


def engines(trainer: Any) -> list[Any]:
    return [trainer.engine] if hasattr(trainer, "engine") else [trainer.models.actor, trainer.models.critic]


def outcome(trainer: Any, folder: Path) -> dict[str, Any]:
    """Everything that a run leaves behind, but for timings."""
    return {
        "weights": [engine.state() for engine in engines(trainer)],
        "learning rates": [engine.lr for engine in engines(trainer)],
        "state": trainer.state if hasattr(trainer, "state") else trainer.done,
        "metrics": logged(folder / "metrics.jsonl"),
        "samples": logged(folder / "samples.jsonl"),
    }


def logged(file: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.open()] if file.exists() else []
    return [{name: row[name] for name in row if not name.startswith(TIMINGS)} for row in rows]


def played(trainer: Any, path: Path, cadence: Cadence, *, resume: bool) -> dict[str, Any]:
    folder = RunFolder(path, writes=collectives.is_main())
    collectives.on_main(lambda: folder.claim("", resume=resume))
    run(trainer, folder, cadence, resume=resume)
    folder.close()
    collectives.barrier()
    return outcome(trainer, path)


def compared(
    toy: ModuleType, stage: str, engine: str, folder: Path, stops: tuple[int, ...]
) -> dict[str, Any]:
    """The uninterrupted run, one that was never looked at, and one continued after each of ``stops``."""
    rarely = Cadence(evaluate_every=0, checkpoint_every=0)
    often = Cadence(evaluate_every=1, checkpoint_every=1, keep_checkpoints=STEPS)
    found = {"unseen": played(build(toy, stage, engine), folder / "unseen", rarely, resume=False)}
    found["whole"] = played(build(toy, stage, engine), folder / "whole", often, resume=False)
    for stop in stops:
        copied = folder / f"stopped {stop}"
        collectives.on_main(lambda copied=copied, stop=stop: stopped(folder / "whole", copied, stop))
        found[stop] = played(build(toy, stage, engine), copied, often, resume=True)
    return found


def stopped(whole: Path, copied: Path, stop: int) -> None:
    """The run's folder as a process leaves it that is killed in the step after ``stop``."""
    shutil.copytree(whole, copied, ignore=shutil.ignore_patterns("model", "tensorboard"))
    for later in range(stop + 1, STEPS + 1):
        shutil.rmtree(copied / "checkpoints" / f"step_{later:06d}")
    for name in ("metrics.jsonl", "samples.jsonl"):
        rows = (copied / name).read_text().splitlines(keepends=True)
        kept = [row for row in rows if json.loads(row)["step"] <= stop + 1]
        (copied / name).write_text("".join(kept)[:-3])  # and it was writing its last line
    (copied / "checkpoints" / f".step_{stop + 1:06d}.partial").mkdir()


def expect_equal(one: dict[str, Any], other: dict[str, Any], *, evaluated: bool = True) -> None:
    for mine, yours in zip(one["weights"], other["weights"], strict=True):
        assert mine.keys() == yours.keys()
        assert all(torch.equal(mine[name], yours[name]) for name in mine)
    for name in ("learning rates", "state", "samples"):
        assert one[name] == other[name], name
    for mine, yours in zip(one["metrics"], other["metrics"], strict=True):
        names = mine if evaluated else [name for name in mine if not name.startswith("eval/")]
        assert {name: mine[name] for name in names} == {name: yours[name] for name in names}


def work(folder: Path) -> dict[str, Any]:
    from tests.trainers import toy

    return {
        f"{stage} {name}": compared(toy, stage, name, folder / f"{stage} {name}", (1,))
        for stage, name in SOME
    }


def work_on_everything(folder: Path) -> dict[str, Any]:
    from tests.trainers import toy

    return {
        f"{stage} {name}": compared(toy, stage, name, folder / f"{stage} {name}", (1, 2, 3))
        for stage, name in EVERY
    }


@pytest.fixture(scope="module")
def pair(two_ranks: Callable[[str, str], list[Any]]) -> Any:
    return two_ranks(__file__, "work")[0]


@pytest.fixture(scope="module")
def everything(two_ranks: Callable[[str, str], list[Any]]) -> Any:
    return two_ranks(__file__, "work_on_everything")[0]


@pytest.mark.parametrize("stage", STAGES)
def test_one_rank_continues_bitwise_and_is_not_changed_by_looking(
    toy: ModuleType, stage: str, tmp_path: Path
) -> None:
    found = compared(toy, stage, "plain", tmp_path, (1, 2, 3))
    assert len(found["whole"]["metrics"]) == STEPS
    expect_equal(found["unseen"], found["whole"], evaluated=False)
    for stop in (1, 2, 3):
        expect_equal(found[stop], found["whole"])


@pytest.mark.parametrize(("stage", "engine"), SOME)
def test_two_ranks_continue_bitwise_and_are_not_changed_by_looking(
    pair: Any, stage: str, engine: str
) -> None:
    found = pair[f"{stage} {engine}"]
    expect_equal(found["unseen"], found["whole"], evaluated=False)
    expect_equal(found[1], found["whole"])


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "engine"), EVERY)
def test_every_engine_continues_bitwise_on_two_ranks(everything: Any, stage: str, engine: str) -> None:
    found = everything[f"{stage} {engine}"]
    expect_equal(found["unseen"], found["whole"], evaluated=False)
    for stop in (1, 2, 3):
        expect_equal(found[stop], found["whole"])


def test_a_flipped_byte_sends_the_run_back_to_the_checkpoint_before(
    toy: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = compared(toy, "ppo", "plain", tmp_path, ())
    copied = tmp_path / "flipped"
    stopped(tmp_path / "whole", copied, 3)
    file = copied / "checkpoints" / "step_000003" / "critic" / "part_0.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    again = played(build(toy, "ppo", "plain"), copied, Cadence(evaluate_every=1), resume=True)
    assert f"{file} differs from its sha256" in caplog.text
    assert f"continuing from {copied / 'checkpoints' / 'step_000002'}" in caplog.text
    expect_equal(again, found["whole"])
    assert checkpoints.latest(copied / "checkpoints") == copied / "checkpoints" / "step_000002"
