"""Who takes part in the benchmarks of the head: ours, floors, naive torch, torch's own op, the peers."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.accuracy import errors, fault, mean_errors, tolerance
from benchmarks.bench import Bench
from benchmarks.contest import Contender, Verdict
from benchmarks.head import tasks
from benchmarks.head.problem import HeadProblem
from benchmarks.head.tasks import LossFunction, Outputs, TokenFunction
from benchmarks.head.truth import Truth
from benchmarks.measure import peak_extra, timed
from benchmarks.peers.head import PEERS
from rlhf.kernels.linear_logprobs import linear_logprobs, linear_token_logprobs
from rlhf.kernels.linear_token_loss import linear_token_loss
from rlhf.ops.logprobs import TokenLogprobs

OURS = "rlhf"


def ours(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Our head, two passes."""
    mask = None if bool(problem.mask.all()) else problem.mask
    return linear_logprobs(
        hidden, weight, problem.targets, problem.temperature, softcap=problem.softcap, mask=mask
    )


def our_logprobs(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, None]:
    """Our head without entropies."""
    found = linear_token_logprobs(
        hidden, weight, problem.targets, problem.temperature, softcap=problem.softcap, mask=problem.mask
    )
    return found, None


def naive(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """All logits, in float32 after a product in the model's dtype."""
    logits = hidden @ weight.t()
    if problem.softcap is not None:
        logits = problem.softcap * torch.tanh(logits / problem.softcap)
    logprobs = (logits.float() / problem.temperature).log_softmax(-1)
    found = logprobs.gather(1, problem.targets.unsqueeze(1)).squeeze(1)
    entropies = -(logprobs.exp() * logprobs).sum(1)
    return torch.where(problem.mask, found, 0.0), torch.where(problem.mask, entropies, 0.0)


def torch_native(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, None]:
    """torch's own op, chunked as it chooses; no entropy, no temperature."""
    if problem.temperature != 1.0 or problem.softcap is not None:
        raise NotImplementedError("F.linear_cross_entropy has no temperature and no softcap")
    targets = problem.targets.masked_fill(~problem.mask, -100)
    nll = F.linear_cross_entropy(
        hidden, weight, targets, reduction="none", options=torch.nn.LinearCrossEntropyOptions()
    )
    return -nll, None


def our_sweep(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> Tensor:
    """Our one pass."""

    def token_loss(found: TokenLogprobs) -> Tensor:
        return tasks.surrogate(problem, found.logprobs)

    return linear_token_loss(
        hidden, weight, problem.targets, problem.temperature, softcap=problem.softcap, token_loss=token_loss
    ).loss


def our_two_passes(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> Tensor:
    """Our two passes and the loss in torch."""
    return tasks.surrogate(problem, ours(problem, hidden, weight)[0]).sum()


def naive_loss(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> Tensor:
    """All logits and the loss in torch."""
    return tasks.surrogate(problem, naive(problem, hidden, weight)[0]).sum()


class HeadCell:
    """One problem and its truth; makes contenders of it."""

    def __init__(self, bench: Bench, problem: HeadProblem) -> None:
        self.bench, self.problem, self.truth = bench, problem, Truth(problem)
        self._right: dict[tuple[str, bool], Outputs] = {}
        self._given = False

    def token(self, name: str, function: TokenFunction, task: str, *, entropy: bool = True) -> Contender:
        """A function of ours or of torch; ``entropy``: it has one, with a gradient."""
        if function is torch_native and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
            return Contender(name=name, seconds=None, missing=f"not in torch {torch.__version__}")
        work = {
            "forward": partial(tasks.forward, function, self.problem),
            "backward": partial(tasks.backward, function, self.problem, entropy_gradient=entropy),
        }[task]
        return self._local(name, work, task, entropy)

    def loss(self, name: str, function: LossFunction) -> Contender:
        """A loss and its gradients."""
        return self._local(name, partial(tasks.loss, function, self.problem), "loss", False)

    def peer(self, name: str, task: str) -> Contender:
        """One of the peers' functions, in the peers' process."""
        peers, about = self.bench.peers, PEERS[name]
        missing = peers.missing(name)
        entropy = about.entropy == "gradient"
        if missing is not None:
            return Contender(name=name, seconds=None, missing=missing)
        if not self._given:
            peers.give(self.problem)
            self._given = True
        asked = {"name": name, "task": task, "entropy_gradient": entropy}
        return Contender(
            name=name,
            note=_note(about.entropy != "none", about.note),
            check=lambda: self.verdict(peers.results("head", **asked), task, entropy),
            seconds=lambda: float(peers.ask("head_seconds", **asked)["seconds"]),
            peak=lambda: peers.ask("head_peak", **asked)["peak"],
        )

    def floor(self, products: int) -> Contender:
        """The bare matrix products: 1 (logits), 3 (and dX and dW of them) or 4 (logits twice)."""
        M, H, V = self.problem.shape
        x, w = self.problem.hidden, self.problem.weight

        def run() -> float:
            logits, d_hidden, d_weight = x.new_empty(M, V), x.new_empty(M, H), w.new_empty(V, H)

            def work() -> None:
                for _ in range(2 if products == 4 else 1):
                    torch.mm(x, w.t(), out=logits)
                if products > 1:
                    torch.mm(logits, w, out=d_hidden)
                    torch.mm(logits.t(), x, out=d_weight)

            logits.zero_()  # its pages exist before the clock starts
            d_weight.zero_()
            return timed(work, self.bench.device)

        return Contender(name=f"floor: {products} product{'s' * (products > 1)}", seconds=run)

    def verdict(self, found: Outputs, task: str, entropy: bool) -> Verdict:
        """The gate."""
        key = (task, entropy)
        if key not in self._right:
            self._right[key] = {
                "forward": self.truth.forward,
                "backward": partial(self.truth.backward, entropy_gradient=entropy),
                "loss": self.truth.loss,
            }[task]()
        sizes = errors(found, self._right[key])
        allowed = tolerance(self.problem.hidden.dtype, self.truth.largest)
        means = mean_errors(found, self._right[key])
        return Verdict(errors=sizes, fault=fault(sizes, allowed), mean_errors=means)

    def _local(self, name: str, work: Callable[[], Outputs], task: str, entropy: bool) -> Contender:
        def peak() -> int | None:
            gc.collect()
            return peak_extra(work, self.bench.device)

        return Contender(
            name=name,
            note=None if task == "loss" else _note(entropy, ""),
            check=lambda: self.verdict(tasks.compared(work()), task, entropy),
            seconds=lambda: timed(work, self.bench.device),
            peak=peak,
        )


def _note(entropy: bool, more: str) -> str | None:
    parts = [*([] if entropy else ["no entropy"]), *([more] if more else [])]
    return ", ".join(parts) or None
