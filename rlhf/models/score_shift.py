"""A constant added to the score, inside weights that ``transformers`` knows (numerics D25).

The classifiers of transformers have a head without bias: score = w·h. Where h comes out of a layer norm, the
norm's own bias carries the constant: w·(h + c·w/|w|²) = w·h + c.

An RMS norm has no bias, and nothing before it can stand in: a block of a Llama sees its input only divided by
its length, so whatever it adds is divided by a length that it does not know. The score itself has to be made
before the norm. One more block does that:

    attention     0
    gate          silu(32) = 32 of its first unit, 0 of the others
    up            w·h + c of its first unit: this block's norm has the final norm's old weight and gives h
    down          2³⁶·(w·h + c) into the first feature, 2⁵⁸ into the second; what was there is lost in them
    final norm    divides by 2⁵⁸/√d
    head          2²²/√d times the first feature

Every factor but √d is a power of two, so float32 keeps its digits: the relative error is some 1e-7 for scores
below 1,000. float16 cannot hold the numbers.
Our loader takes the block off again and keeps c in the head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from rlhf.tensor_file import TensorStream

WEIGHT, SHIFT = "model.score.weight", "model.score.shift"
"""The scalar head's, in the state of a `rlhf.models.scalar.ScalarModel`."""
KEY = "score_block"
"""Under what a saved model's configuration says that its last block makes the score."""
LIKE_LLAMA = ("llama", "mistral", "qwen2")
"""Kinds of models that are Llamas with other names of settings."""
GATE, SCORE, REST = 2.0**5, 2.0**36, 2.0**58


@dataclass(kw_only=True, slots=True)
class ScoreScale:
    """What a reward model's scores are changed to: gain·w·h + shift."""

    gain: float
    shift: float

    def applied(self, stream: TensorStream) -> TensorStream:
        """The weights of a `rlhf.models.scalar.ScalarModel` with such scores, as they come."""

        def tensors() -> Iterator[Tensor]:
            for name, tensor in stream:
                if name == SHIFT:
                    yield torch.full_like(tensor, self.shift)
                else:
                    yield tensor * self.gain if name == WEIGHT else tensor

        return TensorStream(kinds=stream.kinds, tensors=tensors)


def expect_place_for_shift(model: Any, name: str) -> None:
    """Refuse a model whose folder could not carry a constant that transformers adds by itself.

    Raises:
        ValueError: names the model.
    """
    if _layer_norm(model) is None and not _is_llama(model.config):
        raise ValueError(
            f"{name}: transformers has no place for a constant in the score of {type(model).__name__}, whose "
            "final norm has no bias; leave normalise.data.path=null"
        )


def with_shift(model: Any, weights: Mapping[str, Tensor], shift: float) -> tuple[Any, dict[str, Tensor]]:
    """The model to be saved, and its weights, whose score is ``shift`` higher.

    Args:
        model: a classifier of transformers; its own weights are not read.
        weights: all of them by name, on the CPU.
        shift: c, units of the score.

    Raises:
        ValueError: there is no place for it, or the head is 0 everywhere.
    """
    if shift == 0:
        return model, dict(weights)
    expect_place_for_shift(model, model.config.name_or_path or type(model).__name__)
    norm = _layer_norm(model)
    if norm is None:
        return _with_block(model, weights, shift)
    w, bias = weights["score.weight"][0].double(), weights[f"{norm}.bias"]
    if not w.any():
        raise ValueError("a head that is 0 everywhere can carry no constant")
    carried = bias.double() + shift * w / w.square().sum()
    return model, {**weights, f"{norm}.bias": carried.to(bias.dtype)}


def without_shift(model: Any) -> float:
    """Take the score's block off a loaded model; the constant that it added, 0 where there was none."""
    mlp_bias = getattr(model.config, KEY, None)
    if mlp_bias is None:
        return 0.0
    layers, backbone, config = model.model.layers, model.model, model.config
    block = layers[-1]
    unit, bias = block.mlp.up_proj.weight[:1], float(block.mlp.up_proj.bias[0].detach())
    backbone.layers, backbone.norm = layers[:-1], block.post_attention_layernorm
    model.score.weight = nn.Parameter(unit.detach().clone())
    config.num_hidden_layers -= 1
    delattr(config, KEY)
    if not mlp_bias:
        config.mlp_bias = False
        for layer in backbone.layers:
            for part in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
                part.bias = None
    return bias


def _layer_norm(model: Any) -> str | None:
    """The name of the layer norm that the backbone ends with, where that has a bias."""
    norms = [
        (name, part)
        for name, part in model.base_model.named_children()
        if isinstance(part, nn.LayerNorm) and part.bias is not None
    ]
    return f"{model.base_model_prefix}.{norms[-1][0]}" if norms else None


def _is_llama(config: Any) -> bool:
    """Whether `LlamaForSequenceClassification` computes what the model does."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return config.model_type in LIKE_LLAMA and config.hidden_act == "silu" and window is None


def _with_block(model: Any, weights: Mapping[str, Tensor], shift: float) -> tuple[Any, dict[str, Tensor]]:
    config = _config_with_block(model.config)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        larger = LlamaForSequenceClassification(config)
    dtype, block = weights["score.weight"].dtype, f"model.layers.{config.num_hidden_layers - 1}"
    found = {
        name: weights[name] if name in weights else torch.zeros(value.shape, dtype=dtype)
        for name, value in larger.state_dict().items()
    }
    found[f"{block}.input_layernorm.weight"] += 1
    found[f"{block}.post_attention_layernorm.weight"] = weights["model.norm.weight"]
    found[f"{block}.mlp.gate_proj.bias"][0] = GATE
    found[f"{block}.mlp.up_proj.weight"][0] = weights["score.weight"][0]
    found[f"{block}.mlp.up_proj.bias"][0] = shift
    found[f"{block}.mlp.down_proj.weight"][0, 0] = SCORE / GATE
    found[f"{block}.mlp.down_proj.bias"][1] = REST
    found["model.norm.weight"] = torch.ones_like(weights["model.norm.weight"])
    head = torch.zeros_like(weights["score.weight"])
    head[0, 0] = REST / SCORE / math.sqrt(config.hidden_size)
    return larger, found | {"score.weight": head}


def _config_with_block(config: Any) -> LlamaConfig:
    """A Llama's, with one block more, and biases in the MLPs."""
    known = LlamaConfig().to_dict().keys() - {"model_type", "transformers_version", "layer_types"}
    given = {name: value for name, value in config.to_dict().items() if name in known}
    if config.model_type == "qwen2":
        given["attention_bias"] = True
    given |= {"num_hidden_layers": config.num_hidden_layers + 1, "mlp_bias": True, "num_labels": 1}
    found = LlamaConfig(**given)
    found.name_or_path = config.name_or_path
    setattr(found, KEY, bool(getattr(config, "mlp_bias", False)))
    return found
