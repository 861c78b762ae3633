import json
from pathlib import Path

import pytest

from rlhf.evaluation.best_of_n import BestOfN
from rlhf.evaluation.pairs import Agreement
from rlhf.evaluation.policies import Response, Summary
from rlhf.evaluation.report import (
    agreement_table,
    best_of_n_table,
    markdown,
    policy_table,
    side_by_side,
    write_json,
)


def summary() -> Summary:
    return Summary(
        policy="PPO",
        responses=2,
        score=1.234,
        score_error=0.056,
        score_std=2.345,
        kl=3.456,
        kl_error=0.078,
        kl_exact=3.21,
        judge=0.4567,
        judge_error=0.0123,
        distinct_2=0.8765,
        length=20.55,
        ended=0.875,
        perplexity=12.34,
    )


def best() -> Summary:
    bound = summary()
    bound.policy, bound.kl, bound.kl_error, bound.kl_exact = "best of 16", 1.835, None, None
    bound.judge, bound.judge_error, bound.distinct_2 = None, None, None
    return bound


def agreed() -> Agreement:
    return Agreement(scorer="reward", pairs=400, accuracy=0.785, low=0.7421, high=0.8225, tied=0.0125)


def responses(count: int = 2) -> list[Response]:
    return [
        Response(
            prompt=f" prompt {row}",
            text=f" text {row} ",
            score=row - 0.5,
            judge=None,
            kl=0.5,
            exact_kl=0.5,
            ref_logprob=-1.0,
            tokens=3,
            ended=True,
        )
        for row in range(count)
    ]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_policy_table_holds_every_number() -> None:
    head, rule, one, bound = policy_table([summary(), best()], "vader").splitlines()
    assert cells(head) == [
        *("policy", "score", "KL nats", "exact KL", "vader", "distinct-2", "length", "ended", "perplexity")
    ]
    assert set(rule) == {"|", "-"}
    assert cells(one) == [
        "PPO",
        "1.23 ± 0.06 (sd 2.35)",
        "3.46 ± 0.08",
        "3.21",
        "0.457 ± 0.012",
        "0.876",
        "20.6",
        "88%",
        "12.3",
    ]
    assert cells(bound)[2:6] == ["≤ 1.83", "–", "–", "–"]


def curve(n: int) -> list[BestOfN]:
    return [
        BestOfN(n=k, score=k / 3, score_error=0.125, judge=None, judge_error=None, kl_bound=k / 8)
        for k in range(1, n + 1)
    ]


def test_the_best_of_n_table_has_the_powers_of_two_and_the_last() -> None:
    lines = best_of_n_table(curve(6), "vader").splitlines()
    assert cells(lines[0]) == ["n", "score", "vader", "KL nats"]
    assert [cells(line)[0] for line in lines[2:]] == ["1", "2", "4", "6"]
    assert cells(lines[4]) == ["4", "1.33 ± 0.12", "–", "≤ 0.50"]
    judged = curve(1)
    judged[0].judge, judged[0].judge_error = 0.4567, 0.0123
    assert cells(best_of_n_table(judged, "vader").splitlines()[2])[2] == "0.457 ± 0.012"


def test_the_agreement_table_holds_every_number() -> None:
    line = agreement_table([agreed()]).splitlines()[2]
    assert cells(line) == ["reward", "400", "0.785", "0.742 – 0.823", "1.2%"]


def test_columns_line_up() -> None:
    lines = markdown([["a", "long head"], ["longer", "b"]]).splitlines()
    assert lines == ["| a      | long head |", "|--------|-----------|", "| longer | b         |"]


def test_responses_stand_side_by_side() -> None:
    text = side_by_side({"reference": responses(), "PPO": responses()})
    assert text.split("\n\n")[1].splitlines() == [
        "**prompt 1** …",
        "- reference (+0.50): text 1",
        "- PPO (+0.50): text 1",
    ]
    assert len(side_by_side({"reference": responses(20)}).split("\n\n")) == 6


def test_policies_with_other_numbers_of_responses_are_not_set_side_by_side() -> None:
    with pytest.raises(ValueError, match="zip"):
        side_by_side({"reference": responses(2), "PPO": responses(1)})


def test_the_json_holds_everything_and_is_json(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    write_json(file, summaries=[summary(), best()], responses={"PPO": responses()}, curve=curve(3))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    content = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["policies"][0]["kl"] == 3.456
    assert content["policies"][1]["judge"] is None
    assert (content["pairs"], content["reward"], content["candidates"]) == ([], None, None)
    assert [one["n"] for one in content["best_of_n"]] == [1, 2, 3]
    assert [row["text"] for row in content["responses"]["PPO"]] == [" text 0 ", " text 1 "]
