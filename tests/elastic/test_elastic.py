"""``python -m tests.elastic``, the part with what is most unlike: begun by ZeRO-3 on two ranks."""

import pytest

from tests.elastic import __main__ as command


@pytest.mark.slow
def test_a_run_of_zero_3_on_two_ranks_goes_on_under_every_engine_on_one_and_two(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main(["--sources", "1"]) == 0, capsys.readouterr().out


def test_the_same_layout_must_be_exact_and_another_within_1e_5() -> None:
    one, other = (2, "zero3"), (1, "plain")
    assert command.holds(one, one, (0.0, 0.0))
    assert not command.holds(one, one, (0.0, 1e-9))
    assert command.holds(one, other, (1e-5, 1e-3))
    assert not command.holds(one, other, (1.1e-5, 0.0))
    assert not command.holds(one, other, (float("nan"), 0.0))
