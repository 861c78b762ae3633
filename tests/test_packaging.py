"""A wheel carries everything: installed outside the checkout it composes every command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rlhf.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder appears in the checkout."""
    copy, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    for folder in ("rlhf", "conf"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", target, copy], check=True)
    (made,) = target.glob("rlhf-*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", "--target", target]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, wheel], check=True)
    return target


def ran(installed: Path, *words: str, cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_wheel_holds_every_module_and_every_file_of_the_configuration(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = [*(ROOT / "rlhf").rglob("*.py"), *(ROOT / "rlhf").rglob("*.cpp")]
    modules = {file.relative_to(ROOT).as_posix() for file in sources}
    presets = {
        f"rlhf/conf/{file.relative_to(ROOT / 'conf').as_posix()}" for file in (ROOT / "conf").rglob("*.yaml")
    }
    assert inside == modules | presets | {"rlhf/conf/__init__.py", "rlhf/py.typed"}


def test_installed_package_is_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    source = "import rlhf, rlhf.conf; print(rlhf.__file__, rlhf.conf.__file__)"
    found = ran(installed, sys.executable, "-c", source, cwd=tmp_path).split()
    assert found == [
        str(installed / "rlhf" / "__init__.py"),
        str(installed / "rlhf" / "conf" / "__init__.py"),
    ]


def test_console_script_lists_the_commands(installed: Path, tmp_path: Path) -> None:
    printed = ran(installed, str(installed / "bin" / "rlhf"), "--help", cwd=tmp_path)
    assert all(f"rlhf {name}" in printed for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_composes_outside_the_checkout(name: str, installed: Path, tmp_path: Path) -> None:
    printed = ran(installed, sys.executable, "-m", "rlhf", name, "--cfg", "job", cwd=tmp_path)
    called = "pipeline" if name == "recipe" else name  # its default recipe's
    assert f"\nname: {called}\n" in f"\n{printed}"
    assert list(tmp_path.iterdir()) == []


def test_experiments_travel(installed: Path, tmp_path: Path) -> None:
    words = [str(installed / "bin" / "rlhf"), "rl", "experiment=quickstart/rl", "--cfg", "job"]
    assert "name: quickstart/rl\n" in ran(installed, *words, cwd=tmp_path)
