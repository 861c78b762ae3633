"""A reward by itself: everything that its scores of labelled responses tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.data.candidates import CandidateSet
from rlhf.data.categories import Categories, Division
from rlhf.data.loaded import PreferenceSet, SupervisedSet
from rlhf.data.rows import SupervisedRow
from rlhf.evaluation.bootstrap import Bootstrap
from rlhf.evaluation.calibration import Calibration, calibration
from rlhf.evaluation.candidates import CandidateReport, Candidates, candidate_report
from rlhf.evaluation.categories import Breakdown, breakdown
from rlhf.evaluation.judges import JudgeAgreement, judge_agreement
from rlhf.evaluation.length_bias import LengthProbe, length_probe
from rlhf.evaluation.pairs import Agreement, agreement
from rlhf.rewards.reward import Reward, expect_finite
from rlhf.rewards.texts import Decoder, decoded


@dataclass(kw_only=True, slots=True)
class PairReport:
    """A reward on human-labelled pairs."""

    agreements: list[Agreement]
    """Of the reward, then of the judge."""
    breakdown: Breakdown | None
    """None where rows have no category."""
    calibration: Calibration
    length: LengthProbe
    judge: JudgeAgreement | None
    chosen: dict[str, list[float]]
    """Scores of the better responses by scorer."""
    rejected: dict[str, list[float]]
    lengths: tuple[list[int], list[int]]
    """Response tokens of both sides."""


def sides_of(pairs: PreferenceSet) -> SupervisedSet:
    """All chosen texts, then all rejected ones, as texts to be scored."""
    sides = ([row.chosen for row in pairs.rows], [row.rejected for row in pairs.rows])
    return SupervisedSet(
        encoded=pairs.chosen + pairs.rejected,
        pad_id=pairs.pad_id,
        report=pairs.report,
        rows=[
            SupervisedRow(prompt=row.prompt, response=response, columns=row.columns, where=row.where)
            for responses in sides
            for row, response in zip(pairs.rows, responses, strict=True)
        ],
    )


@torch.no_grad()
def scores_of(
    reward: Reward,
    texts: SupervisedSet,
    index: Tensor,
    *,
    name: str,
    decoder: Decoder,
    rows: int,
    device: torch.device,
    progress: Callable[[int], object],
) -> list[float]:
    """The score of each text that ``index`` (B,) names, ``rows`` at a time.

    Raises:
        NotFinite: a score is NaN or infinite; names the text's prompt.
    """
    found = torch.zeros(len(index), dtype=torch.float64)
    order = torch.tensor(texts.sizes(index)).argsort(stable=True)  # texts of a forward are of similar length
    for places in order.split(rows):
        part = index[places]
        batch = texts.batch(part).to(device)
        scores = reward.sequences(batch, decoder, texts.columns(part))
        if not scores.isfinite().all():
            prompts = decoded(batch.tokens, batch.attention_mask & ~batch.mask, decoder)
            expect_finite(scores, prompts, name)
        found[places] = scores.cpu().double()
        progress(len(part))
    return found.tolist()


def pair_report(
    pairs: PreferenceSet,
    scores: dict[str, list[float]],
    categories: Categories,
    bootstrap: Bootstrap,
) -> PairReport:
    """What the scores say.

    Args:
        pairs: the data.
        scores: of :func:`sides_of` by scorer; the first is the reward, a second one the judge.
        categories: how rows are divided.
        bootstrap: of all intervals.
    """
    sides = {
        name: torch.tensor(values, dtype=torch.float64).reshape(2, -1) for name, values in scores.items()
    }
    name, *judges = sides
    chosen, rejected = sides[name]
    chosen_lengths, rejected_lengths = (
        torch.tensor([sum(text.targets) for text in side]) for side in (pairs.chosen, pairs.rejected)
    )
    division = categories.of([(row.columns, row.where) for row in pairs.rows])
    right, tied = (chosen > rejected).double(), (chosen == rejected).double()
    return PairReport(
        agreements=[agreement(scorer, *side.tolist()) for scorer, side in sides.items()],
        breakdown=None if division is None else breakdown(right, tied, division, bootstrap),
        calibration=calibration(chosen - rejected, bootstrap),
        length=length_probe(chosen, rejected, chosen_lengths, rejected_lengths, bootstrap),
        judge=judge_agreement(judges[0], chosen - rejected, sides[judges[0]][0] - sides[judges[0]][1])
        if judges
        else None,
        chosen={scorer: side[0].tolist() for scorer, side in sides.items()},
        rejected={scorer: side[1].tolist() for scorer, side in sides.items()},
        lengths=(chosen_lengths.tolist(), rejected_lengths.tolist()),
    )


def candidates_report(
    data: CandidateSet, scores: Sequence[float], categories: Categories, bootstrap: Bootstrap
) -> CandidateReport:
    """What the scores of all candidates, in the order of ``data.texts``, say.

    Raises:
        ValueError: a row of the ties subset has no id, or its counterpart is missing.
    """
    left = torch.tensor(scores, dtype=torch.float64)
    rows = []
    for row in data.rows:
        right, wrong, left = left.split(
            [len(row.right), len(row.wrong), len(left) - len(row.right) - len(row.wrong)]
        )
        identity = row.columns.get("id")
        rows.append(Candidates(right=right, wrong=wrong, id=None if identity is None else str(identity)))
    division = categories.of([(row.columns, row.where) for row in data.rows])
    if division is None:
        division = Division(members={"all": list(range(len(rows)))}, sections={"all": ["all"]}, weights={})
    return candidate_report(rows, division, categories.ties, bootstrap)
