"""One program and its tests, inside the sandbox: ``rlhf.rewards.sandbox`` starts it in a bare interpreter.

Three processes. The *warden* shuts itself in, starts the tests' process and watches the clock. The *tests'*
process is the first of a process namespace; before it reads a test it forks the *program's*, which runs the
foreign code and answers requests – load, a name, an attribute, a call – with plain data. The tests' text, the
values that they expect and the nonce that the verdict begins with are read after that fork: the program's
process has never held them.
"""

from __future__ import annotations

import builtins
import json
import os
import select
import signal
import struct
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NoReturn

from rlhf.rewards import sandbox_jail
from rlhf.rewards.sandbox_values import decoded, encoded

DECIDED, TIMED_OUT, NO_VERDICT, UNAVAILABLE = 0, 3, 4, 5
"""How the warden ends: see stdout; nothing in time; the tests' process died; there is no sandbox."""
SHOWN = 4096
"""Bytes of what both processes print that are reported."""
LONGEST_REPLY = 1 << 20
"""Bytes of one answer of the program."""
UNNAMED = ("StopIteration", "StopAsyncIteration", "Exception")
"""Exceptions of a program that reach the test as ``ProgramError``."""
OUT_OF_MEMORY = b'["raised", ["MemoryError"], ""]\n'
LAST_WORDS = 0.5
"""Seconds that a program which no longer answers gets to end by itself, so that one learns how."""


def main(seconds: float, **limits: int) -> NoReturn:
    """The warden: the exit status as above, the beginning of what was printed on stderr."""
    os.environ.clear()  # the interpreter itself sets a locale
    parent = os.getppid()
    try:
        sandbox_jail.confine(**limits)
        sandbox_jail.die_with_parent()
        if os.getppid() != parent:
            os._exit(NO_VERDICT)
        output = os.open(sandbox_jail.SCRATCH, os.O_TMPFILE | os.O_RDWR | os.O_APPEND)
        lifeline = os.pipe()
        child = os.fork()
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        os.write(2, f"{place}{error.strerror or error}".encode())
        os._exit(UNAVAILABLE)
    if child == 0:
        os.close(lifeline[1])
        _as_judge(lifeline[0], output)
    ended, _, _ = select.select([os.pidfd_open(child)], [], [], seconds)
    if not ended:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)  # the first of its namespace: the kernel has ended all others there
    os.write(2, os.pread(output, SHOWN, 0))
    os._exit(TIMED_OUT if not ended else DECIDED if status == 0 else NO_VERDICT)


# The tests' process


def _as_judge(lifeline: int, output: int) -> NoReturn:
    """Fork the program, then read the tests, run them and write the verdict."""
    status = 1
    try:
        sandbox_jail.die_with_parent()
        if select.select([lifeline], [], [], 0)[0]:  # the warden has ended before that was arranged
            os._exit(status)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which the first of a namespace never gets
        jobs, verdicts, nothing = os.dup(0), os.dup(1), os.open("/dev/null", os.O_RDWR)
        for descriptor, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, target)
        (length,) = struct.unpack("<Q", _exactly(jobs, 8))
        program = Program.started(_exactly(jobs, length))
        secret = json.loads(b"".join(iter(lambda: os.read(jobs, 1 << 16), b"")))
        verdict = judged(program, secret["tests"], secret["entry_point"])
        os.write(verdicts, f"{secret['nonce']}{json.dumps(verdict)}\n".encode())
        try:  # noqa: SIM105 - contextlib takes longer to import than this to run
            sys.stdout.flush()
        except OSError:  # the program has filled the file
            pass
        status = 0
    finally:
        os._exit(status)


