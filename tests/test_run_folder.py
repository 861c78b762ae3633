import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlhf.run_folder import RunFolder


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_new_folder_is_made_and_gets_the_configuration(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "toy")
    folder.claim("seed: 0\n", resume=False)
    assert (folder.path / "config.yaml").read_text() == "seed: 0\n"


def test_a_folder_with_a_configuration_only_is_taken(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")  # an earlier start failed before its first step
    RunFolder(tmp_path).claim("seed: 0\n", resume=False)
    assert (tmp_path / "config.yaml").read_text() == "seed: 0\n"


@pytest.mark.parametrize("sign", ["metrics.jsonl", "samples.jsonl", "checkpoints", "model"])
def test_a_folder_in_use_is_refused_and_untouched(tmp_path: Path, sign: str) -> None:
    (tmp_path / sign).mkdir()
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ValueError, match=rf"already holds a run \({sign}\).*nothing was overwritten"):
        RunFolder(tmp_path).claim("seed: 0\n", resume=False)
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_a_folder_in_use_is_continued_on_request(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    RunFolder(tmp_path).claim("seed: 0\n", resume=True)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_resuming_without_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"resume=true, but .* holds no checkpoints to continue from"):
        RunFolder(tmp_path).claim("", resume=True)
    assert not (tmp_path / "config.yaml").exists()


def test_metrics_are_one_object_a_step(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log(1, {"loss": 0.5, "critic/explained_variance": math.nan})
    folder.log(2, {"loss": math.inf})
    folder.close()
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 0.5, "critic/explained_variance": None},  # JSON has no NaN
        {"step": 2, "loss": None},
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_samples_are_readable_text(tmp_path: Path) -> None:
    RunFolder(tmp_path).samples(3, [{"response": "schön\nund gut", "score": 1.5}])
    assert lines(tmp_path / "samples.jsonl") == [{"step": 3, "response": "schön\nund gut", "score": 1.5}]
    assert "schön" in (tmp_path / "samples.jsonl").read_text(encoding="utf-8")


def test_rewinding_forgets_later_steps_and_a_cut_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name in ("metrics.jsonl", "samples.jsonl"):
        text = "".join(f'{{"step": {step}, "x": "a"}}\n' for step in (1, 2, 2, 3, 4))
        (tmp_path / name).write_text(text + '{"step": 2, "x"')
    folder.rewind(2)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert [row["step"] for row in lines(tmp_path / name)] == [1, 2, 2]
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.jsonl", "samples.jsonl"}


def test_rewinding_an_empty_folder_is_fine(tmp_path: Path) -> None:
    RunFolder(tmp_path).rewind(2)
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, writes=False)
    (tmp_path / "metrics.jsonl").write_text('{"step": 9}\n')
    folder.log(1, {"loss": 0.5})
    folder.samples(1, [{"response": "a"}])
    folder.rewind(1)
    folder.close()
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 9}]


def test_places_inside_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert (folder.checkpoints, folder.model) == (tmp_path / "checkpoints", tmp_path / "model")
