"""``rlhf score``: score a file of responses."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import torch

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import claim_results, load_reward, reward_tokenizer, single_process
from rlhf.cli.room import longest
from rlhf.config import Score
from rlhf.data.rows import SupervisedRow
from rlhf.data.tokenizers import load_tokenizer
from rlhf.distributed.engine_config import Plain
from rlhf.progress_bar import progress


def score(config: Score, place: Place) -> None:
    """Write ``scores.jsonl``, whole or not at all: every row, its texts and columns, with its score."""
    single_process(place, "rlhf score")
    claim_results(place, ("scores.jsonl",))
    source = config.tokenizer or reward_tokenizer(config.reward)
    if source is None:
        raise ValueError("tokenizer must name one: the reward is no model that brings its own")
    tokenizer = load_tokenizer(source)
    rows = config.data.load(tokenizer)
    reward = load_reward(
        config.reward,
        engine=Plain(),
        actor=None,
        tokenizer=tokenizer,
        longest=longest(rows),
        micro_rows=config.micro_batch_size,
    )
    total, written = 0.0, place.folder / "scores.jsonl"
    part = written.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file, progress(len(rows)) as bar:
        for index in torch.arange(len(rows)).split(config.micro_batch_size):
            batch = rows.batch(index).to(place.runtime.device)
            scores = reward.sequences(batch, tokenizer, rows.columns(index)).tolist()
            for number, value in zip(index.tolist(), scores, strict=True):
                line = _line(rows.rows[number], value)
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
            total += sum(scores)
            bar.update(len(scores))
    part.replace(written)
    sys.stdout.write(f"{len(rows)} scores, mean {total / len(rows):.4f}: {written}\n")


def _line(row: SupervisedRow, score: float) -> dict[str, Any]:
    if not math.isfinite(score):
        raise ValueError(f"{row.where}: the reward gave {score} to this response: a score must be finite")
    text = {"prompt": row.prompt, "response": row.response}
    return text | row.columns | text | {"score": score}  # the texts stand first, and win over columns


COMMAND = Command(schema=Score, job=score)
