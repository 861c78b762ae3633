"""The README's tables, from the lines of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Lines = Sequence[Mapping[str, Any]]
HEADER = "| cell | contender | median | quartiles | peak beyond results | largest error | remarks |"


def table(lines: Lines) -> str:
    """A section a benchmark: who took how long, then what was wanted and what was reached."""
    parts = []
    for name in dict.fromkeys(line["id"] for line in lines):
        own = [line for line in lines if line["id"] == name]
        parts.append(f"### {name}\n\n{_facts(own[0])}\n")
        measured = [line for line in own if "target" not in line]
        wanted = [line for line in own if "target" in line]
        if measured:
            parts.append("\n".join([HEADER, "|---" * 7 + "|", *map(_row, measured)]) + "\n")
        if wanted:
            head = ["| cell | target | wanted | reached | |", "|---" * 5 + "|"]
            parts.append("\n".join([*head, *map(_verdict, wanted)]) + "\n")
    return "\n".join(parts)


def _facts(line: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
    changed = " with changes" if line["changed"] else ""
    machine = line.get("gpu") or line["cpu"]
    return (
        f"`{line['command']}`  \n{line['time']}, commit {line['commit']}{changed}, {machine}, "
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
