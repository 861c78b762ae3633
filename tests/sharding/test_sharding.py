"""``python -m tests.sharding``, whole."""

import pytest

from tests.sharding import __main__ as command


@pytest.mark.slow
def test_five_steps_are_those_of_one_process_under_every_sharding(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0, capsys.readouterr().out


def test_bounds_are_a_hundredth_of_a_step_and_a_mistake_must_exceed_them() -> None:
    assert command.holds("zero2", (1e-5, 1e-2))
    assert not command.holds("zero2", (1e-5, 1.1e-2))
    assert not command.holds("zero2", (float("nan"), 0.0))
    assert command.holds("zero2, bfloat16", (1e-2, 2.0))
    assert not command.holds("wrong", (0.0, 0.0))
    assert command.holds("wrong", (1.0, 1.0))
