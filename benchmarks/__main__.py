"""Measures, and shows what was measured.

    python -m benchmarks list
    python -m benchmarks run --suite cpu [--only C1,C2] [--quick]
    python -m benchmarks growth
    python -m benchmarks table
    python -m benchmarks plot

A run writes a line a contender to benchmarks/results/ as soon as it is known. With --quick the shapes are
tiny, so that the times say nothing; its lines go to build/.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: the peers' process waits while ours runs

import torch

from benchmarks import report
from benchmarks.bench import Bench, Case
from benchmarks.contest import describe
from benchmarks.peers.client import PYTHON, PeerEnvironment
from benchmarks.results import FOLDER, Writer, provenance, read, say
from benchmarks.suites import SUITES

QUICK_FOLDER = Path("build")


def main(arguments: list[str]) -> int:
    """One of five verbs; 1 where a case failed, 2 where it cannot be done, which one line says."""
    asked = _parser().parse_args(arguments)
    try:
        if asked.verb == "list":
            _list()
        elif asked.verb in ("run", "growth"):
            return min(run(asked, ["python", "-m", "benchmarks", *arguments]), 1)
        elif asked.verb == "table":
            lines = read(_files(asked))
            print(report.summary(lines) if asked.short else report.table(lines))
        else:
            from benchmarks import plot

            for picture in plot.plots(read(_files(asked)), asked.out):
                print(picture)
    except (ValueError, FileNotFoundError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


def run(asked: argparse.Namespace, command: list[str]) -> int:
    """Run the cases that were asked for; how many of them failed.

    Raises:
        ValueError: there is no such case, or no GPU.
    """
    cases = chosen(asked.suite, asked.only)
    bench = _bench(asked)
    folder = QUICK_FOLDER if asked.quick else FOLDER
    stamp = time.strftime("%Y-%m-%d_%H-%M", time.gmtime())
    writer = Writer(asked.out or folder / f"{asked.suite}_{stamp}.jsonl", provenance(command, bench.device))
    start, failed = time.perf_counter(), 0
    try:
        for number, (name, case) in enumerate(cases.items(), 1):
            say(f"[{number}/{len(cases)}] {name} {case.title}, {time.perf_counter() - start:.0f} s in")
            failed += not _run_case(bench, name, case, writer)
    finally:
        bench.peers.close()
    say(f"{writer.path}, {time.perf_counter() - start:.0f} s")
    return failed


def chosen(suite: str, only: str | None) -> dict[str, Case]:
    """The cases of a suite, or those named.

    Raises:
        ValueError: names one that the suite lacks.
    """
    cases = SUITES[suite]
    names = list(cases) if only is None else only.split(",")
    for name in names:
        if name not in cases:
            raise ValueError(f"suite {suite} has no {name}, only {', '.join(cases)}")
    return {name: cases[name] for name in names}


def _run_case(bench: Bench, name: str, case: Case, writer: Writer) -> bool:
    """Whether it came to its end; an error of one case leaves the others their turn, and is shown whole."""
    try:
        for line in case.run(bench):
            writer.write(name, line)
            if line.target is not None:
                say(f"  {line.cell:28s} {describe(line)}")
    except Exception:
        say(f"{name} failed\n{traceback.format_exc()}")
        return False
    return True


def _bench(asked: argparse.Namespace) -> Bench:
    has_gpu = torch.cuda.is_available()
    if asked.suite == "gpu" and not (has_gpu or asked.quick):
        raise ValueError("suite gpu needs a CUDA device, and torch finds none here")
    threads = asked.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    device = "cuda" if asked.suite == "gpu" and has_gpu else "cpu"
    if asked.quick:
        patience = {"budget": 5.0, "rounds": 2, "least": 2, "warm_ups": 0}
    else:
        warm_ups = 3 if device == "cuda" else 0  # on a CPU the gate has run each contender once
        patience = {"budget": asked.seconds, "rounds": 20, "least": asked.least, "warm_ups": warm_ups}
    peers = PeerEnvironment(asked.peers, device=device, threads=threads)
    return Bench(device=torch.device(device), quick=asked.quick, peers=peers, **patience)


def _list() -> None:
    for suite, cases in SUITES.items():
        for name, case in cases.items():
            print(f"{suite}  {name:4s} {case.title}")


def _files(asked: argparse.Namespace) -> list[Path]:
    return asked.files or sorted(path for suite in SUITES for path in FOLDER.glob(f"{suite}_*.jsonl"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="the benchmarks by number")
    run = verbs.add_parser("run", help="measure")
    run.add_argument("--suite", choices=["cpu", "gpu"], required=True)
    run.add_argument("--only", help="numbers, with commas between")
    growth = verbs.add_parser("growth", help="how a training step's cost grows")
    growth.set_defaults(suite="growth", only=None)
    for measuring in (run, growth):
        measuring.add_argument("--quick", action="store_true", help="tiny shapes: shows that it runs")
        measuring.add_argument("--seconds", type=float, default=12.0, help="of timing a cell (default 12)")
        measuring.add_argument("--least", type=int, default=3, help="rounds, whatever they take (default 3)")
        measuring.add_argument("--threads", type=int, help="default: all cores")
        measuring.add_argument("--peers", type=Path, default=PYTHON, help="the peers' interpreter")
        measuring.add_argument("--out", type=Path, help="file of the lines")
    for name, text in (("table", "the README's table"), ("plot", "pictures")):
        shown = verbs.add_parser(name, help=text)
        shown.add_argument("files", type=Path, nargs="*", help="default: all in benchmarks/results")
        if name == "table":
            shown.add_argument("--short", action="store_true", help="a row a benchmark")
        else:
            shown.add_argument("--out", type=Path, default=FOLDER, help="folder of the pictures")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
