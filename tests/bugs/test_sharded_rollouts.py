"""Rollouts and memory on two ranks whose parameters are split, as they broke in other frameworks."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rlhf.distributed import collectives
from rlhf.distributed.engine_config import EngineConfig, Plain, ZeRO
from rlhf.rollout.decoding import Sampling
from rlhf.rollout.sampler import Sampler

ENGINES: dict[str, EngineConfig] = {
    "plain": Plain(clip=None),
    "zero2": ZeRO(stage=2, clip=None),
    "zero3": ZeRO(stage=3, clip=None, persistence_threshold=0),
}
GATHERS = ("all_gather", "all_gather_into_tensor", "_all_gather_base", "all_gather_coalesced")


def uneven_rollouts(toy: ModuleType) -> dict[str, Any]:
    """Rank 0 stops at any token, rank 1 at none; lengths of the longest responses, and two steps' numbers."""
    trainer = toy.policy_gradient(engine=ENGINES["zero3"], new_tokens=20)
    ends = list(range(len(toy.WORDS))) if collectives.is_main() else [len(toy.WORDS)]
    trainer.collector.sampler = Sampler(
        decoding=Sampling(max_new_tokens=20, temperature=0.9), end_ids=ends, pad_id=len(toy.WORDS) + 1
    )
    lengths = int(toy.next_rollout(trainer).lengths.max())
    metrics = [trainer.step().reduce(collectives.all_sum, collectives.all_max) for _ in range(2)]
    return {"longest": collectives.gather_objects(lengths), "metrics": metrics}


@contextmanager
def counted_gathers() -> Iterator[list[str]]:
    """Every all-gather that anybody asks of torch.distributed; DeepSpeed looks them up when it starts."""
    calls: list[str] = []
    originals = {name: getattr(dist, name) for name in GATHERS if hasattr(dist, name)}

    def noting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def gather(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return original(*args, **kwargs)

        return gather

    for name, original in originals.items():
        setattr(dist, name, noting(name, original))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def gathers_of_a_rollout(toy: ModuleType, calls: list[str]) -> dict[str, Any]:
    """How many all-gathers it takes to sample so many tokens, and to score them."""
    found: dict[str, Any] = {}
    for new_tokens in (2, 12):
        trainer = toy.policy_gradient(engine=ENGINES["zero3"], new_tokens=new_tokens)
        prompts = trainer.collector.prompts(trainer.state.drawn)
        calls.clear()
        rollout = trainer.collector.sample(prompts)
        found[f"{new_tokens} tokens"] = len(calls)
        calls.clear()
        trainer.measure(toy.scored(rollout))
        found[f"scoring {new_tokens}"] = len(calls)
    found["parameters"] = len(list(trainer.models.actor.module.parameters()))
    return found


def head(toy: ModuleType, source: Any, engine: EngineConfig) -> dict[str, Any]:
    """The head's weight outside and inside a forward, the actor's log-probs, and the gradient's norm."""
    policy = toy.actor(source=source)
    wrapped = engine.train(policy, toy.AdamW(lr=1e-3)(policy), "actor")
    seen: list[tuple[int, ...]] = []
    hook = policy.head.register_forward_pre_hook(lambda layer, _: seen.append(tuple(layer.weight.shape)))
    tokens = torch.arange(24).view(2, 12) % (len(toy.WORDS) - 1)  # the same on both ranks
    result = wrapped(tokens, torch.ones_like(tokens, dtype=torch.bool), 3, 0.9)
    wrapped.backward(-result.logprobs.sum() / collectives.world_size())
    hook.remove()
    return {
        "outside": policy.head.weight.numel(),
        "inside": seen,
        "logprobs": result.logprobs.detach(),
        "entropies": result.entropies.detach(),
        "norm": wrapped.step(),
    }


def held(trainer: Any) -> tuple[int, int]:
    """After a step: bytes of all tensors that anything holds, and how many of them carry a graph."""
    trainer.step()
    time.sleep(0.2)  # gloo's threads let go of a message a moment after it has arrived
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values()), sum(tensor.grad_fn is not None for tensor in tensors)


def work(folder: Path) -> dict[str, Any]:
    from tests.trainers import toy

    with counted_gathers() as calls:
        found: dict[str, Any] = {"gathers": gathers_of_a_rollout(toy, calls)}
    found["uneven"] = uneven_rollouts(toy)
    for name, source in (("llama", toy.LLAMA), ("gpt2", toy.GPT2)):
        for engine in ("plain", "zero3"):
            found[f"{name} {engine}"] = head(toy, source, ENGINES[engine])
    for name, engine in ENGINES.items():
        trainer = toy.policy_gradient(engine=engine, total=6)
        found[f"held {name}"] = [held(trainer) for _ in range(4)]
    return found


@pytest.fixture(scope="module")
def pair(two_ranks: Callable[[str, str], list[Any]]) -> list[Any]:
    return two_ranks(__file__, "work")


def test_ranks_finish_generation_together(pair: list[Any]) -> None:
    for rank in range(2):
        found = pair[rank]["uneven"]
        assert found["longest"] == [1, 20]
        for metrics in found["metrics"]:
            assert metrics["rollout/length"] == (1 + 20) / 2
            assert metrics["rollout/ended_fraction"] == 0.5
            assert all(math.isfinite(value) for value in metrics.values())
    assert pair[0]["uneven"]["metrics"] == pair[1]["uneven"]["metrics"]


def test_generation_gathers_parameters_once(pair: list[Any]) -> None:
    for rank in range(2):
        found = pair[rank]["gathers"]
        assert found["scoring 2"] > 0  # gathers are seen where there are any
        assert found["scoring 12"] > 0
        assert found["2 tokens"] == found["12 tokens"] == found["parameters"]


@pytest.mark.parametrize("source", ["llama", "gpt2"])  # untied and tied
def test_chunked_head_gathers_partitioned_weights(pair: list[Any], source: str) -> None:
    whole = pair[0][f"{source} plain"]
    for rank in range(2):
        found = pair[rank][f"{source} zero3"]
        assert found["outside"] == 0  # it is split
        assert set(found["inside"]) == set(whole["inside"])
        for name in ("logprobs", "entropies"):
            torch.testing.assert_close(found[name], whole[name])
        assert found["norm"] == pytest.approx(whole["norm"], rel=1e-5)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_memory_returns_to_its_baseline_each_step(pair: list[Any], engine: str) -> None:
    for rank in range(2):
        first, *later = pair[rank][f"held {engine}"]
        assert later == [first, first, first]
