"""What an engine holds of a module, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlhf.distributed.engine_config import EngineConfig, Plain, Precision, ZeRO
from rlhf.distributed.footprint import footprint, inference_bytes

BF16 = Precision.bfloat16
N, F = 8 * 6, 8 * 5  # numbers that are trained, and that are not


def module() -> nn.Module:
    with torch.device("meta"):
        first, second = nn.Linear(6, 8, bias=False), nn.Linear(5, 8, bias=False)
    second.requires_grad_(False)
    return nn.ModuleList([first, second])


CASES: dict[str, tuple[EngineConfig, int, dict[str, int]]] = {
    "plain": (Plain(), 2, {"weights": 4 * (N + F), "gradients": 4 * N, "moments": 8 * N}),
    "zero 0": (
        ZeRO(stage=0),
        2,
        {"weights": 4 * (N + F), "gradients": 4 * N, "moments": 8 * N, "step": 4 * N},
    ),
    "zero 1": (
        ZeRO(stage=1),
        2,
        {
            "weights": 4 * (N + F),
            "master_weights": 2 * N,
            "moments": 4 * N,
            "gradients": 4 * N,
            "buckets": 4 * N,
            "step": 4 * N,
        },
    ),
    "zero 1, bfloat16": (
        ZeRO(stage=1, precision=BF16),
        2,
        {
            "weights": 2 * (N + F),
            "master_weights": 2 * N,
            "moments": 4 * N,
            "gradients": 2 * N,
            "sums": 4 * N,
            "step": 4 * N,
        },
    ),
    "zero 2, bfloat16": (
        ZeRO(stage=2, precision=BF16),
        4,
        {
            "weights": 2 * (N + F),
            "master_weights": N,
            "moments": 2 * N,
            "gradients": N,
            "buckets": 2 * N,
            "step": N,
        },
    ),
    "zero 2, offloaded": (
        ZeRO(stage=2, offload_optimizer=True),
        1,
        {
            "weights": 4 * (N + F),
            "master_weights": 4 * N,
            "moments": 8 * N,
            "offload": 12 * N + 4 * N,
            "buckets": 4 * N,
        },
    ),
    "zero 3, bfloat16": (
        ZeRO(stage=3, precision=BF16),
        4,
        {
            "weights": 2 * (N + F) // 4,
            "master_weights": N,
            "moments": 2 * N,
            "sums": N,
            "buckets": 2 * N,
            "gathered": 2 * 2 * (N + F),
            "step": N,
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bytes_of_a_trained_module(name: str) -> None:
    engine, ranks, expected = CASES[name]
    found = footprint(engine, module(), ranks)
    terms = (
        "weights",
        "master_weights",
        "moments",
        "gradients",
        "sums",
        "offload",
        "buckets",
        "gathered",
        "step",
    )
    assert {term: getattr(found, term) for term in terms if getattr(found, term)} == expected


def test_bytes_of_a_frozen_module() -> None:
    assert inference_bytes(Plain(), module(), 4) == (4 * (N + F), 0)
    assert inference_bytes(ZeRO(stage=2, precision=BF16), module(), 4) == (2 * (N + F), 0)
    split = inference_bytes(ZeRO(stage=3, precision=BF16), module(), 4)
    assert split == (2 * (N + F) // 4, 2 * 2 * (N + F))
