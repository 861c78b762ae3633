"""Five steps under every sharding and offload, on one rank and on two: python -m tests.sharding

Each line is a layout, each pair of columns a stage, a model and a number of ranks, once with all weights
trained and once with adapters (LoRA): how far the losses and the parameters are from those of plain torch in
one process, after five steps with AdamW, clipping and several micro-batches a step. Losses: the largest
difference over the steps, PPO's with that of the critic. Parameters: the largest over all of them at the
end, in units of the learning rate, which is the size of a step of Adam.

Float32 leaves rounding: at most 1e-5 of a loss and 1e-2 of a step. Bfloat16 has eight bits: its losses may
differ by 5e-2, its parameters by the length of ten steps. `wrong` clips a hundred times lower and must be out
of bounds. The exit status is 1 otherwise. --ranks 2 leaves out one rank.
"""

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf.distributed import collectives
from rlhf.distributed.engine_config import EngineConfig, Plain, Precision, ZeRO
from rlhf.models.lora import LoRA
from tests import two_ranks as launcher

STEPS, LR = 5, 1e-3
STAGES = ("sft", "ppo")
MODELS = ("llama", "gpt2")
RANKS = (1, 2)
WAYS: dict[str, LoRA | None] = {"all weights": None, "adapters": LoRA(rank=2, alpha=4.0)}
CLIP = 0.5


def zero(stage: int, *offload: str, **options: Any) -> ZeRO:
    """A layout of DeepSpeed."""
    parts = {f"offload_{part}": True for part in offload}
    return ZeRO(stage=stage, clip=CLIP, persistence_threshold=0, **parts, **options)


LAYOUTS: dict[str, dict[str, EngineConfig]] = {
    "plain": {"engine": Plain(clip=CLIP)},
    **{f"zero{stage}": {"engine": zero(stage)} for stage in range(4)},
    "zero1, optimizer off": {"engine": zero(1, "optimizer")},
    "zero2, optimizer off": {"engine": zero(2, "optimizer")},
    "zero3, optimizer off": {"engine": zero(3, "optimizer")},
    "zero3, parameters off": {"engine": zero(3, "parameters")},
    "zero3, both off": {"engine": zero(3, "optimizer", "parameters")},
    "actor zero2, critic zero3": {"engine": zero(2), "critic_engine": zero(3, "optimizer")},
    "plain, reference zero3": {"engine": Plain(clip=CLIP), "inference_engine": zero(3, "parameters")},
    **{
        f"zero{stage}, bfloat16": {"engine": zero(stage, precision=Precision.bfloat16)} for stage in (1, 2, 3)
    },
    "wrong": {"engine": Plain(clip=CLIP / 100)},
}
BOUNDS = {"float32": (1e-5, 1e-2), "bfloat16": (5e-2, 2.0 * STEPS)}


def run(layout: str, stage: str, model: str, way: str) -> dict[str, Any] | None:
    """Losses of every step, and all parameters after the last.

    None for a stage without such a model (adapters need no reference of their own), and for PPO in bfloat16,
    which samples other tokens.
    """
    from tests.trainers import toy

    engines, lora = LAYOUTS[layout], WAYS[way]
    source = {"llama": toy.LLAMA, "gpt2": toy.GPT2}[model]
    if len(engines) > 1 if stage == "sft" else "bfloat16" in layout:
        return None
    if lora is not None and "inference_engine" in engines:
        return None
    if stage == "sft":
        trainer: Any = toy.supervised(
            **engines, source=source, batch_size=10, micro_batch_size=4, total=STEPS, lr=LR, lora=lora
        )
        trained = [trainer.engine]
    else:
        trainer = toy.policy_gradient(
            toy.ppo(),
            **engines,
            source=source,
            reference=toy.actor("reference", source) if lora is None else None,
            lr=LR,
            critic_lr=LR,
            lora=lora,
        )
        trained = [trainer.models.actor, trainer.models.critic]
    losses: list[float] = []
    for _ in range(STEPS):
        metrics = trainer.step().reduce(collectives.all_sum, collectives.all_max)
        losses += [value for name, value in metrics.items() if name in ("loss", "critic/loss")]
    weights = {f"{engine.name}.{name}": value for engine in trained for name, value in engine.state().items()}
    return {"losses": losses, "weights": weights}


