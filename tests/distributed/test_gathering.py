"""On plain modules; sharded ones are in test_deepspeed_engine.py, where the ranks are."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from rlhf.distributed.gathering import (
    full_state,
    gathered,
    is_sharded,
    refresh,
    to_main,
    whole_tensors,
)
from rlhf.tensor_file import Kind, TensorStream


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Embedding(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 5, bias=False))
    model[2].weight = model[0].weight
    return model


def test_full_state_equals_the_state_dict_in_tensors_of_its_own() -> None:
    model = tied()
    state = full_state(model)
    expected = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor)
        assert state[name].data_ptr() != tensor.data_ptr()
    assert state["0.weight"] is state["2.weight"]


def test_tensors_come_one_at_a_time_with_master_weights_in_place_of_bfloat16_ones() -> None:
    model = tied().bfloat16()
    stream = whole_tensors(model, lambda tensor: tensor.float() + 1)
    assert list(stream.kinds) == [name for name in model.state_dict() if name != "2.weight"]
    for name, tensor in stream:
        own = model.state_dict()[name]
        trained = name in dict(model.named_parameters())
        assert torch.equal(tensor, own.float() + 1 if trained else own)
        assert Kind.of(tensor) == stream.kinds[name]


def test_what_fails_on_rank_0_leaves_nothing_ungathered() -> None:
    model, taken = tied(), []
    stream = whole_tensors(model)

    def watched() -> Iterator[torch.Tensor]:
        for tensor in stream.tensors():
            taken.append(tensor)
            yield tensor

    def fail(stream: TensorStream) -> None:
        next(iter(stream))
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        to_main(replace(stream, tensors=watched), fail)
    assert len(taken) == len(stream.kinds) > 1


def test_refresh_copies_parameters_and_buffers_into_the_targets_dtype() -> None:
    source, target = tied(), tied().double()
    source[1].running_mean.fill_(3.0)
    refresh(target, source)
    for name, tensor in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], tensor, check_dtype=False)
    assert target[0].weight.dtype == torch.float64
    assert target[2].weight is target[0].weight


def test_refresh_refuses_another_structure() -> None:
    with pytest.raises(ValueError, match=r"must have the same parameters, bias differs"):
        refresh(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))


def test_plain_modules_are_not_sharded() -> None:
    model = tied()
    assert not is_sharded(model)
    with gathered(*model.parameters()):
        assert model[0].weight.shape == (5, 3)
