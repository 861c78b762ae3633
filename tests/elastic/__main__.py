"""A run goes on under another engine or on another number of ranks: python -m tests.elastic

Every run (SFT; PPO with critic, adaptive KL and two minibatches a rollout) makes five steps and leaves a
checkpoint after the second. From it each other layout makes the last three. A cell is the largest difference
between the two over these steps: of loss, critic's loss, score, KL coefficient and held-out measurements, and
of every weight at the end. Where the layout is the same, all of them must be equal bit for bit.

Losses and their like may differ by 1e-5: the order of additions makes some 1e-7 of a gradient, and Adam's
steps near a gradient of 0 more than that of a weight. The exit status is 1 when a cell is beyond.
"""

import argparse
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf.algorithms.kl import AdaptiveKLInReward
from rlhf.distributed import collectives
from rlhf.distributed.engine_config import EngineConfig, Plain, ZeRO
from rlhf.run_folder import RunFolder
from rlhf.trainers.loop import Cadence, run
from tests import two_ranks as launcher

STEPS, STOP = 5, 2
TOLERANCE = 1e-5
STAGES = ("sft", "ppo")
ENGINES = ("plain", "zero0", "zero1", "zero2", "zero3")
RANKS = (1, 2)
MEASURED = ("loss", "critic/loss", "reward/score", "actor/kl_coef", "actor/kl_reference", "eval/")
Layout = tuple[int, str]
"""Number of ranks and engine."""
LAYOUTS: tuple[Layout, ...] = tuple(itertools.product(RANKS, ENGINES))


def build(stage: str, engine: str) -> Any:
    """A run over data whose epochs end inside a step, with rows held out."""
    from tests.trainers import toy

    config: EngineConfig = Plain()
    if engine != "plain":
        config = ZeRO(stage=int(engine[-1]), persistence_threshold=0)
    if stage == "sft":
        return toy.supervised(
            engine=config, batch_size=10, test=toy.supervised_set(6, "held out"), total=STEPS
        )
    return toy.policy_gradient(
        toy.ppo(kl=AdaptiveKLInReward(target=0.1, horizon=50)),
        engine=config,
        reference=toy.actor("reference"),
        test=toy.prompt_set(4, "held out"),
        total=STEPS,
    )


def played(stage: str, engine: str, path: Path, *, resume: bool) -> dict[str, Any]:
    """The run to its end: what it measured in each step, and its weights."""
    trainer = build(stage, engine)
    folder = RunFolder(path, writes=collectives.is_main())
    collectives.on_main(lambda: folder.claim("", resume=resume))
    measured: list[dict[str, float]] = []
    folder.log = lambda step, found: measured.append(  # type: ignore[method-assign]
        {name: value for name, value in found.items() if name.startswith(MEASURED)}
    )
    run(trainer, folder, Cadence(evaluate_every=1, checkpoint_every=STOP, keep_checkpoints=9), resume=resume)
    engines = [trainer.engine] if stage == "sft" else [trainer.models.actor, trainer.models.critic]
    weights = {f"{engine.name}.{name}": w for engine in engines for name, w in engine.state().items()}
    return {"measured": measured[-(STEPS - STOP) :], "weights": weights}


def place(folder: Path, stage: str, layout: Layout) -> Path:
    """Where a layout's unbroken run is."""
    return folder / f"{stage} {layout[0]} {layout[1]}"


def unbroken(folder: Path) -> dict[str, Any]:
    """Every engine's run on this number of ranks, left as a process does that is killed after the stop."""
    found: dict[str, Any] = {}
    for stage, engine in itertools.product(STAGES, ENGINES):
        path = place(folder.parent, stage, (collectives.world_size(), engine))
        found[path.name] = played(stage, engine, path, resume=False)
        collectives.on_main(lambda path=path: shutil.rmtree(path / "checkpoints" / f"step_{2 * STOP:06d}"))
    return found


