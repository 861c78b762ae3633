"""Pictures of results: a bar a contender and cell, and how cost grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import machine

Lines = Sequence[Mapping[str, Any]]
COLUMNS = 3
"""Panels side by side."""


def plots(lines: Lines, folder: Path) -> list[Path]:
    """One picture a benchmark that has timings, ``folder/C1.png``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name in dict.fromkeys(line["id"] for line in lines):
        timed = [line for line in lines if line["id"] == name and "seconds" in line]
        if timed:
            draw = _growth if name == "growth" else _bars
            pictures.append(draw(name, _cells(timed), folder / f"{name}.png"))
    return pictures


def _cells(lines: Lines) -> dict[tuple[str, str], Lines]:
    """By machine and cell."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault((machine(line), line["cell"]), []).append(line)
    return {**found}


def _bars(name: str, cells: Mapping[tuple[str, str], Lines], picture: Path) -> Path:
    """A panel a cell: medians with the quartiles, floors in grey and ours in colour."""
    figure, axes = _panels(len(cells))
    for axis, ((where, cell), lines) in zip(axes, cells.items(), strict=True):
        own = lines[::-1]
        medians = [1e3 * line["seconds"] for line in own]
        spread = [
            [m - 1e3 * line["quartiles"][0] for m, line in zip(medians, own, strict=True)],
            [1e3 * line["quartiles"][1] - m for m, line in zip(medians, own, strict=True)],
        ]
        colours = [_colour(line["contender"]) for line in own]
        axis.barh([line["contender"] for line in own], medians, xerr=spread, color=colours, capsize=2)
        axis.set_title(f"{name}  {cell}\n{where}", fontsize=9)
        axis.set_xlabel("ms, median and quartiles")
        axis.tick_params(labelsize=7)
    return _saved(figure, picture)


def _growth(name: str, cells: Mapping[tuple[str, str], Lines], picture: Path) -> Path:
    """A panel a series: seconds and memory over those of its smallest, and exact proportionality."""
    figure, axes = _panels(len(cells))
    for axis, ((where, cell), own) in zip(axes, cells.items(), strict=True):
        sizes = [line["values"]["size"] for line in own]
        for what, colour in (("seconds", "tab:orange"), ("memory", "tab:blue")):
            found = [line["values"].get(f"{what} ratio") for line in own]
            points = [(x, y) for x, y in zip(sizes, found, strict=True) if y is not None]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", color=colour, label=what)
        if min(sizes) > 0:
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            slope = -1.0 if cell == "ranks" else 1.0
            axis.plot(
                sizes,
                [(size / sizes[0]) ** slope for size in sizes],
                "--",
                color="0.6",
                label="in proportion",
            )
        else:  # stages of ZeRO are names, not amounts
            axis.set_ylim(bottom=0.0)
        axis.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
        axis.set_title(f"{name}  {cell}\n{where}", fontsize=9)
        axis.set_ylabel("times the first")
        axis.legend(fontsize=7)
        axis.tick_params(labelsize=7)
    return _saved(figure, picture)


def _panels(count: int) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4.2 * columns, 3.0 * rows), squeeze=False, constrained_layout=True
    )
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, list(axes.flat[:count])


def _saved(figure: Any, picture: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
    return picture


def _colour(contender: str) -> str:
    if contender.startswith("floor"):
        return "0.75"
    return "tab:orange" if contender.startswith("rlhf") else "tab:blue"
