"""``rlhf`` itself: what it says without a command, with a wrong one, and how it hands over to a right one."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

import pytest

from rlhf.cli.main import COMMANDS, PLAN, main


def status_of(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["rlhf", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as leaving:
        main()
    return leaving.value.code


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_usage_names_every_command(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(arguments, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: rlhf COMMAND")
    for name, meaning in COMMANDS.items():
        assert any(name in line.split() and meaning in line for line in printed.splitlines())
    assert f"  rlhf {PLAN} " in printed


def test_every_module_of_a_command_is_listed() -> None:
    folder = Path(sys.modules[main.__module__].__file__ or "").parent
    modules = {file.stem for file in folder.glob("*.py") if "\nCOMMAND = " in file.read_text()}
    assert modules == set(COMMANDS)


def test_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    assert status_of(["--version"], monkeypatch) == 0
    assert capsys.readouterr().out == f"rlhf {setup['metadata']['version']}\n"


def test_unknown_command_is_refused_with_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["rewrad"], monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith("rlhf: unknown command 'rewrad'; did you mean reward? ")
    assert said.count("\n") == 1


def test_command_finds_modules_beside_the_caller(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As python -m has it: the console script alone would look for reward functions in its own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rlhf", "rl", "--help"])
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    with pytest.raises(SystemExit):
        main()
    assert sys.path[0] == str(tmp_path)
    assert capsys.readouterr().out.startswith("usage: rlhf rl ")
