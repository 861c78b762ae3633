from collections.abc import Callable, Sequence
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf.data.feedback import FeedbackData
from rlhf.data.rows import Prompt
from rlhf.data.scored import Account, ScoredRow
from rlhf.data.selections import (
    Above,
    AllPairs,
    Best,
    Label,
    Labelled,
    Pairs,
    Quantiles,
    Selection,
    Top,
)
from rlhf.data.sets import PreferenceData, SupervisedData

Write = Callable[..., str]


def pool(*rows: tuple[Prompt, str, float]) -> list[ScoredRow]:
    return [
        ScoredRow(prompt=prompt, response=response, score=score, where=f"rows:{number}")
        for number, (prompt, response, score) in enumerate(rows, 1)
    ]


ROWS = pool(("a", "1", 0.5), ("b", "2", 2.0), ("a", "3", 1.5), ("b", "4", 2.0), ("a", "5", -1.0))


def selected(selection: Selection, rows: Sequence[ScoredRow] = ROWS) -> tuple[list[dict[str, Any]], str]:
    account = Account(read=len(rows))
    return selection(rows, account), str(account)


def answers(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(line["prompt"], line["response"]) for line in lines]


def test_best_is_the_first_highest_score_of_each_prompt() -> None:
    lines, account = selected(Best())
    assert lines == [
        {"prompt": "a", "response": "3", "score": 1.5},
        {"prompt": "b", "response": "2", "score": 2.0},
    ]
    assert account == "5 rows read, 2 written, 3 (3 not the best of their prompt) left out"


def test_conversations_are_told_apart_by_all_their_turns() -> None:
    one, other = ([{"role": "user", "content": text}] for text in ("hi", "ho"))
    lines, _ = selected(Best(), pool((one, "1", 0.0), (other, "2", -1.0), (one, "3", 1.0)))
    assert [(line["prompt"], line["response"]) for line in lines] == [(one, "3"), (other, "2")]


@pytest.mark.parametrize(
    ("fraction", "kept"),
    [(1.0, "12345"), (0.6, "234"), (0.4, "24"), (0.2, "2"), (0.01, "2")],
)
def test_top_is_the_best_share_of_the_pool_in_its_order(fraction: float, kept: str) -> None:
    lines, account = selected(Top(fraction=fraction))
    assert [line["response"] for line in lines] == list(kept)
    assert f"{len(kept)} written" in account


def test_above_keeps_the_threshold_itself() -> None:
    lines, account = selected(Above(threshold=1.5))
    assert answers(lines) == [("b", "2"), ("a", "3"), ("b", "4")]
    assert account == "5 rows read, 3 written, 2 (2 below 1.5) left out"


def test_label_puts_good_and_bad_before_the_prompts() -> None:
    """The median is 1.5, and reaches itself."""
    lines, account = selected(Label())
    assert answers(lines) == [
        ("<bad> a", "1"),
        ("<good> b", "2"),
        ("<good> a", "3"),
        ("<good> b", "4"),
        ("<bad> a", "5"),
    ]
    assert account == "5 rows read, 5 (3 '<good> ', 2 '<bad> ') written, 0 left out"


def test_label_takes_a_threshold_and_other_words() -> None:
    lines, _ = selected(Label(threshold=0.0, good="+", bad="-"))
    assert [line["prompt"] for line in lines] == ["+a", "+b", "+a", "+b", "-a"]


@pytest.mark.parametrize("kind", [Label, Labelled])
@pytest.mark.parametrize(
    ("threshold", "complaint"),
    [
        (-2.0, "all 5 scores are at least -2: selection.threshold must divide them, they go from -1 to 2"),
        (3.0, "all 5 scores are below 3: selection.threshold must divide them, they go from -1 to 2"),
    ],
)
def test_a_threshold_that_divides_nothing_is_refused(kind: Any, threshold: float, complaint: str) -> None:
    with pytest.raises(ValueError) as refusal:
        selected(kind(threshold=threshold))
    assert str(refusal.value) == complaint


def test_equal_scores_have_no_median_that_divides_them() -> None:
    with pytest.raises(ValueError, match="all 2 scores are at least 1: "):
        selected(Labelled(), pool(("a", "1", 1.0), ("a", "2", 1.0)))


def test_quantiles_are_equally_full_and_the_last_has_the_highest_scores() -> None:
    rows = pool(*(("a", str(n), float(-n)) for n in range(10)))
    lines, account = selected(Quantiles(count=5, prefix="q{}:"), rows)
    assert [line["prompt"] for line in lines] == [f"q{5 - n // 2}:a" for n in range(10)]
    assert account.startswith("10 rows read, 10 (2 'q1:', 2 'q2:', 2 'q3:', 2 'q4:', 2 'q5:') written")


