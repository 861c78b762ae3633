from __future__ import annotations

import pytest
import torch
from torch import nn

from rlhf.cli import pieces
from rlhf.cli.pieces import copy_for_sampling, sampler_for
from rlhf.distributed.engine_config import EngineConfig, Plain, Precision, ZeRO
from rlhf.rollout.decoding import Sampling
from rlhf.rollout.graphs import Graphs
from tests.trainers import toy


@pytest.mark.parametrize("engine", [Plain(), ZeRO(stage=2, precision=Precision.bfloat16)])
def test_the_sampler_is_the_trained_module_where_it_stays_whole(engine: EngineConfig) -> None:
    module = nn.Linear(2, 3)
    assert copy_for_sampling(module, engine) is module


@pytest.mark.parametrize(
    ("precision", "dtype"), [(Precision.float32, torch.float32), (Precision.bfloat16, torch.bfloat16)]
)
def test_the_samplers_copy_has_the_precision_that_is_scored(precision: Precision, dtype: torch.dtype) -> None:
    module = nn.Linear(2, 3)
    copied = copy_for_sampling(module, ZeRO(stage=3, precision=precision))
    torch.testing.assert_close(copied.weight, module.weight.to(dtype), rtol=0, atol=0)
    assert copied.weight.data_ptr() != module.weight.data_ptr()
    assert module.weight.dtype == torch.float32


def test_a_gpus_sampler_captures_its_steps_and_its_greedy_one_shares_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sampler_for(toy.actor(), toy.tokenizer(), Sampling()).graphs is None
    monkeypatch.setattr(pieces.runtime, "device", lambda: torch.device("cuda"))
    sampler = sampler_for(toy.actor(), toy.tokenizer(), Sampling())
    assert isinstance(sampler.graphs, Graphs)
    assert sampler.greedy().graphs is sampler.graphs
