"""C12 holds like against like: the same output, with or without entropies' part, the mean error strictly."""

import pytest
import torch

from benchmarks.cases.head_accuracy import compare
from benchmarks.results import Line

ROUNDING = float(torch.finfo(torch.float32).eps)


def line(contender: str, size: float, *, entropies: bool, mean: float | None = None) -> Line:
    names = ("logprobs", *(["entropies"] if entropies else []), "hidden", "weight")
    values = {f"{name} error": size for name in names}
    values |= {f"{name} mean error": size / 8 if mean is None else mean for name in names}
    return Line(cell="cell", contender=contender, values=values)


def reached(*others: Line, ours: float, alone: float, dtype: torch.dtype = torch.float32) -> dict[str, Line]:
    own = [line("rlhf", ours, entropies=True), line("rlhf without entropies", alone, entropies=False)]
    found = compare([*own, *others], dtype, largest=1.0)
    return {
        each.contender.removeprefix("target: ").replace(" over the best other's", ""): each for each in found
    }


def test_an_output_is_held_against_the_best_that_has_it() -> None:
    found = reached(line("a", 4e-6, entropies=True), line("b", 2e-6, entropies=True), ours=3e-6, alone=1e-6)
    assert found["entropies error"].reached == pytest.approx(1.5)
    assert found["hidden mean error"].reached == pytest.approx(1.5)
    assert found["hidden mean error"].met is False


def test_gradients_without_entropies_are_held_against_our_own_without() -> None:
    found = reached(line("a", 1e-6, entropies=True), line("b", 2e-6, entropies=False), ours=4e-6, alone=1e-6)
    assert found["weight error"].reached == pytest.approx(4.0)
    assert found["weight error, without entropies"].reached == pytest.approx(0.5)
    assert found["logprobs error"].reached == pytest.approx(4.0)


def test_nothing_is_said_of_an_output_that_nobody_else_has() -> None:
    found = reached(line("a", 1e-6, entropies=False), ours=1e-6, alone=1e-6)
    assert not {"entropies error", "hidden error", "hidden mean error"} & found.keys()


def test_a_largest_error_of_a_few_roundings_is_none_but_a_mean_error_is_one() -> None:
    other = line("a", ROUNDING, entropies=True, mean=ROUNDING)
    found = reached(other, ours=4 * ROUNDING, alone=0.0)
    assert found["logprobs error"].reached == pytest.approx(1.0)
    assert found["logprobs error"].met
    own = reached(line("a", 0.0, entropies=True, mean=ROUNDING / 3), ours=4 * ROUNDING, alone=0.0)
    assert own["logprobs mean error"].reached == pytest.approx(1.5)
    assert not own["logprobs mean error"].met


def test_a_gradient_in_16_bits_is_no_nearer_than_its_own_rounding() -> None:
    step = float(torch.finfo(torch.bfloat16).eps)
    other = line("a", step / 8, entropies=True, mean=step / 8)
    found = reached(other, ours=step, alone=step, dtype=torch.bfloat16)
    assert found["hidden error"].met
    assert not found["logprobs error"].met