def continued(folder: Path) -> dict[str, Any]:
    """Every run of those wanted, continued by every engine on this number of ranks."""
    found: dict[str, Any] = {}
    sources = torch.load(folder.parent / "sources.pt")
    for stage, source, engine in itertools.product(STAGES, sources, ENGINES):
        origin, path = place(folder.parent, stage, source), folder / "run"
        collectives.on_main(lambda origin=origin, path=path: _copy(origin, path))
        found[f"{origin.name} {engine}"] = played(stage, engine, path, resume=True)
        collectives.barrier()
    return found


def _copy(origin: Path, path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(origin, path, ignore=shutil.ignore_patterns("model", "tensorboard"))


def on_ranks(folder: Path, function: str) -> dict[int, dict[str, Any]]:
    """What rank 0 found, for each number of ranks."""
    found = {}
    os.environ["TQDM_DISABLE"] = "1"
    for ranks in RANKS:
        own = folder / f"{function} {ranks}"
        own.mkdir()
        if launcher.launch(__file__, function, str(own), str(ranks)) != 0:
            raise RuntimeError(f"{function} failed on {ranks} rank(s)")
        found[ranks] = torch.load(own / "rank0.pt", weights_only=False)
    return found


def gaps(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Largest difference of what was measured, and of the weights."""
    pairs = list(zip(one["measured"], other["measured"], strict=True))
    assert all(mine.keys() == yours.keys() and len(mine) > 1 for mine, yours in pairs)
    measured = max(abs(mine[name] - yours[name]) for mine, yours in pairs for name in mine)
    weights = ((one["weights"][name] - other["weights"][name]).abs().max() for name in one["weights"])
    return measured, max(map(float, weights))


def examined(
    folder: Path, sources: Sequence[Layout]
) -> dict[tuple[str, Layout, Layout], tuple[float, float]]:
    """The gaps of every stage, by the layout that began and the one that went on."""
    torch.save(list(sources), folder / "sources.pt")
    whole, other = on_ranks(folder, "unbroken"), on_ranks(folder, "continued")
    found = {}
    for stage, source, (ranks, engine) in itertools.product(STAGES, sources, LAYOUTS):
        name = place(folder, stage, source).name
        found[stage, source, (ranks, engine)] = gaps(whole[source[0]][name], other[ranks][f"{name} {engine}"])
    return found


def holds(source: Layout, target: Layout, gap: tuple[float, float]) -> bool:
    """Whether a cell is within its bound."""
    return gap == (0.0, 0.0) if source == target else gap[0] <= TOLERANCE


def table(found: dict[tuple[str, Layout, Layout], tuple[float, float]], sources: Iterable[Layout]) -> str:
    """The gaps as text, losses and the like before weights; a cell out of bounds has an exclamation mark."""
    lines = []
    for stage, number in itertools.product(STAGES, (0, 1)):
        what = ("what is measured", "weights")[number]
        lines += [f"{stage}, {what}: from (rows) to (columns)"]
        lines += ["".ljust(9) + "".join(f"{engine + ' ×' + str(ranks):>10}" for ranks, engine in LAYOUTS)]
        for source in sources:
            cells = ""
            for target in LAYOUTS:
                gap = found[stage, source, target]
                cells += f"{gap[number]:.0e}".rjust(9) + (" " if holds(source, target, gap) else "!")
            lines += [f"{source[1]} ×{source[0]}".ljust(9) + cells.rstrip()]
        lines += [""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    about = argparse.ArgumentParser(
        prog="python -m tests.elastic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    about.add_argument(
        "--sources", type=int, default=len(LAYOUTS), help="how many layouts begin, the last ones"
    )
    sources = LAYOUTS[-about.parse_args(arguments).sources :]
    with tempfile.TemporaryDirectory() as folder:
        found = examined(Path(folder), sources)
    sys.stdout.write(table(found, sources))
    wrong = [key for key, gap in found.items() if not holds(*key[1:], gap)]
    sys.stdout.write(f"{len(wrong)} of {len(found)} continued runs out of bounds\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
