"""The oracle with all logits in memory, and tiles small enough that all edges occur."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf.kernels import tiles
from rlhf.ops.logprobs import TokenLogprobs, logprobs_and_entropies

Oracle = Callable[..., TokenLogprobs]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of at most 5 rows and 64 logits; a sweep holds three rows of 13 float64 logits."""
    monkeypatch.setattr(tiles, "CPU_TILE", 64)
    monkeypatch.setattr(tiles, "CPU_BLOCK", 64)
    monkeypatch.setattr(tiles, "CPU_ROWS", 5)
    monkeypatch.setattr(tiles, "CPU_SWEEP_ROWS", 1)
    monkeypatch.setattr(tiles, "CPU_SWEEP_BYTES", 13 * 8 * 3)


def dense_logits(hidden: Tensor, weight: Tensor, **options: Any) -> Tensor:
    """cap·tanh(scale·(W·x + b)/cap)/T, written out."""
    z = hidden @ weight.t()
    if options.get("bias") is not None:
        z = z + options["bias"]
    z = z * options.get("scale", 1.0)
    if options.get("softcap") is not None:
        z = options["softcap"] * torch.tanh(z / options["softcap"])
    temperature = options.get("temperature", 1.0)
    return z / (temperature.unsqueeze(-1) if isinstance(temperature, Tensor) else temperature)


@pytest.fixture
def logits() -> Callable[..., Tensor]:
    return dense_logits


@pytest.fixture
def oracle() -> Oracle:
    """rlhf.ops on all logits, 0 where the mask is False."""

    def measure(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> TokenLogprobs:
        found = logprobs_and_entropies(dense_logits(hidden, weight, **options), targets)
        mask = options.get("mask")
        if mask is None:
            return found
        return TokenLogprobs(*(torch.where(mask, column, 0.0) for column in found))

    return measure


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returned, in elements, and the products' multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.multiplications = 0
        self.float32_products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket._qualified_op_name
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        if name in ("aten::mm", "aten::addmm"):
            a, b = args[-2:]
            self.multiplications += a.shape[0] * a.shape[1] * b.shape[1]
            self.float32_products += a.dtype == torch.float32
        return result


@pytest.fixture
def watched() -> Iterator[Largest]:
    """Watches everything the test does."""
    with Largest() as mode:
        yield mode
