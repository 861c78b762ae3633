"""Low-rank adapters (LoRA, Hu et al. 2022) on the linear layers of a backbone, through ``peft``.

    y = W·x + (α/r)·B·(A·x)        A (r, in) ~ U(−1/√in, 1/√in), B (out, r) = 0

W is fixed, A and B are trained. With B = 0 the adapted model is the one that it starts from, and with its
adapters off it stays that for ever: a policy holds its own reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf.models.heads import in_float32

ADAPTER = "default"
"""What peft calls the one adapter of a layer."""
PARTS = (f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight")
BASE = ".base_layer."
"""In the names of an adapted layer's own parameters."""


class Adaptable(Protocol):
    """An `rlhf.models.actor.Actor` or `rlhf.models.scalar.ScalarModel`."""

    model: Any
    lora: LoRA | None

    @property
    def head(self) -> nn.Module:
        """Its last layer, which has no adapter."""


@dataclass(kw_only=True, slots=True)
class LoRA:
    """Adapters in place of all weights; a reward model's or critic's head is trained whole beside them."""

    rank: int = 16
    """r, columns of B and rows of A."""
    alpha: float = 32.0
    """α; the product B·A counts α/r times."""
    target_modules: list[str] = field(default_factory=list)
    """Linear layers of the backbone that get an adapter, by the last part of their names, as
    [q_proj,v_proj]; [] is all of them."""

    def __post_init__(self) -> None:
        """Refuse a rank or a factor that leaves nothing."""
        if self.rank < 1:
            raise ValueError(f"LoRA.rank must be at least 1, got {self.rank}")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"LoRA.alpha must be positive and finite, got {self.alpha}")

    def __call__(self, wrapper: Adaptable, generator: torch.Generator) -> None:
        """Give the backbone adapters, in place, and let nothing else but a scalar head be trained.

        Args:
            wrapper: an actor, a reward model or a critic.
            generator: the random A depend on it alone; the global random state is left as it was.

        Raises:
            ValueError: peft is not installed, or the backbone has no such layer.
        """
        expect_peft()
        from peft import inject_adapter_in_model

        backbone = wrapper.model.base_model
        config = self.config(sorted(self._chosen(backbone)))
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        wrapper.model.requires_grad_(False)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GPT-2's matrices are transposed, which peft sees and says
            torch.default_generator.manual_seed(seed)
            inject_adapter_in_model(config, backbone, ADAPTER)
        if getattr(wrapper.model, "score", None) is wrapper.head:
            wrapper.head.requires_grad_(True)
        wrapper.lora = self

    def config(self, targets: list[str], **others: Any) -> Any:
        """As peft has it; dropout is 0 (numerics D14)."""
        from peft import LoraConfig

        alpha = (
            int(self.alpha) if float(self.alpha).is_integer() else self.alpha
        )  # others read integers alone
        return LoraConfig(
            r=self.rank,
            lora_alpha=alpha,
            target_modules=targets,
            lora_dropout=0.0,
            bias="none",
            **others,
        )

    def _chosen(self, backbone: nn.Module) -> set[str]:
        """Last parts of the names of the layers."""
        linear = {
            name.rpartition(".")[2]
            for name, layer in backbone.named_modules()
            if isinstance(layer, nn.Linear | Conv1D)
        }
        for name in self.target_modules:
            if name not in linear:
                raise ValueError(
                    f"LoRA.target_modules: {type(backbone).__name__} has no linear layer {name}, "
                    f"it has {', '.join(sorted(linear))}"
                )
        return set(self.target_modules) or linear


@dataclass(kw_only=True, slots=True)
class SavedLoRA(LoRA):
    """Adapters of a model that is exported."""

    merge: bool = True
    """Export model/ too, the adapters added to the weights; false leaves adapter/ alone, a few megabytes."""


def expect_peft() -> None:
    """Refuse adapters where peft, or what it imports, is not installed.

    Raises:
        ValueError: names the command that gets it.
    """
    for package in ("peft", "accelerate"):
        if find_spec(package) is None:
            raise ValueError(f'adapters need {package}, which is not installed: pip install "rlhf[lora]"')


def adapted_layers(module: nn.Module) -> dict[str, Any]:
    """Layers with an adapter, by name."""
    return {name: layer for name, layer in module.named_modules() if hasattr(layer, "lora_A")}


@contextmanager
def without_adapters(module: nn.Module) -> Iterator[None]:
    """Inside the block the module computes what it did before it had adapters.

    peft's own switch also takes the adapters' gradients away, between a forward and its backward too; this
    is the flag that its layers read (peft 0.17 to 0.21).
    """
    layers = adapted_layers(module).values()
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


class Unadapted:
    """The policy that an adapted one started from: the same modules, their adapters off, without a graph."""

    def __init__(self, forward: Callable[..., Any], module: nn.Module) -> None:
        """Take the adapted policy.

        Args:
            forward: its forward, an engine's where there is one.
            module: the actor itself.
        """
        self._forward, self.module = forward, module

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The actor's forward."""
        with without_adapters(self.module):
            return self._forward(*args, **kwargs)

    def release(self) -> None:
        """Nothing: its memory is the policy's."""


def own_name(name: str) -> str | None:
    """What a parameter is called in the model without adapters; None for a part of an adapter."""
    return None if name.endswith(PARTS) else name.replace(BASE, ".")


def merged(wrapper: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """W + (α/r)·B·A in the place of W, one whole tensor after the other, as of a model without adapters.

    Args:
        wrapper: with adapters; without, everything is handed on as it is.
        tensors: names and whole tensors in the order of its ``state_dict()``: a layer's W, A, B. Only W and A
            of one layer are held. What comes out is at least float32.
    """
    layers = adapted_layers(wrapper)
    if not layers:
        yield from tensors
        return
    held: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if name.endswith(f"{BASE}weight"):
            held = {"W": in_float32(tensor).clone()}
        elif name.endswith(PARTS[0]):
            held["A"] = tensor.clone()
        elif name.endswith(PARTS[1]):
            at = name.removesuffix(PARTS[1])
            yield f"{at}.weight", held["W"] + _change(layers[at], held["A"], tensor, held["W"].dtype)
        else:
            own = name.replace(BASE, ".")
            yield own, in_float32(tensor) if tensor.is_floating_point() else tensor


def _change(layer: Any, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """(α/r)·B·A, transposed where the layer keeps W so (GPT-2)."""
    product: Tensor = layer.scaling[ADAPTER] * (b.to(dtype) @ a.to(dtype))
    return product.T if layer.fan_in_fan_out else product
