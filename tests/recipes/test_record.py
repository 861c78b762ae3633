"""The record of a stage: written whole, held against what the recipe says now."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest

from rlhf.recipes import record
from rlhf.recipes.record import FILE, PARTIAL, Record

BEFORE = Record(command="sft", settings={"optimizer.lr": 1e-5, "data.path": "a", "stop": ["x"]}, follows="")


def changed(**fields: Any) -> Record:
    return dataclasses.replace(BEFORE, **fields)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    for finished in (False, True):
        changed(finished=finished).write(tmp_path / "new" / "folder")
        assert record.read(tmp_path / "new" / "folder") == changed(finished=finished)


def test_a_record_that_was_cut_while_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BEFORE.write(tmp_path)

    def dead(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", dead)
    with pytest.raises(KeyboardInterrupt):
        changed(finished=True).write(tmp_path)
    assert record.read(tmp_path) == BEFORE


@pytest.mark.parametrize("left", [[], [PARTIAL]])
def test_a_folder_in_which_nothing_was_begun_has_no_record(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).touch()
    assert record.read(tmp_path) is None
    assert record.read(tmp_path / "none") is None


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(tmp_path))} is in the way: no stage of this recipe"
    ):
        record.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"command": "sft"}'])
def test_a_record_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match="is no record of a stage: remove"):
        record.read(tmp_path)


def test_the_same_record_is_accepted_finished_or_not() -> None:
    record.expect_same(changed(finished=True), BEFORE, Path("runs/x"))


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (
            changed(settings=BEFORE.settings | {"optimizer.lr": 2e-5}),
            "begun with optimizer.lr 1e-05, which is 2e-05 now",
        ),
        (changed(settings=BEFORE.settings | {"stop": []}), 'begun with stop ["x"], which is [] now'),
        (changed(settings=BEFORE.settings | {"new": None}), "begun with new nothing, which is null now"),
        (
            changed(settings={"optimizer.lr": 1e-5, "stop": ["x"]}),
            'begun with data.path "a", which is nothing now',
        ),
        (changed(command="rl"), 'begun with command "sft", which is "rl" now'),
        (changed(follows="other"), "begun after stages with other settings"),
    ],
)
def test_a_change_is_refused_by_its_key(now: Record, told: str) -> None:
    with pytest.raises(
        ValueError, match=f"^runs/x has been {re.escape(told)}: choose another name=…, or remove"
    ):
        record.expect_same(BEFORE, now, Path("runs/x"))


def test_a_fingerprint_is_of_this_stage_and_of_all_before() -> None:
    others = [
        changed(command="rl"),
        changed(settings={}),
        changed(settings=BEFORE.settings | {"optimizer.lr": 1.1e-5}),
        changed(follows="other"),
    ]
    assert len({one.fingerprint for one in [BEFORE, *others]}) == 5
    assert changed(finished=True).fingerprint == BEFORE.fingerprint
    reordered = dict(reversed(BEFORE.settings.items()))
    assert changed(settings=reordered).fingerprint == BEFORE.fingerprint


def test_a_folder_is_removed_with_what_an_interrupted_removal_left(tmp_path: Path) -> None:
    folder, left = tmp_path / "sft", tmp_path / ".sft.removed"
    for one in (folder, left):
        one.mkdir()
        (one / "file").touch()
    record.remove(folder)
    assert list(tmp_path.iterdir()) == []
