"""The peers' functions of the head, each given what a problem holds. Imports happen when one is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.head.problem import HeadProblem
from benchmarks.head.tasks import CLIP


@dataclass(kw_only=True, slots=True)
class HeadPeer:
    """How a peer is made, and what it gives."""

    make: Callable[[], Any]
    """Imports it; returns a function of (problem, hidden, weight)."""
    entropy: str = "none"
    """``none``, ``output`` without a gradient, or ``gradient``."""
    note: str = ""


@cache
def module_file(package: str, file: str) -> ModuleType:
    """One file of an installed package, without the package's own imports (Ray, vLLM).

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed")
    path = Path(next(iter(found.submodule_search_locations))) / file
    spec = importlib.util.spec_from_file_location(f"{package}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trl_rows() -> Any:
    """selective_log_softmax and entropy_from_logits on the logits of the model's dtype."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    def run(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        _expect(problem, "trl's functions", temperature=True, softcap=False)
        logits = (hidden @ weight.t()) / problem.temperature
        logits = logits.view(*_batched(problem), -1)
        logprobs = selective_log_softmax(logits, problem.targets.view(_batched(problem)))
        return logprobs.reshape(-1).float(), entropy_from_logits(logits).reshape(-1).float()

    return run


def trl_chunked() -> Any:
    """The Function behind TRL's fused head."""
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

    def run(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        found = _ChunkedLogProbFunction.apply(
            hidden,
            weight,
            None,
            problem.targets,
            problem.temperature,
            _CHUNKED_LOGPROB_CHUNK_SIZE,
            problem.softcap,
            1.0,
            ("entropy",),
        )
        return found[0], found[1]

    return run


def openrlhf() -> Any:
    """log_probs_from_logits and compute_entropy on float32 logits, as its actor makes them."""
    module = module_file("openrlhf", "models/utils.py")

    def run(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        _expect(problem, "openrlhf", temperature=True, softcap=False)
        logits = (hidden @ weight.t()).float().unsqueeze(0)
        logprobs = module.log_probs_from_logits(logits, problem.targets.unsqueeze(0), problem.temperature)
        return logprobs.squeeze(0), module.compute_entropy(logits).squeeze(0)

    return run


def verl_fused() -> Any:
    """FusedLinearForPPO, torch back end."""
    fused = module_file("verl", "utils/experimental/torch_functional.py").FusedLinearForPPO()

    def run(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        _expect(problem, "verl", temperature=True, softcap=False)
        logprobs, entropies = fused(
            hidden.unsqueeze(0), weight, problem.targets.unsqueeze(0), problem.temperature
        )
        return logprobs.squeeze(0), entropies.squeeze(0)

    return run


def liger_scaled() -> Any:
    """Fused linear scaled cross entropy: on a CPU its torch fallback."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import (
        LigerFusedLinearScaledCrossEntropyFunction as Scaled,
    )

    def run(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        _expect(problem, "liger", temperature=True, softcap=False)
        nll, entropies = Scaled.apply(hidden, weight, problem.targets, problem.temperature, -100, 1, True)
        return -nll, entropies.float()

    return run


def cce() -> Any:
    """Cut cross entropy: its kernel on a GPU, its compiled form on a CPU; no entropy, no temperature."""
    from cut_cross_entropy import linear_cross_entropy

    def run(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, None]:
        _expect(problem, "cut-cross-entropy", temperature=False, softcap=True)
        impl = "cce" if hidden.is_cuda else "torch_compile"
        nll = linear_cross_entropy(
            hidden, weight, problem.targets, softcap=problem.softcap, reduction="none", impl=impl
        )
        return -nll.float(), None

    return run


def liger_grpo() -> Any:
    """Fused linear GRPO loss in torch chunks: the clipped surrogate without a KL, a mean over all tokens."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    fused = LigerFusedLinearGRPOLoss(
        beta=0.0,
        compiled=False,
        use_ref_model=False,
        epsilon_low=CLIP,
        epsilon_high=CLIP,
        loss_type="dapo",
    )

    def run(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> Tensor:
        B, T = _batched(problem)
        value = fused(
            hidden.view(B, T, -1),
            weight,
            problem.targets.view(B, T),
            torch.ones(B, T, device=hidden.device),
            problem.advantages.view(B, T)[:, 0],
            old_per_token_logps=problem.old_logprobs.view(B, T),
        )
        return value[0] if isinstance(value, tuple) else value

    return run


def _expect(problem: HeadProblem, name: str, *, temperature: bool, softcap: bool) -> None:
    """Refuse what the peer cannot do, rather than compare another quantity."""
    if problem.temperature != 1.0 and not temperature:
        raise NotImplementedError(f"{name} has no temperature")
    if problem.softcap is not None and not softcap:
        raise NotImplementedError(f"{name} has no softcap")


def _batched(problem: HeadProblem) -> tuple[int, int]:
    rows, sequences = problem.shape[0], problem.sequences
    return (sequences, rows // sequences) if rows % sequences == 0 else (1, rows)


PEERS = {
    "trl functions": HeadPeer(make=trl_rows, entropy="gradient", note="logits in memory"),
    "trl chunked": HeadPeer(make=trl_chunked, entropy="gradient"),
    "openrlhf functions": HeadPeer(make=openrlhf, entropy="gradient", note="float32 logits in memory"),
    "verl fused": HeadPeer(make=verl_fused, entropy="gradient"),
    "liger scaled": HeadPeer(make=liger_scaled, entropy="gradient"),
    "cut-cross-entropy": HeadPeer(make=cce),
    "liger grpo": HeadPeer(make=liger_grpo),
}
