"""The decode loop against the slow one, and against itself in other company."""

import pytest
import torch

from rlhf.batch import Rollout
from rlhf.kernels import drawing
from rlhf.models import decode_cache
from rlhf.models.decode_cache import our_attention
from rlhf.rollout import decode_loop, sampler
from tests.rollout.loops import DECODINGS, ROWS, B, Build, Noise, Prompts, T, same, sampling


@pytest.fixture(params=["step", "attention", "torch"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled: the whole step, attention alone, or nothing."""
    if request.param != "step":
        monkeypatch.setattr(decode_cache, "decode_step", lambda *_: None)
    if request.param == "torch":
        monkeypatch.setattr(decode_cache, "has_attention", lambda *_: False)
        monkeypatch.setattr(drawing, "has_draw", lambda logits: False)


@pytest.mark.parametrize("name", list(DECODINGS))
@pytest.mark.parametrize("packed", [False, True])
def test_every_token_is_that_of_the_slow_loop(
    *,
    build: Build,
    kind: str,
    prompts: Prompts,
    noise: Noise,
    kernel: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    packed: bool,
) -> None:
    actor, batch, ours = build(kind, packed=packed), prompts(*ROWS), sampling(DECODINGS[name])
    found = ours.sample(actor, batch, noise(B, T))
    monkeypatch.setattr(sampler, "decodes", lambda model: False)
    same(found, ours.sample(actor, batch, noise(B, T)))
    assert name == "greedy" or (found.ended.any() and len(set(found.lengths.tolist())) > 3)


def test_logprobs_are_those_of_the_training_pass(
    build: Build, kind: str, prompts: Prompts, noise: Noise
) -> None:
    """A packed forward of the very model, at the temperature (numerics D10)."""
    actor = build(kind, packed=True)
    rollout = sampling().sample(actor, prompts(*ROWS), noise(B, T))
    scored = actor(rollout.tokens, rollout.attention_mask, 5, 1.3).logprobs
    torch.testing.assert_close(rollout.sampler_logprobs, scored, rtol=0, atol=1e-5)


def rows_of(rollout: Rollout) -> list[tuple[list[int], bool]]:
    """Each response's own tokens."""
    return [
        (tokens[mask].tolist(), bool(ended))
        for tokens, mask, ended in zip(rollout.responses, rollout.mask, rollout.ended, strict=True)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_a_row_is_the_same_in_any_company(
    build: Build, kind: str, prompts: Prompts, noise: Noise, seed: int
) -> None:
    """Subsets, other orders, wider padding: by brute force."""
    actor, numbers = build(kind), noise(B, T)
    alone = rows_of(sampling().sample(actor, prompts(*ROWS), numbers))
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(B, generator=generator)[: int(torch.randint(1, B + 1, (1,), generator=generator))]
    batch = prompts(*ROWS, [4] * (7 + seed)).rows(index)  # the long one is left out, its columns stay
    found = rows_of(sampling().sample(actor, batch, numbers[index]))
    assert found == [alone[row] for row in index.tolist()]


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("patience", [1, 3, 100])
def test_leaving_the_batch_changes_nothing(
    *,
    build: Build,
    kind: str,
    prompts: Prompts,
    noise: Noise,
    monkeypatch: pytest.MonkeyPatch,
    kept: float,
    patience: int,
) -> None:
    actor, batch, numbers = build(kind), prompts(*ROWS), noise(B, T)
    wanted = sampling().sample(actor, batch, numbers)
    monkeypatch.setattr(decode_loop, "KEPT", kept)
    monkeypatch.setattr(decode_loop, "patience", lambda device: patience)
    same(sampling().sample(actor, batch, numbers), wanted)


def test_rows_that_ended_leave_the_batch(build: Build, prompts: Prompts, noise: Noise) -> None:
    actor, widths = build("llama"), []
    actor.head.register_forward_pre_hook(lambda _, given: widths.append(len(given[0])))
    rollout = sampling().sample(actor, prompts(*ROWS), noise(B, T))
    living = [int((rollout.lengths > t).sum()) for t in range(T)]
    assert widths[0] == B
    assert all(live <= width <= live / 0.8 + 1 for live, width in zip(living, widths, strict=False) if live)
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("most", [1, 5, 11, 12, 40])
def test_a_batch_that_does_not_fit_is_decoded_in_parts(
    build: Build, kind: str, prompts: Prompts, noise: Noise, most: int
) -> None:
    actor, batch = build(kind), prompts(*ROWS)
    with our_attention(actor.eval().model):
        memory = sampling().plan(actor, batch).bytes(most)
    wanted = sampling().sample(actor, batch, noise(B, T))
    parts: list[int] = []
    actor.head.register_forward_pre_hook(lambda _, given: parts.append(len(given[0])))
    same(sampling(memory=memory).sample(actor, batch, noise(B, T)), wanted)
    assert max(parts) == min(most, B)


def test_too_little_memory_for_a_row_is_refused(build: Build, prompts: Prompts, noise: Noise) -> None:
    with pytest.raises(ValueError, match=r"decoding one row takes \d+ bytes, and 100 are given"):
        sampling(memory=100).sample(build("llama"), prompts(*ROWS), noise(B, T))
    with pytest.raises(ValueError, match=r"Sampler\.memory must be positive or None, got 0"):
        sampling(memory=0)
