"""torch.compile of a transformer's layers, in the passes of an engine and nowhere else.

Each part of a layer is compiled by itself: attention's products and rotations, norms, the perceptron. Outside
stay embedding and head, the layer's own code, which may run its parts a second time (gradient checkpointing),
and attention over packed rows (`rlhf.models.packing`), whose tables of lengths differ from call to call. So
one graph serves a part of all layers and every number of tokens. The sampler, which runs the same modules a
token at a time, runs them as they are.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch
from torch import nn


def passes(module: nn.Module, name: str, *, compiled: bool) -> AbstractContextManager[None]:
    """What the forwards and backwards of an engine are run within, any number of times."""
    return CompiledLayers(module, name) if compiled else nullcontext()


class CompiledLayers(AbstractContextManager[None]):
    """While entered, the forwards of the layers' parts are compiled ones; the module is as before after."""

    def __init__(self, module: nn.Module, name: str) -> None:
        """Prepare; the first pass compiles.

        Raises:
            ValueError: the module has no list of layers that have parts.
        """
        parts = [part for layer in layers(module) for part in layer.children()]
        if not parts:
            raise ValueError(
                f"{name}: compile must be false, got true: {type(module).__name__} has no layers with parts"
            )
        self._name = name
        self._forwards = [(part, torch.compile(part.forward, dynamic=True)) for part in parts]

    def __enter__(self) -> None:
        """Put them in their place."""
        for part, forward in self._forwards:
            part.forward = forward

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take them away again.

        Raises:
            ValueError: torch could not compile them.
        """
        for part, _ in self._forwards:
            del part.forward  # an attribute of the object, in front of the class's own
        if error is not None and _of_compiler(error):
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{self._name}: torch.compile failed, set compile=false: {reason}") from error


def layers(module: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of modules: a transformer keeps its layers in one."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [layer for child in module.children() for layer in layers(child)]


def _of_compiler(error: BaseException) -> bool:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return isinstance(error, TorchDynamoException | CppCompileError | InvalidCxxCompiler)
