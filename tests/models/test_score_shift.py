"""A constant in the score that transformers adds by itself, and what the folder then is to our loader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    GemmaConfig,
    GemmaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from rlhf.models.loading import load_scalar_model
from rlhf.models.saving import save_model
from rlhf.models.scalar import ScalarModel
from rlhf.models.score_shift import expect_place_for_shift
from rlhf.models.sources import Pretrained

TOKENS = torch.tensor([[3, 4, 5, 6, 1], [8, 3, 9, 10, 4]])
REAL = torch.ones_like(TOKENS, dtype=torch.bool)
SIZES = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 20, "num_attention_heads": 2}
SHARED = {"num_key_value_heads": 1, "vocab_size": 11, "initializer_range": 0.3, "pad_token_id": 2}


def relative(kind: str, build: Callable[..., Any]) -> Any:
    """A classifier of that kind with random weights."""
    if kind in ("gpt2", "llama"):
        return build(kind, classifier=True)
    torch.manual_seed(0)
    if kind == "mistral":
        config = MistralConfig(**SIZES, **SHARED, num_labels=1, sliding_window=None)
        return MistralForSequenceClassification(config)
    model = Qwen2ForSequenceClassification(Qwen2Config(**SIZES, **SHARED, num_labels=1))
    for name, weight in model.named_parameters():
        if "bias" in name:
            weight.data.normal_()
    return model


@pytest.mark.parametrize("shift", [-12.345, 800.0, 1e-3])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "qwen2"])
def test_transformers_alone_and_our_loader_give_the_shifted_score(
    build: Callable[..., Any], kind: str, tokenizer: Any, tmp_path: Path, shift: float
) -> None:
    with torch.random.fork_rng():
        scalar = ScalarModel(relative(kind, build))
    raw = scalar(TOKENS, REAL)[:, -1]
    scalar.head.shift.fill_(shift)
    save_model(scalar, scalar.state_dict(), tokenizer, tmp_path / "model")
    loaded, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(info.values())
    tolerance = {"rtol": 1e-6, "atol": 2e-6}  # an ulp of the sum, and of its terms
    torch.testing.assert_close(loaded(TOKENS).logits[:, 0], raw + shift, **tolerance)
    ours = load_scalar_model(
        Pretrained(path=str(tmp_path / "model")), tokenizer, generator=torch.Generator(), fresh_head=False
    )
    torch.testing.assert_close(ours(TOKENS, REAL)[:, -1], raw + shift, **tolerance)


def test_our_loader_takes_the_block_of_a_llama_off_again(
    build: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    scalar = ScalarModel(build("llama", classifier=True))
    scalar.head.shift.fill_(2.5)
    before = {name: weight.clone() for name, weight in scalar.state_dict().items()}
    for turn in range(2):  # and so does the second saving
        save_model(scalar, scalar.state_dict(), tokenizer, tmp_path / str(turn))
        scalar = load_scalar_model(
            Pretrained(path=str(tmp_path / str(turn))),
            tokenizer,
            generator=torch.Generator(),
            fresh_head=False,
        )
    after = scalar.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert scalar.model.config.num_hidden_layers == 2
    assert not any(parameter is scalar.head.shift for parameter in scalar.parameters())  # nothing trains it


def test_without_a_shift_the_folder_is_the_models_own(
    build: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    scalar = ScalarModel(build("llama", classifier=True))
    save_model(scalar, scalar.state_dict(), tokenizer, tmp_path / "model")
    assert (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").config.num_hidden_layers == 2
    )


def test_a_model_without_a_place_for_it_is_refused() -> None:
    with torch.device("meta"):
        gemma = GemmaForSequenceClassification(GemmaConfig(**SIZES, **SHARED, head_dim=12, num_labels=1))
        window = MistralForSequenceClassification(MistralConfig(**SIZES, **SHARED, sliding_window=8))
    for model in (gemma, window):
        with pytest.raises(
            ValueError, match=r"^runs/x: transformers has no place for a constant in the score"
        ):
            expect_place_for_shift(model, "runs/x")


def test_a_head_of_zeros_can_carry_no_constant(
    build: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    scalar = ScalarModel(build("gpt2", classifier=True))
    scalar.head.weight.data.zero_()
    scalar.head.shift.fill_(1.0)
    with pytest.raises(ValueError, match="a head that is 0 everywhere can carry no constant"):
        save_model(scalar, scalar.state_dict(), tokenizer, tmp_path / "model")
