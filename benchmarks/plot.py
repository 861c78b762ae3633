"""Pictures of results: a bar a contender and cell, and how cost grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plots(lines: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """One picture a benchmark that has timings, ``folder/C1.png``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name in dict.fromkeys(line["id"] for line in lines):
        timed = [line for line in lines if line["id"] == name and "seconds" in line]
        if timed:
            pictures.append(_bars(name, timed, folder / f"{name}.png"))
    return pictures


def _bars(name: str, lines: Sequence[Mapping[str, Any]], picture: Path) -> Path:
    """A panel a cell: medians with the quartiles, floors in grey and ours in colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = list(dict.fromkeys(line["cell"] for line in lines))
    figure, axes = pyplot.subplots(
        1, len(cells), figsize=(4.2 * len(cells), 3.4), squeeze=False, constrained_layout=True
    )
    for axis, cell in zip(axes.flat, cells, strict=True):
        own = [line for line in lines if line["cell"] == cell][::-1]
        medians = [1e3 * line["seconds"] for line in own]
        spread = [
            [m - 1e3 * line["quartiles"][0] for m, line in zip(medians, own, strict=True)],
            [1e3 * line["quartiles"][1] - m for m, line in zip(medians, own, strict=True)],
        ]
        colours = [_colour(line["contender"]) for line in own]
        axis.barh([line["contender"] for line in own], medians, xerr=spread, color=colours, capsize=2)
        axis.set_title(f"{name}  {cell}", fontsize=9)
        axis.set_xlabel("ms, median and quartiles")
        axis.tick_params(labelsize=7)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
    return picture


def _colour(contender: str) -> str:
    if contender.startswith("floor"):
        return "0.75"
    return "tab:orange" if contender.startswith("rlhf") else "tab:blue"