def _exactly(descriptor: int, count: int) -> bytes:
    """So many bytes and none more, for those are the tests'."""
    parts = []
    while count > 0 and (part := os.read(descriptor, min(count, 1 << 16))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class Ended(BaseException):
    """The program answers no more, or with what is no answer. No ``Exception``: tests catch those."""


class Unfit(BaseException):
    """The tests cannot be run, whatever the program."""


class ProgramError(Exception):
    """An exception of the program's that is none of Python's own."""


class Program:
    """The program as the tests' process sees it: asked for something, it answers with a value."""

    def __init__(self, process: int, requests: int, replies: int) -> None:
        self._process, self._requests, self._replies = process, requests, replies
        self._unread = b""
        self.out_of_memory, self.gone = False, False

    @classmethod
    def started(cls, source: bytes) -> Program:
        """A process for the program, which it has not loaded yet."""
        requests, replies = os.pipe(), os.pipe()
        process = os.fork()
        if process == 0:
            _as_program(source, requests[0], replies[1])
        os.close(requests[0])
        os.close(replies[1])
        return cls(process, requests[1], replies[0])

    def ask(self, verb: str, *details: Any) -> Any:
        """What the program answers.

        Raises:
            Ended: nothing that can be read.
            Exception: what the program raised, as the nearest of Python's own exceptions.
        """
        line = json.dumps([verb, *details]).encode() + b"\n"
        try:
            os.write(self._requests, line)
            reply = json.loads(self._line())
            if reply[0] == "value":
                return decoded(reply[1], lambda number: Remote(self, number))
            error = _exception(*reply[1:])
        except BrokenPipeError:
            raise self._lost("answers no more") from None
        except Exception as unreadable:
            raise self._lost(f"answers what is no answer: {unreadable!r:.200}") from unreadable
        self.out_of_memory |= isinstance(error, MemoryError)
        raise error

    def _line(self) -> bytes:
        while b"\n" not in self._unread:
            part = os.read(self._replies, 1 << 16)
            if not part:
                raise self._lost("answers no more")
            self._unread += part
            if len(self._unread) > LONGEST_REPLY:
                raise self._lost("answers without end")
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _lost(self, how: str) -> Ended:
        self.gone = True
        return Ended(how)

    def reference(self, value: Any) -> int:
        """The number of something that the program has given before.

        Raises:
            Unfit: it comes from the tests.
        """
        if not isinstance(value, Remote):
            raise Unfit(f"can hand plain data to the program, not a {type(value).__name__}")
        return value._number

    def ending(self) -> tuple[str, str]:
        """What became of a program that answers no more: a status and how it ended."""
        ended, _, _ = select.select([os.pidfd_open(self._process)], [], [], LAST_WORDS)
        if not ended:
            return "failed", "left its pipe"
        _, status = os.waitpid(self._process, 0)
        if not os.WIFSIGNALED(status):
            return "failed", f"left with exit status {os.WEXITSTATUS(status)}"
        number = os.WTERMSIG(status)
        return "timed_out" if number == signal.SIGXCPU else "killed", f"ended by signal {number}"


class Remote:
    """Something of the program's that is no plain data: it can be called, and its attributes asked for."""

    __slots__ = ("_number", "_program")

    def __init__(self, program: Program, number: int) -> None:
        self._program, self._number = program, number

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """Called in the program's process, with plain data or what it gave before."""
        refer = self._program.reference
        given = [encoded(value, refer) for value in positional]
        by_name = {name: encoded(value, refer) for name, value in named.items()}
        return self._program.ask("call", self._number, given, by_name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask("attribute", self._number, name)


class Names(dict[str, Any]):
    """Global names of a test: its own, then Python's builtins, then the program's, which it cannot shadow."""

    def __init__(self, program: Program, entry_point: str | None) -> None:
        dict.__init__(self, __name__="tests")
        self._program, self._entry_point = program, entry_point

    def __missing__(self, name: str) -> Any:
        if name != self._entry_point and (hasattr(builtins, name) or name.startswith("__")):
            raise KeyError(name)
        return self._program.ask("name", name)


def judged(program: Program, tests: list[str], entry_point: str | None) -> dict[str, Any]:
    """Which tests pass, and what is wrong with the first that does not; or why they cannot be run."""
    passed: list[bool] = []
    failures: list[tuple[str, str]] = []
    try:
        codes = [compile(test, "<test>", "exec") for test in tests]
        loads = _failure(program, lambda: program.ask("load"))
        for test, code in zip(tests, codes, strict=True):
            names = Names(program, entry_point)
            failure = loads or _failure(program, partial(exec, code, names), test)
            passed.append(failure is None)
            failures += [] if failure is None else [failure]
            if program.gone:
                break
    except (Unfit, SyntaxError, ValueError) as error:
        return {"unfit": _shortened(str(error))}
    passed += [False] * (len(tests) - len(passed))
    status, detail = failures[0] if failures else ("passed", "")
    return {"status": status, "passed": passed, "detail": detail}


def _failure(program: Program, action: Callable[[], object], test: str = "") -> tuple[str, str] | None:
    """The status and the reason, or None where ``action`` ends as it should."""
    program.out_of_memory = False
    about = f"{_shortened(test)}: " if test else ""
    try:
        action()
    except Unfit as error:
        raise Unfit(f"{about}{error}") from error
    except Ended as error:
        status, how = program.ending()
        return status, f"{about}the program {error} and {how}"
    except BaseException as error:  # SystemExit too: nothing but the end of a test is success
        status = "memory" if program.out_of_memory else "failed"
        return status, f"{about}{type(error).__name__}: {_shortened(str(error))}".rstrip(": ")
    return None


def _exception(kinds: list[str], text: str) -> Exception:
    """The nearest of Python's own, but none that would end the test's iteration in ``all(map(f, cases))``."""
    for kind in kinds:
        known = getattr(builtins, kind, None)
        if kind not in UNNAMED and isinstance(known, type) and issubclass(known, Exception):
            try:
                return known(text)
            except TypeError:  # one that wants more than a text
                break
    return ProgramError(f"{kinds[0]}: {text}")


def _shortened(text: str) -> str:
    return " ".join(text.split())[:200]


# The program's process


def _as_program(source: bytes, requests: int, replies: int) -> NoReturn:
    """Close everything that is not the program's, then answer until nobody asks any more."""
    try:
        low, high = sorted((requests, replies))
        for first, beyond in ((3, low), (low + 1, high), (high + 1, sandbox_jail.DESCRIPTORS)):
            os.closerange(first, beyond)
        _serve(source, requests, replies)
    finally:
        os._exit(0)


def _serve(source: bytes, requests: int, replies: int) -> None:
    module = ModuleType("program")
    sys.modules["program"] = module
    given: list[Any] = []

    def refer(value: Any) -> int:
        given.append(value)
        return len(given) - 1

    def name(word: str) -> Any:
        if word not in vars(module):
            raise NameError(f"name {word!r} is not defined")
        return vars(module)[word]

    def call(number: int, positional: list[Any], named: dict[str, Any]) -> Any:
        arguments = [decoded(data, given.__getitem__) for data in positional]
        return given[number](
            *arguments, **{key: decoded(data, given.__getitem__) for key, data in named.items()}
        )

    verbs: dict[str, Callable[..., Any]] = {
        "load": lambda: exec(
            compile(source.decode("utf-8", "surrogatepass"), "<program>", "exec"), vars(module)
        ),
        "name": name,
        "attribute": lambda number, word: getattr(given[number], word),
        "call": call,
    }
    with os.fdopen(requests, "rb") as lines:
        for line in lines:
            verb, *details = json.loads(line)
            os.write(replies, _answer(lambda: verbs[verb](*details), refer))  # noqa: B023 - called at once


def _answer(action: Callable[[], Any], refer: Callable[[Any], int]) -> bytes:
    """What ``action`` gives or raises, as a line."""
    try:
        value = action()
        sys.stdout.flush()
        text = json.dumps(["value", encoded(value, refer)])
    except MemoryError:  # nothing is left to describe it with
        return OUT_OF_MEMORY
    except BaseException as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        text = json.dumps(["raised", kinds, str(error)[:500]])
    return text.encode() + b"\n"
