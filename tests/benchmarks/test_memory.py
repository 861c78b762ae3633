"""Plans beside measurements: what is committed, and the tables of the docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory import presets
from benchmarks.memory.__main__ import RESULTS, markdown, newest
from benchmarks.memory.lines import command_lines
from benchmarks.results import kept
from rlhf.planning.memory_plan import readable

DOCS = Path(__file__).parents[2] / "docs"
MODELS = dict.fromkeys(("llama", "grouped", "gpt2", "tiny", "llama_reward", "tiny_reward"), "somewhere")
FOUND = newest(kept(RESULTS))


def line(name: str, planned: int, tensors: int, resident: int) -> dict[str, Any]:
    return {
        "name": name,
        "planned": planned,
        "phase": "update",
        "tensors": tensors,
        "resident": resident,
        "ranks": 1,
    }


def test_the_newest_measurement_of_a_command_line_counts() -> None:
    lines = [line("sft", 1, 1, 1), line("rl", 1, 1, 1), line("sft", 110_000_000, 100_000_000, 125_000_000)]
    rows = markdown(lines).splitlines()
    assert rows[2:] == [
        "| sft | 110 (update) | 100 | 1.10 | 125 | 0.88 |",
        "| rl | 0 (update) | 0 | 1.00 | 0 | 1.00 |",
    ]


def test_every_command_line_was_measured() -> None:
    assert {found["name"] for found in FOUND} == {line.name for line in command_lines(MODELS)}


@pytest.mark.parametrize("found", FOUND, ids=lambda found: found["name"])
def test_a_plan_is_within_ten_percent_of_what_was_allocated(found: dict[str, Any]) -> None:
    assert found["planned"] == pytest.approx(found["tensors"], rel=0.1)


def test_the_page_has_the_table() -> None:
    assert markdown(kept(RESULTS)) in (DOCS / "memory.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("size", ["0_5b", pytest.param("8b", marks=pytest.mark.slow)])
def test_the_page_of_models_says_what_presets_are_planned_to_hold(size: str) -> None:
    plan = presets.preset_plan("one_gpu", size)
    page = (DOCS / "models.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| `one_gpu_…` \|.*$", page, re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    column = list(presets.SIZES).index(size)
    assert cells[column] == f"{readable(plan.peak)}, {plan.fullest.name}"
    assert plan.peak < 80e9
