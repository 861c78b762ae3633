import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reward_scaling.fit import fitted
from benchmarks.reward_scaling.runs import PASSES, Run, all_runs, sample
from benchmarks.reward_scaling.table import details, markdown, picture


def test_points_on_a_curve_give_the_curve_back() -> None:
    """A quarter of the mistakes is left at 16 times the comparisons, half at 16 times the parameters."""
    points = [
        (n, size, 1 - 0.3 * (1000 / n) ** 0.5 * (1e6 / size) ** 0.25)
        for n in (500, 2000, 8000)
        for size in (2e5, 1e6)
    ]
    law = fitted(points)
    assert (law.wrong, law.comparisons, law.parameters) == pytest.approx((0.3, 0.5, 0.25))
    assert max(law.errors) < 1e-12
    assert law.accuracy(16_000, 1e6) == pytest.approx(1 - 0.3 / 4)
    assert law.accuracy(1000, 16e6) == pytest.approx(1 - 0.3 / 2)


def test_errors_are_those_of_least_squares() -> None:
    """Four corners of a square and a residual of ±e at each: 4e² over one degree, σ²/4 for each slope."""
    e = 0.01
    points = [
        (1000 * math.exp(x), 1e6 * math.exp(y), 1 - 0.3 * math.exp(e * x * y))
        for x in (-1, 1)
        for y in (-1, 1)
    ]
    law = fitted(points)
    assert (law.wrong, law.comparisons, law.parameters) == pytest.approx((0.3, 0.0, 0.0))
    assert law.residual == pytest.approx(2 * e)
    assert law.errors == pytest.approx((e, e, e))


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="4 runs do not determine a curve"):
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
    shared: dict[str, Any] = {
        "bins": [{"pairs": 10, "confidence": 0.7, "accuracy": 0.8}, {"pairs": 0}],
        "by_length": [{"low": -3, "high": 4, "accuracy": {"value": 0.8}}],
        "interval": [0.6, 0.9],
    }
    shared |= {"pairs": 10, "log_loss": 0.5, "ece": 0.1, "ece_calibrated": 0.05, "length_correlation": 0.0}
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
    assert "| 0.600 – 0.900 |" in text
    picture(lines, tmp_path / "scaling.png")
    details(lines, 8000, tmp_path / "details.png")
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in tmp_path.glob("*.png"))
