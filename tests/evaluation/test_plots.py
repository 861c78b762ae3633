import json
from pathlib import Path

import pytest

from rlhf.evaluation.best_of_n import best_of_n
from rlhf.evaluation.plots import comparison, curves
from rlhf.evaluation.policies import Response, summarise, summarise_best

PNG = b"\x89PNG\r\n\x1a\n"


def responses(scores: list[float]) -> list[Response]:
    return [
        Response(
            prompt="a",
            text="b c",
            score=score,
            judge=None,
            kl=score,
            exact_kl=0.0,
            ref_logprob=-1.0,
            tokens=2,
            ended=True,
        )
        for score in scores
    ]


def logged(tmp_path: Path, *rows: dict[str, float | None]) -> Path:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step} | row) + "\n" for step, row in enumerate(rows, 1)))
    return file


def size(picture: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header."""
    content = picture.read_bytes()
    assert content.startswith(PNG)
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_curves_draw_a_panel_for_what_was_logged(tmp_path: Path) -> None:
    file = logged(
        tmp_path,
        {"loss": 2.0, "actor/lr": 0.1},
        {"loss": 1.0, "actor/lr": 0.1, "eval/loss": 1.5},
    )
    picture = tmp_path / "curves.png"
    panels = {"loss": ["loss", "eval/loss"], "rate": ["actor/lr"], "nothing": ["no/such"], "x": ["y"]}
    curves(file, picture, panels)
    wide = size(picture)
    curves(file, picture, {"loss": ["loss"]})
    assert wide[0] == 2 * size(picture)[0]  # two panels in a row, then one
    assert wide[1] == size(picture)[1]


def test_a_metric_that_was_never_defined_is_not_drawn(tmp_path: Path) -> None:
    file = logged(tmp_path, {"loss": 2.0, "critic/explained_variance": None})
    curves(file, tmp_path / "curves.png")
    single = size(tmp_path / "curves.png")
    curves(file, tmp_path / "curves.png", {"loss": ["loss"]})
    assert single == size(tmp_path / "curves.png")


def test_a_gap_in_a_curve_is_left_out(tmp_path: Path) -> None:
    file = logged(tmp_path, {"loss": 2.0}, {"loss": None}, {"loss": 1.0})
    curves(file, tmp_path / "curves.png")
    assert size(tmp_path / "curves.png")


@pytest.mark.parametrize("scores", [[0.0, 1.0, 3.0], [1.0, 1.0, 1.0]], ids=["spread", "equal"])
@pytest.mark.filterwarnings("error")
def test_policies_are_compared_in_a_picture(tmp_path: Path, scores: list[float]) -> None:
    rows = {"reference": responses(scores), "best of 2": responses(scores)}
    summaries = [summarise("reference", rows["reference"]), summarise_best("best of 2", rows["best of 2"], 2)]
    comparison(tmp_path / "policies.png", summaries, rows)
    assert size(tmp_path / "policies.png")
    points = best_of_n(rows["reference"] * 2, 3)
    comparison(tmp_path / "curve.png", summaries, rows, points)
    assert size(tmp_path / "curve.png")
