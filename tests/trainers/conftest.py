"""The toy runs."""

from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    from tests.trainers import toy as module

    return module
