import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from rlhf.batch import position_ids
from rlhf.models import saving
from rlhf.models.actor import Actor
from rlhf.models.loading import load_actor, load_scalar_model
from rlhf.models.saving import save_model
from rlhf.models.scalar import ScalarModel, score_at_last
from rlhf.models.sources import Pretrained

TOKENS = torch.tensor([[3, 4, 5, 6, 1], [8, 3, 9, 10, 4]])
REAL = torch.ones_like(TOKENS, dtype=torch.bool)


def cpu_state(model: nn.Module) -> dict[str, Tensor]:
    """As an engine gathers it: fresh tensors, shared by names that share a parameter."""
    copies: dict[int, Tensor] = {}
    for weight in model.state_dict(keep_vars=True).values():
        copies.setdefault(id(weight), weight.detach().clone())
    return {name: copies[id(weight)] for name, weight in model.state_dict(keep_vars=True).items()}


def test_transformers_alone_loads_the_policy_bitwise(actor: Actor, tokenizer: Any, tmp_path: Path) -> None:
    save_model(actor, cpu_state(actor), tokenizer, tmp_path / "model")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    assert type(loaded) is type(actor.model)
    assert torch.equal(loaded(TOKENS).logits[:, :-1], actor.logits(TOKENS, REAL, 1))
    assert loaded.config.dtype == torch.float32


@pytest.mark.parametrize(("left", "right"), [(0, 0), (3, 0), (0, 2), (2, 2)])
def test_transformers_alone_loads_the_reward_model_to_the_same_scores(
    scalar: ScalarModel, tokenizer: Any, tmp_path: Path, left: int, right: int
) -> None:
    save_model(scalar, cpu_state(scalar), tokenizer, tmp_path / "model")
    loaded, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(info.values())
    assert (loaded.config.num_labels, loaded.config.pad_token_id) == (1, tokenizer.pad_token_id)
    assert loaded.config.architectures == [type(scalar.model).__name__]
    pads = [torch.full((2, count), tokenizer.pad_token_id) for count in (left, right)]
    tokens = torch.cat([pads[0], TOKENS, pads[1]], 1)
    mask = tokens != tokenizer.pad_token_id
    own = score_at_last(scalar(tokens, mask), mask)
    scores = loaded(tokens, attention_mask=mask.long(), position_ids=position_ids(mask)).logits
    torch.testing.assert_close(scores.squeeze(1), own, rtol=0, atol=1e-6)


def test_the_exported_weights_are_the_given_ones_not_the_modules(
    actor: Actor, tokenizer: Any, tmp_path: Path
) -> None:
    state = cpu_state(actor)
    for weight in actor.parameters():
        weight.data = torch.empty(0)  # as a shard of ZeRO-3 looks from outside
    save_model(actor, state, tokenizer, tmp_path / "model")
    for name, weight in load_file(tmp_path / "model/model.safetensors").items():
        assert torch.equal(weight, state["model." + name])


def test_tied_weights_are_stored_once(
    build: Callable[..., Any], kind: str, tokenizer: Any, tmp_path: Path
) -> None:
    actor = Actor(build(kind, tied=True))
    for number, state in enumerate((cpu_state(actor), {n: w.clone() for n, w in actor.state_dict().items()})):
        save_model(actor, state, tokenizer, tmp_path / str(number))
        assert "lm_head.weight" not in load_file(tmp_path / str(number) / "model.safetensors")


def test_a_saved_folder_is_loaded_by_our_own_loader(
    actor: Actor, scalar: ScalarModel, tokenizer: Any, tmp_path: Path, generator: torch.Generator
) -> None:
    save_model(actor, cpu_state(actor), tokenizer, tmp_path / "sft/model")
    save_model(scalar, cpu_state(scalar), tokenizer, tmp_path / "reward/model")
    policy = load_actor(Pretrained(path=str(tmp_path / "sft")), tokenizer, generator=generator)
    assert torch.equal(policy(TOKENS, REAL, 1).logprobs, actor(TOKENS, REAL, 1).logprobs)
    critic = load_scalar_model(
        Pretrained(path=str(tmp_path / "reward")), tokenizer, generator=generator, fresh_head=False
    )
    for name, weight in critic.state_dict().items():
        assert torch.equal(weight, scalar.state_dict()[name])
    torch.testing.assert_close(critic(TOKENS, REAL), scalar(TOKENS, REAL))  # an ulp: w·h by memory alignment


def test_tokenizer_template_and_end_tokens_travel_along(actor: Actor, tokenizer: Any, tmp_path: Path) -> None:
    actor.model.generation_config.eos_token_id = [5, 6]
    save_model(actor, cpu_state(actor), tokenizer, tmp_path / "model")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    generation = GenerationConfig.from_pretrained(tmp_path / "model")
    assert (generation.eos_token_id, generation.pad_token_id) == ([1, 5, 6], 2)


def test_bfloat16_weights_are_declared_as_such(actor: Actor, tokenizer: Any, tmp_path: Path) -> None:
    rounded = {name: weight.to(torch.bfloat16) for name, weight in cpu_state(actor).items()}
    save_model(actor, rounded, tokenizer, tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.bfloat16


def test_nothing_is_overwritten_unless_asked(actor: Actor, tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "precious").write_text("", encoding="utf-8")
    with pytest.raises(FileExistsError, match="exists already; nothing was overwritten"):
        save_model(actor, cpu_state(actor), tokenizer, folder)
    assert (folder / "precious").exists()
    save_model(actor, cpu_state(actor), tokenizer, folder, replace=True)
    assert not (folder / "precious").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_save_that_dies_leaves_the_old_folder_and_the_next_one_recovers(
    actor: Actor, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(actor, cpu_state(actor), tokenizer, tmp_path / "model")
    before = (tmp_path / "model/model.safetensors").read_bytes()

    def die(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saving, "_sync", die)
        with pytest.raises(KeyboardInterrupt):
            save_model(actor, cpu_state(actor), tokenizer, tmp_path / "model", replace=True)
    assert (tmp_path / "model/model.safetensors").read_bytes() == before
    save_model(actor, cpu_state(actor), tokenizer, tmp_path / "model", replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_state_that_lacks_a_weight_or_holds_another_is_refused(
    actor: Actor, tokenizer: Any, tmp_path: Path
) -> None:
    state = cpu_state(actor)
    lacking = copy.copy(state)
    name = next(iter(lacking))
    del lacking[name]
    for wrong in (lacking, state | {"model.strange": torch.ones(1)}):
        with pytest.raises(ValueError, match=f"exactly the model's weights, ({name}|model.strange) differs"):
            save_model(actor, wrong, tokenizer, tmp_path / "model")
    assert not list(tmp_path.iterdir())
