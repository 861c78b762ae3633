import json
import math
from pathlib import Path

import pytest

from benchmarks.reward_scaling.fit import fitted
from benchmarks.reward_scaling.runs import PASSES, Run, all_runs, sample
from benchmarks.reward_scaling.table import markdown, picture


def test_points_on_a_plane_give_the_plane_back() -> None:
    points = [
        (n, size, 0.7 + 0.02 * math.log2(n / 1000) + 0.01 * math.log2(size / 1e6))
        for n in (500, 2000, 8000)
        for size in (2e5, 1e6)
    ]
    line = fitted(points)
    assert (line.level, line.comparisons, line.parameters) == pytest.approx((0.7, 0.02, 0.01))
    assert max(line.errors) < 1e-12
    assert line.at(4000, 2e6) == pytest.approx(0.7 + 0.04 + 0.01)


def test_errors_are_those_of_least_squares() -> None:
    """Four corners of a square and a residual of ±e at each: 4e² over one degree, σ²/4 for each slope."""
    e = 0.01
    points = [(1000 * 2**x, 1e6 * 2**y, 0.7 + e * x * y) for x in (-1, 1) for y in (-1, 1)]
    line = fitted(points)
    assert (line.level, line.comparisons, line.parameters) == pytest.approx((0.7, 0.0, 0.0))
    assert line.residual == pytest.approx(2 * e)
    assert line.errors == pytest.approx((e, e, e))


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="4 runs do not determine a line"):
        fitted([(500, 1e6, 0.7)] * 2 + [(1000, 1e6, 0.8)] * 2)


def test_fewer_comparisons_are_a_part_of_more_and_other_seeds_draw_others(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = "".join(json.dumps({"chosen": number}) + "\n" for number in range(9000))
    (tmp_path / "data" / "preferences_train.jsonl").write_text(rows)

    def drawn(count: int, seed: int) -> set[str]:
        one = Run(size="small", start="sft", comparisons=count, seed=seed)
        return set(sample(one, tmp_path).read_text().splitlines())

    assert len(drawn(500, 0)) == 500
    assert drawn(500, 0) < drawn(2000, 0)
    assert len(drawn(500, 0) & drawn(500, 1)) < 100


def test_every_beginning_gets_the_same_comparisons() -> None:
    runs = all_runs(2)
    assert len({one.name for one in runs}) == len(runs) == 2 * len(PASSES) * 4
    assert {one.size for one in runs if one.start == "scratch"} == {"quickstart"}


def test_table_and_picture_show_every_scorer(tmp_path: Path) -> None:
    shared = {"pairs": 10, "log_loss": 0.5, "ece": 0.1, "ece_calibrated": 0.05, "length_correlation": 0.0}
    lines = [{"scorer": "vader", "comparisons": 0, "seed": 0, "accuracy": 0.7, **shared}]
    for one in all_runs(2):
        more = {
            "start": one.start,
            "parameters": {"small": 1, "middle": 2, "quickstart": 4}[one.size] * 100_000,
        }
        accuracy = 0.6 + one.comparisons / 1e5 + 0.02 * (one.start == "sft") + 0.01 * one.seed
        place = {"scorer": f"{one.size} {one.start}", "comparisons": one.comparisons, "seed": one.seed}
        lines.append({**place, **shared, **more, "accuracy": accuracy})
    text = markdown(lines, list(PASSES))
    assert "| quickstart sft | 400,000 | 0.630 ± 0.005 | 0.645 ± 0.005 | 0.705 ± 0.005 |" in text
    assert "| supervised start's gain, points |  | +2.0 ± 0.0 | +2.0 ± 0.0 | +2.0 ± 0.0 |" in text
    assert "| vader | – | 0.700 | 0.700 | 0.700 |" in text
    picture(lines, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
