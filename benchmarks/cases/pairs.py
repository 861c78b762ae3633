"""Random prompts with two responses each, of lognormal lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases.rows import lognormal, random_rows
from rlhf.data.encoding import Encoded
from rlhf.data.fitting import Report
from rlhf.data.loaded import PreferenceSet

END = 1
"""The tokenizer's end of a text."""


@dataclass(kw_only=True, slots=True)
class Pairs:
    """Prompt, better and worse response of each pair, as tokens."""

    prompts: list[list[int]]
    chosen: list[list[int]]
    rejected: list[list[int]]

    @staticmethod
    def lognormal(count: int, longest: int, vocabulary: int) -> Pairs:
        """Texts of lognormal lengths; the prompt is a quarter of the shorter one, END ends a response."""
        generator = torch.Generator().manual_seed(0)
        sides = torch.stack([lognormal(count, longest, generator) for _ in range(2)], 1).clamp(min=4)
        prompt = sides.min(1).values // 4
        prompts = random_rows(prompt, vocabulary, generator)
        chosen, rejected = (
            [[*row, END] for row in random_rows(sides[:, side] - prompt - 1, vocabulary, generator)]
            for side in range(2)
        )
        return Pairs(prompts=prompts, chosen=chosen, rejected=rejected)

    @property
    def texts(self) -> tuple[list[list[int]], list[list[int]]]:
        """Prompt and response together, the better ones and the worse ones."""
        better = [prompt + response for prompt, response in zip(self.prompts, self.chosen, strict=True)]
        worse = [prompt + response for prompt, response in zip(self.prompts, self.rejected, strict=True)]
        return better, worse

    @property
    def lengths(self) -> Tensor:
        """(pairs, 2) tokens, prompts included."""
        return torch.tensor([[len(text) for text in pair] for pair in zip(*self.texts, strict=True)])

    def data(self) -> PreferenceSet:
        """For the product's trainers: targets are the responses."""
        count = len(self.prompts)
        better, worse = (
            [
                Encoded(tokens=text, targets=[False] * len(prompt) + [True] * (len(text) - len(prompt)))
                for prompt, text in zip(self.prompts, side, strict=True)
            ]
            for side in self.texts
        )
        report = Report(source="benchmark", read=count, kept=count)
        return PreferenceSet(chosen=better, rejected=worse, margins=[0.0] * count, pad_id=0, report=report)
