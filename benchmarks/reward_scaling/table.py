"""Tables and picture of the runs: means over seeds with their standard errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import mean_and_error
from benchmarks.reward_scaling.fit import PowerLaw, fitted

Lines = Sequence[Mapping[str, Any]]
FROM_SFT, FROM_NOTHING, WORDS, LEXICON = "quickstart sft", "quickstart scratch", "bag of words", "vader"


def markdown(lines: Lines, counts: Sequence[int]) -> str:
    """Accuracy of every scorer, the supervised start's gain, calibration and length, the fitted curve."""
    scorers = list(dict.fromkeys(line["scorer"] for line in sorted(lines, key=_order)))
    head = ["scorer", "parameters", *(f"{count:,}" for count in counts)]
    accuracy = [
        [scorer, _parameters(lines, scorer), *(_cell(lines, scorer, count, "accuracy") for count in counts)]
        for scorer in scorers
    ]
    gain = ["supervised start's gain, points", "", *(_gain(lines, count) for count in counts)]
    most = counts[-1]
    details = ["accuracy", "log_loss", "ece", "ece_calibrated", "length_correlation"]
    rows = [
        [scorer, *(_cell(lines, scorer, most, name) for name in details), _interval(lines, scorer, most)]
        for scorer in scorers
    ]
    names = ["accuracy", "log-loss, nats", "ECE", "ECE if calibrated", "correlation with length"]
    names.append("95 % interval of the first seed")
    parts = [
        f"Accuracy on {lines[0]['pairs']} held-out pairs against the number of comparisons, "
        f"{_seeds(lines)} seeds, mean ± standard error:\n\n{_table([head, *accuracy, gain])}",
        f"At {most:,} comparisons:\n\n{_table([['scorer', *names], *rows])}",
        said(fitted(points(lines))),
    ]
    return "\n\n".join(parts) + "\n"


def said(law: PowerLaw) -> str:
    """The fitted curve in words."""
    fewer = [1 - 2**-exponent for exponent in (law.comparisons, law.parameters)]
    errors = (law.wrong * law.errors[0], *law.errors[1:])
    return (
        "Fitted to all runs from a supervised model, n comparisons and N parameters: 1 − accuracy = "
        f"{law.wrong:.3f} · (n/1000)^−{law.comparisons:.3f} · (N/10⁶)^−{law.parameters:.3f}, with standard "
        f"errors of {errors[0]:.3f}, {errors[1]:.3f} and {errors[2]:.3f}: twice the comparisons make "
        f"{fewer[0]:.1%} fewer mistakes, twice the parameters {fewer[1]:.1%}."
    )


def points(lines: Lines) -> list[tuple[float, float, float]]:
    """(comparisons, parameters, accuracy) of all runs that start from a supervised model."""
    return [
        (line["comparisons"], line["parameters"], line["accuracy"])
        for line in lines
        if line.get("start") == "sft"
    ]


def picture(lines: Lines, file: Path) -> None:
    """Left, accuracy against comparisons for each size with the fitted curve; right, the beginnings."""
    from rlhf.evaluation.plots import pyplot, save

    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4.2), constrained_layout=True, sharey=True)
    law = fitted(points(lines))
    for scorer in sorted({one["scorer"] for one in lines if one.get("start") == "sft"}, key=_width(lines)):
        size = _of(lines, scorer)[0]["parameters"]
        drawn = _curve(left, lines, scorer, f"{size / 1e6:.2f} M parameters")
        most = max(one["comparisons"] for one in _of(lines, scorer))
        counts = [most * 2 ** (-step / 4) for step in range(17)]
        left.plot(counts, [law.accuracy(count, size) for count in counts], "--", color=drawn, linewidth=1)
    left.set_title("from the supervised model; dashed: the fitted curve", fontsize=10)
    _curve(right, lines, FROM_SFT, "reward model from the supervised model")
    _curve(right, lines, FROM_NOTHING, "reward model from random weights")
    _curve(right, lines, WORDS, "bag of words, logistic regression")
    lexicon = _of(lines, LEXICON)
    if lexicon:
        right.axhline(
            lexicon[0]["accuracy"], linestyle=":", color="grey", label="VADER, which learns nothing"
        )
    right.set_title("1.16 M parameters, and baselines", fontsize=10)
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xticks(
            counts := sorted({one["comparisons"] for one in lines} - {0}), [f"{n:,}" for n in counts]
        )
        axis.minorticks_off()
        axis.set_xlabel("comparisons")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    left.set_ylabel("accuracy on held-out pairs")
    save(figure, file)


