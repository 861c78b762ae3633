"""The frozen testbed (numerics section 2)."""

import pytest

from tests.testbed.tree import Testbed


@pytest.fixture(scope="session")
def testbed() -> Testbed:
    return Testbed()
