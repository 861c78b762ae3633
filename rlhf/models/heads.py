"""The last layer of each wrapper: log-probs of tokens, or one number per position."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf.kernels.cpu_step import few_rows, has_few_rows
from rlhf.kernels.linear_divergence import OtherHead
from rlhf.kernels.linear_logprobs import linear_logprobs
from rlhf.kernels.workspace import Workspace, wide


def in_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32; float64 stays, for exact tests."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Measure(Protocol):
    """What is asked of a head: a function of `rlhf.kernels`, other arguments bound by `functools.partial`.

    `linear_logprobs` (log-probs and entropies), `linear_token_logprobs` (log-probs alone),
    `linear_token_loss` (a loss and its gradients in one sweep), or `linear_divergence` (the same, of a loss
    against another head).
    """

    def __call__(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float | Tensor,
        /,
        *,
        bias: Tensor | None,
        scale: float,
        softcap: float | None,
        mask: Tensor | None,
    ) -> Any:
        """A tensor or a named tuple of tensors, of the targets' shape or a number."""


def wide_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(…, H), (V, H), (V,) → (…, V) W·h + b with float32 sums that are not rounded to the factors' dtype."""
    if hidden.dtype == wide(hidden.dtype) or torch.is_grad_enabled():
        return F.linear(in_float32(hidden), in_float32(weight), None if bias is None else in_float32(bias))
    states = hidden.reshape(-1, hidden.shape[-1])
    products = hidden.new_zeros((weight.shape[0], len(states)), dtype=wide(hidden.dtype))
    Workspace(hidden.device).add_product(products, weight, states.t().contiguous())
    logits = products.t().reshape(*hidden.shape[:-1], weight.shape[0])
    return logits if bias is None else logits + bias


class LogprobHead(nn.Linear):
    """``lm_head`` with the log-probabilities inside, in the place and under the name of the original.

        z = cap·tanh(scale·(W·h + b) / cap)

    Every use of the weight passes through ``forward``, so that ZeRO-3's hooks gather it. With targets the
    logits never exist as (tokens, V): see :mod:`rlhf.kernels.linear_logprobs`.
    """

    def __init__(self, linear: nn.Linear, *, scale: float = 1.0, softcap: float | None = None) -> None:
        """Take over the parameters of ``linear``, the very same objects: a tied embedding stays tied."""
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scale, self.softcap = scale, softcap

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        temperature: float | Tensor = 1.0,
        *,
        mask: Tensor | None = None,
        measure: Measure = linear_logprobs,
        exact: bool = False,
        rows: bool = False,
    ) -> Any:
        """What ``measure`` says of ``targets``; without targets W·h + b, as the model's own code expects.

        Args:
            hidden: (…, H).
            targets: (…) int64.
            temperature: positive, divides the logits; a number, or (…) one a token.
            mask: (…) bool; where it is False nothing is computed and results are 0.
            measure: log-probs and entropies unless asked otherwise.
            exact: without targets, keep the float32 sums that log-probs are made of.
            rows: with ``exact``, (B, H) is a token of each of B rows: few are multiplied in C++ where it is.

        Returns:
            `TokenLogprobs` of (…) float32, or what ``measure`` returns; without targets (…, V), in the
            model's dtype or, where ``exact``, in float32.
        """
        if targets is None and rows and has_few_rows(hidden, self.weight):
            return few_rows(hidden, self.weight, self.bias)
        if targets is None and exact:
            return wide_linear(hidden, self.weight, self.bias)
        if targets is None:
            return F.linear(hidden, self.weight, self.bias)
        return measure(
            hidden,
            self.weight,
            targets,
            temperature,
            bias=self.bias,
            scale=self.scale,
            softcap=self.softcap,
            mask=mask,
        )

    def over(self, hidden: Tensor) -> OtherHead:
        """This head over hidden states (…, H), to be compared with; its weight must be whole."""
        return OtherHead(
            hidden=hidden, weight=self.weight, bias=self.bias, scale=self.scale, softcap=self.softcap
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, H) → (…, V) float32 logits before the temperature, as the model defines them."""
        return self._transformed(self(hidden, exact=True))

    def step_logits(self, hidden: Tensor) -> Tensor:
        """The same of one token a row, (B, H) → (B, V), a row's numbers the same in every batch on a CPU."""
        return self._transformed(self(hidden, exact=True, rows=True))

    def _transformed(self, z: Tensor) -> Tensor:
        if self.scale != 1.0:
            z = z * self.scale
        return z if self.softcap is None else torch.tanh(z / self.softcap) * self.softcap


def logit_transform(config: Any) -> tuple[float, float | None]:
    """Scale and softcap that a model's configuration applies after ``lm_head`` (Cohere, Granite, Gemma 2)."""
    scale = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    softcap = getattr(config, "final_logit_softcapping", None)
    return (1.0 if scale is None else scale) / (1.0 if divisor is None else divisor), softcap


class ScalarHead(nn.Linear):
    """One number per position, w·h + c, in float32 arithmetic (numerics D20).

    c is ``shift``, 0 unless the reward was normalised (numerics D25); nothing trains it.
    """

    shift: Tensor

    def __init__(self, hidden: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        super().__init__(hidden, 1, bias=False, dtype=dtype, device="meta")
        self.weight = nn.Parameter(torch.zeros(1, hidden, dtype=dtype, device=device))
        self.register_buffer("shift", torch.zeros((), device=device))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """w ~ N(0, std = 1/sqrt(H + 1)): outputs of order one for features of order one."""
        weight = torch.randn(1, self.in_features, generator=generator, device=generator.device)
        self.weight.copy_(weight / math.sqrt(self.in_features + 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, H) → (…) float32."""
        return F.linear(in_float32(hidden), in_float32(self.weight)).squeeze(-1) + self.shift
