import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.batch import SequenceBatch
from rlhf.data.candidates import CandidateRow, CandidateSet
from rlhf.data.categories import Categories
from rlhf.data.encoding import Encoded
from rlhf.data.fitting import Report
from rlhf.data.loaded import PreferenceSet, SupervisedSet
from rlhf.data.rows import PreferenceRow, SupervisedRow
from rlhf.evaluation.bootstrap import Bootstrap
from rlhf.evaluation.report import write_json
from rlhf.evaluation.reward import PairReport, candidates_report, pair_report, scores_of, sides_of
from rlhf.evaluation.reward_plots import reward_picture
from rlhf.evaluation.reward_tables import candidate_section, pair_section

BOOTSTRAP = Bootstrap(resamples=20)
SUBSETS = ["easy", "easy", "hard", "hard"]


def text(*tokens: int) -> Encoded:
    return Encoded(tokens=[0, *tokens], targets=[False] + [True] * len(tokens))


def pairs(subsets: list[str] | None = SUBSETS) -> PreferenceSet:
    """Chosen responses of 3, 1, 2 and 4 tokens, rejected ones of 1, 2, 2 and 1."""
    columns: list[dict[str, Any]] = [{"subset": name} for name in subsets or []] or [{}] * 4
    return PreferenceSet(
        chosen=[text(5, 6, 7), text(9), text(4, 4), text(1, 1, 1, 8)],
        rejected=[text(3), text(2, 2), text(4, 3), text(6)],
        margins=[0.0] * 4,
        pad_id=0,
        report=Report(source="pairs"),
        rows=[
            PreferenceRow(prompt="p", chosen=f"c{row}", rejected=f"r{row}", margin=0.0, columns=one, where="")
            for row, one in enumerate(columns)
        ],
    )


class Last:
    """A reward that reads the last token, and remembers what it was shown."""

    def __init__(self, worth: dict[int, float] | None = None) -> None:
        self.worth, self.seen = worth or {}, []

    def __call__(self, rollout: Any, texts: Any) -> torch.Tensor:
        raise NotImplementedError

    def sequences(self, batch: SequenceBatch, decoder: Any, columns: Any = None) -> torch.Tensor:
        last = batch.tokens.gather(1, batch.attention_mask.sum(1, keepdim=True) - 1)[:, 0]
        self.seen += [column["subset"] for column in columns]
        return torch.tensor([self.worth.get(token, float(token)) for token in last.tolist()])


class Words:
    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return " ".join(map(str, token_ids))


def scored(reward: Last, texts: SupervisedSet, rows: int = 3) -> list[float]:
    return scores_of(
        reward,
        texts,
        torch.arange(len(texts)),
        name="the reward",
        decoder=Words(),
        rows=rows,
        device=torch.device("cpu"),
        progress=lambda _: None,
    )


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_every_text_gets_its_own_score_and_columns(rows: int) -> None:
    reward = Last()
    assert scored(reward, sides_of(pairs()), rows) == [7, 9, 4, 8, 3, 2, 3, 6]
    assert sorted(reward.seen) == sorted(SUBSETS * 2)


def test_a_score_that_is_not_finite_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"the reward gave nan to response \d, prompt '0': a score must be fin"
    ):
        scored(Last({9: math.nan}), sides_of(pairs()))


def found(*names: str, constant: bool = False, subsets: list[str] | None = SUBSETS) -> PairReport:
    data = pairs(subsets)
    own = [1.0] * 8 if constant else [7.0, 9, 4, 8, 3, 12, 4, 6]  # right, wrong, level, right
    return pair_report(data, dict.fromkeys(names, own), Categories(), BOOTSTRAP)


def test_a_report_counts_by_hand() -> None:
    report = found("reward", "judge")
    assert [one.scorer for one in report.agreements] == ["reward", "judge"]
    assert (report.agreements[0].accuracy, report.agreements[0].tied) == (0.5, 0.25)
    assert report.breakdown is not None
    assert {one.name: one.accuracy.value for one in report.breakdown.categories} == {"easy": 0.5, "hard": 0.5}
    assert report.breakdown.categories[1].tied == 0.5
    differences = [4, -3, 0, 2]
    expected = sum(math.log1p(math.exp(-gap)) for gap in differences) / 4
    assert report.calibration.log_loss.value == pytest.approx(expected)
    assert report.lengths == ([3, 1, 2, 4], [1, 2, 2, 1])
    assert report.length.longer_chosen == 0.5
    assert report.judge is not None
    assert report.judge.agreed == 1.0


def test_a_constant_reward_has_accuracy_zero_and_ties_one() -> None:
    report = found("reward", constant=True)
    assert (report.agreements[0].accuracy, report.agreements[0].tied) == (0.0, 1.0)
    assert report.breakdown is not None
    assert (report.breakdown.mean.accuracy.value, report.breakdown.mean.tied) == (0.0, 1.0)
    assert report.calibration.log_loss.value == pytest.approx(math.log(2))
    assert "correlation with the score –" in pair_section(report)


def test_tables_hold_what_was_found() -> None:
    printed = pair_section(found("reward", "vader"))
    assert "| category | easy | 2    | 0.500" in printed
    assert "The reward and vader say the same of 100.0% of the pairs" in printed
    assert "Calibration of σ(Δr): expected error" in printed
    assert "| chosen longer by | pairs | accuracy | 95 % interval |" in printed
    plain = pair_section(found("reward", subsets=None))
    assert "category" not in plain
    assert "say the same" not in plain


def candidates() -> CandidateSet:
    """Right and wrong responses: 1 + 2, and a question of the ties subset with its reference."""
    counts, subsets = [(1, 2), (1, 1), (2, 1)], [("Math", 4), ("Ties", "ref:1"), ("Ties", "tied:1")]
    made = SupervisedRow(prompt="p", response="r", columns={}, where="")
    rows = [
        CandidateRow(right=[made] * r, wrong=[made] * w, columns={"subset": name, "id": key}, where="")
        for (r, w), (name, key) in zip(counts, subsets, strict=True)
    ]
    return CandidateSet(
        texts=SupervisedSet(encoded=[text(1)] * 8, pad_id=0, report=Report(source="candidates")), rows=rows
    )


def test_candidates_take_their_scores_in_order() -> None:
    report = candidates_report(candidates(), [3, 1, 2, 5, 1, 9, 8, 2], Categories(), BOOTSTRAP)
    assert {one.name: one.accuracy.value for one in report.breakdown.categories} == {
        "Math": 1.0,
        "Ties": pytest.approx(1 + 0.01 * math.tanh(4 / 1 - 1)),
    }
    printed = candidate_section(report)
    assert "The ties subset:" in printed
    wrong = candidates_report(candidates(), [1, 3, 2, 5, 1, 9, 8, 2], Categories(), BOOTSTRAP)
    assert wrong.breakdown.categories[0].accuracy.value == 0


def test_report_and_picture_are_written(tmp_path: Path) -> None:
    best = candidates_report(candidates(), [3, 1, 2, 5, 1, 9, 8, 2], Categories(), BOOTSTRAP)
    for number, (pair, several) in enumerate(
        [(found("reward"), None), (found("reward", constant=True, subsets=None), best), (None, best)]
    ):
        reward_picture(tmp_path / f"{number}.png", pair, several)
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
        write_json(tmp_path / "report.json", pairs=pair, candidates=several)
        content = json.loads((tmp_path / "report.json").read_text())
        assert (content["candidates"] is None) == (several is None)
        assert len(content["pairs"]) == (pair is not None)
    assert content["reward"] is None
    assert content["policies"] == content["best_of_n"] == []
