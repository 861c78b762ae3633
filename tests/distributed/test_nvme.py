"""Parameters and optimiser states on a disk: the same numbers as in CPU memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rlhf.distributed.deepspeed_engine import has_libaio
from rlhf.distributed.engine_config import Precision, ZeRO
from rlhf.trainers.optimizers import AdamW

CASES = {
    "moments": ZeRO(stage=3, persistence_threshold=0, offload_optimizer=True),
    "all, bfloat16": ZeRO(
        stage=3,
        persistence_threshold=0,
        offload_optimizer=True,
        offload_parameters=True,
        precision=Precision.bfloat16,
    ),
}


def trained(config: ZeRO) -> dict[str, Tensor]:
    """Weights after three steps of AdamW; smaller ones DeepSpeed keeps in memory."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(600, 1200), nn.Tanh(), nn.Linear(1200, 8))
    engine = config.train(module, AdamW(lr=1e-2)(module), "actor")
    inputs = torch.randn(5, 600, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        engine.backward(engine(inputs.to(config.precision.dtype)).square().mean())
        engine.step()
    return engine.state()


@pytest.mark.slow  # DeepSpeed compiles for a minute what reads and writes
@pytest.mark.parametrize("case", CASES)
def test_a_disk_holds_what_cpu_memory_would(alone: None, tmp_path: Path, case: str) -> None:
    if not has_libaio():
        pytest.skip("libaio and its headers are missing")
    expected = trained(CASES[case])
    found = trained(replace(CASES[case], nvme_path=str(tmp_path)))
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) > 600 * 1200 * 4
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-7)
