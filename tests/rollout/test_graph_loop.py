"""The step over static tensors, run eagerly, against the other two loops; on a GPU, the captured one too."""

import gc
from typing import Any

import pytest
import torch

from rlhf.batch import PromptBatch
from rlhf.kernels import drawing
from rlhf.models import decode_cache
from rlhf.models.actor import Actor
from rlhf.models.decode_cache import our_attention
from rlhf.models.static_cache import repeats
from rlhf.rollout import graph_loop, graphs, sampler
from rlhf.rollout.graph_loop import bucket
from rlhf.rollout.graphs import Captured, Graphs
from rlhf.rollout.responses import Responses, StopStrings
from rlhf.rollout.static_batch import StaticBatch
from tests.rollout.loops import DECODINGS, PAD, ROWS, B, Build, Noise, Prompts, T, same, sampling


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and buckets of a size that short responses reach."""
    monkeypatch.setattr(graph_loop, "PATIENCE", 2)
    monkeypatch.setattr(graph_loop, "LEAST", 4)
    monkeypatch.setattr(graphs, "GRAIN", 8)


@pytest.fixture(params=["compiled", "torch"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "torch" is what a GPU runs."""
    if request.param == "torch":
        monkeypatch.setattr(decode_cache, "has_attention", lambda *_: False)
        monkeypatch.setattr(drawing, "has_draw", lambda logits: False)


def moved(actor: Actor, seed: int = 0) -> None:
    """An optimiser's step: other weights in the same place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in actor.parameters():
            change = torch.randn(parameter.shape, generator=generator)
            parameter.add_(change.to(parameter.device), alpha=0.1)


@pytest.mark.parametrize("name", list(DECODINGS))
def test_every_token_is_that_of_both_other_loops_in_every_rollout(
    *,
    build: Build,
    kind: str,
    prompts: Prompts,
    noise: Noise,
    kernel: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Three rollouts of different rows, the weights changed between them; then fewer rows."""
    actor, kept = build(kind), Graphs()
    ours, loop = sampling(DECODINGS[name], graphs=kept), sampling(DECODINGS[name])
    for number, rows in enumerate((ROWS, ROWS, ROWS[::-1], ROWS[4:9])):
        batch, numbers = prompts(*rows), noise(len(rows), T, number)
        found = ours.sample(actor, batch, numbers)
        same(found, loop.sample(actor, batch, numbers))
        with monkeypatch.context() as patch:
            patch.setattr(sampler, "decodes", lambda model: False)
            same(found, loop.sample(actor, batch, numbers))
        assert name == "greedy" or len(set(found.lengths.tolist())) > (3 if len(rows) == B else 1)
        moved(actor, number)
    assert actor in kept._policies


def test_rows_move_down_and_columns_grow_bucket_by_bucket(
    build: Build, kind: str, prompts: Prompts, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each step was given, against what the responses' lengths say, two looks late."""
    steps: list[tuple[int, int]] = []
    step = StaticBatch.step

    def watched(self: StaticBatch, *given: Any) -> None:
        _, _, rows, reach = given
        steps.append((rows, reach))
        assert int((self.cache.lengths * self.alive)[:rows].max()) < reach  # room for one more
        step(self, *given)

    monkeypatch.setattr(StaticBatch, "step", watched)
    rollout = sampling(graphs=Graphs()).sample(build(kind), prompts(*ROWS), noise(B, T))
    living = [int((rollout.lengths > t).sum()) for t in range(T)]  # that have a token t
    for t, (rows, _) in enumerate(steps, start=1):
        looked = t // 2 * 2 - 2  # before which step the last look was whose answer had arrived
        assert rows == (B if looked < 2 else bucket(living[looked], B))
    assert steps[-1][0] < B
    assert len(steps) == T - 1 or living[len(steps) + 1 - 2] == 0
    reaches = [reach for _, reach in steps]
    assert set(reaches) <= {4, 6, 8, 12, 16, 24}
    assert len(set(reaches)) > 2


@pytest.mark.parametrize(
    ("count", "least"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 8), (9, 12), (13, 16), (17, 24)]
)
def test_buckets_waste_a_third_at_most(count: int, least: int) -> None:
    assert bucket(count, 100) == least
    assert bucket(count, 2) == min(least, 2)


