"""On plain modules; sharded ones are in test_deepspeed_engine.py, where the ranks are."""

import pytest
import torch
from torch import nn

from rlhf.distributed.gathering import full_state, gathered, is_sharded, refresh


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


def test_full_state_exports_what_value_says() -> None:
    state = full_state(tied().double(), lambda tensor: tensor.half())
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}


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
