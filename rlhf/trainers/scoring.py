"""What actor, reference and critic say of a rollout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf.batch import Rollout
from rlhf.distributed.engine import Engine
from rlhf.distributed.engine_config import Inference
from rlhf.models.scalar import state_values
from rlhf.ops.logprobs import TokenLogprobs, exact_kl
from rlhf.rollout.contract import ResponseSampler
from rlhf.trainers.micro_batches import Cut

Policy = Callable[..., Any]
"""An actor or an engine around one: `rlhf.models.actor.Actor.forward`."""


@dataclass(kw_only=True, slots=True)
class Logprobs:
    """Of the tokens of a rollout, all (B, T), 0 on padding."""

    policy: Tensor
    entropies: Tensor
    reference: Tensor | None
    """None without a reference."""
    exact_kl: Tensor | None
    """KL to the reference over the whole vocabulary, nats; None where it is not wanted."""
    live: TokenLogprobs | None
    """The actor's with their gradient, to learn from; None unless asked for and made in one pass."""


ActorLoss = Callable[[TokenLogprobs, Tensor | None], Tensor]
"""From log-probs, entropies and exact KL to the reference, or None, to the loss of each token, (b, T) all."""


class Learning(NamedTuple):
    """One micro-batch of the actor."""

    loss: Tensor
    """Sum over tokens, with its gradient."""
    losses: Tensor
    """(b, T) its terms, detached."""
    logprobs: Tensor
    """(b, T) detached."""


class Scorer:
    """Forward passes over a rollout, in micro-batches of rows of like length."""

    def __init__(
        self,
        *,
        actor: Engine,
        critic: Engine | None,
        reference: Inference | None,
        sampler: ResponseSampler,
        cut: Cut,
        exact_kl: bool,
    ) -> None:
        """Take the models.

        Args:
            actor: the policy that is trained.
            critic: its value model, where there is one.
            reference: what the KL is measured to, where there is one.
            sampler: of the temperature that everything is scored at (numerics D10).
            cut: which rows share a forward pass.
            exact_kl: whether `logprobs` measures the KL over the whole vocabulary.
        """
        self.actor, self.critic, self.reference, self.sampler = actor, critic, reference, sampler
        self.cut, self.exact_kl = cut, exact_kl

    @torch.no_grad()
    def logprobs(self, rollout: Rollout, policy: Policy | None = None, *, live: bool = False) -> Logprobs:
        """Log-probs of a whole rollout under the actor, or ``policy`` in its place, and the reference.

        Args:
            rollout: all rows.
            policy: other than the actor.
            live: keep what the first update is to learn from, where one pass makes all of it: that update
                is then spared its forward. The exact KL takes more memory than a pass, so not with it.
        """
        asked = self.actor if policy is None else policy
        kept: list[TokenLogprobs] = []

        def measure(part: Rollout) -> tuple[Tensor, ...]:
            keeps = live and not self._with_kl and len(part) == len(rollout)
            with torch.set_grad_enabled(keeps):
                own = asked(*self._inputs(part), full=self._with_kl)
            if keeps:
                kept.append(own)
            return self._columns(part, own)

        columns = dict(zip(self._names(), self._by_rows(rollout, measure), strict=True))
        return Logprobs(
            policy=columns["policy"],
            entropies=columns["entropies"],
            reference=columns.get("reference"),
            exact_kl=columns.get("exact_kl"),
            live=kept[0] if kept else None,
        )

    def learning(
        self,
        part: Rollout,
        token_loss: ActorLoss,
        *,
        one_pass: bool,
        exact: bool,
        live: TokenLogprobs | None = None,
    ) -> Learning:
        """The actor's loss on one micro-batch.

        Args:
            part: its rows.
            token_loss: (b, T) from log-probs, entropies and exact KL to the reference.
            one_pass: the loss of each token hangs on its own log-prob and entropy alone.
            exact: whether to give it the KL.
            live: what `logprobs` has kept of these very rows, while no parameter has moved.
        """
        if live is not None:
            losses = token_loss(live, None)
            return Learning(losses.sum(), losses.detach(), live.logprobs.detach())
        if one_pass:
            swept = self.actor(*self._inputs(part), token_loss=lambda found: token_loss(found, None))
            return Learning(swept.loss, swept.losses, swept.logprobs)
        output, kl = self.actor(*self._inputs(part), full=exact), None
        if exact:
            assert self.reference is not None
            reference = self.reference(*self._inputs(part), full=True)
            kl = exact_kl(output.logits, reference.logits, self.sampler.temperature)
            kl = torch.where(part.mask, kl, 0.0)
        losses = token_loss(TokenLogprobs(output.logprobs, output.entropies), kl)
        return Learning(losses.sum(), losses.detach(), output.logprobs.detach())

    @torch.no_grad()
    def values(self, rollout: Rollout) -> Tensor | None:
        """(B, T) the critic's values; None without a critic."""
        if self.critic is None:
            return None
        return self._by_rows(rollout, lambda part: (self.learning_values(part),))[0]

    def learning_values(self, part: Rollout) -> Tensor:
        """(b, T) values of the state before each response token (numerics D9), with gradient."""
        assert self.critic is not None
        values = self.critic(part.tokens, part.attention_mask)
        return state_values(values, part.prompt_mask.shape[1], part.mask)

    def _names(self) -> list[str]:
        if self.reference is None:
            return ["policy", "entropies"]
        return ["policy", "entropies", "reference", *(["exact_kl"] if self.exact_kl else [])]

    @property
    def _with_kl(self) -> bool:
        """Whether `logprobs` measures the KL over the whole vocabulary."""
        return self.exact_kl and self.reference is not None

    def _columns(self, part: Rollout, own: Any) -> tuple[Tensor, ...]:
        """(b, T) each, as `_names` has them; ``own`` is what the policy says."""
        if self.reference is None:
            return own.logprobs, own.entropies
        reference = self.reference(*self._inputs(part), full=self._with_kl)
        known = (own.logprobs, own.entropies, reference.logprobs)
        if not self._with_kl:
            return known
        kl = exact_kl(own.logits, reference.logits, self.sampler.temperature)
        return *known, torch.where(part.mask, kl, 0.0)

    def _inputs(self, part: Rollout) -> tuple[Tensor, Tensor, int, float]:
        return part.tokens, part.attention_mask, part.prompt_mask.shape[1], self.sampler.temperature

    def _by_rows(
        self, rollout: Rollout, measure: Callable[[Rollout], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """(B, T) each: what ``measure`` says of every row, 0 on padding.

        Rows of like length share a forward pass, so that little of it is padding; packed ones of a group.
        """
        columns: tuple[Tensor, ...] = ()
        for rows in self.cut(rollout.attention_mask.sum(1), rollout.group):
            measured = measure(rollout.rows(rows).trimmed())
            columns = columns or tuple(torch.zeros_like(rollout.sampler_logprobs) for _ in measured)
            for column, part in zip(columns, measured, strict=True):
                column[rows, : part.shape[1]] = part
        return columns
