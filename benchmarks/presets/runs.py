"""What is run: tasks, presets, and the command line of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

CONF = Path(__file__).parents[2] / "conf" / "algorithm"
RESPONSES = 128
"""Of each rollout, whatever the preset: so many prompts, or fewer with several responses each."""


@dataclass(kw_only=True, slots=True)
class Task:
    """Models, prompts and a reward that every preset gets."""

    name: str
    rollouts: int
    overrides: tuple[str, ...]
    kl_coef: float
    """β for presets with the KL in the reward; those with a KL in the loss keep the papers'."""
    texts: str
    """Demonstrations, for ``ppo_ptx``."""


def tasks(folder: Path) -> list[Task]:
    """The quick start's reviews, scored by its reward model, and three-term sums, scored by a program.

    Args:
        folder: the runs that ``launch/quickstart.sh`` and ``launch/arithmetic.sh`` have made.
    """
    quickstart, arithmetic = folder / "quickstart", folder / "arithmetic"
    reviews = Task(
        name="reviews",
        rollouts=20,
        overrides=(
            f"actor.model.path={quickstart}/sft",
            f"reward.path={quickstart}/reward",
            f"prompts.path={quickstart}/data/prompts_train.jsonl",
            f"test_prompts.path={quickstart}/data/prompts_test.jsonl",
            "test_prompts.limit=512",
            "rollout.sampling.temperature=0.7",
            "rollout.sampling.max_new_tokens=40",
            "actor.optimizer.lr=5e-4",
            "critic.optimizer.lr=1e-3",
            "micro_batch_size=64",
        ),
        kl_coef=0.25,
        texts=f"{quickstart}/data/supervised_train.jsonl",
    )
    sums = Task(
        name="sums",
        rollouts=30,
        overrides=(
            "reward=reasoning_gym",
            f"actor.model.path={arithmetic}/sft",
            f"prompts.path={arithmetic}/data/practice.jsonl",
            f"test_prompts.path={arithmetic}/data/test.jsonl",
            "rollout.sampling.max_new_tokens=6",
            "actor.optimizer.lr=7e-4",
            "actor.optimizer.beta2=0.98",
            "critic.optimizer.lr=1e-3",
            "schedule.warmup=0.1",
            "micro_batch_size=128",
        ),
        kl_coef=0.01,
        texts=f"{arithmetic}/data/supervised.jsonl",
    )
    return [reviews, sums]


@dataclass(kw_only=True, slots=True)
class Run:
    """One preset on one task with one seed."""

    task: Task
    preset: str
    seed: int
    changes: tuple[str, ...] = field(default_factory=tuple)
    """Overrides of the preset itself."""

    @property
    def label(self) -> str:
        """Preset and changes, as the table calls them."""
        return " ".join([self.preset, *(change.removeprefix("algorithm.") for change in self.changes)])

    @property
    def slug(self) -> str:
        """A folder name of its own."""
        return f"{self.task.name}_{self.label}_{self.seed}".replace(" ", "_").replace("=", "")

    def arguments(self, folder: Path) -> list[str]:
        """Of ``rlhf rl``; the run goes to ``folder``."""
        return [
            f"hydra.run.dir={folder / self.slug}",
            f"name={self.slug}",
            f"algorithm={self.preset}",
            "engine=plain",
            "rollout.exact_kl=false",
            f"seed={self.seed}",
            f"rollouts={self.task.rollouts}",
            "cadence.evaluate_every=0",
            "cadence.checkpoint_every=0",
            *self.task.overrides,
            *_sizes(self.preset),
            *_kl(self.preset, self.task.kl_coef),
            *((f"pretraining.data.path={self.task.texts}",) if self.preset == "ppo_ptx" else ()),
            *self.changes,
        ]


def presets() -> list[str]:
    """Names of all."""
    return sorted(file.stem for file in CONF.glob("*.yaml"))


def all_runs(folder: Path, seeds: int) -> list[Run]:
    """Every preset on every task; PPO with one and two passes too. Seeds outermost, should it be stopped."""
    variants = [(name, ()) for name in presets()]
    variants += [("ppo", ("algorithm.epochs=1",)), ("ppo", ("algorithm.epochs=2",))]
    return [
        Run(task=task, preset=name, seed=seed, changes=changes)
        for seed in range(seeds)
        for task in tasks(folder)
        for name, changes in variants
    ]


def _text(preset: str) -> str:
    return (CONF / f"{preset}.yaml").read_text(encoding="utf-8")


def _sizes(preset: str) -> list[str]:
    """As many responses for all: groups of eight where responses to one prompt are compared."""
    samples = 8 if "set rollout.samples" in _text(preset) else 1
    return [f"rollout.prompts={RESPONSES // samples}", f"rollout.samples={samples}"]


def _kl(preset: str, coef: float) -> list[str]:
    inherited = _text("ppo") if "  - ppo\n" in _text(preset) else _text(preset)
    return [f"algorithm.kl.coef={coef}"] if "kl: in_reward" in inherited else []
