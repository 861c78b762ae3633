"""The constants of numerics section 2.2: if one of these moves, no other test here means anything."""

import pytest
import torch


def test_there_are_341_outcomes_in_the_stated_order(testbed) -> None:
    assert len(testbed.outcomes) == 341
    first = [(4,), (0, 4), (0, 0, 4), (0, 0, 0, 4), (0, 0, 0, 0), (0, 0, 0, 1)]
    assert testbed.outcomes[:6] == first
    assert testbed.outcomes[-1] == (3, 3, 3, 3)
    assert testbed.states[testbed.mask].max() == 84


def test_draws_are_the_stored_ones(testbed) -> None:
    first = [0.0880111548, -0.0924734043, 0.4482958553, 0.0734300820, -0.3749685612]
    assert testbed.ref_logits[0].tolist() == pytest.approx(first, abs=1e-10)
    assert testbed.r[:4].tolist() == pytest.approx(
        [-0.3488754601, -1.1371197204, -0.1558734338, 1.0778337155], abs=1e-10
    )
    assert testbed.ref_logits.sum().item() == pytest.approx(-9.163606982189, abs=1e-11)
    assert testbed.r.sum().item() == pytest.approx(-259.568993649262, abs=1e-11)
    best = testbed.r.argmax()
    assert testbed.outcomes[best] == (2, 0, 1, 4)
    assert testbed.r[best].item() == pytest.approx(2.277500524853, abs=1e-11)


def test_probabilities_sum_to_one(testbed) -> None:
    assert testbed.log_ref.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert testbed.log_star.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_constants_of_the_optimum(testbed) -> None:
    star, ref = testbed.log_star.exp(), testbed.log_ref.exp()
    length, cut = testbed.mask.sum(1).double(), (~testbed.ended).double()
    constants = {
        0.213349614716: testbed.log_z,
        0.106674807358: testbed.BETA * testbed.log_z,
        0.964498044168: star @ testbed.r,
        -0.603774543833: ref @ testbed.r,
        1.715646473619: star @ (testbed.log_star - testbed.log_ref),
        1.420898702382: ref @ (testbed.log_ref - testbed.log_star),
        3.293332534362: star @ length,
        3.061992672888: ref @ length,
    }
    for expected, found in constants.items():
        assert found.item() == pytest.approx(expected, abs=1e-11)
    assert (star @ cut).item() == pytest.approx(0.0425618996, abs=1e-9)
    assert (ref @ cut).item() == pytest.approx(0.3892839762, abs=1e-9)
    assert testbed.outcomes[star.argmax()] == (1, 1, 4)
    assert star.max().item() == pytest.approx(0.14676, abs=1e-5)


@pytest.mark.parametrize(
    ("token", "value"), list(enumerate([0.1313780250, 0.4638998497, -0.1505969838, 0.1224335920]))
)
def test_soft_values_after_the_first_token(testbed, token: int, value: float) -> None:
    inside = testbed.responses[:, 0] == token
    log_first = testbed.ref_logits[0].log_softmax(0)[token]
    tilted = (testbed.log_ref + testbed.r / testbed.BETA)[inside].logsumexp(0) - log_first
    assert (testbed.BETA * tilted).item() == pytest.approx(value, abs=1e-9)


def test_at_the_optimum_every_shaped_return_is_the_same(testbed) -> None:
    shaped = testbed.r - testbed.BETA * (testbed.log_star - testbed.log_ref)
    torch.testing.assert_close(shaped, torch.full_like(shaped, 0.106674807358), rtol=0, atol=1e-11)
