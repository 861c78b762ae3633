import math

import pytest

from rlhf.trainers.schedules import Constant, Cosine, Linear, Schedule


def factors(schedule: Schedule, total: int) -> list[float]:
    return [schedule(step, total) for step in range(total)]


def test_constant_stays() -> None:
    assert factors(Constant(), 3) == [1, 1, 1]


def test_linear_goes_to_0_after_the_last_step() -> None:
    assert factors(Linear(), 5) == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])  # lr·(1 − u/U), numerics D43


def test_cosine_falls_to_its_final_factor() -> None:
    # 0.2 + 0.8·(1 + cos πp)/2 at p = 0, 1/4, 1/2, 3/4
    half = math.sqrt(0.5)
    expected = [1, 0.2 + 0.4 * (1 + half), 0.6, 0.2 + 0.4 * (1 - half)]
    assert factors(Cosine(final=0.2), 4) == pytest.approx(expected)


def test_warmup_rises_to_the_top_and_is_never_0() -> None:
    # ceil(0.3·10) = 3 steps rise by quarters; the other 7 fall from 1.
    expected = [1 / 4, 2 / 4, 3 / 4, *(1 - step / 7 for step in range(7))]
    assert factors(Linear(warmup=0.3), 10) == pytest.approx(expected)


def test_a_warmup_over_all_steps_still_rises() -> None:
    assert factors(Constant(warmup=0.9), 3) == pytest.approx([1 / 4, 2 / 4, 3 / 4])


@pytest.mark.parametrize("schedule", [Constant(), Linear(), Cosine()])
def test_a_single_step_has_the_full_rate(schedule: Schedule) -> None:
    assert schedule(0, 1) == 1


@pytest.mark.parametrize("warmup", [-0.1, 1.0, math.nan])
def test_a_warmup_that_is_no_share_is_refused(warmup: float) -> None:
    with pytest.raises(ValueError, match=r"Linear.warmup must be in \[0, 1\), got "):
        Linear(warmup=warmup)


@pytest.mark.parametrize("final", [-0.1, 1.1])
def test_a_final_factor_that_is_no_share_is_refused(final: float) -> None:
    with pytest.raises(ValueError, match=rf"Cosine.final must be in \[0, 1\], got {final}"):
        Cosine(final=final)
