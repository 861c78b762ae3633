from __future__ import annotations

import pytest

from rlhf.data.encoding import Encoded
from rlhf.data.fitting import Overlong, Report, too_long, truncated


def test_a_report_reads_as_one_line() -> None:
    report = Report(source="a.jsonl", read=5)
    report.keep()
    report.keep(truncated=True)
    for _ in range(2):
        report.drop("identical")
    report.drop("longer than 9 tokens")
    assert str(report) == (
        "a.jsonl: 5 rows read, 2 kept, 1 truncated, 2 dropped (identical), 1 dropped (longer than 9 tokens)"
    )


def test_a_row_at_the_limit_is_not_too_long() -> None:
    assert not too_long(8, 8, overlong=Overlong.refuse, where="f:2")
    assert too_long(9, 8, overlong=Overlong.drop, where="f:2")
    with pytest.raises(ValueError, match=r"^f:2: has 9 tokens, the limit is 8"):
        too_long(9, 8, overlong=Overlong.refuse, where="f:2")


def test_truncation_keeps_the_beginning_and_needs_a_target() -> None:
    text = Encoded(tokens=[1, 2, 3, 4], targets=[False, False, True, True])
    assert truncated([text], 3) == [Encoded(tokens=[1, 2, 3], targets=[False, False, True])]
    assert truncated([text], 2) is None
