"""The peers' process, played by our own interpreter, which has none of them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.bench import Bench
from benchmarks.cases.tensor_contenders import there
from benchmarks.head.problem import make_problem
from benchmarks.peers import trl_ppo
from benchmarks.peers.client import PeerEnvironment, PeerError
from benchmarks.peers.clock import end_clock, step_clock


@pytest.fixture
def peers() -> Iterator[PeerEnvironment]:
    environment = PeerEnvironment(Path(sys.executable))
    yield environment
    environment.close()


def test_a_peer_that_is_not_installed_is_missing_and_what_it_raises_is_an_error(
    peers: PeerEnvironment,
) -> None:
    assert peers.missing("trl chunked") == "ModuleNotFoundError: No module named 'trl'"
    assert peers.missing("openrlhf functions") == "ModuleNotFoundError: openrlhf is not installed"
    peers.give(make_problem((8, 4, 11), torch.float32))
    with pytest.raises(PeerError, match="No module named 'trl'"):
        peers.ask("head_seconds", name="trl chunked", task="forward", entropy_gradient=True)
    with pytest.raises(PeerError, match="AttributeError"):
        peers.ask("no such question")


def test_a_process_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    environment = PeerEnvironment(python, patience=0.2)
    assert environment.missing("trl chunked") == "no answer to find in 0 s"


def test_a_process_that_ends_is_an_error(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(PeerError, match="ended"):
        PeerEnvironment(python).ask("find", name="trl chunked")


class Answering:
    """Peers that answer with 1, 2, 3 … seconds, and note what they are asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, 0

    def missing(self, name: str) -> None:
        return None

    def path(self, name: str) -> Path:
        return self.folder / name

    def ask(self, question: str, **arguments: str) -> dict[str, float]:
        self.asked += 1
        torch.save({"loss": torch.tensor([2.0])}, arguments["path"])
        return {"seconds": float(self.asked)}


@pytest.mark.parametrize(("once", "seconds"), [(True, [1.0, 2.0]), (False, [2.0, 3.0])])
def test_a_long_run_that_was_checked_is_the_first_round(
    bench: Bench, tmp_path: Path, once: bool, seconds: list[float]
) -> None:
    bench.peers = Answering(tmp_path)  # type: ignore[assignment]
    contender = there(bench, "trl sft", {}, {"loss": torch.tensor([2.0])}, once=once)
    assert contender.check is not None
    assert contender.seconds is not None
    assert contender.check().fault is None
    assert [contender.seconds(), contender.seconds()] == seconds


def test_a_peer_with_another_loss_is_void(bench: Bench, tmp_path: Path) -> None:
    bench.peers = Answering(tmp_path)  # type: ignore[assignment]
    contender = there(bench, "trl sft", {}, {"loss": torch.tensor([2.001])})
    assert contender.check is not None
    assert contender.check().fault == "loss off by 0.0005"


def test_without_its_folder_ppo_is_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"peers\.sh makes it"):
        trl_ppo.make()


def test_a_clock_of_ends_leaves_the_first_step_out() -> None:
    clock = end_clock()
    for _ in range(3):
        clock.on_step_end()
    assert len(clock.seconds) == 2


def test_a_clock_of_steps_has_a_number_for_each() -> None:
    clock = step_clock()
    for _ in range(3):
        clock.on_step_begin()
        clock.on_step_end()
    assert len(clock.seconds) == 3
