"""A byte-level tokenizer of our own, with and without a chat template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf.data.tokenizers import train_bpe

TEXTS = [
    "a fine little film about the sea",
    "a dull film , and a long one",
    "the sea is fine",
    "user assistant",
]

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe(TEXTS, 300)


@pytest.fixture
def chat_tokenizer() -> PreTrainedTokenizerFast:
    trained = train_bpe(TEXTS, 300)
    trained.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    trained.chat_template = CHATML
    return trained


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    def write(*rows: Any, name: str = "rows.jsonl") -> str:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return write
