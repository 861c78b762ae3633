"""Lines are written as they come; the newest run of a benchmark counts."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.measure import Timing
from benchmarks.report import table
from benchmarks.results import Line, Writer, at_least, provenance, read


def facts(time: str) -> dict[str, object]:
    return {**provenance(["python", "-m", "benchmarks"], torch.device("cpu")), "time": time}


def timed(contender: str, seconds: list[float]) -> Line:
    line = Line(cell="8×4×11 fp32", contender=contender, errors={"logprobs": 1e-6})
    line.time(Timing(seconds=seconds))
    return line


def test_every_line_says_commit_versions_machine_and_command(tmp_path: Path) -> None:
    Writer(tmp_path / "a.jsonl", facts("2026-01-01")).write("C1", timed("rlhf", [1.0, 2.0, 3.0]))
    (line,) = [json.loads(text) for text in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert line["command"] == "python -m benchmarks"
    assert line["versions"]["torch"] == torch.__version__
    assert {"commit", "changed", "cpu", "gpu", "threads", "time"} <= line.keys()
    assert (line["seconds"], line["quartiles"], line["rounds"]) == (2.0, [1.5, 2.5], 3)


def test_a_void_line_has_no_seconds(tmp_path: Path) -> None:
    line = Line(cell="cell", contender="a", void="wrong")
    line.time(Timing(seconds=[1.0]))
    assert line.seconds is None


def test_a_benchmark_run_again_replaces_its_lines_and_no_others(tmp_path: Path) -> None:
    first, second = (Writer(tmp_path / f"{day}.jsonl", facts(f"2026-01-0{day}")) for day in (1, 2))
    first.write("C1", timed("rlhf", [9.0]))
    first.write("C2", timed("rlhf", [7.0]))
    second.write("C1", timed("rlhf", [1.0]))
    lines = read(sorted(tmp_path.glob("*.jsonl")))
    assert sorted((line["id"], line["seconds"]) for line in lines) == [("C1", 1.0), ("C2", 7.0)]


def test_no_results_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no results"):
        read([])


def test_the_table_shows_what_was_missing_void_and_missed(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "a.jsonl", facts("2026-01-01"))
    writer.write("C1", timed("rlhf", [0.002]))
    writer.write("C1", Line(cell="cell", contender="trl", missing="no environment"))
    writer.write("C1", Line(cell="cell", contender="liger", void="hidden off by 2"))
    writer.write("C1", at_least("cell", "share of the floor", 0.5, 0.85))
    shown = table(read([tmp_path / "a.jsonl"]))
    assert "| rlhf | 2 ms |" in shown
    assert "**missing**: no environment" in shown
    assert "**void**: hidden off by 2" in shown
    assert "| cell | share of the floor | 0.85 | 0.5 | **missed** |" in shown


def test_the_processor_is_told_with_the_vector_instructions_that_torch_uses() -> None:
    assert f", {torch.backends.cpu.get_cpu_capability()}" in provenance(["x"], torch.device("cpu"))["cpu"]
