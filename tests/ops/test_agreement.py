"""Kappa and alpha: the worked examples of their papers, and the definition by counting pairs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from rlhf.ops.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha

FLEISS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
"""Ten subjects, fourteen raters, five categories: the worked example that encyclopaedias give, κ = 0.210."""

_ = None
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]
"""Krippendorff 2011, section C: four observers, twelve units; α 0.743 nominal, 0.849 interval."""


def counts(observers: list[list[int | None]]) -> Tensor:
    units = list(zip(*observers, strict=True))
    return torch.tensor([[unit.count(category) for category in range(1, 6)] for unit in units])


def squares(categories: int) -> Tensor:
    numbers = torch.arange(categories).double()
    return (numbers[:, None] - numbers[None, :]).square()


def test_cohen_by_pencil() -> None:
    """50 items: both yes 20, both no 15, yes–no 5, no–yes 10: p_o = 0.7, p_e = 0.5·0.6 + 0.5·0.4, κ = 0.4."""
    first = torch.tensor([1] * 20 + [0] * 15 + [1] * 5 + [0] * 10)
    second = torch.tensor([1] * 20 + [0] * 15 + [0] * 5 + [1] * 10)
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(second, first) == pytest.approx(0.4)
    assert cohen_kappa(first, first) == pytest.approx(1)
    assert math.isnan(cohen_kappa(torch.zeros(3).long(), torch.zeros(3).long()))


def test_fleiss_of_the_worked_example() -> None:
    assert fleiss_kappa(torch.tensor(FLEISS)) == pytest.approx(0.210, abs=5e-4)


def test_fleiss_of_two_is_scotts_pi() -> None:
    """p_o = 0.7 and chance 0.55² + 0.45² from the pooled shares of the items above."""
    table = torch.tensor([[0, 2]] * 20 + [[2, 0]] * 15 + [[1, 1]] * 15)
    assert fleiss_kappa(table) == pytest.approx((0.7 - 0.505) / (1 - 0.505))


def test_fleiss_refuses_unequal_numbers_of_annotators() -> None:
    for table in ([[1, 1], [2, 1]], [[1, 0], [0, 1]]):
        with pytest.raises(ValueError, match="same number of annotators, at least 2"):
            fleiss_kappa(torch.tensor(table))


def test_alpha_of_the_worked_example() -> None:
    table = counts(OBSERVERS)
    assert krippendorff_alpha(table) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(table, squares(5)) == pytest.approx(0.849, abs=5e-4)


def test_alpha_is_one_minus_the_mean_distance_within_units_over_that_of_all_values() -> None:
    """By enumeration of pairs: within a unit each pair weighs 1/(m − 1)."""
    generator = torch.Generator().manual_seed(0)
    units = [torch.randint(3, (size,), generator=generator).tolist() for size in (2, 3, 1, 5, 2, 4)]
    distance = squares(3)
    pairable = [unit for unit in units if len(unit) > 1]
    values = [value for unit in pairable for value in unit]
    observed = sum(
        distance[a, b].item() / (len(unit) - 1)
        for unit in pairable
        for a, b in itertools.permutations(unit, 2)
    ) / len(values)
    by_chance = [distance[a, b].item() for a, b in itertools.permutations(values, 2)]
    expected = 1 - observed / (sum(by_chance) / len(by_chance))
    table = torch.tensor([[unit.count(category) for category in range(3)] for unit in units])
    assert krippendorff_alpha(table, distance) == pytest.approx(expected)


def test_alpha_is_that_of_the_library() -> None:
    krippendorff = pytest.importorskip("krippendorff")
    generator = torch.Generator().manual_seed(1)
    table = torch.randint(4, (30, 3), generator=generator)
    for level, distance in (("nominal", None), ("interval", squares(3))):
        oracle = krippendorff.alpha(value_counts=table.numpy(), level_of_measurement=level)
        assert krippendorff_alpha(table, distance) == pytest.approx(oracle)


def test_alpha_without_a_second_label_is_refused() -> None:
    with pytest.raises(ValueError, match="labelled twice"):
        krippendorff_alpha(torch.tensor([[1, 0], [0, 1]]))
