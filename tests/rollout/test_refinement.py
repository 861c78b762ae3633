"""What a refiner is asked, and which settings are refused."""

from __future__ import annotations

import pytest

from rlhf.rollout.refinement import FeedbackFunction, RefinerFunction, RefinerModel


def test_the_template_is_filled_with_texts_as_they_are() -> None:
    refiner = RefinerModel(path="x", template="{prompt}|{response}|{feedback}|{prompt}|{{}}")
    assert refiner.asked("a{b}", "{", "}c") == "a{b}|{|}c|a{b}|{}"


@pytest.mark.parametrize("template", ["{answer}", "{}", "{prompt", "{prompt.x}"])
def test_a_template_with_other_holes_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"RefinerModel\.template must have .* as its only holes, got"):
        RefinerModel(path="x", template=template)


def test_counts_and_limits_are_positive() -> None:
    with pytest.raises(ValueError, match=r"RefinerModel\.samples must be at least 1, got 0"):
        RefinerModel(path="x", samples=0)
    for source in (FeedbackFunction, RefinerFunction):
        with pytest.raises(ValueError, match=rf"{source.__name__}\.timeout_seconds must be positive, got 0"):
            source(function="a:b", timeout_seconds=0)
