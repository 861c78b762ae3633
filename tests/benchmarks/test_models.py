"""Sizes are what they say, and an endless model does not end."""

import pytest
import torch

from benchmarks.cases.models import SMOL, TINY, TWO, Size, endless
from benchmarks.cases.rows import FIRST


@pytest.mark.parametrize("size", [TINY, Size(layers=2, hidden=24, vocabulary=50, heads=6, kv_heads=2)])
def test_a_size_counts_its_matrices(size: Size) -> None:
    matrices = [part for part in size.causal_lm().parameters() if part.dim() > 1]
    assert sum(part.numel() for part in matrices) == size.weights


def test_the_135m_shape_has_134_million_weights() -> None:
    """Published: 134,515,008, of which 35,136 are norms'."""
    assert SMOL.weights == 134_515_008 - 61 * 576


def test_a_step_is_six_operations_a_weight_and_token_and_attention_grows_as_the_square() -> None:
    one = TINY.flops(torch.tensor([10]))
    assert one == 6 * TINY.weights * 10 + 6 * TINY.layers * TINY.hidden * 100
    assert TINY.flops(torch.tensor([10, 10])) == 2 * one


def test_an_endless_model_never_draws_the_first_tokens() -> None:
    model = endless(TWO.causal_lm())
    tokens = torch.randint(FIRST, TWO.vocabulary, (8, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        chances = model(tokens).logits.softmax(2)
    assert chances[:, :, :FIRST].sum(2).max() < 1e-5
    assert chances.sum(2).min() > 0.99


def test_scores_of_a_reward_model_differ_by_about_one() -> None:
    model = TWO.classifier()
    tokens = torch.randint(FIRST, TWO.vocabulary, (64, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = model.model(tokens).last_hidden_state[:, -1]
        assert 0.3 < float(model.score(hidden).std()) < 3.0
