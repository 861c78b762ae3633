"""A tokenizer whose words are numbers, for trainers that will not start without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf.models.quiet import quiet


def save_with_tokenizer(model: Any, vocabulary: int, folder: Path) -> None:
    """A folder that ``from_pretrained`` reads: tokens 0, 1 and 2 are PAD, end and unknown."""
    words = {"<pad>": 0, "<end>": 1, "<unknown>": 2, **{str(i): i for i in range(3, vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>"
    )
    with quiet():
        fast.save_pretrained(folder)
        model.save_pretrained(folder)
