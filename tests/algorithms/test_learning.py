"""E1: the components, trained on samples from the frozen testbed, end at π*; wrong rewards do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.advantages import GAE, GroupRelative, LeaveOneOut
from rlhf.algorithms.aggregation import ConstantLength, TokenMean
from rlhf.algorithms.kl import KLInReward
from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.algorithms.policy_losses import Clipped, Reinforce
from rlhf.algorithms.value_losses import SquaredError
from rlhf.batch import Experience, Rollout
from rlhf.ops.masking import response_mask

BETA, ROWS, G = 0.5, 256, 4


def one_rank(part: Tensor) -> Tensor:
    return part


def ppo() -> PolicyGradient:
    return PolicyGradient(
        advantage=GAE(),
        policy_loss=Clipped(),
        kl=KLInReward(coef=BETA),
        aggregation=TokenMean(),
        value_loss=SquaredError(),
    )


def grouped(advantage: LeaveOneOut | GroupRelative) -> PolicyGradient:
    return PolicyGradient(
        advantage=advantage,
        policy_loss=Reinforce(),
        kl=KLInReward(coef=BETA),
        aggregation=ConstantLength(length=1),
        epochs=1,
    )


Shape = Callable[..., Tensor]


@dataclass
class Learner:
    """The recipe of numerics section 2.4 on a table of logits and a table of values."""

    bed: object
    algorithm: PolicyGradient
    lr: float
    updates: int
    seed: int = 0
    shape: Shape | None = None  # in place of the algorithm's, for the negative controls

    def train(self) -> tuple[Tensor, Tensor]:
        """Final logits (85, 5) and critic (85,), in float64."""
        generator = torch.Generator().manual_seed(self.seed)
        actor, critic = self.bed.ref_logits.float().requires_grad_(), torch.zeros(85, requires_grad=True)
        groups = [{"params": [actor], "lr": self.lr}, {"params": [critic], "lr": 0.05}]
        optimizer = torch.optim.Adam(groups, eps=1e-5)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda u: max(1 - u / self.updates, 0.0))
        for _ in range(self.updates):
            experience, states = self.collect(actor.detach(), critic.detach(), generator)
            for _ in range(self.algorithm.epochs):
                self.update(actor, critic, experience, states, optimizer)
            schedule.step()
        return actor.detach().double(), critic.detach().double()

    def sample(self, actor: Tensor, generator: torch.Generator) -> Rollout:
        probabilities, responses = actor.softmax(1), torch.zeros(ROWS, self.bed.T, dtype=torch.int64)
        for t in range(self.bed.T):
            state = self.bed.states_of(responses)[:, t]
            responses[:, t] = torch.multinomial(probabilities[state], 1, generator=generator)[:, 0]
        mask = response_mask(responses, [self.bed.EOS])
        responses = torch.where(mask, responses, self.bed.PAD)
        return Rollout(
            tokens=torch.cat([torch.zeros(ROWS, 1, dtype=torch.int64), responses], 1),
            prompt_mask=torch.ones(ROWS, 1, dtype=torch.bool),
            mask=mask,
            ended=(responses == self.bed.EOS).any(1),
            sampler_logprobs=torch.zeros(ROWS, self.bed.T),
            index=torch.zeros(ROWS, dtype=torch.int64),
            group=torch.arange(ROWS) // G,
        )

    def collect(self, actor: Tensor, critic: Tensor, generator: torch.Generator) -> tuple[Experience, Tensor]:
        rollout = self.sample(actor, generator)
        states = self.bed.states_of(rollout.responses)
        old = self.bed.token_logprobs(actor, rollout.responses, states)
        ref = self.bed.token_logprobs(self.bed.ref_logits.float(), rollout.responses, states)
        values = critic[states] if self.algorithm.advantage.needs_critic else None
        rewards = (self.shape or self.algorithm.shape)(
            self.scores(rollout), rollout.ended, old, ref, rollout.mask, BETA
        )
        estimate = self.algorithm.estimate(rewards, values, rollout.mask, rollout.group, one_rank)
        experience = Experience(
            rollout=rollout,
            old_logprobs=old,
            ref_logprobs=ref,
            advantages=estimate.advantages,
            returns=estimate.returns,
            old_values=values,
        )
        return experience, states

    def scores(self, rollout: Rollout) -> Tensor:
        """The reward of each response; of a cut one it is NaN, which D28 must replace."""
        table = torch.full((6**self.bed.T,), torch.nan)
        table[self.number(self.bed.responses)] = torch.where(self.bed.ended, self.bed.r, torch.nan).float()
        return table[self.number(rollout.responses)]

    def number(self, responses: Tensor) -> Tensor:
        return (responses * torch.tensor([216, 36, 6, 1])).sum(1)

    def update(
        self,
        actor: Tensor,
        critic: Tensor,
        experience: Experience,
        states: Tensor,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        mask = experience.rollout.mask
        weights = self.algorithm.aggregation(mask, one_rank)
        logprobs = self.bed.token_logprobs(actor, experience.rollout.responses, states)
        loss = (weights * self.algorithm.token_loss(logprobs, experience, BETA)).sum()
        if self.algorithm.value_loss is not None:
            critic_loss = self.algorithm.value_loss(
                critic[states], experience.old_values, experience.returns, mask
            )
            loss = loss + (weights * critic_loss).sum()  # two tables: neither loss reaches the other's
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def distance(bed, logits: Tensor) -> float:
    """KL(π‖π*), checked against J* − J(π) = β·KL(π‖π*)."""
    joint = bed.log_joint(logits)
    kl = joint.exp() @ (joint - bed.log_star)
    objective = joint.exp() @ (bed.r - BETA * (joint - bed.log_ref))
    assert abs(BETA * bed.log_z - objective - BETA * kl) <= 1e-12
    return kl.item()


def test_ppo_ends_at_the_optimum_with_the_right_critic(testbed) -> None:
    logits, values = Learner(testbed, ppo(), lr=0.03, updates=600).train()
    assert distance(testbed, logits) <= 1e-3
    tilted = testbed.log_ref + testbed.r / BETA
    soft, reached = torch.empty(85).double(), torch.empty(85).double()
    for state in range(85):
        through = ((testbed.states == state) & testbed.mask).any(1)
        prefix = testbed.log_ref[through].logsumexp(0)  # log π_ref(reach state)
        soft[state] = BETA * (tilted[through].logsumexp(0) - prefix)
        reached[state] = testbed.log_star[through].exp().sum()
    visited = reached > 1e-3
    assert visited.sum() == 64
    assert (values - soft)[visited].abs().max() <= 0.05


@pytest.mark.parametrize("advantage", [LeaveOneOut(), GroupRelative()])
def test_group_baselines_end_at_the_optimum(testbed, advantage) -> None:
    logits, _ = Learner(testbed, grouped(advantage), lr=0.05, updates=600).train()
    assert distance(testbed, logits) <= 1e-3


# Negative controls, shorter: 200 updates are enough for the right reward and for seeing a wrong one.


def test_the_right_reward_is_near_the_optimum_after_200_updates(testbed) -> None:
    logits, _ = Learner(testbed, ppo(), lr=0.03, updates=200).train()
    assert distance(testbed, logits) < 0.01


def test_score_in_the_last_column_ends_elsewhere(testbed) -> None:
    def last_column(scores: Tensor, ended: Tensor, *rest) -> Tensor:
        old, ref, mask, coef = rest
        rewards = torch.zeros_like(old)
        rewards[:, -1] = torch.where(ended, scores, -1.0)
        return torch.where(mask, rewards - coef * (old - ref), 0.0)

    logits, _ = Learner(testbed, ppo(), lr=0.03, updates=200, shape=last_column).train()
    assert distance(testbed, logits) > 0.1


def test_kl_clamped_at_zero_ends_elsewhere(testbed) -> None:
    algorithm = ppo()

    def clamped(scores: Tensor, ended: Tensor, *rest) -> Tensor:
        old, ref, mask, coef = rest
        return algorithm.shape(scores, ended, torch.maximum(old, ref), ref, mask, coef)

    logits, _ = Learner(testbed, algorithm, lr=0.03, updates=200, shape=clamped).train()
    assert distance(testbed, logits) > 0.1
