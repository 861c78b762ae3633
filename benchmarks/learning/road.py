"""A road beside a ditch: one wrong step leads where a cloned driver never was, and an expert is out in one.

A state is a place on a round road, or in the ditch beside it. In each state one of the actions is right, a
random code. On the road the right one leads to the next place, any other into the ditch; in the ditch the
right one leads back onto the road, any other along the ditch. A step costs 1 in the ditch. A learner that is
wrong with probability ε where the expert goes pays up to ε·T²/2 in T steps, for off the road it knows nothing
(Ross & Bagnell 2010, theorem 2.1); one that is wrong with ε in the ditch too pays some ε·T (Ross et al. 2011,
theorem 3.2).

Expert and learner are language models whose tokens are actions; the hidden state is the one-hot state, and
the head a table. The learner's logits are capped, so that no training makes it surer than 1 − ε: imitation
that is never perfect, in every state alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from rlhf.models.actor import Actor

PLACES, ACTIONS = 8, 64
CAP = 4.0
"""Of the learner's logits: the others then have (ACTIONS − 1)·exp(−2·CAP) together, ε = 0.02."""
SURE = 20.0
"""Of the expert's logits: it is wrong once in e²⁰/63 steps, that is never."""


@dataclass(kw_only=True, slots=True)
class Road:
    """Which action is right in each of 2·PLACES states, the ditch after the road."""

    right: Tensor
    """(2·PLACES,) int64."""

    @staticmethod
    def drawn(seed: int) -> Road:
        """A code of its own for each seed."""
        generator = torch.Generator().manual_seed(seed)
        return Road(right=torch.randint(ACTIONS, (2 * PLACES,), generator=generator))

    def after(self, state: Tensor, action: Tensor) -> Tensor:
        """(B,) the next states."""
        on = (state % PLACES + 1) % PLACES
        return torch.where(action == self.right[state], on, on + PLACES)

    def expert(self) -> Tensor:
        """(ACTIONS, 2·PLACES) logits."""
        return SURE * F.one_hot(self.right, ACTIONS).T.float()

    def cost(self, policy: Tensor, steps: int) -> float:
        """Expected steps in the ditch of the first ``steps``, exactly, from a random place on the road.

        Args:
            policy: (ACTIONS, 2·PLACES) probabilities.
            steps: T.
        """
        states = torch.arange(2 * PLACES)
        where = torch.where(states < PLACES, 1 / PLACES, 0.0).double()
        correct = policy.double()[self.right, states]
        on = (states % PLACES + 1) % PLACES
        total = 0.0
        for _ in range(steps):
            total += float(where[PLACES:].sum())
            moved = torch.zeros_like(where)
            moved.index_add_(0, on, where * correct)
            moved.index_add_(0, on + PLACES, where * (1 - correct))
            where = moved
        return total


class Driver(nn.Module):
    """The backbone: each position's hidden state is the one-hot state after the tokens up to it.

    The first token of a row is the prompt: the number of the place where it starts. The cache is the state
    (B,) after the last column.
    """

    def __init__(self, road: Road) -> None:
        super().__init__()
        self.road = road
        self.register_buffer("one_hot", torch.eye(2 * PLACES))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Tensor | None = None,
        use_cache: bool = False,
    ) -> BaseModelOutputWithPast:
        """See transformers."""
        state = torch.zeros_like(input_ids[:, 0]) if past_key_values is None else past_key_values
        states = []
        for token, position in zip(input_ids.unbind(1), position_ids.unbind(1), strict=True):
            state = torch.where(position == 0, token % PLACES, self.road.after(state, token))
            states.append(state)
        hidden = F.embedding(torch.stack(states, 1), self.one_hot)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=state)


class Table(PreTrainedModel):
    """Drivers under a linear head, the table of logits."""

    config_class = PreTrainedConfig
    base_model_prefix = "model"

    def __init__(self, road: Road, logits: Tensor, cap: float | None) -> None:
        super().__init__(PreTrainedConfig())
        self.config.final_logit_softcapping = cap
        self.model = Driver(road)
        self.lm_head = nn.Linear(logits.shape[1], logits.shape[0], bias=False)
        self.lm_head.weight = nn.Parameter(logits.clone())

    def get_output_embeddings(self) -> nn.Module:
        """The head, in its place."""
        return self.lm_head


def expert(road: Road) -> Actor:
    """The policy that is right in every state."""
    return Actor(Table(road, road.expert(), None))


def learner(road: Road, seed: int) -> Actor:
    """A policy that knows nothing, and is never quite sure."""
    generator = torch.Generator().manual_seed(seed)
    return Actor(Table(road, torch.randn(ACTIONS, 2 * PLACES, generator=generator), CAP))


def probabilities(actor: Actor) -> Tensor:
    """(ACTIONS, 2·PLACES) what a learner does in every state."""
    with torch.no_grad():
        return actor.head.logits(torch.eye(2 * PLACES)).softmax(-1).T


def irreducible_error() -> float:
    """ε of a learner that cannot learn more: its logits are CAP for the right action and −CAP for others."""
    others = (ACTIONS - 1) * math.exp(-2 * CAP)
    return others / (1 + others)
