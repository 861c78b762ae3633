"""Bytes that an engine holds of a module on one rank, from what torch and DeepSpeed (0.19.8) allocate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from rlhf.distributed.deepspeed_engine import bucket_elements
from rlhf.distributed.engine_config import EngineConfig, ZeRO

FLOAT = 4
LIVE = 1_000_000_000
"""Parameters that stage 3 keeps gathered between two uses (DeepSpeed's ``stage3_max_live_parameters``)."""
FETCHED = 50_000_000
"""Parameters that it gathers at a time, in a buffer of their own (``stage3_prefetch_bucket_size``)."""


@dataclass(kw_only=True, slots=True)
class Footprint:
    """Bytes of a trained module, per rank."""

    weights: int
    """What the module computes with; at stage 3 this rank's share."""
    master_weights: int = 0
    moments: int
    """From the first step on."""
    gradients: int
    """From the first backward to the step."""
    sums: int = 0
    """Gradients that are summed in a buffer of their own, which is always there."""
    offload: int = 0
    """Buffers in the host's memory for an optimiser that is there, always."""
    buckets: int = 0
    """Buffers of the reduction, in every backward; at stage 3 all the time."""
    gathered: int = 0
    """Whole parameters in forward and backward, stage 3."""
    step: int = 0
    """Beside all these, while the optimiser steps."""
    start: int = 0
    """The same while the engine is made."""


@dataclass(kw_only=True, slots=True)
class Elements:
    """Numbers in a module's parameters, tied ones once."""

    trained: int
    frozen: int
    largest: int

    @classmethod
    def of(cls, module: nn.Module) -> Elements:
        """Counted, without reading one."""
        sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
        trained = sum(size for size, learns in sizes if learns)
        total = sum(size for size, _ in sizes)
        return cls(trained=trained, frozen=total - trained, largest=max(size for size, _ in sizes))

    @property
    def all(self) -> int:
        """Both."""
        return self.trained + self.frozen


def footprint(engine: EngineConfig, module: nn.Module, ranks: int) -> Footprint:
    """Of a module that the engine trains with AdamW."""
    elements = Elements.of(module)
    if not isinstance(engine, ZeRO):
        n = elements.trained
        return Footprint(weights=FLOAT * elements.all, moments=2 * FLOAT * n, gradients=FLOAT * n)
    return _STAGES[engine.stage](engine, elements, ranks)


def inference_bytes(engine: EngineConfig, module: nn.Module, ranks: int) -> tuple[int, int]:
    """Bytes of a frozen module between its forwards, and beside them in one."""
    elements = Elements.of(module)
    whole = elements.all * engine.dtype.itemsize
    if not engine.splits_parameters:
        return whole, 0
    return whole // ranks, _gathered(elements) * engine.dtype.itemsize


def _stage_0(zero: ZeRO, elements: Elements, ranks: int) -> Footprint:
    n = FLOAT * elements.trained
    return Footprint(weights=FLOAT * elements.all, moments=2 * n, gradients=n, step=n)


def _stage_1(zero: ZeRO, elements: Elements, ranks: int) -> Footprint:
    if zero.dtype == torch.bfloat16 and not zero.offload_optimizer:
        return _stage_1_bfloat16(zero, elements, ranks)
    n, size = elements.trained, zero.dtype.itemsize
    share = -(-n // ranks)
    bucket = FLOAT * bucket_elements(n)
    return Footprint(
        weights=size * elements.all,
        master_weights=FLOAT * share,
        moments=2 * FLOAT * share,
        gradients=size * n,
        offload=_offload(zero, elements, share),
        buckets=bucket,
        step=0 if zero.offload_optimizer else 2 * FLOAT * share,
        start=size * n,
    )


def _stage_1_bfloat16(zero: ZeRO, elements: Elements, ranks: int) -> Footprint:
    n, size = elements.trained, zero.dtype.itemsize
    share = -(-n // ranks)
    return Footprint(
        weights=size * elements.all,
        master_weights=FLOAT * share,
        moments=2 * FLOAT * share,
        gradients=size * n,
        sums=FLOAT * n,
        step=FLOAT * n,
        start=size * n,
    )


def _stage_2(zero: ZeRO, elements: Elements, ranks: int) -> Footprint:
    n, size = elements.trained, zero.dtype.itemsize
    share = -(-n // ranks)
    return Footprint(
        weights=size * elements.all,
        master_weights=FLOAT * share,
        moments=2 * FLOAT * share,
        gradients=0 if zero.offload_optimizer else FLOAT * share,
        offload=_offload(zero, elements, share),
        buckets=size * bucket_elements(n),
        step=0 if zero.offload_optimizer else FLOAT * share,
        start=size * n,
    )


def _stage_3(zero: ZeRO, elements: Elements, ranks: int) -> Footprint:
    n, size = elements.trained, zero.dtype.itemsize
    share = -(-n // ranks)
    return Footprint(
        weights=size * -(-elements.all // ranks),
        master_weights=FLOAT * share,
        moments=2 * FLOAT * share,
        gradients=0,
        sums=FLOAT * share,
        offload=FLOAT * share if zero.offload_optimizer else 0,
        buckets=size * bucket_elements(n),
        gathered=size * _gathered(elements),
        step=0 if zero.offload_optimizer else FLOAT * share,
        start=size * elements.all,
    )


def _offload(zero: ZeRO, elements: Elements, share: int) -> int:
    """Stages 1 and 2: the partition's gradient and its sum, its weights on their way back, one parameter."""
    if not zero.offload_optimizer:
        return 0
    return (FLOAT + 2 * zero.dtype.itemsize) * share + zero.dtype.itemsize * elements.largest


def _gathered(elements: Elements) -> int:
    """Whole parameters, and those that are on their way."""
    return min(elements.all, LIVE) + min(elements.all, max(FETCHED, elements.largest))


_STAGES = {0: _stage_0, 1: _stage_1, 2: _stage_2, 3: _stage_3}
