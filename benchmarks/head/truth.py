"""The head in float64, row block by row block: log-probs, entropies, loss, and sampled rows of dX and dW."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.head.problem import HeadProblem, sampled
from benchmarks.head.tasks import Outputs, surrogate

BLOCK = 1 << 24
"""Logits held at once, 128 MiB."""


class Truth:
    """What is right for one problem, for any upstream gradients."""

    def __init__(self, problem: HeadProblem) -> None:
        self.problem = problem
        self._hidden = problem.hidden.double()
        rows = [self._measured(part) for part in self._row_blocks()]
        self.logprobs, self.lse, self.mean = (torch.cat(part) for part in zip(*rows, strict=True))
        self.largest = max(float(self._logits(part)[0].abs().max()) for part in [self._sampled_rows])
        """|z| of the sampled rows at most: a rounding of the logits is in proportion to it."""

    @property
    def entropies(self) -> Tensor:
        """(M,) nats."""
        return self.lse - self.mean

    @property
    def _sampled_rows(self) -> Tensor:
        return sampled(self.problem.shape[0]).to(self._hidden.device)

    def forward(self) -> Outputs:
        """Log-probs and entropies, 0 outside the mask."""
        mask = self.problem.mask
        return {
            "logprobs": torch.where(mask, self.logprobs, 0.0),
            "entropies": torch.where(mask, self.entropies, 0.0),
        }

    def backward(self, *, entropy_gradient: bool) -> Outputs:
        """The same and the sampled gradients."""
        mask = self.problem.mask
        g = torch.where(mask, self.problem.upstream.double(), 0.0)
        h = torch.where(mask, self.problem.upstream_entropy.double(), 0.0)
        return {**self.forward(), **self._gradients(g, h if entropy_gradient else torch.zeros_like(g))}

    def loss(self) -> Outputs:
        """The clipped surrogate and its sampled gradients."""
        logprobs = self.logprobs.clone().requires_grad_()
        value = surrogate(self.problem, logprobs).sum()
        (g,) = torch.autograd.grad(value, logprobs)
        return {"loss": value.detach().reshape(1), **self._gradients(g, torch.zeros_like(g))}

    def _row_blocks(self) -> tuple[Tensor, ...]:
        M, _, V = self.problem.shape
        return torch.arange(M, device=self._hidden.device).split(max(BLOCK // V, 1))

    def _logits(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """(m, V) over the temperature, and the slope of what bends them."""
        return self._bent(self._hidden[rows] @ self.problem.weight.double().t())

    def _bent(self, products: Tensor) -> tuple[Tensor, Tensor]:
        cap, temperature = self.problem.softcap, self.problem.temperature
        if cap is None:
            return products / temperature, torch.full_like(products[:1, :1], 1 / temperature)
        bounded = torch.tanh(products / cap)
        return cap * bounded / temperature, (1 - bounded.square()) / temperature

    def _measured(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, _ = self._logits(rows)
        lse = z.logsumexp(1)
        target = z.gather(1, self.problem.targets[rows].unsqueeze(1)).squeeze(1)
        return target - lse, lse, ((z - lse.unsqueeze(1)).exp() * z).sum(1)

    def _slopes(self, z: Tensor, rows: Tensor, columns: Tensor, g: Tensor, h: Tensor) -> Tensor:
        """∂/∂z_j = g·(1[j = y] − p_j) − h·p_j·(z_j − E[z])."""
        p = (z - self.lse[rows].unsqueeze(1)).exp()
        hit = columns.unsqueeze(0) == self.problem.targets[rows].unsqueeze(1)
        centred = z - self.mean[rows].unsqueeze(1)
        return g[rows].unsqueeze(1) * (hit.double() - p) - h[rows].unsqueeze(1) * p * centred

    def _gradients(self, g: Tensor, h: Tensor) -> Outputs:
        M, _, V = self.problem.shape
        device, weight = self._hidden.device, self.problem.weight.double()
        every_row, every_column = torch.arange(M, device=device), torch.arange(V, device=device)
        hidden = []
        for rows in self._sampled_rows.split(max(BLOCK // V, 1)):
            z, slope = self._logits(rows)
            hidden.append((self._slopes(z, rows, every_column, g, h) * slope) @ weight)
        columns = sampled(V).to(device)
        z, slope = self._bent(self._hidden @ weight[columns].t())
        d = self._slopes(z, every_row, columns, g, h) * slope
        return {"hidden": torch.cat(hidden), "weight": d.t() @ self._hidden}