@torch.no_grad()
def test_a_step_changes_nothing_of_rows_that_are_not_alive(
    build: Build, kind: str, prompts: Prompts, noise: Noise, kernel: None
) -> None:
    """But the time: so that a step can be run for nothing before it is captured."""
    actor, decoding = build(kind).eval(), DECODINGS["sampling"]
    given, ours = prompts(*ROWS), sampling()
    with our_attention(actor.model):
        batch = StaticBatch.of(actor, rows=B, columns=24, length=T)
        batch.begin(given, noise(B, T), ours._stops(torch.device("cpu")), empty(given))
        batch.start(actor, given, decoding)
        batch.alive[:] = torch.arange(B) % 3 == 0
        before = state(batch)
        batch.step(actor, decoding, B, 24)
    assert batch.time.item() == 2
    for name, values in state(batch).items():
        kept = values[~(torch.arange(B) % 3 == 0)]
        assert torch.equal(kept, before[name][~(torch.arange(B) % 3 == 0)]), name
    assert not torch.equal(batch.tokens, before["tokens"])


def empty(given: PromptBatch) -> Responses:
    return Responses.empty(given.tokens, len(given), T, PAD)


def state(batch: StaticBatch) -> dict[str, torch.Tensor]:
    """What a later step reads of each row, and what is handed out."""
    held = {"lengths": batch.cache.lengths, "tokens": batch.tokens, "alive": batch.alive, "row": batch.row}
    held |= {f"out {name}": getattr(batch.out, name) for name in ("tokens", "logprobs", "mask")}
    reach = torch.arange(batch.cache.columns)[:, None] < batch.cache.lengths[:, None, None, None]
    held |= {f"keys {n}": torch.where(reach, keys, 0.0) for n, (keys, _) in batch.cache.buffers.items()}
    return {name: values.clone() for name, values in held.items()}


def test_every_step_is_captured_once(build: Build, prompts: Prompts, noise: Noise) -> None:
    actor, kept = build("llama"), Graphs()
    ours, counts, addresses = sampling(graphs=kept), [], set()
    for _ in range(3):
        ours.sample(actor, prompts(*ROWS), noise(B, T))
        moved(actor)
        counts.append(kept.captures)
        batch = kept._policies[actor].batch
        addresses.add((batch.tokens.data_ptr(), batch.cache.buffers[0][0].data_ptr()))
    assert counts[0] > 3
    assert kept.captures == len(kept._policies[actor].steps)
    assert len(addresses) == 1
    before = kept.captures
    ours.sample(actor, prompts(*ROWS), noise(B, T, 2))
    assert before <= kept.captures == len(kept._policies[actor].steps)
    ours.greedy().sample(actor, prompts(*ROWS), noise(B, T))  # the same room, other steps
    assert kept._policies[actor].batch is batch
    assert kept.captures > before


def test_room_grows_for_more_and_is_made_anew_where_weights_moved(
    build: Build, prompts: Prompts, noise: Noise
) -> None:
    actor, kept = build("llama"), Graphs()
    ours, loop = sampling(graphs=kept), sampling()
    for rows in (ROWS[:3], ROWS[4:], ROWS[:3], [[4] * 20, [3]]):
        batch, numbers = prompts(*rows), noise(len(rows), T)
        same(ours.sample(actor, batch, numbers), loop.sample(actor, batch, numbers))
    held = kept._policies[actor].batch
    assert (len(held.row), held.cache.columns) == (8, 40)
    actor.head.weight = torch.nn.Parameter(actor.head.weight.detach().flip(0).clone())
    batch, numbers = prompts(*ROWS[:3]), noise(3, T)
    same(ours.sample(actor, batch, numbers), loop.sample(actor, batch, numbers))
    assert kept._policies[actor].batch is not held


def test_what_is_kept_goes_with_its_actor(build: Build, prompts: Prompts, noise: Noise) -> None:
    kept, first, second = Graphs(), build("llama"), build("gpt2")
    for actor in (first, second):
        sampling(graphs=kept).sample(actor, prompts(*ROWS), noise(B, T))
    assert set(kept._policies) == {first, second}
    del first, actor
    gc.collect()
    assert set(kept._policies) == {second}


@pytest.mark.parametrize("most", [1, 5, 40])
def test_a_batch_that_does_not_fit_is_decoded_in_parts(
    build: Build, prompts: Prompts, noise: Noise, most: int
) -> None:
    actor, batch, kept = build("grouped"), prompts(*ROWS), Graphs()
    with our_attention(actor.eval().model):
        plan = sampling(graphs=kept).plan(actor, batch)
    memory, wanted = plan.bytes(most), sampling().sample(actor, batch, noise(B, T))
    ours = sampling(graphs=kept, memory=memory)
    for _ in range(2):
        same(ours.sample(actor, batch, noise(B, T)), wanted)
    held = kept._policies[actor].batch
    assert len(held.row) == min(most, B)
    assert held.cache.bytes == plan.row * len(held.row)


class Letters:
    """Writes token n as the n-th letter."""

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(ord("a") + token) for token in tokens)


