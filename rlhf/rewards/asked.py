"""Any reward as a function of texts that were asked about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.data.asked import Asked, Reader
from rlhf.rewards.endpoint import EndpointReward
from rlhf.rewards.mixture import MixtureReward
from rlhf.rewards.reward import FunctionReward, Reward

Scorer = Callable[[Asked], Tensor]
"""Requests → (B,) scores."""


@dataclass(kw_only=True, slots=True)
class TextScorer:
    """Functions get the texts, models the tokens that the reader makes of them."""

    reward: Reward
    reader: Reader
    device: torch.device

    def __call__(self, asked: Asked) -> Tensor:
        """(B,) float32 on the CPU.

        Raises:
            ValueError: a text is too long, a tokenizer or template is missing, or the reward refused.
        """
        return self._scores(self.reward, asked)

    def _scores(self, reward: Reward, asked: Asked) -> Tensor:
        if isinstance(reward, MixtureReward):
            return reward.total({name: self._scores(part, asked) for name, part in reward.parts.items()})
        if isinstance(reward, FunctionReward):
            return reward.of_texts(self.reader.prompts(asked), asked.responses, asked.columns)
        if isinstance(reward, EndpointReward):
            texts = self.reader.prompts(asked)
            return reward.of_texts(texts, asked.responses, asked.columns, asked.ended)
        batch, decoder = self.reader.batch(asked)
        return reward.sequences(batch.to(self.device), decoder).cpu()
