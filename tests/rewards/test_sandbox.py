"""Honest programs pass, wrong ones fail with a reason, and what is no program's fault is an error."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf.rewards import sandbox
from rlhf.rewards.sandbox import Limits, Trial, run_trial, run_trials

QUEUE = """
class Queue:
    def __init__(self, *items): self.items = list(items)
    def push(self, item): self.items.append(item)
    def pop(self): return self.items.pop(0)
"""
PASSING = {
    "a sum": ("def f(x): return x + 1", "assert f(1) == 2"),
    "a lambda": ("f = lambda x: x[::-1]", "assert f('abc') == 'cba'"),
    "a loop in the test": (
        "def f(x): return x * x",
        "import math\nfor i in range(9):\n    assert math.isqrt(f(i)) == i",
    ),
    "an object": (QUEUE, "q = Queue(1)\nq.push((2, 'b'))\nassert [q.pop(), q.pop()] == [1, (2, 'b')]"),
    "an object given back": (QUEUE + "def size(q): return len(q.items)", "assert size(Queue(1, 2)) == 2"),
    "a value": ("LIMITS = {'a': [1, 2.5, None]}", "assert LIMITS == {'a': [1, 2.5, None]}"),
    "a keyword": ("def f(x, *, y=1): return x - y", "assert f(3, y=2) == 1 and f(3) == 2"),
    "a generator": ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2]"),
    "an exception": (
        "def f(x): raise ValueError(f'bad {x}')",
        "try: f(1)\nexcept ValueError as e: assert str(e) == 'bad 1'\nelse: assert False",
    ),
    "an exception of its own": (
        "class Bad(KeyError): pass\ndef f(x): raise Bad(x)",
        "try: f(1)\nexcept KeyError: pass\nelse: assert False",
    ),
    "the library": (
        "import collections, dataclasses, decimal, hashlib, heapq, itertools, json, random, re, typing\n"
        "@dataclasses.dataclass\nclass P:\n    x: int = 1\n"
        "def f(s): return collections.Counter(re.findall(r'\\w', s))",
        "assert f('aab') == {'a': 2, 'b': 1}\nassert P().x == 1",
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def f(n):\n    with ThreadPoolExecutor(2) as pool: return sum(pool.map(abs, range(-n, 0)))",
        "assert f(3) == 6",
    ),
    "a scratch file": (
        "def f(t):\n    open('f', 'w').write(t)\n    return open('f').read()",
        "assert f('x') == 'x'",
    ),
    "print": ("print('hello')\ndef f(): print('there'); return 1", "assert f() == 1"),
}


@pytest.mark.parametrize("name", PASSING)
def test_an_honest_program_passes(judge: Any, name: str) -> None:
    program, test = PASSING[name]
    verdict = judge(program, test)
    assert (verdict.status.value, verdict.passed, verdict.detail) == ("passed", [True], "")


FAILING = {
    "a wrong value": ("def f(x): return x", "assert f(1) == 2", "failed", "assert f(1) == 2: AssertionError"),
    "no function": ("", "assert f(1) == 2", "failed", "NameError: name 'f' is not defined"),
    "broken syntax": ("def f(x) return x", "assert f(1) == 2", "failed", "SyntaxError: expected ':'"),
    "an exception": ("def f(x): return x.y", "f(1)", "failed", "AttributeError: 'int' object has no"),
    "an exception after the function": ("f = lambda: 1\n1 / 0", "assert f() == 1", "failed", "ZeroDivision"),
    "no text": ("\0", "f(1)", "failed", "null bytes"),
    "half a letter": ("'\ud800'", "f(1)", "failed", "surrogates not allowed"),
    "leaving": ("import sys\nf = sys.exit", "f(0)", "failed", "ProgramError: SystemExit: 0"),
    "leaving at once": ("import os\nf = os._exit", "f(7)", "failed", "left with exit status 7"),
    "ending itself": ("import os\ndef f(): os.kill(os.getpid(), 9)", "f()", "killed", "ended by signal 9"),
    "memory": ("def f(): return bytearray(1 << 40)", "f()", "memory", "MemoryError"),
    "CPU time": ("def f():\n    while True: pass", "f()", "timed_out", "ended by signal 24"),
    "a name of Python's": ("def all(x): return True", "assert all([False])", "failed", "AssertionError"),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_fails_says_why(judge: Any, name: str) -> None:
    program, test, status, detail = FAILING[name]
    verdict = judge(program, test)
    assert (verdict.status.value, verdict.passed) == (status, [False])
    assert detail in verdict.detail
    assert "\n" not in verdict.detail


def test_time_is_up_for_one_that_sleeps(judge: Any) -> None:
    verdict = judge("import time\ndef f(): time.sleep(60)", "f()", seconds=0.5)
    assert (verdict.status.value, verdict.detail) == ("timed_out", "no end within 0.5 s")


def test_each_test_counts_by_itself(judge: Any) -> None:
    tests = [f"assert f({x}) == {x * x}" for x in (0, 2, 3, 4)]
    verdict = judge("def f(x): return x * 2", *tests)
    assert verdict.passed == [True, True, False, False]
    assert verdict.detail == "assert f(3) == 9: AssertionError"


def test_tests_after_the_programs_end_do_not_pass(judge: Any) -> None:
    verdict = judge("import os\ndef f(x): return x or os._exit(0)", "assert f(1) == 1", "f(0)", "pass")
    assert verdict.passed == [True, False, False]


def test_leaving_a_test_is_no_pass_and_the_others_still_run(judge: Any) -> None:
    verdict = judge("f = 1", "raise SystemExit(0)", "assert f == 1")
    assert verdict.passed == [False, True]


def test_a_test_sees_no_name_of_another(judge: Any) -> None:
    verdict = judge("def f(): return 1", "g = f", "assert g() == 1")
    assert verdict.passed == [True, False]


def test_the_entry_point_is_the_programs_even_where_python_has_that_name(judge: Any) -> None:
    assert judge("def sum(x): return 7", "assert sum([1]) == 7").passed == [False]
    assert judge("def sum(x): return 7", "assert sum([1]) == 7", entry_point="sum").passed == [True]


def test_what_is_printed_is_reported_and_cut(judge: Any) -> None:
    assert judge("print('hello')\nf = print", "f('there')").output == "hello\nthere\n"
    assert judge("print('x' * 9999)", "pass").output == "x" * 4096


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("assert f(1) ==", "the tests cannot be run: invalid syntax"),
        (
            "f(lambda: 1)",
            "f(lambda: 1): can hand plain data to the program, not a function",
        ),
    ],
)
def test_tests_that_no_program_could_pass_are_an_error(judge: Any, test: str, message: str) -> None:
    with pytest.raises(ValueError, match="the tests cannot be run") as refusal:
        judge("def f(x): return 1", test)
    assert message in str(refusal.value)


def test_no_tests_are_an_error() -> None:
    with pytest.raises(ValueError, match="no tests"):
        run_trial(Trial(program="", tests=[]), Limits())


@pytest.mark.parametrize("name", ["seconds", "cpu_seconds", "memory_mib", "file_kib", "processes"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=rf"Limits\.{name} must be positive, got 0"):
        Limits(**{name: 0})


def test_verdicts_come_in_the_order_of_the_programs_whatever_the_workers(judge: Any) -> None:
    trials = [Trial(program=f"f = lambda: {n}", tests=["assert f() % 3 == 0"]) for n in range(12)]
    expected = [n % 3 == 0 for n in range(12)]
    for workers in (1, 4):
        verdicts = run_trials(trials, Limits(seconds=20), workers=workers)
        assert [verdict.passed for verdict in verdicts] == [[each] for each in expected]


def test_a_verdict_is_the_same_each_time(judge: Any) -> None:
    program = "import random\nprint(sorted({'a', 'b'}))\ndef f(): return list({1, 2}) + [0]"
    first, second = (judge(program, "assert f() == 3") for _ in range(2))
    assert first == second


def test_without_namespaces_nothing_is_run(judge: Any, tmp_path: Path) -> None:
    """A kernel that refuses: here by a limit of none on namespaces, inside one namespace of our own."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from rlhf.rewards.sandbox import *\n"
        "try: print(run_trial(Trial(program='print(1)', tests=['pass']), Limits()))\n"
        "except ValueError as error: print(error)"
    )
    limit = "echo 0 > /proc/sys/user/max_user_namespaces; echo 0 > /proc/sys/user/max_mnt_namespaces; "
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", limit + 'exec "$@"', "sh"]
    root = str(Path(sandbox.__file__).parents[2])
    done = subprocess.run(
        [*command, sys.executable, "-c", code, root], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("no sandbox on this system: unshare: "), done
    assert "nothing was run without them" in done.stdout


def test_a_sandbox_that_fails_is_no_score(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "START", "raise SystemExit('broken')")
    with pytest.raises(ValueError, match="the sandbox failed with exit status 1: broken"):
        judge("f = 1", "assert f == 1")


def test_a_verdict_without_the_nonce_is_none(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forged = """print('0' * 32 + '{"status": "passed", "passed": [true], "detail": ""}')"""
    monkeypatch.setattr(sandbox, "START", forged)
    assert judge("f = 1", "assert f == 1").passed == [False]


def test_the_warden_dies_with_its_parent(judge: Any, tmp_path: Path) -> None:
    """Killed in the middle, the process that asked for a verdict leaves nothing behind."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from rlhf.rewards.sandbox import *\n"
        "run_trial(Trial(program='import time; time.sleep(99)', tests=['pass']), Limits(seconds=99))"
    )
    root = str(Path(sandbox.__file__).parents[2])
    parent = subprocess.Popen([sys.executable, "-c", code, root])
    mark = b"from rlhf.rewards.sandbox_trial import main"

    def alive() -> int:
        files = Path("/proc").glob("[0-9]*/cmdline")
        return sum(mark in file.read_bytes() for file in files if file.exists())

    patience = time.monotonic() + 20
    while alive() < 3 and time.monotonic() < patience:
        time.sleep(0.05)
    assert alive() == 3  # warden, tests, program
    parent.kill()
    parent.wait()
    while alive() and time.monotonic() < patience:
        time.sleep(0.05)
    assert alive() == 0
