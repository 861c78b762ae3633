"""Which models of transformers the compiled step of `rlhf.kernels.cpu_step` can run, and how it sees them.

A model is taken apart by the names that transformers gives its parts. What is not known to the letter, a
class, an activation, a kind of rotation, an adapter in place of a linear layer, is left to the model's own
forward.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf.kernels.cpu_step import Activation, Layer, Linear, Norm, Step, has_step, row_elements

ROTATED = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
LEARNT = {"GPT2LMHeadModel"}
ROTATIONS = {"default", "linear", "llama3", "yarn"}
"""Whose angles depend on the position alone."""
ACTIVATIONS = {
    "silu": Activation.silu,
    "gelu_new": Activation.gelu_tanh,
    "gelu_pytorch_tanh": Activation.gelu_tanh,
}


@dataclass(kw_only=True, slots=True)
class DecodeStep:
    """A model's step; holds on to everything that it points at."""

    step: Step
    layers: ctypes.Array[Layer]
    kept: list[Tensor]

    @property
    def row_bytes(self) -> int:
        """What a step holds of each row."""
        return row_elements(self.step) * 4 + self.state_bytes

    @property
    def state_bytes(self) -> int:
        """Of a row's state, before or after the last layer."""
        return int(self.step.width) * 4


def decode_step(model: Any, columns: int) -> DecodeStep | None:
    """The compiled step of a model, for rows of up to ``columns`` tokens; None where there is none."""
    kind, weight = type(model).__name__, model.get_input_embeddings().weight
    on_cpu = weight.device.type in ("cpu", "meta")  # without numbers: what it would take can be asked
    if not on_cpu or weight.dtype != torch.float32 or kind not in ROTATED | LEARNT:
        return None
    if any(p.dtype != torch.float32 for p in model.parameters()) or not has_step():
        return None
    return _rotated(model, columns) if kind in ROTATED else _learnt(model)


def _rotated(model: Any, columns: int) -> DecodeStep | None:
    """Llama's form: RMSNorm, rotary positions, a gated feed-forward layer."""
    inner, config = model.base_model, model.config
    rotation = getattr(inner.rotary_emb, "rope_type", "default")
    if not isinstance(rotation, str) or rotation not in ROTATIONS or config.hidden_act not in ACTIVATIONS:
        return None
    places = torch.arange(columns, device=inner.embed_tokens.weight.device).unsqueeze(0)
    cosines, sines = (part[0].contiguous() for part in inner.rotary_emb(inner.embed_tokens.weight, places))
    first = inner.layers[0].self_attn
    if cosines.shape[1] != first.head_dim or cosines.dtype != torch.float32:
        return None
    parts = []
    for block in inner.layers:
        attention, feed = block.self_attn, block.mlp
        linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        linears += [feed.gate_proj, feed.up_proj, feed.down_proj]
        if any(type(linear) is not nn.Linear for linear in linears):
            return None
        heads = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        parts.append(
            Layer(
                **_norms(block.input_layernorm, block.post_attention_layernorm, *heads),
                **dict(zip(NAMES, (Linear.of(each.weight, each.bias) for each in linears), strict=True)),
                window=_window(model, attention) or columns,
                scale=attention.scaling,
            )
        )
    step = Step(
        cosines=cosines.data_ptr(),
        sines=sines.data_ptr(),
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        dim=first.head_dim,
        last=_norm(inner.norm),
        activation=ACTIVATIONS[config.hidden_act],
    )
    return _made(step, parts, inner.embed_tokens.weight, [cosines, sines])


def _window(model: Any, attention: Any) -> int | None:
    """Tokens that a layer attends to; Mistral's are the configuration's, Qwen's each layer's."""
    if type(model).__name__ == "MistralForCausalLM":
        return model.config.sliding_window
    return getattr(attention, "sliding_window", None)


NAMES = ("query", "key", "value", "output", "gate", "up", "down")


def _learnt(model: Any) -> DecodeStep | None:
    """GPT-2's form: LayerNorm, learnt positions, weights that stand (inputs, outputs)."""
    inner, config = model.base_model, model.config
    odd = config.reorder_and_upcast_attn or config.add_cross_attention
    if odd or config.activation_function not in ACTIVATIONS:
        return None
    parts = []
    for block in inner.h:
        attention, feed = block.attn, block.mlp
        if any(
            type(each) is not Conv1D for each in (attention.c_attn, attention.c_proj, feed.c_fc, feed.c_proj)
        ):
            return None
        weights, biases = attention.c_attn.weight.t().chunk(3), attention.c_attn.bias.chunk(3)
        three = [Linear.of(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        others = [
            Linear.of(each.weight.t(), each.bias) for each in (attention.c_proj, feed.c_fc, feed.c_proj)
        ]
        named = zip(("query", "key", "value", "output", "up", "down"), three + others, strict=True)
        parts.append(
            Layer(
                **_norms(block.ln_1, block.ln_2, None, None),
                **dict(named),
                window=config.n_positions,
                scale=attention.scaling,
            )
        )
    step = Step(
        places=inner.wpe.weight.data_ptr(),
        heads=config.n_head,
        key_heads=config.n_head,
        dim=config.n_embd // config.n_head,
        last=_norm(inner.ln_f),
        activation=ACTIVATIONS[config.activation_function],
    )
    return _made(step, parts, inner.wte.weight, [inner.wpe.weight])


def _made(step: Step, parts: list[Layer], embeddings: Tensor, kept: list[Tensor]) -> DecodeStep:
    layers = (Layer * len(parts))(*parts)
    step.layers, step.depth, step.embeddings = layers, len(parts), embeddings.data_ptr()
    step.width, step.inner = embeddings.shape[1], parts[0].up.outputs
    return DecodeStep(step=step, layers=layers, kept=kept)


def _norms(*norms: Any) -> dict[str, Norm]:
    names = ("attention_norm", "feed_norm", "query_norm", "key_norm")
    return {name: _norm(norm) for name, norm in zip(names, norms, strict=True) if norm is not None}


def _norm(norm: Any) -> Norm:
    """Of a LayerNorm, or of any of transformers' RMSNorms."""
    if isinstance(norm, nn.LayerNorm):
        bias = None if norm.bias is None else norm.bias.data_ptr()
        return Norm(weight=norm.weight.data_ptr(), bias=bias, eps=norm.eps, centred=1)
    return Norm(weight=norm.weight.data_ptr(), eps=norm.variance_epsilon, centred=0)
