import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.models.scalar import ScalarModel, score_at_last, state_values

TOKENS = torch.tensor([[3, 4, 5, 6, 1], [8, 3, 9, 10, 4]])
REAL = torch.ones_like(TOKENS, dtype=torch.bool)


def padded(tokens: Tensor, left: int, right: int) -> tuple[Tensor, Tensor]:
    rows = len(tokens)
    pads = [torch.full((rows, n), 2) for n in (left, right)]
    mask = torch.cat([pads[0] > 2, torch.ones_like(tokens, dtype=torch.bool), pads[1] > 2], 1)
    return torch.cat([pads[0], tokens, pads[1]], 1), mask


def test_output_is_w_times_the_normed_hidden_state(build: Callable[..., Any], kind: str) -> None:
    model = build(kind, classifier=True)
    hidden = copy.deepcopy(model).base_model(TOKENS).last_hidden_state  # after the final norm
    expected = hidden @ model.score.weight[0]
    torch.testing.assert_close(ScalarModel(model)(TOKENS, REAL), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("first", [0, 2, 4])
def test_column_t_belongs_to_position_first_plus_t(scalar: ScalarModel, first: int) -> None:
    whole = scalar(TOKENS, REAL)
    torch.testing.assert_close(scalar(TOKENS, REAL, first), whole[:, first:], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("left", "right"), [(0, 0), (3, 0), (0, 3), (3, 4), (17, 1)])
def test_the_score_is_the_same_with_any_padding(scalar: ScalarModel, left: int, right: int) -> None:
    expected = score_at_last(scalar(TOKENS, REAL), REAL)
    tokens, mask = padded(TOKENS, left, right)
    torch.testing.assert_close(score_at_last(scalar(tokens, mask), mask), expected, rtol=0, atol=1e-5)
    alone = torch.cat(
        [score_at_last(scalar(t[None], m[None]), m[None]) for t, m in zip(tokens, mask, strict=True)]
    )
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5)


def test_masked_outputs_are_zero_and_poison_in_the_padding_changes_nothing(scalar: ScalarModel) -> None:
    tokens, mask = padded(TOKENS, 2, 1)
    output = scalar(tokens, mask)
    assert (output[~mask] == 0).all()
    assert torch.equal(output, scalar(tokens.masked_fill(~mask, -(10**9)), mask))


def test_the_last_real_token_is_the_right_most_true() -> None:
    values = torch.arange(1.0, 13.0).reshape(3, 4)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]]).bool()
    assert score_at_last(values, mask).tolist() == [2.0, 8.0, 11.0]


def test_a_row_without_tokens_scores_zero_even_over_nan() -> None:
    values = torch.tensor([[float("nan"), 1.0], [2.0, 3.0]])
    assert score_at_last(values, torch.tensor([[False, False], [True, False]])).tolist() == [0.0, 2.0]


def test_values_are_of_the_state_before_each_token() -> None:
    values = torch.tensor(
        [[1.0, 2.0, 3.0, 4.0, 5.0]]
    )  # P = 2, T = 3: states before tokens at columns 2, 3, 4
    mask = torch.tensor([[True, True, False]])
    assert state_values(values, 2, mask).tolist() == [[2.0, 3.0, 0.0]]


def test_token_t_moves_the_value_after_it_and_not_its_own(scalar: ScalarModel) -> None:
    changed = TOKENS.clone()
    changed[:, 3] = 9  # response token t = 1 with P = 2
    before, after = (state_values(scalar(tokens, REAL), 2, REAL[:, 2:]) for tokens in (TOKENS, changed))
    torch.testing.assert_close(before[:, :2], after[:, :2], rtol=0, atol=1e-6)
    assert ((before - after)[:, 2].abs() > 1e-4).all()


def test_the_critic_after_the_last_token_is_the_score(scalar: ScalarModel) -> None:
    """Numerics D34: critic and reward model are one network, read one column apart."""
    tokens, mask = padded(TOKENS, 2, 1)
    output = scalar(tokens, mask)
    assert torch.equal(score_at_last(output, mask), output[:, 2 + 5 - 1])


def test_train_mode_changes_nothing(scalar: ScalarModel) -> None:
    assert torch.equal(scalar.train()(TOKENS, REAL), scalar.eval()(TOKENS, REAL))


def test_bfloat16_scores_stay_near_float32_ones(build: Callable[..., Any], kind: str) -> None:
    model = ScalarModel(build(kind, classifier=True))
    exact = model(TOKENS, REAL)
    rounded = copy.deepcopy(model).to(torch.bfloat16)(TOKENS, REAL)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()  # a bound, not equality (D21)


def test_checkpointing_changes_no_gradient(build: Callable[..., Any], kind: str) -> None:
    gradients = []
    for saving in (False, True):
        model = ScalarModel(build(kind, classifier=True), gradient_checkpointing=saving).train()
        model(TOKENS, REAL).sum().backward()
        gradients.append([weight.grad for weight in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_a_head_of_two_labels_is_refused(build: Callable[..., Any]) -> None:
    model = build("llama", classifier=True)
    model.score = torch.nn.Linear(16, 2, bias=False)
    with pytest.raises(ValueError, match="one output and no bias"):
        ScalarModel(model)


@pytest.mark.parametrize("first", [-1, 5])
def test_first_out_of_range_is_refused(scalar: ScalarModel, first: int) -> None:
    with pytest.raises(ValueError, match=r"first must lie in \[0, 5\)"):
        scalar(TOKENS, REAL, first)
