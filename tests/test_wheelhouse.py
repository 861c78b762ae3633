"""``launch/wheelhouse.sh``: its folder is all that a machine with torch and transformers lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
NO_REGISTRY = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

pytestmark = pytest.mark.network


def with_needs(*names: str) -> dict[str, Distribution]:
    """These packages and all that they need."""
    found: dict[str, Distribution] = {}
    ahead = list(names)
    while ahead:
        name = ahead.pop()
        if name not in found:
            found[name] = distribution(name)
            needs = map(Requirement, found[name].requires or [])
            ahead += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return found


def link(packages: dict[str, Distribution], place: Path) -> None:
    """The packages in a folder of their own, their dist-info too."""
    place.mkdir()
    for package in packages.values():
        for top in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            if not (place / top).exists():
                (place / top).symlink_to(Path(str(package.locate_file(top))))


def test_what_is_missing_beside_torch_and_transformers_comes_from_the_folder(tmp_path: Path) -> None:
    house, there, bare = tmp_path / "wheels", tmp_path / "there", tmp_path / "bare"
    subprocess.run(["bash", ROOT / "launch" / "wheelhouse.sh", house], check=True)
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=house, check=True)
    listed = {line.split()[1] for line in (house / "SHA256SUMS").read_text().splitlines()}
    assert listed == {file.name for file in house.glob("*.whl")}
    assert not [name for name in listed if name.startswith(("torch-", "transformers-", "triton-", "nvidia"))]

    brought = {canonicalize_name(name.split("-")[0]) for name in listed}
    needed = with_needs("torch", "transformers")
    link({name: package for name, package in needed.items() if canonicalize_name(name) not in brought}, there)
    subprocess.run([sys.executable, "-m", "venv", bare], check=True)
    (packages,) = (bare / "lib").glob("python3*/site-packages")
    (packages / "there.pth").write_text(f"{there}\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    env |= NO_REGISTRY | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}

    def ran(*words: str | Path) -> str:
        ended = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    ran(bare / "bin" / "python", "-m", "pip", "install", "--find-links", house, "rlhf[lora]")
    ran(bare / "bin" / "python", "-m", "pip", "check")
    assert "rlhf sft" in ran(bare / "bin" / "rlhf", "--help")
    rows = [{"prompt": "a b", "response": f"c {word}"} for word in "defg"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ("model=tiny_llama", "model.layers=1", "model.hidden=16", "model.heads=2", "batch_size=2")
    ran(bare / "bin" / "rlhf", "sft", "name=sft", "data.path=rows.jsonl", "engine=zero2", *small)
    adapted = ("model.path=runs/sft", "data.path=pairs.jsonl", "lora=adapter", "batch_size=2")
    pairs = [{"prompt": "a b", "chosen": f"c {word}", "rejected": "d"} for word in "efgh"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    ran(bare / "bin" / "rlhf", "preference", "name=dpo", *adapted)
    assert (tmp_path / "runs" / "dpo" / "adapter").is_dir()
