"""Ties and rankings on a known truth: the truth, the fits, and what is read off them."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.comparisons import rankings, ties
from benchmarks.comparisons.__main__ import table
from benchmarks.comparisons.truth import Truth, fitted, judged_orders, judged_pairs
from rlhf.algorithms.preferences import BradleyTerry


def test_labels_are_as_frequent_as_the_model_says() -> None:
    truth = Truth.drawn(0)
    features = truth.responses(1, 2).expand(40_000, 2, -1)
    gap = float(features[0, 0] @ truth.weight - features[0, 1] @ truth.weight)
    labels = truth.pair_labels(features, 0.4)
    total = math.exp(gap / 2) + math.exp(-gap / 2) + 2 * 0.4 / 0.6
    for label, weight in ((1.0, math.exp(gap / 2)), (0.5, 2 * 0.4 / 0.6), (0.0, math.exp(-gap / 2))):
        share = weight / total
        error = 4 * math.sqrt(share * (1 - share) / 40_000)
        assert float((labels == label).double().mean()) == pytest.approx(share, abs=error)


def test_orders_rank_any_two_as_bradley_and_terry() -> None:
    truth = Truth.drawn(1)
    features = truth.responses(1, 4).expand(40_000, 4, -1)
    places = truth.order(features).argsort(1)
    scores = features[0] @ truth.weight
    for i, j in ((0, 1), (2, 3)):
        expected = float(torch.sigmoid(scores[i] - scores[j]))
        found = float((places[:, i] < places[:, j]).double().mean())
        assert found == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 40_000))


def test_an_order_is_all_its_pairs() -> None:
    judged = judged_orders(torch.tensor([[2, 0, 1]]))
    assert judged.compared[0].nonzero().tolist() == [[0, 1], [2, 0], [2, 1]]
    assert (judged.label[judged.compared] == 1).all()


def test_a_fit_finds_the_truth_with_enough_comparisons() -> None:
    truth = Truth.drawn(2)
    features = truth.responses(20_000, 2)
    weight = fitted(BradleyTerry(), features, judged_pairs(truth.pair_labels(features, 1e-6)))
    cosine = torch.nn.functional.cosine_similarity(weight, truth.weight, dim=0)
    assert cosine > 0.998


def test_pairs_needed_are_read_between_the_sizes() -> None:
    found = {10: 0.6, 100: 0.8, 1000: 0.9}
    assert rankings.pairs_needed(0.7, found) == pytest.approx(10**1.5)
    assert rankings.pairs_needed(0.95, found) is None


def test_the_table_shows_every_loss_and_kind() -> None:
    lines = [line for seed in range(2) for line in ties.measured(50, seed)]
    lines += [line for size in (10, 20) for seed in range(2) for line in rankings.measured(size, seed)]
    shown = table(lines)
    assert all(name in shown for name in (*ties.LOSSES, *rankings.KINDS))
