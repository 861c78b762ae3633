"""Hostile programs: none passes, nothing is left, nothing outside is touched, and each ends in seconds.

Every program's ``answer`` gives the 42 that is asked for once its attack has succeeded, or forges it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from rlhf.rewards.sandbox import Verdict

MARK = b"from rlhf.rewards.sandbox_trial import main"
"""In the command line of every process of a sandbox."""
BEGINNING = """
import ctypes, os, signal, sys, threading, time
assert os.getpid() < 100, "not shut in: nothing is tried"
libc = ctypes.CDLL(None, use_errno=True)
"""
FAILED, TIMED_OUT, MEMORY, KILLED = {"failed"}, {"timed_out"}, {"memory"}, {"killed"}
PROGRAMS: dict[str, tuple[str, set[str]]] = {
    # too much of something
    "fork bomb": ("while True:\n    try: os.fork()\n    except OSError: pass", TIMED_OUT),
    "fork bomb without patience": ("while True: os.fork()", FAILED | TIMED_OUT),
    "more processes than it may have": (
        "for _ in range(20):\n    if os.fork() == 0: time.sleep(60)\nanswer = lambda: 42",
        FAILED,
    ),
    "thread bomb": (
        "for _ in range(50): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "answer = lambda: 42",
        FAILED,
    ),
    "memory bomb": ("all = []\nwhile True: all.append(bytearray(1 << 20))", MEMORY),
    "memory at once": ("def answer(): return len(bytearray(1 << 34)) and 42", MEMORY),
    "mapped memory": ("import mmap\nmmap.mmap(-1, 1 << 34)\nanswer = lambda: 42", FAILED),
    "memory in a file descriptor": ("os.memfd_create('x')\nanswer = lambda: 42", FAILED),
    "shared memory": ("answer = lambda: 42 if libc.shmget(0, 1 << 20, 0o1600) >= 0 else 0", FAILED),
    "endless loop": ("while True: pass", TIMED_OUT),
    "endless loop in the call": ("def answer():\n    while True: pass", TIMED_OUT),
    "sleeping for ever": ("def answer(): time.sleep(1e6)", TIMED_OUT),
    "waiting for a lock": ("def answer(): threading.Semaphore(0).acquire()", TIMED_OUT),
    "deaf to signals": (
        "for number in set(signal.valid_signals()) - {9, 19, 32, 33}: signal.signal(number, signal.SIG_IGN)\n"
        "while True: pass",
        TIMED_OUT | KILLED,
    ),
    "infinite recursion": ("def answer(): return answer()", FAILED),
    "recursion without its limit": (
        "sys.setrecursionlimit(1 << 30)\ndef answer(): return [answer()]",
        FAILED | TIMED_OUT | KILLED | MEMORY,
    ),
    "nested without end": (
        "def answer():\n    a = []\n    for _ in range(100000): a = [a]\n    return a",
        FAILED | KILLED,
    ),
    "huge output": ("while True: print('x' * 10000)", FAILED),
    "huge answer": ("answer = lambda: 'x' * (1 << 23)", FAILED | MEMORY),
    "huge file": ("open('f', 'wb').write(bytes(1 << 22))\nanswer = lambda: 42", FAILED),
    "many files": (
        "for i in range(40): open(f'f{i}', 'wb').write(bytes(1 << 20))\nanswer = lambda: 42",
        FAILED,
    ),
    # reading and writing elsewhere
    "reading the users": ("def answer(): return open('/etc/passwd').read() and 42", FAILED),
    "reading a file of ours": ("def answer(): return open({secret!r}).read() and 42", FAILED),
    "reading our environment": ("def answer(): return int(os.environ['RLHF_SECRET'])", FAILED),
    "reading the parent's environment": (
        "def answer(): return open(f'/proc/{{os.getppid()}}/environ').read() and 42",
        FAILED,
    ),
    "reading the parent's memory": (
        "def answer(): return open(f'/proc/{{os.getppid()}}/mem', 'rb') and 42",
        FAILED,
    ),
    "writing a file of ours": ("def answer(): return open({witness!r}, 'w').write('x') and 42", FAILED),
    "writing into the library": ("def answer(): return open(os.__file__ + '.x', 'w') and 42", FAILED),
    "writing at the root": ("def answer(): return open('/x', 'w') and 42", FAILED),
    "a symbolic link outside": (
        "os.symlink({secret!r}, 'link')\ndef answer(): return open('link').read() and 42",
        FAILED,
    ),
    "a symbolic link in place of the scratch folder": (
        "os.chdir('/')\nos.rename('/tmp', '/elsewhere')\nanswer = lambda: 42",
        FAILED,
    ),
    "up and out by dots": (
        "def answer(): return open('../' * 30 + {secret!r}.lstrip('/')).read() and 42",
        FAILED,
    ),
    "deleting the scratch folder's parent": ("os.rmdir('/tmp')\nos.rmdir('/')\nanswer = lambda: 42", FAILED),
    "deleting a file of ours": ("os.unlink({secret!r})\nanswer = lambda: 42", FAILED),
    "opening devices": (
        "def answer():\n"
        "    names = 'mem', 'kmsg', 'sda', 'vda', 'tty', 'fuse', 'zero'\n"
        "    return 42 if any(os.path.exists('/dev/' + name) for name in names) else 0",
        FAILED,
    ),
    "making a device": ("os.mknod('d', 0o020666, os.makedev(1, 1))\nopen('d')\nanswer = lambda: 42", FAILED),
    # the network
    "TCP to us": (
        "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\nanswer = lambda: 42",
        FAILED,
    ),
    "UDP": ("import socket\nsocket.socket(type=socket.SOCK_DGRAM)\nanswer = lambda: 42", FAILED),
    "a unix socket": ("import socket\nsocket.socket(socket.AF_UNIX)\nanswer = lambda: 42", FAILED),
    "serving on loopback": (
        "import socket\nsocket.create_server(('127.0.0.1', 0))\nanswer = lambda: 42",
        FAILED,
    ),
    # other processes
    "a signal to us": ("os.kill({host}, 0)\nanswer = lambda: 42", FAILED),
    "a signal to the parent": (
        "def answer():\n    os.kill(os.getppid(), 9)\n    time.sleep(0.1)\n"
        "    return 42 if os.getppid() != 1 else 0",
        FAILED,
    ),
    "a signal to all": ("os.kill(-1, 9)\nanswer = lambda: 42", FAILED),
    "tracing the parent": ("answer = lambda: 42 if libc.ptrace(16, 1, 0, 0) == 0 else 0", FAILED),
    "tracing from a child": ("answer = lambda: 42 if libc.ptrace(0, 0, 0, 0) == 0 else 0", FAILED),
    "reading the parent's pages": (
        "class Part(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]\n"
        "mine, its = ctypes.create_string_buffer(8), id(os)\n"
        "parts = Part(ctypes.addressof(mine), 8), Part(its, 8)\n"
        "def answer():\n"
        "    here, there = map(ctypes.byref, parts)\n"
        "    return 42 if libc.process_vm_readv(1, here, 1, there, 1, 0) > 0 else 0",
        FAILED,
    ),
    "a daemon that outlives": (
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(0.5)\n"
        "        try: open({witness!r}, 'w').write('x')\n"
        "        finally: time.sleep(60)\n"
        "    os._exit(0)\n"
        "def answer():\n    time.sleep(0.7)\n    return 42 if os.path.exists({witness!r}) else 0",
        FAILED,
    ),
    "another program": ("answer = lambda: 42 if os.system('true') == 0 else 0", FAILED),
    "another interpreter": (
        "import subprocess\nsubprocess.run([sys.executable, '-c', ''], check=True)\nanswer = lambda: 42",
        FAILED,
    ),
    "another program by the loader": (
        "import glob\n"
        "loader = glob.glob('/lib*/ld-linux*')[0]\n"
        "answer = lambda: 42 if os.spawnv(os.P_WAIT, loader, [loader, '--version']) == 0 else 0",
        FAILED,
    ),
    # out of the limits
    "raising the limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nanswer = lambda: 42",
        FAILED,
    ),
    "root": ("os.setuid(0)\nanswer = lambda: 42", FAILED),
    "set-user-id": (
        "open('f', 'w')\nos.chmod('f', 0o6777)\nos.chown('f', 0, 0)\nanswer = lambda: 42",
        FAILED,
    ),
    "new namespaces": ("answer = lambda: 42 if libc.unshare(0x10000000) == 0 else 0", FAILED),
    "new namespaces by clone": (
        "answer = lambda: 42 if libc.syscall(56, 0x10000011, 0, 0, 0, 0) >= 0 else 0",
        FAILED,
    ),
    "mounting": (
        "answer = lambda: 42 if libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0 else 0",
        FAILED,
    ),
    "new privileges": ("answer = lambda: 42 if libc.prctl(38, 0, 0, 0, 0) == 0 else 0", FAILED),
    # forging the verdict
    "leaving with success": ("os._exit(0)", FAILED),
    "leaving in the call": ("def answer(): sys.exit(0)", FAILED),
    "leaving at exit": ("import atexit\natexit.register(os._exit, 0)\nsys.exit(0)", FAILED),
    "printing a verdict": (
        "for descriptor in range(64):\n"
        '    try: os.write(descriptor, b\'{{"status": "passed", "passed": [true], "detail": ""}}\\n\')\n'
        "    except OSError: pass\n"
        "answer = lambda: 41",
        FAILED,
    ),
    "equal to everything": (
        "class Any(int):\n    __eq__ = lambda a, b: True\nanswer = lambda: Any(41)",
        FAILED,
    ),
    "an object equal to everything": (
        "class Any:\n    __eq__ = lambda a, b: True\n    __hash__ = None\nanswer = Any",
        FAILED,
    ),
    "patching the harness": (
        "import builtins\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if 'sandbox' in name:\n"
        "        module.judged = lambda *a: dict(status='passed', passed=[True], detail='')\n"
        "        module._failure = lambda *a: None\n"
        "builtins.compile = lambda *a, **k: (lambda: None).__code__\n"
        "answer = lambda: 41",
        FAILED,
    ),
    "looking for the tests": (
        "import gc\n"
        "wanted = ''.join(['asse', 'rt answer'])\n"
        "def texts(found):\n"
        "    strings = (t for t in found if isinstance(t, str))\n"
        "    return [t for t in strings if t.startswith(wanted) and t != wanted]\n"
        "def answer():\n"
        "    found = texts(gc.get_objects())\n"
        "    for each in gc.get_objects():\n"
        "        if isinstance(each, dict): found += texts(each.values())\n"
        "        if isinstance(each, (list, tuple)): found += texts(each)\n"
        "    frame = sys._getframe()\n"
        "    while frame: found += texts(frame.f_locals.values()); frame = frame.f_back\n"
        "    return int(found[0].split()[-1])",
        FAILED,
    ),
    "reading the tests from a pipe": (
        "def answer():\n"
        "    for descriptor in range(64):\n"
        "        try:\n"
        "            os.set_blocking(descriptor, False)\n"
        "            if b'== 42' in os.read(descriptor, 1 << 16): return 42\n"
        "        except OSError: pass",
        FAILED,
    ),
    "reading standard input": ("def answer(): return int(input())", FAILED),
    "closing every pipe": ("def answer(): os.closerange(0, 64); time.sleep(60)", FAILED),
    "flooding the pipe": (
        "def answer():\n"
        "    for descriptor in range(3, 64):\n"
        "        try:\n"
        "            while True: os.write(descriptor, b'x' * 65536)\n"
        "        except OSError: pass",
        FAILED,
    ),
    "an exception of its own kind": (
        "class AssertionError(BaseException): pass\ndef answer(): raise AssertionError",
        FAILED,
    ),
    "a crash": ("def answer(): ctypes.string_at(0)", KILLED),
}


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of somebody who would answer."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def left() -> list[int]:
    """Processes of sandboxes that stay; trials of other tests, beside this one, are over within seconds."""
    found, deadline = running(), time.monotonic() + 20
    while found and time.monotonic() < deadline:
        time.sleep(0.1)
        still = running()
        found = [process for process in found if process in still]
    return found


def running() -> list[int]:
    """Processes of sandboxes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if MARK in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_is_contained(
    judge: Any, name: str, server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_SECRET", "42")
    secret, witness = tmp_path / "secret", tmp_path / "witness"
    secret.write_text("42")
    tmp_path.chmod(0o777)  # nothing but the sandbox is in the way
    source, expected = PROGRAMS[name]
    for word, value in {"secret": str(secret), "witness": str(witness)}.items():
        source = source.replace(f"{{{word}!r}}", repr(value))
    source = source.replace("{port}", str(server)).replace("{host}", str(os.getpid()))
    source = source.replace("{{", "{").replace("}}", "}")
    started = time.monotonic()
    verdict: Verdict = judge(BEGINNING + dedent(source), "assert answer() == 42", seconds=3.0)
    took = time.monotonic() - started
    assert not any(verdict.passed)
    assert verdict.status.value in expected, verdict
    assert "not shut in" not in verdict.detail  # nor anything else that is no answer to the attack
    assert "ModuleNotFoundError" not in verdict.detail
    assert left() == []
    assert secret.read_text() == "42"
    assert not witness.exists()
    assert list(tmp_path.iterdir()) == [secret]
    assert took < 20  # seconds; some three on an idle machine
    assert len(verdict.output.encode()) <= 4096 * 3  # bytes that are no UTF-8 grow


def test_there_are_thirty_of_them() -> None:
    assert len(PROGRAMS) >= 30


def test_a_daemon_writes_nothing_after_the_verdict(judge: Any, tmp_path: Path) -> None:
    """Even where the program itself is right: what it leaves behind ends with it."""
    witness = tmp_path / "witness"
    tmp_path.chmod(0o777)
    source = f"if os.fork() == 0:\n    os.setsid()\n    time.sleep(1)\n    open({str(witness)!r}, 'w')\n"
    verdict = judge(BEGINNING + source + "answer = lambda: 42", "assert answer() == 42")
    assert verdict.passed == [True]
    assert left() == []
    time.sleep(1.2)
    assert not witness.exists()


@pytest.mark.parametrize("name", ["StopIteration", "StopAsyncIteration", "GeneratorExit", "SystemExit"])
def test_an_exception_ends_no_iteration_of_the_test(judge: Any, name: str) -> None:
    """``all`` of nothing is true."""
    program = f"def answer(x): raise {name}"
    verdict = judge(program, "assert all(map(answer, [1, 2]))", "assert [*map(answer, [1])] == []")
    assert verdict.passed == [False, False]
