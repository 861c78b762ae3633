"""The peers' process, played by our own interpreter, which has none of them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.head.problem import make_problem
from benchmarks.peers.client import PeerEnvironment, PeerError


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


def test_a_process_that_ends_is_an_error(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(PeerError, match="ended"):
        PeerEnvironment(python).ask("find", name="trl chunked")
