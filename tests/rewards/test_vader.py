import sys

import pytest

from rlhf.rewards.vader import _analyzer, vader


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)  # as if it were not installed
    _analyzer.cache_clear()
    with pytest.raises(
        ValueError, match=r"VADER is not installed; get it with: pip install .*vaderSentiment"
    ):
        vader(["a"], ["b"], [{}])
    _analyzer.cache_clear()


def test_prompt_and_response_are_read_as_one_text() -> None:
    pytest.importorskip("vaderSentiment")
    scores = vader(
        ["The film is ", "The film is ", "The film is not ", ""],
        ["great.", "terrible.", "great.", "The film is great."],
        [{}] * 4,
    )
    # The lexicon says great 3.1 and terrible -2.1, "not" multiplies by -0.74; then x / sqrt(x² + 15).
    expected = [x / (x**2 + 15) ** 0.5 for x in (3.1, -2.1, -0.74 * 3.1, 3.1)]
    assert scores == pytest.approx(expected, abs=1e-4)
