"""Tokenizers: loaded with a PAD of their own, checked against a model, or trained from texts."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"

log = logging.getLogger(__name__)


def load_tokenizer(source: str, *, eos_ids: Sequence[int] = ()) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name, with a PAD that is no end token (numerics D1).

    Args:
        source: a folder or a hub name.
        eos_ids: further end tokens, of the model's generation config.

    Raises:
        ValueError: there is no tokenizer, or it has no end token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # missing, offline, damaged and unknown all raise different types
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{source}: no tokenizer can be loaded: {first}") from None
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{source}: the tokenizer has no end token (eos_token)")
    give_own_pad(tokenizer, eos_ids=eos_ids)
    return tokenizer


def give_own_pad(tokenizer: PreTrainedTokenizerBase, *, eos_ids: Sequence[int] = ()) -> None:
    """Add a PAD token where there is none or where it is an end token too, and log that.

    Its id may lie outside the model's embedding: padding is masked before embedding (numerics D4).
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in (
        tokenizer.eos_token_id,
        *eos_ids,
    ):
        return
    reason = "had none" if tokenizer.pad_token_id is None else f"shared {tokenizer.pad_token!r} with the end"
    names = itertools.chain([PAD], (f"<pad_{number}>" for number in itertools.count(1)))
    known = tokenizer.get_vocab()
    tokenizer.add_special_tokens({"pad_token": next(name for name in names if name not in known)})
    log.info(
        "%s: PAD %s, it is now %r, id %d",
        tokenizer.name_or_path or "tokenizer",
        reason,
        tokenizer.pad_token,
        tokenizer.pad_token_id,
    )


def tokenized(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of each text and nothing around them. One call for many texts is several times faster."""
    return (
        [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []
    )


def begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer writes before every text: its begin token, or nothing."""
    first, plain = tokenizer("a")["input_ids"][0], tokenized(["a"], tokenizer)[0][0]
    return [first] if first == tokenizer.bos_token_id and first != plain else []


def end_ids(
    tokenizer: PreTrainedTokenizerBase, eos_ids: int | Sequence[int] | None = None
) -> tuple[int, ...]:
    """Every token that ends a response: the tokenizer's and those of a generation config, ascending.

    Raises:
        ValueError: there is none, or PAD is one of them (numerics D1).
    """
    given = [eos_ids] if isinstance(eos_ids, int) else list(eos_ids or ())
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ends = tuple(sorted({*own, *given}))
    if not ends:
        raise ValueError("neither the tokenizer nor the generation config has an end token")
    if tokenizer.pad_token_id in ends:
        raise ValueError(
            f"token {tokenizer.pad_token_id} is PAD and ends responses; PAD must be a token of its own"
        )
    return ends


def train_bpe(
    texts: Iterable[str], vocab_size: int, path: str | Path | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of ``texts``: any text decodes to itself, and ``<bos>`` begins every text.

    The same texts give the same tokenizer. PAD, BOS and EOS are three tokens, so that an empty prompt is
    the single token BOS.

    Args:
        texts: what the merges are counted on.
        vocab_size: tokens, the 256 bytes and the three special ones included; fewer come out where the
            texts hold too few pairs.
        path: folder to save to; ``AutoTokenizer`` loads it.

    Raises:
        ValueError: ``vocab_size`` is less than 259.
    """
    specials = [PAD, BOS, EOS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(specials):
        raise ValueError(f"vocab_size must be at least {len(alphabet) + len(specials)}, got {vocab_size}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    if len(tokenizer) < vocab_size:
        log.warning("the texts yield %d tokens, fewer than vocab_size = %d", len(tokenizer), vocab_size)
    if path is not None:
        tokenizer.save_pretrained(str(path))
    return tokenizer


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of the numbers of all tokens, the special ones, and the chat template."""
    parts = [sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
