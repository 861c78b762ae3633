"""One optimiser step of a production trainer, told apart by nothing but how its work is laid out.

The measure is the step's gradient. Every engine gets plain gradient descent, no clipping, in place of AdamW:
Adam divides each gradient by its own size, so the rounding of a gradient near 0 would be as large as a step.
The learning rate is a power of two so large that the weights' own rounding is nothing beside the step.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rlhf.algorithms.aggregation import TokenMean
from rlhf.algorithms.preferences import RewardLoss
from rlhf.batch import ComparisonBatch, Experience, Rollout, SequenceBatch
from rlhf.data.encoding import Encoded
from rlhf.data.order import batch_indices
from rlhf.distributed import deepspeed_engine
from rlhf.distributed.collectives import world_size
from rlhf.distributed.engine import Engine, TorchEngine, cast_parameters
from rlhf.distributed.engine_config import Frozen, Inference, Plain, ZeRO
from rlhf.metrics import Clock
from rlhf.ops import masking
from rlhf.trainers import collection, reward_model, supervised
from rlhf.trainers.micro_batches import Cut
from tests.trainers import toy

ROWS = 12
STEP = 2.0**12
EXTRA = 5
"""Columns of padding added on either side."""


MODELS = {"llama": toy.LLAMA, "gpt2": toy.GPT2}
STAGES = ("sft", "reward", "ppo", "grpo")
CANCELS = "reward.model.transformer.ln_f.bias"
"""It adds the same to both scores of a pair: its gradient is 0, its rounding is held against the whole."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is trained, and how the work is laid out; the number of ranks is that of the process."""

    stage: str
    model: str = "llama"
    data: str = "usual"  # usual, uneven, masked or short: see `_pruned`, `_demonstrations`, `_pairs`
    engine: str = "plain"  # plain, float64, zero0 … zero3
    micro: int = ROWS  # rows of one forward, over all ranks
    change: str = ""  # padding, left, order, recompute or packed
    tokens: int | None = None  # of one forward, over all ranks, in place of rows
    fault: str = ""  # one of FAULTS: the production code made wrong on purpose

    @property
    def reference(self) -> "Run":
        """The same step in one process of plain torch, in one micro-batch."""
        engine = "float64" if self.engine == "float64" else "plain"
        return replace(self, engine=engine, micro=ROWS, change="", tokens=None, fault="")


def gradient(run: Run) -> dict[str, Tensor]:
    """The step's gradient of every parameter, and the norms that the engines report; whole on rank 0."""
    with _patched(run):
        trainer = build(run)
        before = _weights(trainer)
        metrics = trainer.step()
        after = _weights(trainer)
    found = {name: (before[name].double() - after[name].double()) / STEP for name in before}
    norms = {name: total for name, (total, _) in metrics.pairs.items() if name.endswith("grad_norm")}
    return found | {name: torch.tensor(norm, dtype=torch.float64) for name, norm in norms.items()}


