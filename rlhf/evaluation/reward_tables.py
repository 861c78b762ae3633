"""What was found out about a reward, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.evaluation.bootstrap import Estimate
from rlhf.evaluation.calibration import Calibration
from rlhf.evaluation.candidates import CandidateReport, TiesScore
from rlhf.evaluation.categories import Breakdown, Share
from rlhf.evaluation.judges import JudgeAgreement
from rlhf.evaluation.length_bias import LengthProbe
from rlhf.evaluation.report import agreement_table, markdown
from rlhf.evaluation.reward import PairReport


def pair_section(report: PairReport) -> str:
    """All tables of a reward on pairs."""
    parts = ["Agreement with human labels, on held-out pairs:\n\n" + agreement_table(report.agreements)]
    if report.breakdown is not None:
        parts.append("Accuracy by category:\n\n" + breakdown_table(report.breakdown))
    parts.append(calibration_table(report.calibration))
    parts.append(length_table(report.length))
    if report.judge is not None:
        parts.append(judge_table(report.judge))
    return "\n\n".join(parts)


def candidate_section(report: CandidateReport) -> str:
    """All tables of a reward on rows of several candidates."""
    parts = ["The right response among several:\n\n" + breakdown_table(report.breakdown)]
    if report.ties is not None:
        parts.append(ties_table(report.ties))
    return "\n\n".join(parts)


def breakdown_table(breakdown: Breakdown) -> str:
    """Categories, then sections, then their mean."""
    rows = [
        *_shares("category", breakdown.categories),
        *_shares("section", breakdown.sections),
        *_shares("", [breakdown.mean]),
    ]
    return markdown([["", "name", "rows", "accuracy", "95 % interval", "tied"], *rows])


def calibration_table(found: Calibration) -> str:
    """The reliability diagram in numbers."""
    title = (
        f"Calibration of σ(Δr): expected error {found.ece:.3f} "
        f"(would be {found.ece_calibrated:.3f} if calibrated), "
        f"log-loss {found.log_loss.value:.3f} nats per pair ({interval(found.log_loss)}; a coin 0.693)"
    )
    rows = [
        [f"{one.low:.2f} – {one.high:.2f}", str(one.pairs), _number(one.confidence), _number(one.accuracy)]
        for one in found.bins
        if one.pairs
    ]
    return f"{title}:\n\n" + markdown([["confidence", "pairs", "mean", "accuracy"], *rows])


def length_table(found: LengthProbe) -> str:
    """Accuracy by the difference of lengths."""
    title = (
        f"Length: correlation with the score {_number(found.pearson)} (of ranks {_number(found.spearman)}), "
        f"of the differences in a pair {_number(found.pearson_difference)}; the chosen response is longer in "
        f"{found.longer_chosen:.1%}"
    )
    rows = [
        [
            f"{one.low:+d} … {one.high:+d}",
            str(one.pairs),
            f"{one.accuracy.value:.3f}",
            interval(one.accuracy),
        ]
        for one in found.groups
    ]
    return f"{title}:\n\n" + markdown([["chosen longer by", "pairs", "accuracy", "95 % interval"], *rows])


def judge_table(found: JudgeAgreement) -> str:
    """The four ways in which reward and judge can be right or wrong."""
    title = (
        f"The reward and {found.judge} say the same of {found.agreed:.1%} of the pairs "
        f"({found.low:.1%} – {found.high:.1%}), kappa {_number(found.kappa)}"
    )
    head = ["both right", "the reward alone", f"{found.judge} alone", "neither"]
    shares = (found.both_right, found.reward_alone, found.judge_alone, found.neither)
    return f"{title}:\n\n" + markdown([head, [f"{share:.1%}" for share in shares]])


def ties_table(found: TiesScore) -> str:
    """The parts of the ties subset's score."""
    head = ["ties", "questions", "one right", "several right", "preferred", "preferred, hard", "margin"]
    parts = (found.one_right, found.several_right, found.preferred, found.preferred_hard, found.margin)
    cells = [f"{found.score:.3f}", str(found.prompts), *(f"{part:.3f}" for part in parts)]
    return "The ties subset:\n\n" + markdown([head, cells])


def interval(found: Estimate) -> str:
    """Its two ends."""
    return f"{found.low:.3f} – {found.high:.3f}"


def _shares(kind: str, shares: Sequence[Share]) -> list[list[str]]:
    return [
        [
            kind,
            one.name,
            str(one.rows),
            f"{one.accuracy.value:.3f}",
            interval(one.accuracy),
            f"{one.tied:.1%}",
        ]
        for one in shares
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