@pytest.mark.parametrize("strings", [["d"], ["ce", "gg"], ["b", "h", "kc"], ["zz"]])
@pytest.mark.parametrize("patience", [1, 2, 5, 100])
def test_what_follows_a_stop_text_is_dropped(
    *,
    build: Build,
    prompts: Prompts,
    noise: Noise,
    monkeypatch: pytest.MonkeyPatch,
    strings: list[str],
    patience: int,
) -> None:
    """The loop that looks after every token ends it there; this one looks later."""
    monkeypatch.setattr(graph_loop, "PATIENCE", patience)
    actor, stop = build("llama"), StopStrings(strings=strings, tokenizer=Letters())
    wanted = sampling(stop=stop).sample(actor, prompts(*ROWS), noise(B, T))
    found = sampling(stop=stop, graphs=Graphs()).sample(actor, prompts(*ROWS), noise(B, T))
    same(found, wanted)
    assert strings == ["zz"] or (wanted.ended & (wanted.lengths < T)).any()


def test_a_row_with_a_stop_text_ends(
    build: Build, prompts: Prompts, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any token is one: asked for at step 2, found at 4, seen at 6, and answered at 8."""
    steps, step = [], StaticBatch.step

    def watched(self: StaticBatch, *given: Any) -> None:
        steps.append(int(self.time))
        step(self, *given)

    monkeypatch.setattr(StaticBatch, "step", watched)
    stop = StopStrings(strings=list("abcdefghijk"), tokenizer=Letters())
    rollout = sampling(stop=stop, graphs=Graphs()).sample(build("llama"), prompts(*ROWS), noise(B, T))
    assert rollout.lengths.tolist() == [1] * B
    assert rollout.ended.all()
    assert steps == [1, 2, 3, 4, 5, 6, 7]


def test_steps_that_differ_by_their_tokens_are_not_captured(build: Build) -> None:
    model = build("llama").model
    assert repeats(model)
    for name, value in (
        ("num_local_experts", 4),
        ("rope_parameters", {"rope_type": "dynamic", "factor": 2.0}),
    ):
        given = getattr(model.config, name, None)
        setattr(model.config, name, value)
        assert not repeats(model)
        setattr(model.config, name, given)
    model.config.rope_parameters = {"full_attention": {"rope_type": "longrope"}}
    assert not repeats(model)


def test_a_model_that_cannot_be_captured_is_decoded_step_by_step(
    build: Build, prompts: Prompts, noise: Noise
) -> None:
    actor, kept = build("llama"), Graphs()
    actor.model.config.num_local_experts = 4
    rollout = sampling(graphs=kept).sample(actor, prompts(*ROWS), noise(B, T))
    same(rollout, sampling().sample(actor, prompts(*ROWS), noise(B, T)))
    assert kept.captures == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(DECODINGS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replayed_graph_is_the_step_that_was_captured(
    *,
    build: Build,
    kind: str,
    prompts: Prompts,
    noise: Noise,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: torch.dtype,
) -> None:
    """Bit for bit, over rollouts with changed weights; in float32 the loop's tokens too."""
    cuda = torch.device("cuda")
    actor, kept, eager = build(kind).to(cuda, dtype), Graphs(), Graphs()
    for number in range(3):
        batch, numbers = prompts(*ROWS).to(cuda), noise(B, T, number).to(cuda)
        found = sampling(DECODINGS[name], graphs=kept).sample(actor, batch, numbers)
        with monkeypatch.context() as patch:
            patch.setattr(graphs, "_captured", lambda policy, work: work)
            wanted = sampling(DECODINGS[name], graphs=eager).sample(actor, batch, numbers)
        same(found, wanted)
        assert torch.equal(found.sampler_logprobs, wanted.sampler_logprobs)
        if dtype == torch.float32:
            same(found, sampling(DECODINGS[name]).sample(actor, batch, numbers))
        moved(actor)
    assert kept.captures == len(kept._policies[actor].steps)
    assert all(isinstance(step, Captured) for step in kept._policies[actor].steps.values())


@pytest.mark.gpu
def test_replays_are_captured_once_and_never_wait(
    build: Build, kind: str, prompts: Prompts, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rollouts, the weights written in place between them; whatever waits raises after the first."""
    cuda = torch.device("cuda")
    actor, kept = build(kind).to(cuda), Graphs()
    batch, numbers = prompts(*ROWS).to(cuda), noise(B, T).to(cuda)
    first = sampling(graphs=kept).sample(actor, batch, numbers)
    captures, replayed = kept.captures, graph_loop.replayed

    def strict(*given: Any) -> int:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return replayed(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(graph_loop, "replayed", strict)
    for _ in range(2):
        with torch.no_grad():
            for parameter in actor.parameters():
                parameter.copy_(parameter.clone())
        same(sampling(graphs=kept).sample(actor, batch, numbers), first)
    assert captures == kept.captures > 0
