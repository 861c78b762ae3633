import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rlhf.models.pretrained import model_folder, read_causal_lm, read_classifier


@pytest.fixture
def folder(build: Callable[..., Any], kind: str, tmp_path: Path, tokenizer: Any) -> Path:
    build(kind).save_pretrained(tmp_path / "causal")
    tokenizer.save_pretrained(tmp_path / "causal")
    build(kind, classifier=True).save_pretrained(tmp_path / "reward")
    return tmp_path


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def causal(path: Path | str, tokenizer: Any) -> Any:
    return read_causal_lm(str(path), tokenizer, torch.float32)


def reward(path: Path | str, tokenizer: Any) -> Any:
    return read_classifier(str(path), tokenizer, torch.float32)


def test_a_run_folder_means_its_model_subfolder(folder: Path, tokenizer: Any) -> None:
    run = folder / "run"
    run.mkdir()
    (folder / "causal").rename(run / "model")
    assert model_folder(str(run)) == str(run / "model")
    assert causal(run, tokenizer).config.vocab_size == 11


def test_what_does_not_exist_is_refused_at_once(tmp_path: Path, tokenizer: Any) -> None:
    missing = tmp_path / "nothing"
    assert (
        refusal(lambda: causal(missing, tokenizer))
        == f"{missing} does not exist: no such run or model folder"
    )
    assert "does not exist" in refusal(
        lambda: causal("rlhf/nothing", tokenizer)
    )  # rlhf/ is here: no hub name
    assert "holds no model" in refusal(lambda: causal(tmp_path, tokenizer))


def test_a_reward_model_is_no_language_model(folder: Path, tokenizer: Any) -> None:
    assert "is no language model: its architecture is" in refusal(
        lambda: causal(folder / "reward", tokenizer)
    )


def test_a_language_model_is_no_reward_model(folder: Path, tokenizer: Any) -> None:
    message = refusal(lambda: reward(folder / "causal", tokenizer))
    assert re.search(r"causal is no reward model: its architecture is \w+, needed is", message)


def test_a_reward_model_without_its_head_is_refused(folder: Path, tokenizer: Any) -> None:
    edit(folder / "reward", lambda weights: weights.pop("score.weight"))
    message = refusal(lambda: reward(folder / "reward", tokenizer))
    assert message.endswith("reward is no reward model: its weights lack the head, score.weight")


def test_a_classifier_of_two_labels_is_no_reward_model(
    build: Any, kind: str, tmp_path: Path, tokenizer: Any
) -> None:
    build(kind, classifier=True)
    config_of_two = build(kind).config
    config_of_two.architectures, config_of_two.num_labels = ["GPT2ForSequenceClassification"], 2
    config_of_two.save_pretrained(tmp_path)
    assert "it has 2 labels, needed is 1" in refusal(lambda: reward(tmp_path, tokenizer))


def test_missing_unknown_and_misshapen_weights_are_named(folder: Path, tokenizer: Any) -> None:
    def misshapen(weights: dict[str, torch.Tensor]) -> None:
        weights[name] = torch.zeros(3)

    name = max(
        name
        for name in load_file(folder / "causal/model.safetensors")
        if "ln_f.weight" in name or "norm" in name
    )
    edit(folder / "causal", misshapen)
    assert f"weight {name} has shape (3,), expected (16,)" in refusal(
        lambda: causal(folder / "causal", tokenizer)
    )
    edit(folder / "causal", lambda weights: weights.pop(name))
    assert f"1 weights are missing, the first is {name}" in refusal(
        lambda: causal(folder / "causal", tokenizer)
    )
    edit(folder / "causal", lambda weights: weights.update({name: torch.ones(16), "strange": torch.ones(1)}))
    assert "the first is strange" in refusal(lambda: causal(folder / "causal", tokenizer))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(folder: Path, tokenizer: Any, poison: float) -> None:
    edit(folder / "reward", lambda weights: weights["score.weight"].view(-1)[3].fill_(poison))
    assert "weight score.weight holds NaN" in refusal(lambda: reward(folder / "reward", tokenizer))


def test_a_torn_file_is_refused(folder: Path, tokenizer: Any) -> None:
    file = folder / "causal/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "causal cannot be loaded" in refusal(lambda: causal(folder / "causal", tokenizer))


def test_a_broken_configuration_is_refused(folder: Path, tokenizer: Any) -> None:
    (folder / "causal/config.json").write_text("{", encoding="utf-8")
    assert "causal holds no readable model" in refusal(lambda: causal(folder / "causal", tokenizer))


def test_a_folder_with_other_tokens_of_the_same_number_is_refused(folder: Path) -> None:
    words = {word: number for number, word in enumerate(["<bos>", "<eos>", "<pad>", *"zyxwvuts"])}
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<bos>")),
        eos_token="<eos>",
        pad_token="<pad>",
    )
    message = refusal(lambda: causal(folder / "causal", other))
    assert message.startswith("the tokenizer does not fit")
    assert "8 of the 11 tokens" in message


def test_dropout_is_zero_from_the_configuration_on(folder: Path, tokenizer: Any) -> None:
    file = folder / "causal/config.json"
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout"), 0.5)
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | rates), encoding="utf-8")
    config = causal(folder / "causal", tokenizer).config
    assert all(getattr(config, name) == 0.0 for name in rates)


def test_loading_leaves_the_global_random_state_alone(folder: Path, tokenizer: Any) -> None:
    before = torch.get_rng_state()
    causal(folder / "causal", tokenizer)
    reward(folder / "reward", tokenizer)
    assert torch.equal(torch.get_rng_state(), before)
