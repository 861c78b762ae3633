"""C5, G7: sampled tokens a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.bench import Bench, dtype_name
from benchmarks.cases.models import BILLION, HALF_BILLION, MIDDLE, OPT, SMALL, TINY, Size, endless
from benchmarks.cases.rows import FIRST
from benchmarks.contest import Contender, Verdict, contest
from benchmarks.measure import timed
from benchmarks.results import Line, at_least
from rlhf.batch import PromptBatch
from rlhf.models.actor import Actor
from rlhf.rollout.decoding import Greedy, Sampling
from rlhf.rollout.noise import row_noise
from rlhf.rollout.sampler import Sampler

SAMPLES = 8
ENDS = 48
"""One token in so many of the vocabulary ends a response: lengths are geometric, cut at the limit."""
Shape = tuple[Size, int, int, int, float | None]
"""Size, rows, tokens of a prompt and of a response, and tokens a second that are wanted."""
UNIT = 1000.0
"""Times are for so many real tokens, since each run draws its own."""


def run(bench: Bench) -> Iterator[Line]:
    """C5: our sampler against transformers' generate, responses of skewed lengths, eight to a prompt."""
    for size, rows in bench.size([(SMALL, 64), (MIDDLE, 32)], [(TINY, 16)]):
        task = _task(size, rows, bench.size(128, 12))
        cell = f"{size.name} B={rows} {task.prompts.tokens.shape[1]}+{task.new}"
        outcome = contest(replace(bench, least=2), cell, [task.ours(bench), *task.generates(bench)])
        for line in outcome.lines:
            if line.seconds is not None:
                line.values = {"tokens/s": UNIT / line.seconds, "wasted steps": task.waste[line.contender]}
        yield from outcome.lines
        yield at_least(cell, "times generate's speed", outcome.ratio("generate", "rlhf"), 2.0)


def run_large(bench: Bench) -> Iterator[Line]:
    """G7: rows of equal length, none of which ends early, beside what reading weights and cache must take."""
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
    edge = bench.size(1 << 28, 1 << 20)
    a = torch.zeros(edge, dtype=torch.float32, device=bench.device)
    b = torch.empty_like(a)
    b.copy_(a)
    seconds = min(timed(lambda: b.copy_(a), bench.device) for _ in range(3))
    keys = size.hidden * (size.kv_heads or size.heads) // size.heads
    read = (size.weights + rows * context * 2 * size.layers * keys) * dtype.itemsize
    return rows * 2 * a.nbytes / seconds / read


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
    """Share of decoded (row, step) pairs after the row's end."""

    def ours(self, bench: Bench) -> Contender:
        """The gate: the sampler's log-probs are those of a forward pass over the finished rows."""
        sampler = Sampler(decoding=Sampling(max_new_tokens=self.new), end_ids=self.ends, pad_id=self.pad)
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
            return self._each("rlhf", took, found[0])

        return Contender(name="rlhf", check=check, seconds=seconds)

    def generates(self, bench: Bench) -> Iterator[Contender]:
        """transformers' generate, with its growing and with its static cache."""
        for name, options in {"generate": {}, "generate, static": {"cache_implementation": "static"}}.items():
            yield Contender(
                name=name, check=self._greedy(options), seconds=self._sampled(bench, name, options)
            )

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


def _task(size: Size, rows: int, new: int) -> _Task:
    generator = torch.Generator().manual_seed(0)
    width, groups = new, rows // SAMPLES
    lengths = torch.randint(max(width // 8, 1), width + 1, (groups,), generator=generator)
    tokens = torch.randint(0, size.vocabulary, (groups, width), generator=generator)
    mask = torch.arange(width) >= width - lengths.unsqueeze(1)
    group = torch.arange(groups).repeat_interleave(SAMPLES)
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
    return _Task(actor=actor, prompts=prompts, new=new, ends=[1], pad=0, exact=exact, waste={})
