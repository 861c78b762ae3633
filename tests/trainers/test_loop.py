import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rlhf.distributed import checkpoints
from rlhf.metrics import Metrics
from rlhf.run_folder import RunFolder
from rlhf.trainers.loop import Cadence, Interrupted, run


class Counting:
    """A stage whose step is to count; ``at`` says what else happens in a step."""

    def __init__(self, total: int, at: Mapping[int, Callable[[], None]] | None = None) -> None:
        self.total, self.done, self.at, self.evaluated = total, 0, at or {}, []  # type: ignore[var-annotated]

    def step(self) -> Metrics:
        self.done += 1
        self.at.get(self.done, lambda: None)()
        metrics = Metrics()
        metrics.value("loss", 10.0 * self.done)
        return metrics

    def evaluate(self) -> Metrics:
        self.evaluated.append(self.done)
        metrics = Metrics()
        metrics.value("eval/loss", -self.done)
        return metrics

    def samples(self) -> list[dict[str, object]]:
        return [{"response": f"text {self.done}"}]

    def headline(self, metrics: Mapping[str, float]) -> str:
        return f"loss {metrics['loss']:.0f}"

    def save(self, folder: Path) -> None:
        (folder / "count").write_text(str(self.done))

    def load(self, folder: Path) -> None:
        self.done = int((folder / "count").read_text())

    def export(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "count").write_text(str(self.done))


def folder_of(path: Path, *, resume: bool = False) -> RunFolder:
    folder = RunFolder(path)
    folder.claim("", resume=resume)
    return folder


def lines(path: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


def kept(path: Path) -> list[str]:
    return sorted(folder.name for folder in (path / "checkpoints").iterdir())


def stop(number: int = signal.SIGTERM) -> Callable[[], None]:
    return lambda: signal.raise_signal(number)


def test_every_step_is_logged_and_the_model_exported(tmp_path: Path) -> None:
    run(Counting(3), folder_of(tmp_path), Cadence(evaluate_every=0), resume=False)
    assert lines(tmp_path) == [
        {"step": 1, "loss": 10.0},
        {"step": 2, "loss": 20.0},
        {"step": 3, "loss": 30.0, "eval/loss": -3.0},  # the last step is always evaluated
    ]
    assert [row["response"] for row in lines(tmp_path, "samples.jsonl")] == ["text 1", "text 2", "text 3"]
    assert (tmp_path / "model" / "count").read_text() == "3"


def test_evaluation_and_checkpoints_come_when_due(tmp_path: Path) -> None:
    trainer = Counting(7)
    cadence = Cadence(evaluate_every=3, checkpoint_every=2, keep_checkpoints=2)
    run(trainer, folder_of(tmp_path), cadence, resume=False)
    assert trainer.evaluated == [3, 6, 7]
    assert kept(tmp_path) == ["step_000004", "step_000006"]  # the newest two of 2, 4, 6


def test_without_a_cadence_no_checkpoint_is_written(tmp_path: Path) -> None:
    run(Counting(3), folder_of(tmp_path), Cadence(checkpoint_every=0), resume=False)
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_is_continued_after_its_last_checkpoint(tmp_path: Path) -> None:
    def crash() -> None:
        raise RuntimeError("the machine is gone")

    cadence = Cadence(checkpoint_every=2, evaluate_every=0)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        run(Counting(6, {6: crash}), folder_of(tmp_path), cadence, resume=False)
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4, 5]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "los')  # the process died while it wrote
    trainer = Counting(6)
    run(trainer, folder_of(tmp_path, resume=True), cadence, resume=True)
    assert trainer.done == 6
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert [row["step"] for row in lines(tmp_path, name)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_writes_a_checkpoint_and_stops(tmp_path: Path, number: int) -> None:
    before = signal.getsignal(number)
    trainer = Counting(9, {3: stop(number)})
    with pytest.raises(
        Interrupted, match=r"stopped by SIG\w+; continue with resume=true \(.*step_000003\)"
    ) as told:
        run(trainer, folder_of(tmp_path), Cadence(checkpoint_every=0), resume=False)
    assert told.value.number == number  # the process ends with 128 + this
    assert trainer.done == 3
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3]
    assert kept(tmp_path) == ["step_000003"]
    assert not (tmp_path / "model").exists()
    assert signal.getsignal(number) is before


def test_a_second_signal_acts_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        stop(signal.SIGINT)()
        stop(signal.SIGINT)()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for background jobs
    try:
        with pytest.raises(KeyboardInterrupt):
            run(Counting(9, {2: twice}), folder_of(tmp_path), Cadence(), resume=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [row["step"] for row in lines(tmp_path)] == [1]


def test_a_signal_in_the_last_step_leaves_only_the_export_to_be_done(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(Counting(2, {2: stop()}), folder_of(tmp_path), Cadence(), resume=False)
    trainer = Counting(2)
    run(trainer, folder_of(tmp_path, resume=True), Cadence(), resume=True)
    assert (tmp_path / "model" / "count").read_text() == "2"
    assert len(lines(tmp_path)) == 2


@pytest.mark.parametrize("stage", ["supervised", "reward_model", "preference", "kto", "policy_gradient"])
def test_an_interrupted_run_ends_bitwise_where_an_uninterrupted_one_does(
    toy: ModuleType, stage: str, tmp_path: Path
) -> None:
    cadence = Cadence(evaluate_every=2, checkpoint_every=0)
    build = getattr(toy, stage)
    run(build(total=4), folder_of(tmp_path / "whole"), cadence, resume=False)
    interrupted = build(total=4)
    step = interrupted.step

    def interrupting() -> Metrics:
        if interrupted.done == 1:
            stop()()
        return step()

    interrupted.step = interrupting
    with pytest.raises(Interrupted):
        run(interrupted, folder_of(tmp_path / "stopped"), cadence, resume=False)
    run(build(total=4), folder_of(tmp_path / "stopped", resume=True), cadence, resume=True)
    whole, stopped = (torch.load(tmp_path / name / "model" / "state.pt") for name in ("whole", "stopped"))
    assert toy.equal(whole, stopped)
    logged = [
        [{key: row[key] for key in row if not key.startswith(("time", "through", "memory"))} for row in rows]
        for rows in (lines(tmp_path / "whole"), lines(tmp_path / "stopped"))
    ]
    assert logged[0] == logged[1]


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    trainer = Counting(4)
    run(trainer, folder, Cadence(checkpoint_every=2, evaluate_every=0), resume=False)
    (tmp_path / "checkpoints" / "step_000004" / "count").write_text("5")
    assert checkpoints.latest(folder.checkpoints) == tmp_path / "checkpoints" / "step_000002"
    run(Counting(4), folder_of(tmp_path, resume=True), Cadence(), resume=True)
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4]


def test_nothing_to_continue_from_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(
        ValueError, match=r"resume=true, but .*checkpoints holds no checkpoint to continue from"
    ):
        run(Counting(2), folder_of(tmp_path, resume=True), Cadence(), resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate_every": -1}, "Cadence.evaluate_every must not be negative, got -1"),
        ({"checkpoint_every": -1}, "Cadence.checkpoint_every must not be negative, got -1"),
        ({"keep_checkpoints": 0}, "Cadence.keep_checkpoints must be at least 1, got 0"),
    ],
)
def test_a_cadence_that_makes_no_sense_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cadence(**changes)
