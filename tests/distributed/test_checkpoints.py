import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf.distributed import checkpoints
from rlhf.distributed.checkpoints import latest, write

SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


def save(folder: Path) -> None:
    (folder / "actor").mkdir()
    (folder / "actor" / "state.pt").write_bytes(b"abc")
    (folder / "trainer.json").write_text("{}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tear(path: Path) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    data[1] ^= 1
    path.write_bytes(data)


def test_manifest_names_every_file_with_size_and_sha256(tmp_path: Path) -> None:
    written = write(tmp_path / "checkpoints", 120, save, keep=3)
    assert written == tmp_path / "checkpoints" / "step_000120"
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["step"] == 120
    assert manifest["world_size"] == 1
    assert sorted(manifest["files"]) == ["actor/state.pt", "trainer.json"]
    assert manifest["files"]["actor/state.pt"] == {"bytes": 3, "sha256": SHA256_OF_ABC}
    assert names(tmp_path / "checkpoints") == ["step_000120"]


def test_latest_of_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "missing") is None


def test_latest_counts_steps_as_numbers(tmp_path: Path) -> None:
    write(tmp_path, 999_999, save, keep=2)
    newest = write(tmp_path, 1_000_000, save, keep=2)
    assert latest(tmp_path) == newest


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step, save, keep=2)
    assert names(tmp_path) == ["step_000003", "step_000004"]


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        write(tmp_path, 1, save, keep=0)


def test_a_written_checkpoint_is_never_the_one_removed(tmp_path: Path) -> None:
    write(tmp_path, 9, save, keep=1)
    tear(tmp_path / "step_000009" / "actor" / "state.pt")
    assert write(tmp_path, 5, save, keep=1) == latest(tmp_path)


def test_a_checkpoint_can_be_written_again(tmp_path: Path) -> None:
    write(tmp_path, 7, save, keep=1)
    tear(tmp_path / "step_000007" / "actor" / "state.pt")
    assert write(tmp_path, 7, save, keep=1) == latest(tmp_path)
    assert names(tmp_path) == ["step_000007"]


def flip(folder: Path) -> None:
    tear(folder / "actor" / "state.pt")


def cut(folder: Path) -> None:
    (folder / "actor" / "state.pt").write_bytes(b"ab")


def lose(folder: Path) -> None:
    (folder / "actor" / "state.pt").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def cut_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": {"act')


DAMAGES = [
    (flip, r"actor/state\.pt differs from its sha256"),
    (cut, r"actor/state\.pt has 2 bytes, expected 3"),
    (lose, r"actor/state\.pt is missing"),
    (lose_manifest, r"manifest\.json is missing"),
    (cut_manifest, r"manifest\.json is not a manifest"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_the_only_checkpoint_torn_is_refused_by_file(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(write(tmp_path, 1, save, keep=3))
    with pytest.raises(ValueError, match=f"^no whole checkpoint in .*step_000001/{message}$"):
        latest(tmp_path)


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_the_newest_torn_falls_back_to_the_older_and_says_so(
    tmp_path: Path, damage: Callable[[Path], None], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    older = write(tmp_path, 1, save, keep=3)
    damage(write(tmp_path, 2, save, keep=3))
    with caplog.at_level(logging.WARNING):
        assert latest(tmp_path) == older
    [line] = caplog.messages
    assert "step_000002" in line
    assert line.endswith(f"continuing from {older}")


def test_a_whole_newest_checkpoint_is_taken_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1, save, keep=3)
    assert latest(tmp_path) == tmp_path / "step_000001"
    assert caplog.messages == []


def test_a_save_that_fails_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        save(folder)
        raise OSError("no space left on device")

    older = write(tmp_path, 1, save, keep=1)
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path, 2, fail, keep=1)
    assert latest(tmp_path) == older


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_process_that_dies(action: Callable[[], object]) -> None:
    """Run it in a forked process, which must end by SIGKILL."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_a_write_killed_while_saving_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    def killed(folder: Path) -> None:
        save(folder)
        die()

    older = write(tmp_path, 1, save, keep=2)
    in_a_process_that_dies(lambda: write(tmp_path, 2, killed, keep=2))
    assert names(tmp_path) == [".step_000002.partial", "step_000001"]
    assert latest(tmp_path) == older
    newest = write(tmp_path, 3, save, keep=2)
    assert names(tmp_path) == ["step_000001", "step_000003"]  # the leftover is gone
    assert latest(tmp_path) == newest


def test_a_write_killed_before_the_rename_is_not_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "rename", lambda path, target: die())
    in_a_process_that_dies(lambda: write(tmp_path, 2, save, keep=2))
    assert (tmp_path / ".step_000002.partial" / "manifest.json").exists()
    assert latest(tmp_path) is None


def test_a_write_killed_while_removing_the_oldest_leaves_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1, save, keep=1)
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda path: die())
    in_a_process_that_dies(lambda: write(tmp_path, 2, save, keep=1))
    assert names(tmp_path) == [".step_000001.removed", "step_000002"]
    assert latest(tmp_path) == tmp_path / "step_000002"


def test_everything_is_synced_before_the_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    rename = Path.rename
    monkeypatch.setattr(checkpoints, "_sync", lambda path: events.append(path.name))
    monkeypatch.setattr(Path, "rename", lambda path, target: events.append("rename") or rename(path, target))
    write(tmp_path, 1, save, keep=1)
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    inside = [".step_000001.partial", "actor", "manifest.json", "state.pt", "trainer.json"]
    assert sorted(before) == inside
    assert after == [tmp_path.name]
