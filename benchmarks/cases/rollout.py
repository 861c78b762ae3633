"""C5, G7: sampled tokens a second."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.bench import Bench, dtype_name
from benchmarks.cases.models import (
    BILLION,
    HALF_BILLION,
    MIDDLE,
    OPT,
    QUICK_START,
    SMALL,
    SMOL,
    TINY,
    Size,
    endless,
)
from benchmarks.cases.rows import FIRST
from benchmarks.contest import Contender, Verdict, contest
from benchmarks.measure import peak_extra, timed
from benchmarks.results import Line, at_least, at_most
from rlhf.batch import PromptBatch
from rlhf.models.actor import Actor
from rlhf.models.decode_cache import our_attention
from rlhf.planning.held import Held
from rlhf.rollout.decoding import Greedy, Sampling
from rlhf.rollout.graphs import Graphs
from rlhf.rollout.noise import row_noise
from rlhf.rollout.sampler import Sampler

SAMPLES = 8
ENDS = 48
"""One token in so many of the vocabulary ends a response: lengths are geometric, cut at the limit."""
Shape = tuple[Size, int, int, int, float | None]
"""Size, rows, tokens of a prompt and of a response, and tokens a second that are wanted."""
CONTINUOUS = "continuous batching"
PAGE = 32
"""Tokens of a page of its cache."""
UNIT = 1000.0
"""Times are for so many real tokens, since each run draws its own."""


def run(bench: Bench) -> Iterator[Line]:
    """C5: our sampler against transformers' ways, responses of skewed lengths, eight or one to a prompt."""
    shapes = [
        (QUICK_START, 64, 1, 128),
        (QUICK_START, 64, SAMPLES, 128),
        (SMALL, 64, SAMPLES, 128),
        (MIDDLE, 32, SAMPLES, 128),
        (SMOL, 32, 1, 64),
        (SMOL, 32, SAMPLES, 64),
    ]
    for size, rows, samples, new in bench.size(shapes, [(TINY, 16, SAMPLES, 12)]):
        task = _task(size, rows, samples, new)
        cell = f"{size.name} {rows // samples}×{samples} ≤{new}+≤{new}"
        few = replace(bench, rounds=5, least=2)
        contenders = [task.ours(bench), *task.generates(bench), task.continuous(bench)]
        outcome = contest(few, cell, contenders)
        for line in outcome.lines:
            if line.seconds is not None:
                line.values = {"tokens/s": UNIT / line.seconds}
                if line.contender in task.waste:
                    line.values["wasted steps"] = task.waste[line.contender]
        if task.sampled is not None and "tokens/s" in outcome.line("rlhf").values:
            speed = outcome.line("rlhf").values["tokens/s"]
            shares = {name: speed / limit for name, limit in _limits(size, task.prompts, task.sampled, bench)}
            outcome.line("rlhf").values |= shares
        yield from outcome.lines
        yield at_most(cell, "memory held over the plan", task.held() / task.plan, 1.05)
        wanted = 2.0 if samples == 1 else 3.0
        for other in ("generate", "generate, static", CONTINUOUS):
            yield at_least(cell, f"times the speed of {other}", outcome.ratio(other, "rlhf"), wanted)


