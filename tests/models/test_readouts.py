"""From numbers of tokens to the score of a response."""

import math
from types import SimpleNamespace

import pytest
import torch

from rlhf.models.readouts import LastToken, TokenSum, mark_readout, readout_of

REAL = torch.tensor([[True, True, True, True], [True, True, False, False]])
RESPONSE = torch.tensor([[False, False, True, True], [False, True, False, False]])


def test_a_sum_is_of_the_response_and_reads_nothing_else() -> None:
    """2 + 3, and 6; what stands on the prompt and on padding may be anything."""
    values = torch.tensor([[math.nan, 1e9, 2.0, 3.0], [math.inf, 6.0, math.nan, -math.inf]])
    assert TokenSum()(values, REAL, RESPONSE).tolist() == [5.0, 6.0]


def test_the_last_token_is_the_last_real_one() -> None:
    values = torch.tensor([[math.nan, math.nan, math.nan, 3.0], [math.nan, 6.0, math.nan, math.nan]])
    assert LastToken()(values, REAL, RESPONSE).tolist() == [3.0, 6.0]


def test_a_model_names_its_readout_unless_it_is_the_usual_one() -> None:
    for readout, kept in ((TokenSum(), {"score_readout": "token_sum"}), (LastToken(), {})):
        model = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace()))
        mark_readout(model, readout)
        assert vars(model.model.config) == kept
        assert readout_of(model) == readout


def test_an_unknown_readout_is_refused() -> None:
    model = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(score_readout="mean")))
    with pytest.raises(ValueError, match="score_readout must be one of last_token, token_sum, got 'mean'"):
        readout_of(model)