def difference(found: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Largest ‖g − g_ref‖ / ‖g_ref‖ over the parameter tensors and the reported norms."""
    assert found.keys() == reference.keys(), found.keys() ^ reference.keys()
    gaps = []
    for name, own in reference.items():
        size = reference["reward/grad_norm"] if name == CANCELS else own.norm()
        gaps.append((found[name] - own).norm() / size)
    return float(torch.stack(gaps).nan_to_num(nan=torch.inf).max())


def tokens(run: Run) -> int:
    """Tokens that this rank's rows put into the loss; not of the reward model, which has none."""
    with _patched(run):
        trainer = build(run)
        batch = (
            trainer._next_batch()
            if run.stage == "sft"
            else trainer.collector.collect(trainer.state.drawn, Clock()).scored.rollout
        )
    return int(batch.mask.sum())


def _weights(trainer: Any) -> dict[str, Tensor]:
    """Of what a step moves: constants that nothing trains have no gradient."""
    return {
        f"{engine.name}.{name}": value
        for engine in engines(trainer)
        for name, value in engine.state().items()
        if name not in dict(engine.module.named_buffers())
    }


def engines(trainer: Any) -> list[Engine]:
    if hasattr(trainer, "engine"):
        return [trainer.engine]
    return [engine for engine in (trainer.models.actor, trainer.models.critic) if engine is not None]


# What is trained


def build(run: Run, *, descent: bool = True) -> Any:
    """A trainer whose first step takes all twelve rows, in a single minibatch.

    Args:
        run: what it is to train.
        descent: gradient descent in place of the product's AdamW and clipping.
    """
    options: dict[str, Any] = {
        "engine": _Descent(run.engine) if descent else None,
        "source": MODELS[run.model],
        "gradient_checkpointing": "recompute" in run.change,
        "packed": "packed" in run.change,
        "micro_batch_tokens": run.tokens,
    }
    if run.stage in ("sft", "reward"):
        make, train = (toy.supervised, _demonstrations) if run.stage == "sft" else (toy.reward_model, _pairs)
        trainer = make(train=train(run.data), batch_size=ROWS, micro_batch_size=run.micro, **options)
        trainer.train = _Changed(trainer.train, run.change)
        trainer.seed = 1 if run.change == "order" else 0
    else:
        samples = 1 if run.stage == "ppo" else 2
        trainer = toy.policy_gradient(
            getattr(toy, run.stage)(epochs=1, minibatches=1),
            reference=toy.actor("reference", MODELS[run.model], packed="packed" in run.change),
            train=toy.prompt_set(ROWS),
            prompts=ROWS // samples,
            samples=samples,
            micro_batch=run.micro,
            new_tokens=1 if run.data == "short" else 6,
            **options,
        )
        _change_rollout(trainer, run)
    _make_wrong(trainer, run.fault)
    return trainer


class _Descent:
    """An engine of the product with gradient descent in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.config = Plain(clip=None)
        if name.startswith("zero"):
            self.config = ZeRO(stage=int(name[-1]), clip=None, persistence_threshold=0)

    def train(self, module: nn.Module, _optimizer: torch.optim.Optimizer, name: str) -> Engine:
        descent = torch.optim.SGD(module.parameters(), lr=STEP)
        if self.name == "float64":
            return _Wide(cast_parameters(module, torch.float64), descent, name=name, clip=None)
        return self.config.train(module, descent, name)

    def inference(self, module: nn.Module, name: str) -> Inference:
        frozen = self.config.inference(module, name)
        return _WideFrozen(cast_parameters(module, torch.float64)) if self.name == "float64" else frozen


class _Wide(TorchEngine):
    """Plain torch in float64. What is computed without a gradient is float32, as an experience must be."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = TorchEngine.__call__(self, *args, **kwargs)
        return found if torch.is_grad_enabled() else _in_float32(found)


class _WideFrozen(Frozen):
    """A reference in float64 that says what it computes in float32."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _in_float32(Frozen.__call__(self, *args, **kwargs))


def _in_float32(found: Any) -> Any:
    return found.float() if isinstance(found, Tensor) else type(found)(*(part.float() for part in found))


def _at_position(k: int) -> int:
    """Of the rows that the first step draws, which is drawn k-th; rank k mod 2 gets it."""
    return int(batch_indices(0, ROWS, ROWS, 0)[k])


def _demonstrations(data: str) -> Any:
    """Usual: 1 to 7 targets and an end token; short: the end token alone.

    Of two ranks, uneven gives rank 1 rows with one target or none, masked rows with none.
    """
    rows = toy.supervised_set(ROWS)
    draw = toy.numbers(data)
    for k in range(ROWS):
        i = _at_position(k)
        if data == "short" or (data == "uneven" and k % 2):
            rows.encoded[i] = toy.demonstration(draw, 1 + k % 4, 0)
        if (data == "masked" and k % 2) or (data == "uneven" and k % 4 == 3):
            tokens = rows.encoded[i].tokens
            rows.encoded[i] = Encoded(tokens=tokens, targets=[False] * len(tokens))
    return rows


def _pairs(data: str) -> Any:
    """Usual: responses of unequal lengths; short: of one token each.

    Of two ranks, uneven gives rank 1 short pairs, masked gives it pairs of one text with itself, whose
    gradient is 0: no pair can be masked.
    """
    rows = toy.preference_set(ROWS)
    draw = toy.numbers(data)
    for k in range(ROWS):
        i = _at_position(k)
        if data == "short" or (data == "uneven" and k % 2):
            rows.chosen[i] = toy.demonstration(draw, 1 + k % 4, 0)
            cut = [*rows.chosen[i].tokens[:-1], toy.A + k % 10]
            rows.rejected[i] = Encoded(tokens=cut, targets=rows.chosen[i].targets)
        if data == "masked" and k % 2:
            rows.rejected[i] = rows.chosen[i]
    return rows


def _pruned(rollout: Rollout, data: str) -> Rollout:
    """Of two ranks, uneven leaves rank 1's responses one token or none, masked none."""
    odd = rollout.group % 2 == 1
    kept = torch.full_like(rollout.lengths, rollout.mask.shape[1])
    if data == "uneven":
        kept[odd] = 1
        kept[rollout.group % 4 == 3] = 0
    if data == "masked":
        kept[odd] = 0
    mask = rollout.mask & (torch.arange(rollout.mask.shape[1]) < kept[:, None])
    return replace(rollout, mask=mask, sampler_logprobs=rollout.sampler_logprobs.where(mask, 0.0))


# What may be changed


def _change_rollout(trainer: Any, run: Run) -> None:
    collector = trainer.collector
    next_prompts, sample = collector.prompts, collector.sample

    def prompts(*wanted: Any) -> Any:
        batch = next_prompts(*wanted)
        if run.change == "order":
            return batch.rows(torch.arange(len(batch)).flip(0))
        if run.change == "padding":
            wider = pad(batch.tokens, (EXTRA, 0), value=toy.PAD)
            return replace(batch, tokens=wider, mask=pad(batch.mask, (EXTRA, 0)))
        return batch

    def rollout(*prompts: Any) -> Rollout:
        found = _pruned(sample(*prompts), run.data)
        if run.change == "padding":
            wider = {name: pad(getattr(found, name), (0, EXTRA)) for name in ("mask", "sampler_logprobs")}
            found = replace(found, tokens=pad(found.tokens, (0, EXTRA), value=toy.PAD), **wider)
        return found

    collector.prompts, collector.sample = prompts, rollout


class _Changed:
    """A data set whose batches come with more padding, or with it on the other side."""

    def __init__(self, rows: Any, change: str) -> None:
        self.rows, self.change = rows, change

    def __len__(self) -> int:
        return len(self.rows)

    def sizes(self, index: Tensor) -> list[int]:
        return self.rows.sizes(index)

    def batch(self, index: Tensor) -> SequenceBatch | ComparisonBatch:
        batch = self.rows.batch(index)
        if self.change not in ("padding", "left"):
            return batch
        place = _wider if self.change == "padding" else _left
        if isinstance(batch, SequenceBatch):
            return place(batch)
        names = ("tokens", "attention_mask", "mask")
        changed = place(SequenceBatch(**{name: getattr(batch, name).flatten(0, 1) for name in names}))
        texts = {name: getattr(changed, name).view(*batch.tokens.shape[:2], -1) for name in names}
        return replace(batch, **texts)


def _wider(batch: SequenceBatch) -> SequenceBatch:
    return SequenceBatch(
        tokens=pad(batch.tokens, (0, EXTRA), value=toy.PAD),
        attention_mask=pad(batch.attention_mask, (0, EXTRA)),
        mask=pad(batch.mask, (0, EXTRA)),
    )


def _left(batch: SequenceBatch) -> SequenceBatch:
    """The rows pushed to the right end."""
    width = batch.tokens.shape[1]
    columns = (torch.arange(width) - (width - batch.lengths)[:, None]) % width  # (B, L) where each comes from
    parts = (batch.tokens, batch.attention_mask, batch.mask)
    tokens, attention_mask, mask = (part.gather(1, columns) for part in parts)
    return SequenceBatch(tokens=tokens, attention_mask=attention_mask, mask=mask)


# What must not go unseen


FAULTS = {
    "micro": "mean of the micro-batches' means",
    "rank": "mean of the ranks' means",
    "average": "gradients averaged over the ranks",
    "whiten": "advantages whitened on each rank",
}


class _MeanOfMeans:
    """The weights of an aggregation that takes each piece of the rows for the whole."""

    def __init__(self, aggregation: Any, pieces: list[Tensor]) -> None:
        self.aggregation, self.pieces = aggregation, pieces

    def __call__(self, mask: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        weights = torch.zeros(mask.shape)
        for rows in self.pieces:
            weights[rows] = self.aggregation(mask[rows], torch.clone) / (len(self.pieces) * world_size())
        return weights


def _pieces(lengths: Tensor, micro_rows: int, fault: str) -> list[Tensor]:
    return list(Cut(rows=micro_rows if fault == "micro" else len(lengths))(lengths))


def _make_wrong(trainer: Any, fault: str) -> None:
    """Put the mean of means in the place of the weights; the other faults are in `_patched`."""
    if fault not in ("micro", "rank"):
        return
    if isinstance(trainer, reward_model.RewardModelTrainer):
        assert fault == "micro"  # every rank has as many pairs
        trainer.loss = _MeanOfPairs(trainer.loss, -(-ROWS // world_size() // trainer.cut.rows))
    elif hasattr(trainer, "algorithm"):
        _make_update_wrong(trainer, fault)
    else:
        pieces = _pieces(trainer._next_batch().lengths, trainer.cut.rows, fault)
        mean_of_means = _MeanOfMeans(TokenMean(), pieces)
        mock.patch.object(supervised, "TokenMean", return_value=mean_of_means).start()


class _MeanOfPairs:
    """A mean of so many means: each pair's share, times the number of pairs that the trainer divides by."""

    def __init__(self, loss: RewardLoss, pieces: int) -> None:
        self.loss, self.pieces, self.ties = loss, pieces, loss.ties

    def prompts(self, scores: Tensor, compared: Any) -> Tensor:
        return self.loss.prompts(scores, compared) * ROWS / (len(scores) * self.pieces * world_size())


def _make_update_wrong(trainer: Any, fault: str) -> None:
    update, aggregation = trainer.update, trainer.algorithm.aggregation

    def wrong(minibatch: Experience, *others: Any, **options: Any) -> float:
        pieces = _pieces(minibatch.rollout.attention_mask.sum(1), trainer.updater.cut.rows, fault)
        trainer.algorithm.aggregation = _MeanOfMeans(aggregation, pieces)
        return update(minibatch, *others, **options)

    trainer.update = wrong


def _in_turns(sizes: list[int], rank: int, ranks: int) -> list[int]:
    return list(range(rank, len(sizes), ranks))


@contextlib.contextmanager
def _patched(run: Run) -> Iterator[None]:
    """Padding that is kept, where it is what changes; engine and statistics that see one rank alone.

    Rows that are to lie unevenly on two ranks are dealt in turns, whatever their lengths.
    """
    try:
        if run.data in ("uneven", "masked"):
            for module in (supervised, reward_model, collection):
                mock.patch.object(module, "dealt", _in_turns).start()
        if run.change in ("padding", "left"):
            for batch in (SequenceBatch, Rollout, Experience):
                mock.patch.object(batch, "trimmed", lambda self: self).start()
        if run.fault == "average":
            mock.patch.object(deepspeed_engine, "world_size", return_value=1).start()
        if run.fault == "whiten":
            whiten = masking.whiten
            mock.patch.object(masking, "whiten", lambda x, mask, _total: whiten(x, mask, torch.clone)).start()
        yield
    finally:
        mock.patch.stopall()
