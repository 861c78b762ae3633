"""The frozen testbed (numerics section 2) and ranks as threads."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


def _across_ranks(work: Callable[[int, Callable[[Tensor], Tensor]], Any], ranks: int) -> list[Any]:
    """``work(rank, total)`` on every rank at once; ``total`` really sums over them."""
    barrier, parts = threading.Barrier(ranks, timeout=10), [torch.empty(0)] * ranks

    def run(rank: int) -> Any:
        def total(part: Tensor) -> Tensor:
            parts[rank] = part
            barrier.wait()
            summed = torch.stack(parts).sum(0)
            barrier.wait()
            return summed

        return work(rank, total)

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(run, range(ranks)))


@pytest.fixture
def across_ranks() -> Callable[..., list[Any]]:
    return _across_ranks


@pytest.fixture
def one_rank() -> Callable[[Tensor], Tensor]:
    return lambda part: part


class Testbed:
    """Every response of one prompt: four content tokens, EOS = 4, at most four tokens, 341 outcomes.

    ``testbed.json`` holds the draws of numerics section 2.1 (``ref_logits``, ``r``), of E2 (``e2_offset``)
    and of E7 (``bandit_r``, ``bandit_ref``), made once by NumPy.
    """

    K, T, EOS, PAD, BETA = 4, 4, 4, 5, 0.5
    OFFSET = (0, 1, 5, 21)

    def __init__(self) -> None:
        draws = json.loads((Path(__file__).parent / "testbed.json").read_text())
        for name, numbers in draws.items():
            setattr(self, name, torch.tensor(numbers, dtype=torch.float64))
        content = range(self.K)
        self.outcomes = [
            (*prefix, self.EOS)
            for length in range(self.T)
            for prefix in itertools.product(content, repeat=length)
        ]
        self.outcomes += itertools.product(content, repeat=self.T)
        self.outcomes.sort(key=lambda y: [-1 if a == self.EOS else a for a in y])
        padded = [[*y, *[self.PAD] * (self.T - len(y))] for y in self.outcomes]
        self.responses = torch.tensor(padded)  # (341, T)
        self.mask = self.responses != self.PAD
        self.ended = (self.responses == self.EOS).any(1)
        self.states = self.states_of(self.responses)
        self.log_ref = self.log_joint(self.ref_logits)  # (341,)
        self.log_z = (self.log_ref + self.r / self.BETA).logsumexp(0)
        self.log_star = self.log_ref + self.r / self.BETA - self.log_z

    def states_of(self, responses: Tensor) -> Tensor:
        """(B, T) index of the state before each token; meaningless on padding."""
        columns, code = [], torch.zeros(len(responses), dtype=torch.int64)
        for t in range(self.T):
            columns.append(code + self.OFFSET[t])
            code = self.K * code + responses[:, t].clamp(max=self.K - 1)
        return torch.stack(columns, 1)

    def token_logprobs(self, logits: Tensor, responses: Tensor, states: Tensor) -> Tensor:
        """(B, T) log-prob of each token; whatever the table holds on padding."""
        table = logits.log_softmax(1)
        return table[states].gather(2, responses.clamp(max=self.EOS)[..., None])[..., 0]

    def logprobs(self, logits: Tensor) -> Tensor:
        """(341, T) log-prob of each token of every outcome, garbage on padding."""
        return self.token_logprobs(logits, self.responses, self.states)

    def log_joint(self, logits: Tensor) -> Tensor:
        """(341,) log-prob of every outcome."""
        return torch.where(self.mask, self.logprobs(logits), 0.0).sum(1)

    def index_of(self, responses: Tensor) -> Tensor:
        """(B,) number of each response in the list of outcomes."""
        numbers = {tuple(row): i for i, row in enumerate(self.responses.tolist())}
        return torch.tensor([numbers[tuple(row)] for row in responses.tolist()])

    def state_values(self, log_joint: Tensor, rewards: Tensor) -> Tensor:
        """(85,) expected reward to go of each state under the policy, by enumeration."""
        to_go = torch.where(self.mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
        weight = torch.where(self.mask, log_joint.exp()[:, None], 0.0)
        zero, states = torch.zeros(85, dtype=torch.float64), self.states[self.mask]
        reached = zero.index_add(0, states, weight[self.mask])
        return zero.index_add(0, states, (weight * to_go)[self.mask]) / reached


@pytest.fixture(scope="session")
def testbed() -> Testbed:
    return Testbed()
