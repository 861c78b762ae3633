"""A row a benchmark, from lines by hand."""

import json
from pathlib import Path
from typing import Any

from benchmarks.cases.growth import ratios
from benchmarks.plot import plots
from benchmarks.report import counts, speeds, summary
from benchmarks.results import FOLDER, Line, read

ROOT = FOLDER.parents[1]


def timed(cell: str, contender: str, seconds: float) -> dict[str, Any]:
    return {"id": "C6", "cpu": "one", "cell": cell, "contender": contender, "seconds": seconds}


LINES: list[dict[str, Any]] = [
    timed("a", "rlhf", 2.0),
    timed("a", "rlhf padded", 1.0),
    timed("a", "padded loop", 1.5),
    timed("a", "trl sft", 6.0),
    timed("a", "trl sft padding-free", 5.0),
    timed("b", "rlhf", 2.0),
    timed("b", "trl sft", 3.0),
    timed("c", "trl sft", 3.0),
    {"id": "C6", "cpu": "one", "cell": "a", "contender": "target: x", "target": 2.0, "met": True},
    {"id": "C6", "cpu": "one", "cell": "b", "contender": "target: x", "target": 2.0, "met": False},
    {
        "id": "C6",
        "cpu": "one",
        "cell": "c",
        "contender": "target: x",
        "target": 2.0,
        "void": "a side is missing",
    },
]


def test_targets_are_met_missed_or_open() -> None:
    assert counts(LINES) == (1, 1, 1)


def test_the_best_peer_counts_and_our_own_variants_and_plain_loops_do_not() -> None:
    assert speeds(LINES) == {"b": 1.5, "a": 2.5}


def test_the_summary_has_the_least_and_the_most() -> None:
    title = "a step of each stage, rows of uneven lengths"
    assert f"| C6 | {title} | 1 | 1 | 1 | 1.5 – 2.5 |" in summary(LINES)


def test_the_readme_has_the_table_of_the_committed_results() -> None:
    files = sorted(FOLDER.glob("cpu_*.jsonl"))
    assert files
    assert summary(read(files)) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_machines_have_a_table_each() -> None:
    other = [{**line, "gpu": "other", "met": True} for line in LINES if "target" in line]
    first, second = summary([*LINES, *other]).split("**other**")
    assert first.startswith("**one**")
    assert "| 1 | 1 | 1 | 1.5 – 2.5 |" in first
    assert "| 3 | 0 | 0 |  |" in second


def test_a_run_replaces_what_the_same_machine_measured(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    runs = [("one", "C1", 1, "a"), ("other", "C1", 2, "a"), ("one", "C1", 3, "b"), ("one", "C2", 1, "a")]
    file.write_text(
        "".join(
            json.dumps({"id": name, "cpu": cpu, "time": time, "cell": cell}) + "\n"
            for cpu, name, time, cell in runs
        )
    )
    found = {(line["cpu"], line["id"], line["cell"]) for line in read([file])}
    assert found == {("other", "C1", "a"), ("one", "C1", "b"), ("one", "C2", "a")}


def test_what_has_no_target_is_no_row() -> None:
    growth = {"id": "growth", "cpu": "one", "cell": "ranks", "contender": "1", "seconds": 1.0}
    assert summary([*LINES, growth]) == summary(LINES)


def test_growth_is_told_as_ratios_to_the_smallest_and_drawn(tmp_path: Path) -> None:
    lines = [
        Line(cell="tokens", contender=f"×{by}", seconds=0.5 * by, peak_bytes=100 + 10 * by) for by in (1, 2)
    ]
    ratios(lines, [1, 2])
    assert lines[0].values == {"size": 1.0, "seconds ratio": 1.0, "memory ratio": 1.0}
    assert lines[1].values == {"size": 2.0, "seconds ratio": 2.0, "memory ratio": 120 / 110}
    found = [
        {"id": "growth", "cpu": cpu, "cell": line.cell, "seconds": line.seconds, "values": line.values}
        for cpu in ("one", "other")
        for line in lines
    ]
    assert plots(found, tmp_path) == [tmp_path / "growth.png"]
    assert (tmp_path / "growth.png").stat().st_size > 1000
