"""One optimiser step of actor and critic: the whole minibatch's gradients, micro-batch by micro-batch."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.batch import Experience
from rlhf.distributed.collectives import all_sum, is_main
from rlhf.distributed.engine import Engine
from rlhf.metrics import Metrics
from rlhf.ops.logprobs import TokenLogprobs
from rlhf.trainers import rollout_metrics
from rlhf.trainers.collection import Prompts, named
from rlhf.trainers.faults import Faults
from rlhf.trainers.ledger import Ledger
from rlhf.trainers.micro_batches import Cut
from rlhf.trainers.online import Models, State
from rlhf.trainers.pretraining import Pretraining
from rlhf.trainers.scoring import Scorer

log = logging.getLogger(__name__)


class Updater:
    """Moves actor and critic by what a minibatch says."""

    def __init__(
        self,
        *,
        models: Models,
        algorithm: PolicyGradient,
        scorer: Scorer,
        cut: Cut,
        pretraining: Pretraining | None,
        prompts: Prompts,
        faults: Faults,
        ranks: int,
    ) -> None:
        """Take what an update reads.

        Args:
            models: of which actor and critic are moved.
            algorithm: its losses and weights.
            scorer: their forward passes.
            cut: which rows share one.
            pretraining: texts whose gradient joins the actor's, where there are any.
            prompts: name the rows in messages.
            faults: told of what is not finite.
            ranks: of the run.
        """
        self.models, self.algorithm, self.scorer, self.cut = models, algorithm, scorer, cut
        self.pretraining, self.prompts, self.faults, self.ranks = pretraining, prompts, faults, ranks

    def __call__(
        self,
        minibatch: Experience,
        state: State,
        metrics: Metrics,
        *,
        on_policy: bool,
        live: TokenLogprobs | None,
    ) -> float:
        """`PolicyGradientTrainer.update`; ``state`` counts the actor's steps."""
        if self._is_empty(minibatch, state):
            return 0.0
        learns = self.algorithm.actor_learns(state.rollouts)
        weights = self.algorithm.weights(minibatch, all_sum)  # (b, T)
        loss, found, ledger = 0.0, Metrics(), Ledger() if on_policy and learns else None
        for rows in self.cut(minibatch.rollout.attention_mask.sum(1), minibatch.rollout.group):
            part = minibatch.rows(rows).trimmed()
            share = weights[rows, : part.rollout.mask.shape[1]]
            if learns:
                loss += self._actor_backward(part, share, state, found, ledger=ledger, live=live)
            if self.models.critic is not None:
                self._critic_backward(part, share, found)
        if learns:
            self._pretraining_backward(state, found)
            found.add("loss", loss, 1 / self.ranks)  # the step's loss is a sum over ranks
        if ledger is not None:
            ledger.close(metrics, _dtype(self.models.actor), state.place)
        self._step_engines(learns, state, found, metrics)
        return _over_ranks(found, "actor/kl_old") if learns else 0.0

    def _is_empty(self, minibatch: Experience, state: State) -> bool:
        """Whether filters have left no token of it in the loss, on any rank; it is then passed over."""
        if int(all_sum(self.algorithm.kept(minibatch).sum())) > 0:
            return False
        if is_main():
            log.warning("%s: no response of a minibatch is left in the loss; it was passed over", state.place)
        return True

    def _step_engines(self, learns: bool, state: State, found: Metrics, metrics: Metrics) -> None:
        """Move actor and critic; what a minibatch measured is left out when a step of it was skipped."""
        skipped = False
        for engine in (self.models.actor if learns else None, self.models.critic):
            if engine is None:
                continue
            norm = self.faults.step(engine, state.place)
            if norm is None:
                skipped = True
                continue
            found.value(f"{engine.name}/grad_norm", norm)
            state.actor_steps += engine is self.models.actor
        if not skipped:
            metrics.merge(found)

    def _actor_backward(
        self,
        part: Experience,
        weights: Tensor,
        state: State,
        metrics: Metrics,
        *,
        ledger: Ledger | None,
        live: TokenLogprobs | None,
    ) -> float:
        algorithm, row = self.algorithm, named(part.rollout, self.prompts)

        def token_loss(found: TokenLogprobs, exact_kl: Tensor | None) -> Tensor:
            return weights * algorithm.token_loss(
                found.logprobs,
                part,
                state.kl_coef,
                penalty=state.penalty,
                entropies=found.entropies,
                exact_kl=exact_kl,
            )

        learning = self.scorer.learning(
            part.rollout, token_loss, one_pass=algorithm.one_pass, exact=algorithm.kl.needs_exact, live=live
        )
        self.faults.look("actor's loss", learning.losses, row, model="actor")
        self.models.actor.backward(self.faults.spoiled(learning.loss, "actor"))
        if ledger is not None:
            ledger.add(learning.logprobs, part, row)
        rollout_metrics.policy_moves(algorithm, learning.logprobs, part, metrics)
        return float(learning.loss.detach())

    def _critic_backward(self, part: Experience, weights: Tensor, metrics: Metrics) -> None:
        assert self.models.critic is not None
        assert self.algorithm.value_loss is not None
        assert part.old_values is not None
        assert part.returns is not None
        values = self.scorer.learning_values(part.rollout)
        loss = self.algorithm.value_loss(values, part.old_values, part.returns, part.rollout.mask)
        row = named(part.rollout, self.prompts)
        loss = self.faults.loss("critic's loss", loss, row, model="critic")
        self.models.critic.backward((weights * loss).sum())
        metrics.mean("critic/loss", loss, part.rollout.mask)

    def _pretraining_backward(self, state: State, metrics: Metrics) -> None:
        """The texts' part of the actor's gradient, before its one step (numerics D45)."""
        if self.pretraining is not None and self.algorithm.ptx_coef > 0:
            self.pretraining.backward(
                self.models.actor, self.algorithm.ptx_coef, state.actor_steps, metrics, self.faults
            )


def _over_ranks(metrics: Metrics, name: str) -> float:
    """The mean that a minibatch has measured, over all ranks; every rank calls it."""
    total, count = all_sum(torch.tensor(metrics.pairs[name], dtype=torch.float64)).tolist()
    return total / count if count else 0.0


def _dtype(engine: Engine) -> torch.dtype:
    return next(engine.module.parameters()).dtype