def _limits(size: Size, prompts: PromptBatch, mask: Tensor, bench: Bench) -> Iterator[tuple[str, float]]:
    """Tokens a second of these responses: what reading allows, and what torch's products alone would give.

    Reading: all weights in each step and the cache of each live row, at the speed of a copy. Products: all
    weights with a state of each live row, at torch's speed for a feed-forward layer's weights and the mean
    number of live rows; no limit, since a product for few rows can be written better. Prompts cost nothing.
    """
    live = mask.sum(0)
    reached = prompts.mask.sum(1, keepdim=True) + torch.arange(mask.shape[1])
    keys = 2 * size.layers * size.hidden * (size.kv_heads or size.heads) // size.heads
    words = size.weights * int((live > 0).sum()) + keys * int(torch.where(mask, reached, 0).sum())
    tokens = int(live.sum())
    yield "share of the copy limit", tokens * _copied(bench) / (4 * words)
    yield "times torch's bare products", _multiplied(size, max(tokens // mask.shape[1], 1)) / size.weights


def _copied(bench: Bench) -> float:
    """Bytes a second that a copy reads and writes."""
    a = torch.zeros(bench.size(1 << 28, 1 << 20), dtype=torch.float32, device=bench.device)
    b = torch.empty_like(a)
    b.copy_(a)
    return 2 * a.nbytes / min(timed(lambda: b.copy_(a), bench.device) for _ in range(3))


def _multiplied(size: Size, rows: int) -> float:
    """Multiplications with a weight a second: rows of states by a feed-forward layer's matrix."""
    states, weight = torch.randn(rows, size.hidden), torch.randn(size.inner, size.hidden)
    times = [timed(lambda: states @ weight.t(), states.device) for _ in range(20)]
    return rows * weight.numel() / min(times)


def run_large(bench: Bench) -> Iterator[Line]:
    """G7: rows of equal length, none of which ends early, beside what reading weights and cache must take.

    Ours is the captured step, which the gate's rollout records; without a GPU the same step runs eagerly.
    """
    shapes: list[Shape] = [
        (OPT, 32, 256, 128, 10_000.0),
        (HALF_BILLION, 256, 256, 512, None),
        (BILLION, 256, 256, 512, 50_000.0),
    ]
    tiny: list[Shape] = [(TINY, 4, 8, 8, 1.0)]
    for size, rows, width, new, least in bench.size(shapes, tiny):
        dtype = bench.size(torch.bfloat16, torch.float32)
        task = _full(size, (rows, width), new, dtype=dtype, device=bench.device)
        cell = f"{size.name} B={rows} {width}+{new} {dtype_name(dtype)}"
        outcome = contest(replace(bench, rounds=3, least=1), cell, [task.ours(bench), *task.generates(bench)])
        ceiling = _ceiling(size, rows, width + new // 2, dtype, bench)
        for line in outcome.lines:
            if line.seconds is not None:
                speed = UNIT / line.seconds
                line.values = {"tokens/s": speed, "share of the ceiling": speed / ceiling}
        yield from outcome.lines
        yield at_least(cell, "times generate's speed", outcome.ratio("generate", "rlhf"), 5.0)
        if least is not None:
            yield at_least(cell, "tokens a second", outcome.line("rlhf").values.get("tokens/s"), least)


def _ceiling(size: Size, rows: int, context: int, dtype: torch.dtype, bench: Bench) -> float:
    """Tokens a second if a step took as long as reading weights and cache once, at the speed of a copy."""
    keys = size.hidden * (size.kv_heads or size.heads) // size.heads
    read = (size.weights + rows * context * 2 * size.layers * keys) * dtype.itemsize
    return rows * _copied(bench) / read


@dataclass(kw_only=True, slots=True)
class _Task:
    """Prompts and a model; remembers what each contender wasted."""

    actor: Actor
    prompts: PromptBatch
    new: int
    ends: list[int]
    pad: int
    exact: bool
    """Float32; in bf16 near-equal logits may change places, and all that follows with them."""
    waste: dict[str, float]
    """Share of decoded (row, step) pairs after the row's end; not of ours, which lets rows go."""
    graphs: Graphs | None = None
    """What our sampler captures; None for a CPU's loop."""
    sampled: Tensor | None = None
    """(B, T) bool, the tokens of our last responses."""

    def ours(self, bench: Bench) -> Contender:
        """The gate: the sampler's log-probs are those of a forward pass over the finished rows."""
        sampler = self._sampler()
        noise = row_noise(self.prompts.group, self.new, 0, "benchmark").to(bench.device)

        allowed = 1e-3 if self.exact else 0.5

        def check() -> Verdict:
            rollout = sampler.sample(self.actor, self.prompts, noise)
            seen = torch.cat([rollout.prompt_mask, rollout.mask], 1)
            with torch.no_grad():
                scored = self.actor(rollout.tokens, seen, self.prompts.tokens.shape[1]).logprobs
            gap = float((scored - rollout.sampler_logprobs).abs().max())
            return Verdict(
                errors={"logprobs": gap}, fault=f"log-probs off by {gap:.2g}" if not gap < allowed else None
            )

        def seconds() -> float:
            found: list[Tensor] = []
            took = timed(
                lambda: found.append(sampler.sample(self.actor, self.prompts, noise).mask), bench.device
            )
            self.sampled = found[0]
            return took / int(found[0].sum()) * UNIT

        def results() -> dict[str, Tensor]:
            rollout = sampler.sample(self.actor, self.prompts, noise)
            return {"tokens": rollout.tokens, "mask": rollout.mask, "logprobs": rollout.sampler_logprobs}

        return Contender(
            name="rlhf", check=check, seconds=seconds, peak=lambda: peak_extra(results, bench.device)
        )

    def _sampler(self) -> Sampler:
        sampling = Sampling(max_new_tokens=self.new)
        return Sampler(decoding=sampling, end_ids=self.ends, pad_id=self.pad, graphs=self.graphs)

    @property
    def plan(self) -> int:
        """Bytes that our decoding is to take."""
        self.actor.eval()
        with our_attention(self.actor.model):
            return self._sampler().plan(self.actor, self.prompts).bytes(len(self.prompts))

    def held(self) -> int:
        """Bytes that one of our rollouts holds at most, without what the allocator keeps of them."""
        noise = row_noise(self.prompts.group, self.new, 0, "benchmark")
        with Held() as held:
            self._sampler().sample(self.actor, self.prompts, noise)
        return held.peak

    def generates(self, bench: Bench) -> Iterator[Contender]:
        """transformers' generate, with its growing and with its static cache."""
        for name, options in {"generate": {}, "generate, static": {"cache_implementation": "static"}}.items():
            yield Contender(
                name=name, check=self._greedy(options), seconds=self._sampled(bench, name, options)
            )

    def continuous(self, bench: Bench) -> Contender:
        """transformers' continuous batching, on a copy of the model: it changes the attention for good.

        Its pages are made once, before the first round. The gate: as many responses, none longer than asked.
        """
        model = copy.deepcopy(self.actor.model).eval()
        settings = GenerationConfig(
            max_new_tokens=self.new, do_sample=True, top_k=0, eos_token_id=self.ends, pad_token_id=0
        )
        rows = [row[real].tolist() for row, real in zip(self.prompts.tokens, self.prompts.mask, strict=True)]
        pages = -(-(self.prompts.tokens.shape[1] + self.new) // PAGE)
        room = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=len(rows) * pages,
            max_batch_tokens=1024,
            max_requests_per_batch=len(rows),
        )

        def responses() -> list[list[int]]:
            found = model.generate_batch(
                rows, generation_config=settings, continuous_batching_config=room, persistent_manager=True
            )
            return [output.generated_tokens for output in found.values()]

        def check() -> Verdict:
            lengths = [len(response) for response in responses()]
            right = len(lengths) == len(rows) and min(lengths) > 0 and max(lengths) <= self.new
            return Verdict(errors={}, fault=None if right else f"responses of {sorted(set(lengths))} tokens")

        def seconds() -> float:
            found: list[list[list[int]]] = []
            took = timed(lambda: found.append(responses()), bench.device)
            self.waste[CONTINUOUS] = 0.0
            return took / sum(map(len, found[0])) * UNIT

        return Contender(name=CONTINUOUS, check=check, seconds=seconds)

    def _sampled(self, bench: Bench, name: str, options: dict[str, str]) -> Callable[[], float]:
        def seconds() -> float:
            found: list[Tensor] = []
            took = timed(
                lambda: found.append(self._generate(do_sample=True, top_k=0, **options)), bench.device
            )
            responses = found[0][:, self.prompts.tokens.shape[1] :]
            ended = torch.isin(responses, torch.tensor(self.ends, device=responses.device)).long()
            return self._each(name, took, ended.cumsum(1) - ended == 0)

        return seconds

    def _greedy(self, options: dict[str, str]) -> Callable[[], Verdict]:
        """The gate: greedy tokens are ours, but for ties; in bf16 the first ones."""

        def check() -> Verdict:
            greedy = Sampler(decoding=Greedy(max_new_tokens=self.new), end_ids=self.ends, pad_id=self.pad)
            noise = torch.zeros(
                len(self.prompts), self.new, dtype=torch.float64, device=self.prompts.tokens.device
            )
            ours = greedy.sample(self.actor, self.prompts, noise)
            width = self.prompts.tokens.shape[1]
            theirs = self._generate(do_sample=False, **options)[:, width:]
            columns = min(theirs.shape[1], ours.mask.shape[1]) if self.exact else 1
            mask = ours.mask[:, :columns]
            other = theirs[:, :columns] != ours.tokens[:, width : width + columns]
            share = float((other & mask).sum() / mask.sum())
            fault = f"{share:.1%} of greedy tokens differ" if share > (0.02 if self.exact else 0.1) else None
            return Verdict(errors={"greedy tokens": share}, fault=fault)

        return check

    @torch.no_grad()
    def _generate(self, **options: object) -> Tensor:
        return self.actor.model.eval().generate(
            input_ids=self.prompts.tokens,
            attention_mask=self.prompts.mask.long(),
            max_new_tokens=self.new,
            eos_token_id=self.ends,
            pad_token_id=0,
            **options,
        )

    def _each(self, name: str, seconds: float, mask: Tensor) -> float:
        real = int(mask.sum())
        self.waste[name] = 1 - real / mask.numel()
        return seconds / real * UNIT


def _task(size: Size, rows: int, samples: int, new: int) -> _Task:
    generator = torch.Generator().manual_seed(0)
    width, groups = new, rows // samples
    lengths = torch.randint(max(width // 8, 1), width + 1, (groups,), generator=generator)
    tokens = torch.randint(0, size.vocabulary, (groups, width), generator=generator)
    mask = torch.arange(width) >= width - lengths.unsqueeze(1)
    group = torch.arange(groups).repeat_interleave(samples)
    prompts = PromptBatch(
        tokens=torch.where(mask, tokens, 0)[group], mask=mask[group], index=group, group=group
    )
    ends = torch.randperm(size.vocabulary, generator=generator)[: max(size.vocabulary // ENDS, 1)]
    return _Task(
        actor=size.actor(),
        prompts=prompts,
        new=new,
        ends=sorted(ends.tolist()),
        pad=size.vocabulary,
        exact=True,
        waste={},
    )


def _full(size: Size, shape: tuple[int, int], new: int, *, dtype: torch.dtype, device: torch.device) -> _Task:
    """Prompts of equal length, (rows, tokens), and a model that never draws its end."""
    rows, width = shape
    actor = Actor(endless(size.causal_lm()).to(device, dtype))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(FIRST, size.vocabulary, (rows, width), generator=generator).to(device)
    number = torch.arange(rows, device=device)
    prompts = PromptBatch(
        tokens=tokens, mask=torch.ones_like(tokens, dtype=torch.bool), index=number, group=number
    )
    exact = dtype == torch.float32
    return _Task(
        actor=actor, prompts=prompts, new=new, ends=[1], pad=0, exact=exact, waste={}, graphs=Graphs()
    )
