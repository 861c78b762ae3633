"""``rlhf rank``: arms ranked from comparisons, winners by every rule, agreement between annotators."""

from __future__ import annotations

import sys

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import claim_results, single_process
from rlhf.config import Rank
from rlhf.evaluation.annotators import agreement, annotator_table
from rlhf.evaluation.ranking import ranked, ranking_picture, ranking_table, write_ranking

FILES = ("ranking.md", "ranking.json", "ranking.png")


def rank(config: Rank, place: Place) -> None:
    """Write the ranking as a table, as JSON and as a picture."""
    single_process(place, "rlhf rank")
    claim_results(place, FILES)
    comparisons = config.data.load()
    ranking, found = ranked(comparisons, ridge=config.ridge), agreement(comparisons)
    parts = [ranking_table(ranking)] + ([] if found is None else [annotator_table(found)])
    report = "\n\n".join(parts)
    (place.folder / "ranking.md").write_text(report + "\n", encoding="utf-8")
    write_ranking(place.folder / "ranking.json", ranking, found)
    ranking_picture(place.folder / "ranking.png", ranking)
    sys.stdout.write(f"{report}\n\nwritten to {place.folder}: {', '.join(FILES)}\n")


COMMAND = Command(schema=Rank, job=rank)