def details(lines: Lines, count: int, file: Path) -> None:
    """Left, reliability at ``count`` comparisons; right, accuracy by difference of length; first seeds."""
    from rlhf.evaluation.plots import pyplot, save

    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    left.plot([0.5, 1], [0.5, 1], "--", color="grey", linewidth=1, label="calibrated")
    for scorer in (FROM_SFT, FROM_NOTHING, WORDS, LEXICON):
        own = [line for line in _of(lines, scorer) if line["comparisons"] in (count, 0)]
        if not own:
            continue
        filled = [one for one in own[0]["bins"] if one["pairs"]]
        left.plot(
            [one["confidence"] for one in filled], [one["accuracy"] for one in filled], "o-", label=scorer
        )
        groups = own[0]["by_length"]
        right.plot([one["accuracy"]["value"] for one in groups], "o-", label=scorer)
        names = [f"{one['low']:+d} … {one['high']:+d}" for one in groups]
        right.set_xticks(range(len(groups)), names)
    left.set_xlabel("confidence σ(|Δr|)")
    left.set_ylabel("accuracy")
    right.set_xlabel("chosen longer by, tokens")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(figure, file)


def _curve(axis: Any, lines: Lines, scorer: str, label: str) -> Any:
    own = _of(lines, scorer)
    counts = sorted({line["comparisons"] for line in own})
    found = [mean_and_error([one["accuracy"] for one in own if one["comparisons"] == n]) for n in counts]
    bars = axis.errorbar(
        counts,
        [mean for mean, _ in found],
        yerr=[error for _, error in found],
        fmt="o-",
        capsize=3,
        label=label,
    )
    return bars[0].get_color()


def _gain(lines: Lines, count: int) -> str:
    """Of the supervised start over random weights, seed by seed: the comparisons are the same."""
    sides = [
        {line["seed"]: line["accuracy"] for line in _of(lines, scorer) if line["comparisons"] == count}
        for scorer in (FROM_SFT, FROM_NOTHING)
    ]
    gains = [100 * (sides[0][seed] - sides[1][seed]) for seed in sides[0] if seed in sides[1]]
    if not gains:
        return "–"
    mean, error = mean_and_error(gains)
    return f"{mean:+.1f}" if len(gains) == 1 else f"{mean:+.1f} ± {error:.1f}"


def _cell(lines: Lines, scorer: str, count: int, name: str) -> str:
    own = [line for line in _of(lines, scorer) if line["comparisons"] in (count, 0)]
    if not own:
        return "–"
    mean, error = mean_and_error([line[name] for line in own])
    return f"{mean:.3f}" if len(own) == 1 else f"{mean:.3f} ± {error:.3f}"


def _interval(lines: Lines, scorer: str, count: int) -> str:
    own = [line for line in _of(lines, scorer) if line["comparisons"] in (count, 0)]
    return "{:.3f} – {:.3f}".format(*own[0]["interval"]) if own else "–"


def _of(lines: Lines, scorer: str) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["scorer"] == scorer]


def _parameters(lines: Lines, scorer: str) -> str:
    found = _of(lines, scorer)[0].get("parameters")
    return "–" if found is None else f"{found:,}"


def _seeds(lines: Lines) -> int:
    return len({line["seed"] for line in lines if "parameters" in line})


def _order(line: Mapping[str, Any]) -> tuple[int, bool]:
    return line.get("parameters", 0), line.get("start") == "sft"


def _width(lines: Lines) -> Any:
    return lambda scorer: _of(lines, scorer)[0]["parameters"]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rest])
