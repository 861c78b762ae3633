"""The four verbs."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.suites import SUITES


def test_the_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for cases in SUITES.values():
        for name, case in cases.items():
            assert name in printed
            assert case.title in printed


def test_no_benchmark_of_the_design_is_left_out() -> None:
    assert set(SUITES["cpu"]) == {f"C{number}" for number in range(1, 13)} | {"C7e"}
    assert set(SUITES["gpu"]) == {f"G{number}" for number in range(1, 13)} | {"G5b"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_suite_runs_on_a_cpu_where_it_is_quick(tmp_path: Path) -> None:
    out = tmp_path / "quick.jsonl"
    common = ["--quick", "--threads", "1", "--peers", str(tmp_path / "none")]
    assert main(["run", "--suite", "gpu", "--only", "G11", "--out", str(out), *common]) == 0
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert lines[0]["contender"] == "rlhf"
    assert lines[0]["gpu"] is None


def test_an_unknown_number_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--suite", "cpu", "--only", "C1,C99"]) == 2
    assert capsys.readouterr().err.startswith("benchmarks: suite cpu has no C99, only C1, ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_suite_is_refused_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--suite", "gpu"]) == 2
    error = capsys.readouterr().err
    assert error == "benchmarks: suite gpu needs a CUDA device, and torch finds none here\n"


def test_a_quick_run_writes_a_line_a_contender_and_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "quick.jsonl"
    common = ["--quick", "--threads", "1", "--peers", str(tmp_path / "none")]
    assert main(["run", "--suite", "cpu", "--only", "C4", "--out", str(out), *common]) == 0
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    ours = [line for line in lines if line["contender"] == "rlhf"]
    assert [line["cell"] for line in ours] == ["96×32×1003 fp32", "96×32×1003 bf16"]
    assert all(line["seconds"] > 0 and "void" not in line for line in ours)
    assert main(["table", str(out)]) == 0
    assert "### C4" in capsys.readouterr().out
    assert main(["plot", str(out), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "C4.png").stat().st_size > 1000
