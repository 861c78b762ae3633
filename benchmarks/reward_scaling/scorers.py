"""Who is measured on the held-out pairs: reward models, VADER, and a bag of words of a library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf.data.categories import Categories
from rlhf.data.loaded import PreferenceSet, SupervisedSet
from rlhf.data.sets import PreferenceData
from rlhf.data.tokenizers import load_tokenizer
from rlhf.evaluation.bootstrap import Bootstrap
from rlhf.evaluation.reward import PairReport, pair_report, scores_of, sides_of
from rlhf.models.frozen import frozen
from rlhf.models.loading import load_scalar_model
from rlhf.models.sources import Pretrained
from rlhf.rewards.reward import FunctionReward, ModelReward, Reward
from rlhf.rewards.vader import vader
from rlhf.seeding import generator

ROWS = 128
"""Texts of one forward."""


class HeldOut:
    """Pairs that nothing was trained on; a text that stands in several pairs is scored once."""

    def __init__(self, file: Path, tokenizer_of: Path) -> None:
        self.tokenizer = load_tokenizer(str(tokenizer_of))
        self.pairs: PreferenceSet = PreferenceData(path=str(file)).load(self.tokenizer)
        both = sides_of(self.pairs)
        places = {tuple(text.tokens): number for number, text in enumerate(both.encoded)}
        kept = list(places.values())
        number = {text: place for place, text in enumerate(places)}
        self._place = [number[tuple(text.tokens)] for text in both.encoded]
        self._texts = SupervisedSet(
            encoded=[both.encoded[i] for i in kept],
            pad_id=both.pad_id,
            report=both.report,
            rows=[both.rows[i] for i in kept],
        )

    def report(self, name: str, reward: Reward) -> PairReport:
        """All that the scores tell."""
        scores = scores_of(
            reward,
            self._texts,
            torch.arange(len(self._texts)),
            name=name,
            decoder=self.tokenizer,
            rows=ROWS,
            device=torch.device("cpu"),
            progress=lambda _: None,
        )
        return pair_report(self.pairs, {name: [scores[i] for i in self._place]}, Categories(), Bootstrap())

    def of_model(self, name: str, model: Path) -> PairReport:
        """Of a reward model."""
        source = Pretrained(path=str(model))
        loaded = load_scalar_model(
            source, self.tokenizer, generator=generator(0, "unused"), fresh_head=False, packed=True
        )
        return self.report(name, ModelReward(model=frozen(loaded), micro_rows=ROWS))

    def of_vader(self) -> PairReport:
        """Of the lexicon, which learns nothing."""
        return self.report("vader", FunctionReward(function=vader, name="vader"))

    def of_words(self, comparisons: Path) -> PairReport:
        """Of a bag of words that learnt from the same comparisons as a reward model."""
        words = BagOfWords(comparisons)
        return self.report("bag of words", FunctionReward(function=words, name="bag of words"))


class BagOfWords:
    """Bradley–Terry on words and pairs of words: r(y) = w · tf-idf(y), by scikit-learn's logistic regression.

    The regression sees the differences of the features of chosen and rejected, each once in either
    direction, without an intercept: its log-odds are Δr. The regularisation is the best of a grid under
    five-fold cross-validation over the comparisons, by log-loss.
    """

    GRID = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

    def __init__(self, comparisons: Path) -> None:
        from scipy import sparse
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, GroupKFold

        rows = [json.loads(line) for line in comparisons.read_text(encoding="utf-8").splitlines()]
        sides = [[row["prompt"] + row[name] for row in rows] for name in ("chosen", "rejected")]
        self._features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
        self._features.fit([text for side in sides for text in dict.fromkeys(side)])
        chosen, rejected = (self._features.transform(side) for side in sides)
        ahead = chosen - rejected
        x, y = sparse.vstack([ahead, -ahead]), [1] * len(rows) + [0] * len(rows)
        search = GridSearchCV(
            LogisticRegression(fit_intercept=False, max_iter=1000),
            {"C": list(self.GRID)},
            scoring="neg_log_loss",
            cv=GroupKFold(5),
        )
        search.fit(x, y, groups=list(range(len(rows))) * 2)  # both directions of a pair in one fold
        self.regularisation = float(search.best_params_["C"])
        self._weights = search.best_estimator_.coef_[0]

    def __call__(self, prompts: list[str], responses: list[str], columns: Sequence[Any]) -> list[float]:
        """The score of each text."""
        texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        return (self._features.transform(texts) @ self._weights).tolist()
