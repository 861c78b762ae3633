from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.models.sources import ModelSource, Pretrained, TinyGPT2, TinyLlama

TINY = [TinyLlama(layers=1, hidden=16, heads=2), TinyGPT2(layers=1, hidden=16, heads=2)]


@pytest.mark.parametrize("source", TINY, ids=lambda source: source.name)
def test_weights_depend_on_the_generator_and_not_on_the_global_state(
    source: ModelSource, tokenizer: Any
) -> None:
    weights = []
    for seed, noise in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        model = source.causal_lm(tokenizer, torch.float32, torch.Generator().manual_seed(seed))
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(model.get_input_embeddings().weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("source", TINY, ids=lambda source: source.name)
def test_tiny_models_have_the_sizes_asked_for(
    source: Any, tokenizer: Any, generator: torch.Generator
) -> None:
    config = source.causal_lm(tokenizer, torch.bfloat16, generator).config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (1, 16, 2)
    assert (config.vocab_size, config.max_position_embeddings) == (11, 64)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)


@pytest.mark.parametrize("tie", [True, False])
def test_the_head_is_tied_when_asked(tie: bool, tokenizer: Any, generator: torch.Generator) -> None:
    for source in (TinyLlama(tie_embeddings=tie), TinyGPT2(tie_embeddings=tie)):
        model = source.causal_lm(tokenizer, torch.bfloat16, generator)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == tie
        assert model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        (TinyLlama, {"layers": 0}, "TinyLlama.layers must be at least 1, got 0"),
        (TinyLlama, {"hidden": 12, "heads": 4}, "TinyLlama.hidden must be a multiple of 8, got 12"),
        (TinyLlama, {"heads": 0}, "TinyLlama.heads must be at least 1, got 0"),
        (TinyGPT2, {"hidden": 10, "heads": 4}, "TinyGPT2.hidden must be a multiple of 4, got 10"),
    ],
)
def test_impossible_sizes_are_refused(kind: Any, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        kind(**sizes)


def test_a_pretrained_model_is_read_from_its_folder(
    build: Any, kind: str, tokenizer: Any, tmp_path: Path, generator: torch.Generator
) -> None:
    build(kind).save_pretrained(tmp_path / "run/model")
    source = Pretrained(path=str(tmp_path / "run"))
    assert source.folder == str(tmp_path / "run/model")
    weights = source.causal_lm(tokenizer, torch.float32, generator).state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in build(kind).state_dict().items())
