"""Scores of texts as they come over the wire, by any reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf.data.collation import pad_sequences
from rlhf.data.encoding import Encoded, encode_prompts, prompt_text
from rlhf.data.rows import Prompt, PromptRow, prompt_row
from rlhf.data.sets import pad_id_of
from rlhf.data.sources import Row
from rlhf.data.tokenizers import tokenized
from rlhf.rewards.endpoint import EndpointReward
from rlhf.rewards.mixture import MixtureReward
from rlhf.rewards.reward import FunctionReward, Reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True, slots=True)
class Asked:
    """Responses that somebody wants to have scored."""

    prompts: list[Prompt]
    responses: list[str]
    columns: list[dict[str, Any]]
    ended: list[bool]
    """False where a response was cut off: no end token follows it."""

    def __len__(self) -> int:
        return len(self.prompts)

    @staticmethod
    def of(content: Any) -> Asked:
        """A request's object, checked.

        Raises:
            ValueError: a field is missing, of another length, or of the wrong kind; names it.
        """
        if not isinstance(content, dict):
            raise ValueError(f"the request is a JSON {type(content).__name__}, expected an object")
        if unknown := sorted(set(content) - {"prompts", "responses", "columns", "ended"}):
            raise ValueError(f"unknown field {unknown[0]!r}; there are prompts, responses, columns, ended")
        responses = _listed(content, "responses", str, None)
        rows = len(responses)
        if not rows:
            raise ValueError("field 'responses' is empty")
        prompts = _listed(content, "prompts", (str, list), rows)
        for number, prompt in enumerate(prompts):
            prompt_row(Row(values={"prompt": prompt}, where=f"prompt {number}"))
        return Asked(
            prompts=prompts,
            responses=responses,
            columns=_listed(content, "columns", dict, rows, default={}),
            ended=_listed(content, "ended", bool, rows, default=True),
        )

    @staticmethod
    def together(requests: Sequence[Asked]) -> Asked:
        """The rows of all requests, in their order."""
        return Asked(
            prompts=[prompt for one in requests for prompt in one.prompts],
            responses=[response for one in requests for response in one.responses],
            columns=[columns for one in requests for columns in one.columns],
            ended=[ended for one in requests for ended in one.ended],
        )


@dataclass(kw_only=True, slots=True)
class TextScorer:
    """Any reward, as a function of texts."""

    reward: Reward
    tokenizer: PreTrainedTokenizerBase | None
    """None where no part of the reward is a model, and no prompt a conversation."""
    max_length: int | None
    """Most tokens of a text that a model reads; longer ones are refused."""
    device: torch.device

    def __call__(self, asked: Asked) -> Tensor:
        """(B,) float32 on the CPU.

        Raises:
            ValueError: a text is too long, a template is missing, or the reward refused.
        """
        return self._scores(self.reward, asked).cpu()

    def _scores(self, reward: Reward, asked: Asked) -> Tensor:
        if isinstance(reward, MixtureReward):
            return reward.total({name: self._scores(part, asked) for name, part in reward.parts.items()})
        if isinstance(reward, FunctionReward):
            return reward.of_texts(self._texts(asked), asked.responses, asked.columns)
        if isinstance(reward, EndpointReward):
            return reward.of_texts(self._texts(asked), asked.responses, asked.columns, asked.ended)
        tokenizer = self._needed("a reward model")
        batch = pad_sequences(self._encoded(asked, tokenizer), pad_id=pad_id_of(tokenizer))
        return reward.sequences(batch.to(self.device), tokenizer).cpu()

    def _texts(self, asked: Asked) -> list[str]:
        """Prompts as a model reads them."""
        return [
            prompt if isinstance(prompt, str) else prompt_text(row, self._needed("a conversation"))
            for prompt, row in zip(asked.prompts, _rows(asked), strict=True)
        ]

    def _encoded(self, asked: Asked, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
        """Prompt, response, and an end token where the response ended: the tokens of a rollout."""
        found = []
        texts = zip(
            encode_prompts(_rows(asked), tokenizer),
            tokenized(asked.responses, tokenizer),
            asked.ended,
            strict=True,
        )
        for number, (prompt, response, ended) in enumerate(texts):
            end = [tokenizer.eos_token_id] if ended and response[-1:] != [tokenizer.eos_token_id] else []
            tokens = prompt + response + end
            if self.max_length is not None and len(tokens) > self.max_length:
                raise ValueError(
                    f"row {number} has {len(tokens)} tokens, more than max_length={self.max_length}"
                )
            found.append(
                Encoded(tokens=tokens, targets=[place >= len(prompt) for place in range(len(tokens))])
            )
        return found

    def _needed(self, what: str) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise ValueError(f"{what} needs a tokenizer, and the endpoint was started without one")
        return self.tokenizer


Scorer = Callable[[Asked], Tensor]
"""Requests → (B,) scores."""


def _rows(asked: Asked) -> list[PromptRow]:
    return [
        PromptRow(prompt=prompt, columns={}, where=f"prompt {number}")
        for number, prompt in enumerate(asked.prompts)
    ]


def _listed(
    content: dict[str, Any], name: str, kind: Any, rows: int | None, default: Any = None
) -> list[Any]:
    """A field that is a list of ``kind``, ``rows`` long; of an optional one, that is absent, its default."""
    if default is not None and content.get(name) is None:
        return [default] * (rows or 0)
    values = content.get(name)
    if not isinstance(values, list):
        raise ValueError(f"field {name!r} is {type(values).__name__}, expected a list")
    if rows is not None and len(values) != rows:
        raise ValueError(f"field {name!r} has {len(values)} entries, 'responses' has {rows}")
    for number, value in enumerate(values):
        if not isinstance(value, kind):
            raise ValueError(f"field {name!r}, entry {number} is {type(value).__name__}")
    return values
