"""``rlhf query``: which pairs of a pool people should compare next."""

from __future__ import annotations

import json
import sys

import torch

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import claim_results, single_process
from rlhf.config import Query
from rlhf.data.queries import first_of, gap, open_pairs, pairs_of_file, pairs_of_responses, read_scores
from rlhf.data.scored import Account


def query(config: Query, place: Place) -> None:
    """Write ``queries.jsonl``, the pair of the highest value first, whole or not at all."""
    single_process(place, "rlhf query")
    needed, acquisition = type(config.acquisition).needs_members, type(config.acquisition).__name__
    if len(config.scores) < needed:
        raise ValueError(
            f"scores must name at least {needed} files for {acquisition}, one a reward model, "
            f"got {len(config.scores)}"
        )
    if config.pool is None and not config.scores:
        raise ValueError("pool must name a file of pairs, or scores one whose responses are paired, got null")
    file = place.folder / "queries.jsonl"
    claim_results(place, (file.name,))
    scored = [read_scores(path, config.score_field) for path in config.scores]
    pool = pairs_of_responses(scored[0][0]) if config.pool is None else pairs_of_file(config.pool)
    account = Account()
    pairs = open_pairs(pool, (one for path in config.asked for one in pairs_of_file(path)), account)
    gaps = [
        [gap(pair, scores, path) for (_, scores), path in zip(scored, config.scores, strict=True)]
        for pair in pairs
    ]
    table = torch.tensor(gaps, dtype=torch.float64).reshape(len(pairs), len(scored))
    values = config.acquisition(table).tolist()
    chosen = first_of(pairs, values, count=config.count, per_prompt=config.per_prompt, seed=config.seed)
    if not chosen:
        raise ValueError(f"no pair is left to be asked: {account}")
    account.written[""] += len(chosen)
    account.left_out["kept for later"] += len(pairs) - len(chosen)
    lines = [json.dumps(pairs[i].line(config.seed, values[i]), ensure_ascii=False) + "\n" for i in chosen]
    part = file.with_suffix(".part")
    part.write_text("".join(lines), encoding="utf-8")
    part.replace(file)
    sys.stdout.write(f"{account}: {file}\n")


COMMAND = Command(schema=Query, job=query)
