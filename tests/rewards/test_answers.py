from __future__ import annotations

from fractions import Fraction

import pytest

from rlhf.rewards.answers import after_last, boxed, normalised, number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-7", -7),
        ("+7", 7),
        ("−7", -7),  # the typographical minus
        ("0.5", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        ("1/3", Fraction(1, 3)),
        ("-4/6", Fraction(-2, 3)),
        (r"\frac{1}{3}", Fraction(1, 3)),
        (r"-\dfrac{ 1 }{ 3 }", Fraction(-1, 3)),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("$12", 12),
        (r"\$12.00", 12),
        (r"50\%", 50),
        ("so it is 12.", 12),
        ("3 and 4", 4),
        ("4 - 1 = 3", 3),
        ("5 - 9 = -4", -4),
        ("5-3", 3),  # a difference, of which 3 is the last number
        ("12,5", 5),  # no thousands
        ("x2", 2),
        ("none", None),
        ("", None),
        ("1/0", None),
        ("9" * 5000, None),  # Python converts no more than 4300 digits
    ],
)
def test_the_last_number_is_read_exactly(text: str, value: Fraction | int | None) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("7", 7), (r"\frac{1}{2}", Fraction(1, 2)), ("$7$", 7), ("7 cm", None), ("x+1", None)]
)
def test_a_whole_number_is_nothing_but_the_number(text: str, value: Fraction | int | None) -> None:
    assert number(text, whole=True) == value


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{7}", "7"),
        (r"first \boxed{7}, no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{}", ""),
        (r"\boxed{7", None),
        ("7}", None),
        ("", None),
    ],
)
def test_the_last_box_is_opened(text: str, inside: str | None) -> None:
    assert boxed(text) == inside


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  Paris. ", "paris"),
        ("“New\n York!”", "new york"),
        ("ＡＢＣ", "abc"),  # full-width letters
        ("Straße", "strasse"),
        ("-7", "-7"),
        ("a, b", "a, b"),
        (" ... ", ""),
    ],
)
def test_normalising_keeps_what_an_answer_says(text: str, plain: str) -> None:
    assert normalised(text) == plain


@pytest.mark.parametrize(
    ("response", "mark", "rest"),
    [("a", "", "a"), ("a #### b", "####", " b"), ("#### a #### b", "####", " b"), ("a", "####", None)],
)
def test_what_follows_the_last_mark_is_the_answer(response: str, mark: str, rest: str | None) -> None:
    assert after_last(response, mark) == rest