def test_equal_scores_are_in_one_quantile_and_the_best_in_the_last() -> None:
    rows = pool(*(("a", str(n), float(n % 2)) for n in range(10)))
    lines, account = selected(Quantiles(), rows)
    assert [line["prompt"] for line in lines] == ["<quantile_3> a", "<quantile_5> a"] * 5
    assert "10 (5 '<quantile_3> ', 5 '<quantile_5> ') written" in account


def test_fewer_rows_than_quantiles_are_refused() -> None:
    with pytest.raises(ValueError, match="count is 6, but there are 5 scored responses only"):
        selected(Quantiles(count=6))


def pairs(lines: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(line["prompt"], line["chosen"], line["rejected"]) for line in lines]


def test_pairs_are_the_best_against_the_worst_of_a_prompt() -> None:
    lines, account = selected(Pairs())
    assert lines == [
        {"prompt": "a", "chosen": "3", "rejected": "5", "chosen_score": 1.5, "rejected_score": -1.0}
    ]
    assert account == "5 rows read, 1 written, 3 (3 in no pair) left out"


def test_all_pairs_are_every_two_that_differ_the_better_first() -> None:
    lines, account = selected(AllPairs())
    assert pairs(lines) == [("a", "3", "1"), ("a", "1", "5"), ("a", "3", "5")]
    assert account == "5 rows read, 3 written, 2 (2 in no pair) left out"


def test_a_margin_keeps_pairs_that_far_apart() -> None:
    assert pairs(selected(AllPairs(margin=1.5))[0]) == [("a", "1", "5"), ("a", "3", "5")]
    assert pairs(selected(Pairs(margin=2.5))[0]) == [("a", "3", "5")]
    assert selected(Pairs(margin=2.6))[0] == []


def test_equal_texts_are_no_pair_whatever_their_scores() -> None:
    assert selected(Pairs(), pool(("a", "1", 0.0), ("a", "1", 1.0)))[0] == []


def test_labelled_rows_say_true_and_false() -> None:
    lines, account = selected(Labelled())
    assert [line["label"] for line in lines] == [False, True, True, True, False]
    assert account == "5 rows read, 5 (2 bad, 3 good) written, 0 left out"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Top(fraction=0.0), "Top.fraction must be above 0 and at most 1, got 0.0"),
        (lambda: Top(fraction=1.1), "Top.fraction must be above 0 and at most 1, got 1.1"),
        (lambda: Above(threshold=float("nan")), "Above.threshold must be finite, got nan"),
        (lambda: Label(threshold=float("inf")), "Label.threshold must be finite, got inf"),
        (lambda: Label(good="", bad=""), "Label.good and Label.bad must differ, both are ''"),
        (lambda: Quantiles(count=1), "Quantiles.count must be at least 2, got 1"),
        (lambda: Quantiles(prefix="<q>"), "Quantiles.prefix must hold {} once, for the number, got '<q>'"),
        (lambda: Pairs(margin=-0.1), "Pairs.margin must be finite and not negative, got -0.1"),
        (lambda: AllPairs(margin=float("inf")), "AllPairs.margin must be finite and not negative, got inf"),
        (lambda: Labelled(threshold=float("nan")), "Labelled.threshold must be finite, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Selection], complaint: str) -> None:
    with pytest.raises(ValueError) as refusal:
        make()
    assert str(refusal.value) == complaint


# What the training commands make of the rows


@pytest.mark.parametrize("selection", [Best(), Top(), Above(), Label(), Quantiles()])
def test_demonstrations_are_read_by_supervised_training(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write, selection: Selection
) -> None:
    lines, _ = selected(selection)
    found = SupervisedData(path=write_jsonl(*lines)).load(tokenizer)
    assert [(row.prompt, row.response) for row in found.rows] == answers(lines)


@pytest.mark.parametrize("selection", [Pairs(), AllPairs()])
def test_pairs_are_read_without_a_margin_of_their_own(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write, selection: Selection
) -> None:
    lines, _ = selected(selection)
    found = PreferenceData(path=write_jsonl(*lines)).load(tokenizer)
    assert found.margins == [0.0] * len(lines)


def test_labelled_rows_are_read_by_kto(tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    lines, _ = selected(Labelled())
    assert FeedbackData(path=write_jsonl(*lines)).load_labelled(tokenizer).desirable == [
        line["label"] for line in lines
    ]
