"""What an online run holds: its models, and everything else that moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from rlhf.distributed.averaging import WeightAverage
from rlhf.distributed.engine import Engine
from rlhf.distributed.engine_config import Inference
from rlhf.models.actor import Actor
from rlhf.rewards.reward import Reward
from rlhf.trainers.progress import load_progress, save_progress


@dataclass(kw_only=True, slots=True)
class Models:
    """The models of an online run."""

    actor: Engine
    critic: Engine | None
    reference: Inference | None
    """What the KL is measured to; None measures none."""
    reward: Reward
    sampling_actor: Callable[[], Actor]
    """The actor's present weights in a plain module, gathered once per call where they are sharded."""
    average: WeightAverage[Actor] | None = None
    """Of the actor; what is evaluated where there is one."""

    def learn(self) -> None:
        """Put actor and critic in train() mode, where activations are recomputed; dropout is 0."""
        for engine in (self.actor, self.critic):
            if engine is not None:
                engine.module.train()


@dataclass(kw_only=True, slots=True)
class State:
    """Everything that moves besides the engines; the random streams are functions of it and the seed."""

    kl_coef: float
    penalty: float
    """Coefficient of the policy loss's own KL(π_old‖π)."""
    baseline: float = 0.0
    """Running mean of the returns, for the estimator that reads it."""
    drawn: int = 0
    """Prompts, over all ranks."""
    rollouts: int = 0
    actor_steps: int = 0

    @property
    def place(self) -> str:
        """The present step, for messages."""
        return f"rollout {self.rollouts + 1}"

    def write(self, folder: Path) -> None:
        """Into a checkpoint."""
        save_progress(folder, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From a checkpoint."""
        saved = load_progress(folder, set(cls.__dataclass_fields__))
        return cls(
            kl_coef=saved["kl_coef"],
            penalty=saved["penalty"],
            baseline=saved["baseline"],
            drawn=int(saved["drawn"]),
            rollouts=int(saved["rollouts"]),
            actor_steps=int(saved["actor_steps"]),
        )
