"""Where there is a compiler, what is compiled is there: other tests are skipped without it."""

import shutil
from collections.abc import Callable

import pytest

from rlhf.kernels import cpu_build


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    "library", [cpu_build.decode_library, cpu_build.step_library, cpu_build.attention_library]
)
def test_every_source_compiles(library: Callable[[], object]) -> None:
    assert library() is not None
