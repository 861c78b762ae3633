"""VADER's compound sentiment in [−1, 1] (Hutto & Gilbert 2014): a lexicon and rules, nothing is trained."""

from __future__ import annotations

from functools import cache
from typing import Any


def vader(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
    """The compound sentiment of prompt and response read as one text.

    Raises:
        ValueError: the package is not installed.
    """
    analyzer = _analyzer()
    return [
        analyzer.polarity_scores(prompt + response)["compound"]
        for prompt, response in zip(prompts, responses, strict=True)
    ]


@cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ValueError(
            "VADER is not installed; get it with: pip install --no-deps vaderSentiment==3.3.2"
        ) from error
    return SentimentIntensityAnalyzer()
