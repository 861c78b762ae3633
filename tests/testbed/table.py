"""Tables as transformers models, and the production trainer over them: no part of the product is replaced.

The policy is a causal language model whose hidden state is the one-hot number of the prefix read so far; its
``lm_head`` is the table of logits. Critic and reward model are sequence classifiers over the same backbone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from rlhf.algorithms import advantages, aggregation, kl, policy_losses, value_losses
from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.data.fitting import Report
from rlhf.data.loaded import PromptSet
from rlhf.distributed.engine_config import Plain
from rlhf.distributed.runtime import Runtime
from rlhf.models.actor import Actor
from rlhf.models.frozen import frozen
from rlhf.models.scalar import ScalarModel
from rlhf.rewards.reward import ModelReward
from rlhf.rollout.decoding import Sampling
from rlhf.rollout.sampler import Sampler
from rlhf.rollout.texts import RolloutTexts
from rlhf.trainers.collection import Prompts, Sizes
from rlhf.trainers.optimizers import AdamW
from rlhf.trainers.policy_gradient import Models, PolicyGradientTrainer
from rlhf.trainers.schedules import Linear, Schedule
from tests.testbed.tree import Testbed

ROWS, GROUP = 256, 4
"""Responses of an update, and to one prompt (numerics 2.4)."""
PROMPT = 3
"""The one token of the prompt; any would do."""


class Prefixes(nn.Module):
    """The backbone: each position's hidden state is the one-hot number of the response up to it.

    A prefix is counted in bijective base five, the empty one 0. Position 0 is the prompt's token, wherever it
    stands; the key-value cache is the count (B,) after the last column.
    """

    def __init__(self, number: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("number", number)  # (781,) int64, of each prefix of at most four tokens
        self.register_buffer("one_hot", torch.eye(width))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Tensor | None = None,
        use_cache: bool = False,
    ) -> BaseModelOutputWithPast:
        count = torch.zeros_like(input_ids[:, 0]) if past_key_values is None else past_key_values
        counts = []
        for token, position in zip(input_ids.unbind(1), position_ids.unbind(1), strict=True):
            count = torch.where(position == 0, 0, 5 * count + 1 + token)
            counts.append(count)
        known = torch.stack(counts, 1).clamp(max=len(self.number) - 1)  # more only after a row's end
        states = F.embedding(self.number[known], self.one_hot)
        return BaseModelOutputWithPast(last_hidden_state=states, past_key_values=count)


class Table(PreTrainedModel):
    """A backbone of prefixes under a linear head of either kind."""

    config_class = PreTrainedConfig
    base_model_prefix = "model"

    def __init__(self, backbone: Prefixes, head: str, weight: Tensor) -> None:
        super().__init__(PreTrainedConfig())
        self.model = backbone
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight = nn.Parameter(weight.clone())
        setattr(self, head, linear)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


def counts_of(bed: Testbed) -> Tensor:
    """(341, T) count of the prefix that ends with each token of every outcome."""
    columns, count = [], torch.zeros(len(bed.outcomes), dtype=torch.int64)
    for tokens in bed.responses.unbind(1):
        count = 5 * count + 1 + tokens
        columns.append(count)
    return torch.stack(columns, 1)


def states(bed: Testbed) -> Prefixes:
    """Prefixes by the number of the state, of which there are 85; others share the root's."""
    number = torch.zeros(781, dtype=torch.int64)
    inside = bed.mask[:, 1:]
    number[counts_of(bed)[:, :-1][inside]] = bed.states[:, 1:][inside]
    return Prefixes(number, 85)


def outcomes(bed: Testbed) -> Prefixes:
    """Prefixes by the number of the outcome that they are; 341 is for those that are none."""
    number = torch.full((781,), 341)
    last = bed.mask.sum(1, keepdim=True) - 1
    number[counts_of(bed).gather(1, last)[:, 0]] = torch.arange(341)
    return Prefixes(number, 342)


def policy(bed: Testbed, logits: Tensor) -> Actor:
    """The table ``logits`` (85, 5) behind the production wrapper."""
    return Actor(Table(states(bed), "lm_head", logits.float().t()))


def critic(bed: Testbed) -> ScalarModel:
    """85 values, 0 at first."""
    return ScalarModel(Table(states(bed), "score", torch.zeros(1, 85)))


