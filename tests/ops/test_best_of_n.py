import pytest

from rlhf.ops.best_of_n import best_of_n_kl_bound


@pytest.mark.parametrize(
    ("n", "bound"),
    [(1, 0.0), (2, 0.193147), (4, 0.636294), (16, 1.835089), (64, 3.174508), (256, 4.549084), (512, 5.240)],
)
def test_kl_bound_is_the_published_table(n: int, bound: float) -> None:
    assert best_of_n_kl_bound(n) == pytest.approx(bound, abs=5e-4 if n == 512 else 5e-7)


def test_a_bound_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        best_of_n_kl_bound(0)
