import itertools

import pytest
import torch

from rlhf.ops.best_of_n import best_of_n_kl_bound, best_of_n_mean


@pytest.mark.parametrize(
    ("n", "bound"),
    [(1, 0.0), (2, 0.193147), (4, 0.636294), (16, 1.835089), (64, 3.174508), (256, 4.549084), (512, 5.240)],
)
def test_kl_bound_is_the_published_table(n: int, bound: float) -> None:
    assert best_of_n_kl_bound(n) == pytest.approx(bound, abs=5e-4 if n == 512 else 5e-7)


@pytest.mark.parametrize("n", range(1, 8))
def test_mean_is_the_average_over_all_subsets(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    proxy = torch.randint(0, 4, (7,), generator=generator).double()  # with ties
    gold = torch.randn(7, generator=generator, dtype=torch.float64)
    chosen = [
        max(subset, key=lambda i: (proxy[i].item(), -i)) for subset in itertools.combinations(range(7), n)
    ]
    expected = torch.stack([gold[i] for i in chosen]).mean()
    torch.testing.assert_close(best_of_n_mean(proxy, gold, n), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [0, 4])
def test_more_choices_than_samples_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"best_of_n_mean: n must be from 1 to the 3 samples, got {n}"):
        best_of_n_mean(torch.zeros(3), torch.zeros(3), n)


def test_a_bound_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        best_of_n_kl_bound(0)
