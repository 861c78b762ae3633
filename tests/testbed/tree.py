"""The frozen testbed (numerics section 2): every response to one prompt, by enumeration in float64."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
from torch import Tensor


class Testbed:
    """Every response of one prompt: four content tokens, EOS = 4, at most four tokens, 341 outcomes.

    ``testbed.json`` holds the draws of numerics section 2.1 (``ref_logits``, ``r``), of E2 (``e2_offset``)
    and of E7 (``bandit_r``, ``bandit_ref``), made once by NumPy.
    """

    __test__ = False  # no test class, whatever pytest thinks of its name
    K, T, EOS, PAD = 4, 4, 4, 5
    OFFSET = (0, 1, 5, 21)

    def __init__(self, beta: float = 0.5, ref_logits: Tensor | None = None, r: Tensor | None = None) -> None:
        draws = json.loads(Path(__file__).with_name("testbed.json").read_text())
        for name, numbers in draws.items():
            setattr(self, name, torch.tensor(numbers, dtype=torch.float64))
        if ref_logits is not None and r is not None:
            self.ref_logits, self.r = ref_logits, r
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
        self.BETA = beta
        self.log_ref = self.log_joint(self.ref_logits)  # (341,)
        self.log_z = (self.log_ref + self.r / beta).logsumexp(0)
        self.log_star = self.log_ref + self.r / beta - self.log_z

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

    def kl_to_reference(self, logits: Tensor) -> float:
        """KL(π‖π_ref) in nats."""
        joint = self.log_joint(logits.double())
        return (joint.exp() @ (joint - self.log_ref)).item()

    def distance(self, logits: Tensor) -> float:
        """KL(π‖π*) in nats, once J* − J(π) = β·KL(π‖π*) is found to hold to 1e-10 (numerics 0.3)."""
        joint = self.log_joint(logits.double())
        kl = joint.exp() @ (joint - self.log_star)
        objective = joint.exp() @ (self.r - self.BETA * (joint - self.log_ref))
        assert abs(self.BETA * self.log_z - objective - self.BETA * kl) <= 1e-10
        return kl.item()

    def score(self, logits: Tensor) -> float:
        """E_π[r]."""
        return (self.log_joint(logits.double()).exp() @ self.r).item()

    def soft_values(self) -> tuple[Tensor, Tensor]:
        """(85,) V*(s) = β·log E_ref[exp(r/β) | s], and (85,) how likely π* comes through s."""
        tilted = self.log_ref + self.r / self.BETA
        values, reached = torch.empty(2, 85, dtype=torch.float64)
        for state in range(85):
            through = ((self.states == state) & self.mask).any(1)
            values[state] = self.BETA * (tilted[through].logsumexp(0) - self.log_ref[through].logsumexp(0))
            reached[state] = self.log_star[through].exp().sum()
        return values, reached
