import math

import pytest
import torch
from torch import nn

from rlhf.trainers.optimizers import AdamW


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[1.0, -2.0]]))
        self.bias = nn.Parameter(torch.tensor([3.0]))
        self.frozen = nn.Parameter(torch.tensor([[5.0]]), requires_grad=False)


def stepped(optimizer: AdamW, gradients: tuple[list[float], float]) -> Module:
    module = Module()
    module.matrix.grad, module.bias.grad = torch.tensor([gradients[0]]), torch.tensor([gradients[1]])
    optimizer(module).step()
    return module


def test_first_step_is_the_gradient_over_its_size_plus_eps() -> None:
    # PyTorch's form; TensorFlow's would add 31.6·eps (numerics D42).
    module = stepped(AdamW(lr=0.1, eps=1e-3), ([1e-3, -4.0], 1e-3))
    expected = torch.tensor([[1 - 0.1 * 0.5, -2 + 0.1 * 4 / 4.001]])
    torch.testing.assert_close(module.matrix.data, expected)
    torch.testing.assert_close(module.bias.data, torch.tensor([3 - 0.1 * 0.5]))


def test_eps_is_1e_5_unless_said() -> None:
    assert AdamW().eps == 1e-5


def test_only_matrices_decay() -> None:
    module = stepped(AdamW(lr=0.1, weight_decay=0.5), ([0.0, 0.0], 0.0))
    torch.testing.assert_close(module.matrix.data, torch.tensor([[0.95, -1.9]]))
    assert module.bias.item() == 3.0


def test_what_is_frozen_is_left_out() -> None:
    module = Module()
    held = [parameter for group in AdamW()(module).param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(module.matrix), id(module.bias)}


def test_a_module_of_matrices_alone_has_one_group() -> None:
    assert len(AdamW()(nn.Linear(2, 2, bias=False)).param_groups) == 1


@pytest.mark.parametrize(
    ("field", "value", "needed"),
    [
        ("lr", 0.0, "must be positive"),
        ("beta1", 1.0, r"must be in \[0, 1\)"),
        ("beta2", -0.1, r"must be in \[0, 1\)"),
        ("eps", 0.0, "must be positive"),
        ("weight_decay", -1.0, "must not be negative"),
        ("lr", math.nan, "must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: float, needed: str) -> None:
    with pytest.raises(ValueError, match=f"AdamW.{field} {needed}, got {value}"):
        AdamW(**{field: value})
