"""Control prefixes: words before a prompt that tell the policy how good its response shall be.

Training puts them before prompts whose responses are known to be good or bad (``rlhf select``), sampling the
good one before every prompt (``rlhf generate prefix=…``). They are plain text, tokenised with the prompt.
"""

from __future__ import annotations

import dataclasses

from transformers import PreTrainedTokenizerBase

from rlhf.data.encoding import encode_prompts
from rlhf.data.loaded import PromptSet
from rlhf.data.rows import Prompt, PromptRow


def prefixed(prompt: Prompt, prefix: str) -> Prompt:
    """The prompt behind ``prefix``; of a conversation the text of its last turn is."""
    if isinstance(prompt, str):
        return prefix + prompt
    return [*prompt[:-1], {**prompt[-1], "content": prefix + prompt[-1]["content"]}]


def with_prefix(prompts: PromptSet, prefix: str, tokenizer: PreTrainedTokenizerBase) -> PromptSet:
    """The same prompts with the tokens of ``prefix`` before them; texts and columns stay the bare ones."""
    if not prefix:
        return prompts
    rows = [
        PromptRow(
            prompt=prefixed(given, prefix), columns={}, where=f"{prompts.report.source}, prompt {number}"
        )
        for number, given in enumerate(prompts.given)
    ]
    return dataclasses.replace(prompts, prompts=encode_prompts(rows, tokenizer))
