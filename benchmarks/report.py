"""The README's tables, from the lines of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results import by_machine, machine
from benchmarks.suites import SUITES

Lines = Sequence[Mapping[str, Any]]
HEADER = "| cell | contender | median | quartiles | peak beyond results | largest error | remarks |"
PEERS = (
    "trl",
    "verl",
    "openrlhf",
    "liger",
    "cut-cross-entropy",
    "torch",
    "generate",
    "generate,",
    "continuous",
)
"""First words of the contenders that are other people's."""


def summary(lines: Lines) -> str:
    """A table a machine, a row a benchmark: targets met, and the speed beside the best peer of each cell."""
    return "\n".join(f"**{name}**\n\n{_summary(own)}" for name, own in by_machine(lines).items())


def _summary(lines: Lines) -> str:
    titles = {name: case.title for cases in SUITES.values() for name, case in cases.items()}
    rows = [
        "| | benchmark | met | missed | open | times the best peer's speed, least and most |",
        "|---" * 6 + "|",
    ]
    for name in _names(lines):
        own = [line for line in lines if line["id"] == name]
        met, missed, left = counts(own)
        if not met + missed + left:
            continue  # growth has no targets
        found = list(speeds(own).values())
        ratios = " – ".join(
            f"{float(f'{value:.2g}'):g}" for value in dict.fromkeys([*found[:1], *found[-1:]])
        )
        rows.append(f"| {name} | {titles.get(name, '')} | {met} | {missed} | {left} | {ratios} |")
    return "\n".join(rows) + "\n"


def counts(lines: Lines) -> tuple[int, int, int]:
    """Targets that were met, missed, and those that the rounds do not decide or that lack a side."""
    verdicts = [line.get("met") for line in lines if "target" in line]
    return verdicts.count(True), verdicts.count(False), verdicts.count(None)


def speeds(lines: Lines) -> dict[str, float]:
    """By cell, lowest first: the best peer's median over ours; cells that lack one of them are left out."""
    timed = [line for line in lines if "seconds" in line]
    found = {}
    for cell in dict.fromkeys(line["cell"] for line in timed):
        own = [line for line in timed if line["cell"] == cell]
        ours = [line["seconds"] for line in own if line["contender"].split(",")[0] == "rlhf"]
        ours = ours or [line["seconds"] for line in own if line["contender"].startswith("rlhf")]
        peers = [line["seconds"] for line in own if line["contender"].split()[0] in PEERS]
        if ours and peers:
            found[cell] = min(peers) / min(ours)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def table(lines: Lines) -> str:
    """The summary, then a section a benchmark: who took how long, what was wanted and what was reached."""
    return "\n".join([summary(lines), *(_sections(own) for own in by_machine(lines).values())])


def _sections(lines: Lines) -> str:
    parts, told = [], ""
    for name in _names(lines):
        own = [line for line in lines if line["id"] == name]
        measured = [line for line in own if "target" not in line]
        wanted = [line for line in own if "target" in line]
        facts = _facts(own[0])
        parts.append(f"### {name}\n" + (f"\n{facts}\n" if facts != told else ""))
        told = facts
        if measured:
            parts.append("\n".join([HEADER, "|---" * 7 + "|", *map(_row, measured)]) + "\n")
        if wanted:
            head = ["| cell | target | wanted | reached | |", "|---" * 5 + "|"]
            parts.append("\n".join([*head, *map(_verdict, wanted)]) + "\n")
    return "\n".join(parts)


def _names(lines: Lines) -> list[str]:
    """In the suites' order."""
    order = [name for cases in SUITES.values() for name in cases]
    found = dict.fromkeys(line["id"] for line in lines)
    return [name for name in order if name in found] + [name for name in found if name not in order]


def _facts(line: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
    changed = " with changes" if line["changed"] else ""
    return (
        f"`{line['command']}`  \n{line['time']}, commit {line['commit']}{changed}, {machine(line)}, "
        f"{line['threads']} threads; {versions}"
    )


def _row(line: Mapping[str, Any]) -> str:
    quartiles = " – ".join(_time(value) for value in line.get("quartiles", ()))
    peak = f"{line['peak_bytes'] / 2**20:.1f} MiB" if "peak_bytes" in line else ""
    errors = line.get("errors", {})
    worst = max(errors, key=errors.__getitem__, default=None)
    error = f"{worst} {errors[worst]:.2g}" if worst is not None else ""
    cells = [
        line["cell"],
        line["contender"],
        _time(line.get("seconds")),
        quartiles,
        peak,
        error,
        _remarks(line),
    ]
    return f"| {' | '.join(cells)} |"


def _remarks(line: Mapping[str, Any]) -> str:
    if "missing" in line:
        return f"**missing**: {line['missing']}"
    if "void" in line:
        return f"**void**: {line['void']}"
    values = [f"{name} {value:.4g}" for name, value in line.get("values", {}).items()]
    return ", ".join([*([line["note"]] if "note" in line else []), *values])


def _verdict(line: Mapping[str, Any]) -> str:
    verdict = {True: "met", False: "**missed**", None: line.get("void", "undecided")}[line.get("met")]
    reached = f"{line['reached']:.3g}" if "reached" in line else "–"
    what = line["contender"].removeprefix("target: ")
    return f"| {line['cell']} | {what} | {line['target']:.3g} | {reached} | {verdict} |"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
