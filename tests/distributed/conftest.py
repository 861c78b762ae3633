from collections.abc import Iterator

import pytest

from rlhf.distributed import runtime


@pytest.fixture
def alone() -> Iterator[None]:
    """One process that has been started as a run of a single rank."""
    runtime.start()
    yield
    runtime.stop()
