"""The peers' functions of plain tensors: a dictionary in, a dictionary out.

Where the results hold ``seconds``, those count: the function has a clock of its own. ``peak`` is bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.peers import trl_offline, trl_online, trl_ppo

Tensors = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class PeerFunction:
    """How a peer's function is made."""

    make: Callable[[], Callable[[Tensors], Tensors]]


def verl_gae() -> Callable[[Tensors], Tensors]:
    """Advantages come whitened, so that returns alone can be compared."""
    from verl.trainer.ppo.core_algos import compute_gae_advantage_return

    def run(given: Tensors) -> Tensors:
        _, returns = compute_gae_advantage_return(
            given["rewards"], given["values"], given["mask"].float(), 0.99, 0.95
        )
        return {"returns": returns * given["mask"]}

    return run


def verl_whitening() -> Callable[[Tensors], Tensors]:
    """With the population's variance corrected by n/(n−1)."""
    from verl.utils.torch_functional import masked_whiten

    return lambda given: {"whitened": masked_whiten(given["values"], given["mask"]) * given["mask"]}


def verl_leave_one_out() -> Callable[[Tensors], Tensors]:
    """RLOO on the rewards of tokens."""
    from verl.trainer.ppo.core_algos import compute_rloo_outcome_advantage

    def run(given: Tensors) -> Tensors:
        mask = given["mask"].float()
        advantages, _ = compute_rloo_outcome_advantage(given["rewards"], mask, given["group"].numpy())
        return {"advantages": advantages * given["mask"]}

    return run


def verl_group_standard() -> Callable[[Tensors], Tensors]:
    """GRPO on the rewards of tokens."""
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    def run(given: Tensors) -> Tensors:
        mask = given["mask"].float()
        advantages, _ = compute_grpo_outcome_advantage(given["rewards"], mask, given["group"].numpy())
        return {"advantages": advantages * given["mask"]}

    return run


def verl_karmarkar_karp() -> Callable[[Tensors], Tensors]:
    """The largest differencing method in pure Python; a group for each length."""
    from verl.utils.seqlen_balancing import karmarkar_karp

    def run(given: Tensors) -> Tensors:
        groups = karmarkar_karp(given["lengths"].tolist(), given["count"], given["equal"])
        found = torch.full_like(given["lengths"], -1)
        for number, rows in enumerate(groups):
            found[rows] = number
        return {"group": found}

    return run


FUNCTIONS = {
    "trl sft": PeerFunction(make=partial(trl_offline.sft, padding_free=False)),
    "trl sft padding-free": PeerFunction(make=partial(trl_offline.sft, padding_free=True)),
    "trl reward": PeerFunction(make=trl_offline.reward),
    "trl dpo": PeerFunction(make=trl_offline.dpo),
    "trl grpo": PeerFunction(make=partial(trl_online.make, "grpo")),
    "trl rloo": PeerFunction(make=partial(trl_online.make, "rloo")),
    "trl ppo": PeerFunction(make=trl_ppo.make),
    "verl karmarkar-karp": PeerFunction(make=verl_karmarkar_karp),
    "verl gae": PeerFunction(make=verl_gae),
    "verl whitening": PeerFunction(make=verl_whitening),
    "verl leave one out": PeerFunction(make=verl_leave_one_out),
    "verl group standard": PeerFunction(make=verl_group_standard),
}
