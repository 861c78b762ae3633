"""The planned memory of the presets of docs/models.md, from the sizes of their models alone."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from rlhf.cli.plan import planned
from rlhf.planning.memory_plan import MemoryPlan, readable
from rlhf.planning.roles import Machine

CONFIGS = Path(__file__).parent / "configs"
SIZES = {"0_5b": "qwen2_5_0_5b", "1_5b": "qwen2_5_1_5b", "3b": "qwen2_5_3b", "8b": "qwen3_8b"}
PLACES = {"one_gpu": 1, "eight_gpus": 8, "two_nodes": 16}
"""Ranks of each."""


def preset_plan(place: str, size: str) -> MemoryPlan:
    """Of ``rlhf rl experiment=PLACE_SIZE/rl`` on GPUs, its reward model one of the policy's size."""
    with tempfile.TemporaryDirectory(prefix="presets-") as folder:
        policy, reward = (Path(folder) / name for name in ("policy", "reward"))
        config = json.loads((CONFIGS / f"{SIZES[size]}.json").read_text(encoding="utf-8"))
        _write(policy, config)
        kind = config["architectures"][0].replace("ForCausalLM", "ForSequenceClassification")
        _write(reward, config | {"architectures": [kind], "num_labels": 1})
        overrides = [
            f"experiment={place}_{size}/rl",
            f"actor.model.path={policy}",
            f"reward.path={reward}",
        ]
        return planned("rl", overrides, Machine(ranks=PLACES[place], device="cuda"))


def table() -> str:
    """A row a place, a column a size: the peak on each GPU and the phase that has it."""
    rows = [f"| | {' | '.join(size.replace('_', '.').upper() for size in SIZES)} |", "|---" * 5 + "|"]
    for place in PLACES:
        cells = []
        for size in SIZES:
            plan = preset_plan(place, size)
            cells.append(f"{readable(plan.peak)}, {plan.fullest.name}")
        rows.append(f"| `{place}_…` | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _write(folder: Path, config: dict[str, object]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
