"""A benchmark run that times nothing for long and has no peers."""

from pathlib import Path

import pytest
import torch

from benchmarks.bench import Bench
from benchmarks.peers.client import PeerEnvironment


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(
        device=torch.device("cpu"),
        quick=True,
        budget=0.0,
        rounds=2,
        least=2,
        warm_ups=0,
        peers=PeerEnvironment(tmp_path / "no" / "python"),
    )
