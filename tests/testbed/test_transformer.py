"""The testbed's second back-end (numerics 2.3): a tiny GPT-2 through the real rollout, padding and losses.

Its policies cannot be anything: exact gradients of the enumerated objective show how near π* it can come, and
training on samples must end as near.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf.algorithms.advantages import LeaveOneOut
from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.batch import Rollout
from rlhf.data.fitting import Report
from rlhf.data.loaded import PromptSet
from rlhf.distributed.engine_config import Plain
from rlhf.distributed.runtime import Runtime
from rlhf.models.actor import Actor
from rlhf.models.scalar import ScalarModel
from rlhf.rollout.decoding import Sampling
from rlhf.rollout.sampler import Sampler
from rlhf.rollout.texts import RolloutTexts
from rlhf.trainers.collection import Prompts, Sizes
from rlhf.trainers.optimizers import AdamW
from rlhf.trainers.policy_gradient import Models, PolicyGradientTrainer
from rlhf.trainers.schedules import Linear
from tests.testbed import table

V, EOS, PAD, T, BETA = 8, 7, 8, 3, 0.5
PROMPTS = ([1], [2, 3], [4, 5, 6, 0])


def gpt2(kind: type[Any], seed: int) -> Any:
    """Two layers of width 32, with weights wide enough that the start is not uniform."""
    config = GPT2Config(
        vocab_size=V,
        n_positions=16,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        num_labels=1,
        pad_token_id=0,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(config)


class World:
    """Every response of at most three tokens to each of three prompts of unequal length."""

    def __init__(self) -> None:
        content = range(V - 1)
        self.outcomes = [(*prefix, EOS) for n in range(T) for prefix in itertools.product(content, repeat=n)]
        self.outcomes += itertools.product(content, repeat=T)
        rows = [(prompt, y) for prompt in PROMPTS for y in self.outcomes]
        self.number = {(len(prompt), *y): i for i, (prompt, y) in enumerate(rows)}
        self.first = max(map(len, PROMPTS))
        self.tokens = torch.tensor(
            [[*[PAD] * (self.first - len(x)), *x, *y, *[PAD] * (T - len(y))] for x, y in rows]
        )
        self.real = self.tokens != PAD
        ended = (self.tokens == EOS).any(1)
        numbers = torch.Generator().manual_seed(0)
        self.r = torch.where(ended, torch.randn(len(rows), generator=numbers), -1.0)
        self.start = Actor(gpt2(GPT2LMHeadModel, 0))
        self.log_ref = self.joint(self.start).detach()
        tilted = self.log_ref + self.by_prompt(self.r) / BETA
        self.log_star = tilted - tilted.logsumexp(1, keepdim=True)

    def by_prompt(self, x: Tensor) -> Tensor:
        return x.double().reshape(len(PROMPTS), len(self.outcomes))

    def joint(self, actor: Actor) -> Tensor:
        """(3, 400) log-prob of each response, by the production forward with its left padding."""
        return self.by_prompt(actor(self.tokens, self.real, self.first).logprobs.sum(1))

    def distance(self, actor: Actor) -> Tensor:
        """KL(π‖π*) in nats, the mean over the prompts."""
        joint = self.joint(actor)
        return (joint.exp() * (joint - self.log_star)).sum(1).mean()

    def reward(self, rollout: Rollout, texts: object) -> Tensor:
        """The score of each response; of a cut one a number that numerics D28 must replace."""
        width = rollout.prompt_mask.sum(1).tolist()
        rows = zip(width, rollout.responses, rollout.mask, rollout.ended.tolist(), strict=True)
        return torch.tensor(
            [
                self.r[self.number[n, *tokens[real].tolist()]].item() if ended else 99.0
                for n, tokens, real, ended in rows
            ]
        )

    def trainer(self, algorithm: PolicyGradient, lr: float, updates: int) -> PolicyGradientTrainer:
        engine = Plain(clip=None)
        actor = copy.deepcopy(self.start)
        critic = None
        if algorithm.value_loss is not None:
            values = ScalarModel(gpt2(GPT2ForSequenceClassification, 1))
            critic = engine.train(values, AdamW(lr=lr)(values), "critic")
        rows = PromptSet(
            prompts=list(PROMPTS),
            strings=["short", "middle", "long"],
            others=[{}] * 3,
            pad_id=PAD,
            report=Report(source="testbed"),
        )
        return PolicyGradientTrainer(
            models=Models(
                actor=engine.train(actor, AdamW(lr=lr)(actor), "actor"),
                critic=critic,
                reference=engine.inference(copy.deepcopy(self.start), "reference"),
                reward=self.reward,
                sampling_actor=lambda: actor,
            ),
            algorithm=algorithm,
            sampler=Sampler(decoding=Sampling(max_new_tokens=T), end_ids=[EOS], pad_id=PAD),
            train=Prompts(rows=rows, texts=RolloutTexts(rows, table.Digits())),
            test=None,
            sizes=Sizes(prompts=66, samples=4, micro_batch=264),
            exact_kl=False,
            schedule=Linear(),
            total=updates,
            seed=0,
            runtime=Runtime(0, 1, 0, torch.device("cpu")),
            export=lambda folder: None,
        )


def climbed(world: World) -> float:
    """KL_min: where exact gradients of the enumerated objective take this architecture."""
    actor, steps = copy.deepcopy(world.start), 500
    optimizer = torch.optim.Adam(actor.parameters(), lr=3e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        optimizer.zero_grad()
        world.distance(actor).backward()  # J* − J = β·KL(π‖π*): the same ascent
        optimizer.step()
    return world.distance(actor).item()


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def nearest(world: World) -> float:
    return climbed(world)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "updates"),
    [(table.ppo(), 300), (table.grouped(LeaveOneOut()), 600)],
    ids=["ppo", "rloo"],
)
def test_samples_lead_as_near_to_the_optimum_as_exact_gradients(
    world: World, nearest: float, algorithm: PolicyGradient, updates: int
) -> None:
    trained = world.trainer(algorithm, 3e-3, updates)
    start = world.distance(world.start).item()
    while trained.done < trained.total:
        trained.step()
    found = world.distance(trained.models.actor.module).item()
    assert start > 0.5
    assert found <= nearest + 0.02
