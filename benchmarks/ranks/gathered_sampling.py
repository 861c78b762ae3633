"""Sampling under ZeRO-3 on two ranks: weights gathered once a rollout, against every layer for every token.

    torchrun --nproc_per_node=2 -m benchmarks.ranks.gathered_sampling SIZE ROWS WIDTH NEW ROUNDS

SIZE is the name of one in `benchmarks.cases.models`. Rank 0 writes sampling.json: seconds of each round of
both ways, gathering included, and the share of greedy tokens that differ on any rank.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import models
from rlhf.batch import PromptBatch
from rlhf.distributed import runtime
from rlhf.distributed.collectives import all_sum, barrier, is_main, rank
from rlhf.distributed.engine_config import ZeRO
from rlhf.distributed.gathering import refresh
from rlhf.rollout.decoding import Greedy
from rlhf.rollout.sampler import Sampler
from rlhf.trainers.optimizers import AdamW

FILE = "sampling.json"


def main(name: str, rows: int, width: int, new: int, rounds: int) -> None:
    """Both ways in turns; each rank has prompts of its own."""
    runtime.start()
    size: models.Size = getattr(models, name)
    actor = size.actor()
    models.endless(actor.model)
    plain = copy.deepcopy(actor)
    engine = ZeRO(stage=3).train(actor, AdamW()(actor), "actor")
    generator = torch.Generator().manual_seed(rank())
    tokens = torch.randint(3, size.vocabulary, (rows, width), generator=generator)
    number = torch.arange(rows)
    prompts = PromptBatch(
        tokens=tokens, mask=torch.ones_like(tokens, dtype=torch.bool), index=number, group=number
    )
    sampler = Sampler(decoding=Greedy(max_new_tokens=new), end_ids=[1], pad_id=0)
    noise = torch.zeros(rows, new, dtype=torch.float64)

    def once() -> Tensor:
        refresh(plain, engine.module)
        return sampler.sample(plain, prompts, noise).tokens

    def hooked() -> Tensor:
        model: Any = engine.module.model
        with torch.no_grad():
            found: Tensor = model.generate(
                input_ids=tokens,
                attention_mask=prompts.mask.long(),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                eos_token_id=1,
                pad_token_id=0,
                synced_gpus=True,
            )
        return found

    engine.module.eval()
    differing = all_sum((once() != hooked()).sum()) / all_sum(torch.tensor(rows * new))
    seconds: dict[str, list[float]] = {"gathered once": [], "every layer": []}
    for _ in range(rounds):
        seconds["gathered once"].append(_timed(once))
        seconds["every layer"].append(_timed(hooked))
    if is_main():
        found = {"seconds": seconds, "differing": float(differing)}
        Path(FILE).write_text(json.dumps(found), encoding="utf-8")
    barrier()
    runtime.stop()


def _timed(work: Callable[[], object]) -> float:
    """Until both ranks are done."""
    barrier()
    start = time.perf_counter()
    work()
    barrier()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
