"""C8: GAE, whitening and the estimators of groups, from the rewards of ragged responses to advantages."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.cases.tensor_contenders import Tensors, here, there
from benchmarks.contest import Contender, contest
from benchmarks.results import Line, at_least
from rlhf.algorithms.advantages import AdvantageEstimator, GroupRelative, LeaveOneOut
from rlhf.ops.masking import whiten
from rlhf.ops.returns import gae

GAMMA, LAM, EPS = 0.99, 0.95, 1e-8
SAMPLES = 8
"""Responses to a prompt."""


def run(bench: Bench) -> Iterator[Line]:
    """Each function against a loop over tokens and against verl's."""
    B, T = bench.size((1024, 512), (16, 12))
    given = _given(B, T)
    ours = {
        "gae": lambda: dict(
            zip(
                ("advantages", "returns"),
                gae(given["rewards"], given["values"], given["mask"], gamma=GAMMA, lam=LAM),
                strict=True,
            )
        ),
        "whitening": lambda: {"whitened": whiten(given["values"], given["mask"], _one_rank, eps=EPS)},
        "leave one out": lambda: _estimated(LeaveOneOut(), given),
        "group standard": lambda: _estimated(GroupRelative(eps=1e-6), given),
    }
    for name, work in ours.items():
        cell, loop = f"{name} {B}×{T}", LOOPS[name]
        right = loop(given)
        contenders = [here(bench, "rlhf", work, right), _loop(bench, loop, given, right)]
        outcome = contest(bench, cell, [*contenders, there(bench, f"verl {name}", given, right)])
        yield from outcome.lines
        yield at_least(cell, "times the loop's speed", outcome.ratio("python loop", "rlhf"), 10.0)
        yield at_least(cell, "times verl's speed", outcome.ratio(f"verl {name}", "rlhf"), 1.0)


def _loop(bench: Bench, loop: object, given: Tensors, right: Tensors) -> Contender:
    assert callable(loop)
    return here(bench, "python loop", lambda: loop(given), right, note="float64, token by token")


def _given(B: int, T: int) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, T + 1, (B,), generator=generator)
    mask = torch.arange(T) < lengths.unsqueeze(1)
    rewards, values = (torch.where(mask, torch.randn(B, T, generator=generator), 0.0) for _ in range(2))
    return {
        "rewards": rewards,
        "values": values,
        "mask": mask,
        "group": torch.arange(B) // SAMPLES,
    }


def _one_rank(sums: Tensor) -> Tensor:
    return sums


def _estimated(estimator: AdvantageEstimator, given: Tensors) -> Tensors:
    found = estimator(given["rewards"], None, given["mask"], given["group"], _one_rank)
    return {"advantages": found.advantages}


def _gae_loop(given: Tensors) -> Tensors:
    lengths = given["mask"].sum(1).tolist()
    rewards, values = given["rewards"].tolist(), given["values"].tolist()
    advantages = [[0.0] * len(row) for row in rewards]
    returns = [[0.0] * len(row) for row in rewards]
    for row, length in enumerate(lengths):
        after, following = 0.0, 0.0
        for t in reversed(range(length)):
            after = rewards[row][t] + GAMMA * following - values[row][t] + GAMMA * LAM * after
            following = values[row][t]
            advantages[row][t], returns[row][t] = after, after + following
    return {"advantages": torch.tensor(advantages), "returns": torch.tensor(returns)}


def _whiten_loop(given: Tensors) -> Tensors:
    lengths, values = given["mask"].sum(1).tolist(), given["values"].tolist()
    real = [value for row, length in zip(values, lengths, strict=True) for value in row[:length]]
    mean = sum(real) / len(real)
    deviation = (sum((value - mean) ** 2 for value in real) / len(real) + EPS) ** 0.5
    whitened = [
        [(value - mean) / deviation if t < length else 0.0 for t, value in enumerate(row)]
        for row, length in zip(values, lengths, strict=True)
    ]
    return {"whitened": torch.tensor(whitened)}


def _groups(given: Tensors) -> Iterator[tuple[list[int], list[float]]]:
    """The rows of each group, and the return of each."""
    members: dict[int, list[int]] = {}
    for row, number in enumerate(given["group"].tolist()):
        members.setdefault(number, []).append(row)
    lengths, rewards = given["mask"].sum(1).tolist(), given["rewards"].tolist()
    for rows in members.values():
        yield rows, [sum(rewards[row][: lengths[row]]) for row in rows]


def _spread(found: list[float], given: Tensors) -> Tensors:
    """The advantage of each response on its tokens."""
    lengths, width = given["mask"].sum(1).tolist(), given["mask"].shape[1]
    rows = [[each] * length + [0.0] * (width - length) for each, length in zip(found, lengths, strict=True)]
    return {"advantages": torch.tensor(rows)}


def _leave_one_out_loop(given: Tensors) -> Tensors:
    found = [0.0] * len(given["group"])
    for rows, returns in _groups(given):
        for row, own in zip(rows, returns, strict=True):
            found[row] = own - (sum(returns) - own) / (len(returns) - 1)
    return _spread(found, given)


def _group_standard_loop(given: Tensors) -> Tensors:
    found = [0.0] * len(given["group"])
    for rows, returns in _groups(given):
        mean = sum(returns) / len(returns)
        std = (sum((own - mean) ** 2 for own in returns) / (len(returns) - 1)) ** 0.5
        for row, own in zip(rows, returns, strict=True):
            found[row] = (own - mean) / (std + 1e-6)
    return _spread(found, given)


LOOPS = {
    "gae": _gae_loop,
    "whitening": _whiten_loop,
    "leave one out": _leave_one_out_loop,
    "group standard": _group_standard_loop,
}
