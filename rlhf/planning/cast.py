"""The models of an online run."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config import RL
from rlhf.models.actor import Actor
from rlhf.models.scalar import ScalarModel
from rlhf.models.shapes import actor_shape, scalar_shape
from rlhf.planning.memory_plan import Term
from rlhf.planning.roles import AnyFrozen, AnyTrained, Frozen, Machine, Trained
from rlhf.planning.sampling import reward_models


@dataclass(kw_only=True, slots=True)
class Cast:
    """The models of a run."""

    actor: Trained[Actor]
    critic: Trained[ScalarModel] | None
    reference: Frozen[Actor] | None
    """A model of its own; None where there is none, or where it is the actor with its adapters off."""
    rewards: list[AnyFrozen]
    copies: list[Term]
    """Of the actor: what stage 3 samples from, an average of the weights."""

    @property
    def learners(self) -> list[AnyTrained]:
        """Models with an optimiser."""
        return [self.actor] if self.critic is None else [self.actor, self.critic]

    @property
    def fixed(self) -> list[AnyFrozen]:
        """Models without one."""
        return [*self.rewards, *([] if self.reference is None else [self.reference])]

    def always(self) -> list[Term]:
        """What all of them hold between passes."""
        models: list[AnyTrained | AnyFrozen] = [*self.learners, *self.fixed]
        return [*(term for model in models for term in model.always()), *self.copies]


def cast_of(config: RL, machine: Machine) -> Cast:
    """The models that a configuration names, without numbers."""
    shape = actor_shape(
        config.actor.model,
        None,
        gradient_checkpointing=config.actor.gradient_checkpointing,
        packed=config.packed,
        lora=config.actor.lora,
    )
    whole = sum(parameter.numel() for parameter in shape.parameters())
    actor = Trained("actor", shape, config.engine, machine)
    copies = []
    if config.engine.splits_parameters:
        copies.append(
            Term(owner="actor", part="copy to sample from", bytes=whole * config.engine.dtype.itemsize)
        )
    if config.actor.ema_decay is not None:
        copies.append(Term(owner="actor", part="average of the weights", bytes=4 * whole))
    inference = config.inference_engine or config.engine
    return Cast(
        actor=actor,
        critic=_critic(config, machine),
        reference=_reference(config, machine),
        rewards=reward_models(config.reward, inference, machine, packed=config.packed),
        copies=copies,
    )


def _critic(config: RL, machine: Machine) -> Trained[ScalarModel] | None:
    if config.critic_start is None:
        return None
    source, fresh_head = config.critic_start
    shape = scalar_shape(
        source,
        None,
        fresh_head=fresh_head,
        gradient_checkpointing=config.critic.gradient_checkpointing,
        packed=config.packed,
        lora=config.critic.lora,
    )
    return Trained("critic", shape, config.critic.engine or config.engine, machine)


def _reference(config: RL, machine: Machine) -> Frozen[Actor] | None:
    source = config.reference_start
    if source is None:
        return None
    engine = config.inference_engine or config.engine
    return Frozen("reference", actor_shape(source, None, packed=config.packed), engine, machine)
