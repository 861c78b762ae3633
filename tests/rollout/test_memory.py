"""What decoding holds at most, byte by byte, against the plan, on the shapes of the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from rlhf.batch import PromptBatch
from rlhf.kernels import drawing
from rlhf.models import decode_cache
from rlhf.models.actor import Actor
from rlhf.models.decode_cache import our_attention
from rlhf.planning.held import Held
from rlhf.rollout import memory
from rlhf.rollout.decoding import Decoding, Greedy, Sampling, Truncated
from rlhf.rollout.graphs import Graphs
from rlhf.rollout.memory import Plan
from rlhf.rollout.sampler import Sampler


def actor(layers: int, hidden: int, vocabulary: int, **others: Any) -> Actor:
    sizes: dict[str, Any] = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 3 * hidden, "vocab_size": vocabulary, "max_position_embeddings": 512}
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Actor(AutoModelForCausalLM.from_config(LlamaConfig(**sizes | others | ids)))


def gpt2(layers: int, hidden: int, vocabulary: int) -> Actor:
    config = GPT2Config(
        n_layer=layers, n_embd=hidden, n_head=4, n_positions=512, vocab_size=vocabulary, eos_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Actor(AutoModelForCausalLM.from_config(config))


SMOL = {"num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536}
SHAPES: dict[str, tuple[Callable[[], Actor], int, int]] = {  # rows, and tokens of a prompt and a response
    "quick start": (lambda: actor(3, 128, 4096), 64, 128),
    "gpt2": (lambda: gpt2(3, 128, 4096), 64, 128),
    "4-layer/256": (lambda: actor(4, 256, 8192), 64, 128),
    "135M": (lambda: actor(30, 576, 49_152, **SMOL), 32, 64),
}
QUICK = {("quick start", 8), ("gpt2", 8)}
CASES = [
    pytest.param(shape, samples, marks=[] if (shape, samples) in QUICK else [pytest.mark.slow])
    for shape in SHAPES
    for samples in (1, 8)
]


def prompts_of(rows: int, samples: int, width: int, vocabulary: int) -> PromptBatch:
    """Lengths from an eighth of the width up to it; the n samples of one stand together."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(width // 8, width + 1, (rows // samples, 1), generator=generator)
    tokens = torch.randint(0, vocabulary, (rows // samples, width), generator=generator)
    mask = torch.arange(width) >= width - lengths
    group = torch.arange(rows // samples).repeat_interleave(samples)
    return PromptBatch(tokens=tokens[group], mask=mask[group], index=group, group=group)


def peak_and_plan(sampler: Sampler, policy: Actor, prompts: PromptBatch) -> tuple[int, Plan]:
    generator = torch.Generator().manual_seed(1)
    shape = (len(prompts), sampler.max_new_tokens)
    noise = torch.rand(shape, generator=generator, dtype=torch.float64)
    with our_attention(policy.eval().model), torch.no_grad():
        plan = sampler.plan(policy, prompts)
    with Held() as held:
        rollout = sampler.sample(policy, prompts, noise)
    assert len(set(rollout.lengths.tolist())) > 10  # rows left the batch
    return held.peak, plan


@pytest.mark.parametrize(("shape", "samples"), CASES)
def test_the_peak_is_what_was_planned(shape: str, samples: int) -> None:
    build, rows, new = SHAPES[shape]
    policy = build()
    prompts = prompts_of(rows, samples, new, policy.vocabulary)
    ends = list(range(0, policy.vocabulary, 48))
    sampler = Sampler(decoding=Sampling(max_new_tokens=new), end_ids=ends, pad_id=-1)
    peak, plan = peak_and_plan(sampler, policy, prompts)
    assert peak == pytest.approx(plan.bytes(rows), rel=0.05)


@pytest.mark.parametrize("captured", [False, True])
def test_the_peak_of_what_a_gpu_runs_is_what_was_planned(
    monkeypatch: pytest.MonkeyPatch, captured: bool
) -> None:
    """Attention and drawing by torch, step by step or over static tensors; a vocabulary that counts."""
    for module in (decode_cache, memory):
        monkeypatch.setattr(module, "decode_step", lambda *_: None)
    monkeypatch.setattr(decode_cache, "has_attention", lambda *_: False)
    monkeypatch.setattr(drawing, "has_draw", lambda logits: False)
    policy = actor(3, 128, 16_384)
    prompts = prompts_of(32, 8, 48, policy.vocabulary)
    sampler = Sampler(
        decoding=Sampling(max_new_tokens=48),
        end_ids=list(range(0, policy.vocabulary, 48)),
        pad_id=-1,
        graphs=Graphs() if captured else None,
    )
    peak, plan = peak_and_plan(sampler, policy, prompts)
    assert plan.drawn == 25 * 16_384
    assert peak == pytest.approx(plan.bytes(32), rel=0.05)


DECODINGS = [
    Sampling(temperature=0.7),
    Greedy(),
    Truncated(top_k=50),
    Truncated(top_p=0.9),
    Truncated(min_p=0.1),
    Truncated(top_k=50, top_p=0.9, min_p=0.1),
]


@pytest.mark.parametrize("decoding", DECODINGS, ids=repr)
@pytest.mark.parametrize("compiled", [True, False])
def test_a_draw_holds_what_it_says(
    monkeypatch: pytest.MonkeyPatch, decoding: Decoding, compiled: bool
) -> None:
    if not compiled:
        monkeypatch.setattr(drawing, "has_draw", lambda logits: False)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 8192, generator=generator)
    noise = torch.rand(16, generator=generator, dtype=torch.float64)
    with Held() as held:
        decoding.draw(logits, noise)
    found = 4 + held.peak / logits.numel()
    assert found == pytest.approx(decoding.logit_bytes(logits.device), abs=0.2)


def test_the_most_rows_are_those_whose_plan_fits() -> None:
    """By hand: 100 of cache a row; beside it 10 a row while drawing, 30 while moving, or 75 for prompts.

    A captured draw's 10 are there all the time.
    """
    plan = Plan(row=100, drawn=10, moved=30, prompts=75)
    assert [plan.bytes(rows) for rows in (1, 2, 3)] == [175, 275, 390]
    assert [plan.rows_within(memory) for memory in (175, 274, 275, 389, 390, 1300)] == [1, 1, 2, 2, 3, 10]
    kept = replace(plan, captured=True)
    assert [kept.bytes(rows) for rows in (1, 2, 3)] == [185, 295, 420]
    assert [plan.kept(2), kept.kept(2)] == [200, 220]
    assert replace(plan, shared=40, different=3).kept(5) == 620
    assert [kept.rows_within(memory) for memory in (185, 294, 295, 419, 420, 1400)] == [1, 1, 2, 2, 3, 10]
    with pytest.raises(ValueError, match=r"decoding one row takes 175 bytes, and 174 are given"):
        plan.rows_within(174)
