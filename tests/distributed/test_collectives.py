from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.distributed import collectives, runtime
from rlhf.distributed.collectives import all_max, all_sum, gather_objects, on_every_rank, on_main


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_alone_sum_and_maximum_are_the_tensor_in_new_memory(dtype: torch.dtype) -> None:
    tensor = torch.tensor([1, -2], dtype=dtype, requires_grad=dtype.is_floating_point)
    for total in (all_sum(tensor), all_max(tensor)):
        assert torch.equal(total, tensor)
        assert total.dtype == dtype
        assert total.data_ptr() != tensor.data_ptr()
        assert not total.requires_grad


def test_alone_everything_else_is_the_identity() -> None:
    assert (collectives.rank(), collectives.world_size(), collectives.is_main()) == (0, 1, True)
    assert gather_objects("x") == ["x"]
    assert collectives.broadcast_object("x") == "x"
    assert on_main(lambda: 3) == 3
    collectives.barrier()


def test_bools_are_counted() -> None:
    assert torch.equal(all_sum(torch.tensor([True, False])), torch.tensor([1, 0]))


def test_alone_errors_keep_their_type() -> None:
    with pytest.raises(KeyError):
        on_main(lambda: {}["missing"])
    with pytest.raises(KeyError):
        on_every_rank(lambda: {}["missing"])


def refuse(kind: type[Exception]) -> None:
    raise kind("disk full")


def caught(action: Callable[[], Any]) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def work(folder: Path) -> dict[str, Any]:
    rank = collectives.rank()
    big = torch.tensor([2.0**24 if rank == 0 else 1.0, 0.0])
    found: dict[str, Any] = {
        "float": all_sum(torch.tensor([0.25 + rank, -1.0])),
        "int": all_sum(torch.tensor([2**53 + rank])),
        "bool": all_sum(torch.tensor([rank == 1, True])),
        "bfloat16": all_sum(big.bfloat16()),
        "max": all_max(torch.tensor([rank, 5 - rank])),
        "objects": gather_objects({"rank": rank}),
        "broadcast": collectives.broadcast_object(f"from {rank}", source=1),
        "main": on_main(lambda: f"ran on {rank}"),
        "main_value_error": caught(lambda: on_main(lambda: refuse(ValueError))),
        "main_key_error": caught(lambda: on_main(lambda: refuse(KeyError))),
        "every_fine": caught(lambda: on_every_rank(lambda: None)),
        "every": caught(lambda: on_every_rank(lambda: refuse(FileNotFoundError) if rank == 1 else None)),
        "is_main": collectives.is_main(),
    }
    runtime.stop()
    runtime.start()
    found["second_job"] = all_sum(torch.tensor(rank + 1))
    return found


@pytest.fixture(scope="module")
def pair(two_ranks: Callable[[str, str], list[Any]]) -> list[Any]:
    return two_ranks(__file__, "work")


@pytest.mark.parametrize("rank", [0, 1])
def test_sums_and_maxima_cover_both_ranks(pair: list[Any], rank: int) -> None:
    found = pair[rank]
    torch.testing.assert_close(found["float"], torch.tensor([1.5, -2.0]))
    assert found["int"].item() == 2**54 + 1  # more than a float64 holds
    assert found["bool"].tolist() == [1, 2]
    assert found["bfloat16"].dtype == torch.bfloat16
    assert found["max"].tolist() == [1, 5]
    assert found["second_job"] == 3


@pytest.mark.parametrize("rank", [0, 1])
def test_objects_reach_every_rank(pair: list[Any], rank: int) -> None:
    assert pair[rank]["objects"] == [{"rank": 0}, {"rank": 1}]
    assert pair[rank]["broadcast"] == "from 1"
    assert pair[rank]["main"] == "ran on 0"
    assert pair[rank]["is_main"] == (rank == 0)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_rank_is_an_error_on_all(pair: list[Any], rank: int) -> None:
    assert pair[rank]["main_value_error"] == "ValueError: disk full"
    assert pair[rank]["main_key_error"] == "RuntimeError: KeyError: 'disk full'"
    assert pair[rank]["every_fine"] == "no error"
    assert pair[rank]["every"] == "FileNotFoundError: " + ("disk full" if rank == 1 else "rank 1: disk full")