def work(_folder: Path) -> dict[str, Any]:
    """What each rank does."""
    return {" ".join(cell): run(*cell) for cell in itertools.product(LAYOUTS, STAGES, MODELS, WAYS)}


def reference(_folder: Path) -> dict[str, Any]:
    """What one rank does where the others' layouts are left out."""
    return {" ".join(cell): run(*cell) for cell in itertools.product(["plain"], STAGES, MODELS, WAYS)}


def measured(ranks: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What rank 0 found, for each number of ranks."""
    os.environ["TQDM_DISABLE"] = "1"
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in RANKS:
            own = Path(folder) / str(count)
            own.mkdir()
            function = "work" if count in ranks else "reference"
            if launcher.launch(__file__, function, str(own), str(count)) != 0:
                raise RuntimeError(f"{count} rank(s) failed")
            found[count] = torch.load(own / "rank0.pt", weights_only=False)
    return found


def gaps(found: dict[str, Any], reference: dict[str, Any]) -> tuple[float, float]:
    """Largest difference of losses, and of parameters in steps of Adam."""
    losses = max(abs(a - b) for a, b in zip(found["losses"], reference["losses"], strict=True))
    pairs = ((found["weights"][name], reference["weights"][name]) for name in reference["weights"])
    return losses, max(float((a - b).abs().max()) for a, b in pairs) / LR


def holds(layout: str, gap: tuple[float, float]) -> bool:
    """Whether a cell is within its bounds, or beyond them on purpose."""
    bound = BOUNDS["bfloat16" if "bfloat16" in layout else "float32"]
    within = gap[0] <= bound[0] and gap[1] <= bound[1]
    return not within if layout == "wrong" else within


def table(way: str, ranks: Sequence[int], cells: dict[tuple[Any, ...], tuple[float, float]]) -> str:
    """The gaps as text; a cell out of bounds has an exclamation mark."""
    columns = list(itertools.product(STAGES, MODELS, ranks))
    width = 2 + max(map(len, LAYOUTS))
    lines = [
        way.ljust(width) + "".join(f"{f'{stage} {model} ×{count}':>19}" for stage, model, count in columns)
    ]
    for layout in LAYOUTS:
        texts = ""
        for column in columns:
            gap = cells.get((layout, *column, way))
            text = "–  " if gap is None else f"{gap[0]:.0e} {gap[1]:.0e}{' ' if holds(layout, gap) else '!'}"
            texts += f"{text:>19}"
        lines.append(layout.ljust(width) + texts.rstrip())
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    about = argparse.ArgumentParser(
        prog="python -m tests.sharding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    about.add_argument("--ranks", type=int, nargs="+", choices=RANKS, default=RANKS, help="1, 2 or both")
    ranks = about.parse_args(arguments).ranks
    found = measured(ranks)
    cells: dict[tuple[Any, ...], tuple[float, float]] = {}
    for count, layout, *which in itertools.product(ranks, LAYOUTS, STAGES, MODELS, WAYS):
        cell = found[count][" ".join([layout, *which])]
        if cell is not None:
            stage, model, way = which
            cells[layout, stage, model, count, way] = gaps(cell, found[1][" ".join(["plain", *which])])
    for way in WAYS:
        sys.stdout.write(table(way, ranks, cells) + "\n")
    wrong = [key for key, gap in cells.items() if not holds(key[0], gap)]
    sys.stdout.write(f"{len(wrong)} of {len(cells)} cells out of bounds\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
