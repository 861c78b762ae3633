"""What starts the ranks of other tests says how they ended."""

import tempfile
from pathlib import Path

import pytest

from tests import two_ranks


def work(_folder: Path) -> int:
    return 7


def fail(_folder: Path) -> None:
    raise ValueError("no")


@pytest.mark.parametrize(("function", "status"), [("work", 0), ("fail", 1)])
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_the_status_is_that_of_the_ranks_and_the_folder_stays(function: str, status: int, ranks: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # goes when the process that made it ends
        assert two_ranks.launch(__file__, function, folder, ranks) == status
        assert len(list(Path(folder).glob("rank*.pt"))) == (0 if status else int(ranks))
