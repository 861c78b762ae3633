import pytest

from rlhf.algorithms.mixtures import Constant, Geometric, Linear, Mixture


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        (Constant(), [0, 0, 0, 0]),
        (Constant(beta=1.0), [1, 1, 1, 1]),
        (Geometric(decay=0.5), [1, 0.5, 0.25, 0.125]),
        (Linear(rounds=1), [1, 0, 0, 0]),
        (Linear(rounds=4), [1, 0.75, 0.5, 0.25]),
    ],
)
def test_the_teachers_share_round_by_round(mixture: Mixture, expected: list[float]) -> None:
    assert [mixture(number) for number in range(4)] == expected


def test_a_line_stays_at_nothing() -> None:
    assert Linear(rounds=4)(9) == 0


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Constant, "beta", -0.1),
        (Constant, "beta", 1.1),
        (Geometric, "decay", 0.0),
        (Geometric, "decay", 1.0),
        (Linear, "rounds", 0),
    ],
)
def test_what_is_no_share_is_refused(kind: type, field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{kind.__name__}\.{field} must .*, got {value}$"):
        kind(**{field: value})
