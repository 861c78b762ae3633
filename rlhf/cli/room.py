"""Whether models have positions for the longest text, asked before anything is sampled or trained."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.data.loaded import ComparisonSet, LabelledSet, PreferenceSet, PromptSet, SupervisedSet
from rlhf.models.actor import Actor
from rlhf.models.scalar import ScalarModel
from rlhf.rewards.implicit import ImplicitReward
from rlhf.rewards.mixture import CombinedReward
from rlhf.rewards.reward import ModelReward, Reward


@dataclass(kw_only=True, slots=True)
class Longest:
    """The longest row of the data, and how many tokens are sampled after it."""

    source: str
    """What the row was read from."""
    row: int
    """Its number among the rows kept there, from 0."""
    tokens: int
    new_tokens: int
    """Most tokens that are sampled after it."""

    def needed(self) -> int:
        """Positions that a model needs for it."""
        return self.tokens + self.new_tokens

    def expect_room(self, model: Actor | ScalarModel) -> None:
        """Refuse a model with too few positions.

        Raises:
            ValueError: names the row, the model and both lengths.
        """
        context = context_of(model)
        if context is None or self.needed() <= context:
            return
        sampled = f" and max_new_tokens={self.new_tokens}" if self.new_tokens else ""
        name = model.model.config.name_or_path or type(model.model).__name__
        raise ValueError(
            f"{self.source}: kept row {self.row} has {self.tokens} tokens{sampled}, more than the "
            f"context of {name}, {context} positions"
        )


def context_of(model: Actor | ScalarModel) -> int | None:
    """Positions that a model has; None where it has any number."""
    return getattr(model.model.config, "max_position_embeddings", None)


def context_of_reward(reward: Reward) -> int | None:
    """The fewest positions of the models in a reward; None where there is no limit."""
    if isinstance(reward, CombinedReward):
        found = [context_of_reward(part) for part in reward.parts.values()]
    else:
        found = [context_of(model) for model in _models(reward)]
    return min((positions for positions in found if positions is not None), default=None)


def _models(reward: Reward) -> list[Actor | ScalarModel]:
    """The models that a single reward runs."""
    engines: list[object] = []
    if isinstance(reward, ModelReward):
        engines = [reward.model]
    if isinstance(reward, ImplicitReward):
        engines = [reward.policy, reward.reference]
    modules = [getattr(engine, "module", None) for engine in engines]
    return [module for module in modules if isinstance(module, Actor | ScalarModel)]


def longest(
    *data: SupervisedSet | PreferenceSet | ComparisonSet | LabelledSet | PromptSet | None,
    new_tokens: int = 0,
) -> Longest:
    """The longest row of one or several data sets; None is passed over."""
    candidates = []
    for rows in data:
        if rows is not None:
            tokens = max(rows.lengths)
            candidates.append(
                Longest(
                    source=rows.report.source,
                    row=rows.lengths.index(tokens),
                    tokens=tokens,
                    new_tokens=new_tokens,
                )
            )
    return max(candidates, key=Longest.needed)
