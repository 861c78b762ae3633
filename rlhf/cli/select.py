"""``rlhf select``: from scored responses to the rows of a training file."""

from __future__ import annotations

import json
import sys

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import claim_results, single_process
from rlhf.config import Select
from rlhf.data.scored import scored_rows


def select(config: Select, place: Place) -> None:
    """Write ``selected.jsonl``, whole or not at all, and say what became of every row."""
    single_process(place, "rlhf select")
    if not config.input:
        raise ValueError(
            "input must name files of scored responses, as input=[runs/NAME/scores.jsonl], got []"
        )
    file = place.folder / "selected.jsonl"
    claim_results(place, (file.name,))
    rows, account = scored_rows(config.input, score_field=config.score_field, keep_cut=config.keep_cut)
    lines = config.selection(rows, account) if rows else []
    if not lines:
        raise ValueError(f"no row is left: {account}")
    part = file.with_suffix(".part")
    part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    part.replace(file)
    sys.stdout.write(f"{account}: {file}\n")


COMMAND = Command(schema=Select, job=select)