def reward(bed: Testbed, offset: float) -> ModelReward:
    """``r + offset`` of a response that ended; of any other a number that numerics D28 must replace."""
    weight = torch.full((1, 342), 99.0)
    weight[0, :341] = torch.where(bed.ended, bed.r + offset, 99.0)
    return ModelReward(model=frozen(ScalarModel(Table(outcomes(bed), "score", weight))), micro_rows=ROWS)


class Digits:
    """Writes tokens as the digits that they are."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(str(token) for token in token_ids)


def prompts(count: int) -> Prompts:
    """The one prompt, ``count`` times."""
    rows = PromptSet(
        prompts=[[PROMPT]] * count,
        strings=["3"] * count,
        others=[{}] * count,
        pad_id=Testbed.PAD,
        report=Report(source="testbed"),
    )
    return Prompts(rows=rows, texts=RolloutTexts(rows, Digits()))


def ppo(beta: float = 0.5, **changes: Any) -> PolicyGradient:
    """PPO of numerics 2.4."""
    choices: dict[str, Any] = {
        "advantage": advantages.GAE(),
        "policy_loss": policy_losses.Clipped(),
        "kl": kl.KLInReward(coef=beta),
        "aggregation": aggregation.TokenMean(),
        "value_loss": value_losses.SquaredError(),
    }
    return PolicyGradient(**(choices | changes))


def grouped(advantage: advantages.AdvantageEstimator, beta: float = 0.5, **changes: Any) -> PolicyGradient:
    """RLOO and GRPO of numerics 2.4: the KL in the reward, one step an update."""
    choices: dict[str, Any] = {
        "advantage": advantage,
        "policy_loss": policy_losses.Reinforce(),
        "aggregation": aggregation.ConstantLength(length=1),
        "value_loss": None,
        "epochs": 1,
    }
    return ppo(beta, **(choices | changes))


RECIPES: dict[str, Callable[[], PolicyGradient]] = {
    "ppo": ppo,
    "rloo": lambda: grouped(advantages.LeaveOneOut()),
}
"""By name, for the command that breaks them."""


def trainer(
    bed: Testbed,
    algorithm: PolicyGradient,
    *,
    updates: int,
    start: Tensor | None = None,
    temperature: float = 1.0,
    schedule: Schedule | None = None,
    offset: float = 0.0,
    seed: int = 0,
    lr: float | None = None,
    rows: int = ROWS,
    group: int = GROUP,
) -> PolicyGradientTrainer:
    """The recipe of numerics 2.4 on the production trainer.

    Actor and reference start from ``start``, by default the testbed's; ``offset`` is added to every score.
    """
    engine = Plain(clip=None)
    start = bed.ref_logits if start is None else start
    actor = policy(bed, start)
    values = critic(bed)
    has_critic = algorithm.value_loss is not None
    lr = (0.03 if has_critic else 0.05) if lr is None else lr
    return PolicyGradientTrainer(
        models=Models(
            actor=engine.train(actor, AdamW(lr=lr)(actor), "actor"),
            critic=engine.train(values, AdamW(lr=0.05)(values), "critic") if has_critic else None,
            reference=engine.inference(policy(bed, start), "reference"),
            reward=reward(bed, offset),
            sampling_actor=lambda: actor,
        ),
        algorithm=algorithm,
        sampler=Sampler(
            decoding=Sampling(max_new_tokens=bed.T, temperature=temperature),
            end_ids=[bed.EOS],
            pad_id=bed.PAD,
        ),
        train=prompts(rows // group),
        test=None,
        sizes=Sizes(prompts=rows // group, samples=group, micro_batch=rows),
        exact_kl=False,
        schedule=schedule or Linear(),
        total=updates,
        seed=seed,
        runtime=Runtime(0, 1, 0, torch.device("cpu")),
        export=lambda folder: None,
    )


def logits(trained: PolicyGradientTrainer) -> Tensor:
    """(85, 5) the actor's table."""
    return trained.models.actor.state()["model.lm_head.weight"].t().double()


def values(trained: PolicyGradientTrainer) -> Tensor:
    """(85,) the critic's table."""
    assert trained.models.critic is not None
    return trained.models.critic.state()["model.score.weight"][0].double()


def distance_after(bed: Testbed, trained: PolicyGradientTrainer) -> float:
    """KL(π‖π*) at the end of the run, J* − J = β·KL checked every hundred updates."""
    while trained.done < trained.total:
        trained.step()
        if trained.done % 100 == 0:
            bed.distance(logits(trained))
    return bed.distance(logits(trained))
