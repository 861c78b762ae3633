"""Exporting what two ranks hold in parts: as much memory as the largest parameter, and the same model."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlhf.distributed.engine import Engine
from rlhf.distributed.engine_config import Precision, ZeRO
from rlhf.distributed.gathering import to_main
from rlhf.models import saving
from rlhf.models.actor import Actor
from rlhf.models.saving import save_model
from rlhf.trainers.optimizers import AdamW
from tests.trainers import toy

VOCABULARY = 40_000
LARGEST = VOCABULARY * 384 * 4
"""Bytes of the embedding, tied to the head: 61 of 73 MB altogether."""
TOKENS = torch.arange(12).view(2, 6)
REAL = torch.ones_like(TOKENS, dtype=torch.bool)
CASES = {"float32": Precision.float32, "bfloat16": Precision.bfloat16}


def engine_of(precision: Precision) -> Engine:
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 6}
    config = LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **shape)
    actor = Actor(LlamaForCausalLM(config))
    zero = ZeRO(stage=3, precision=precision, persistence_threshold=0)
    return zero.train(actor, AdamW(lr=1e-3)(actor), "actor")


def grown(action: Callable[[], object]) -> int:
    """Bytes by which this process's resident memory grew at most while it did something."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest figure so far
    before = resident("VmRSS")
    action()
    return resident("VmHWM") - before


def resident(what: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if what in line)
    return int(line.split()[1]) * 1024


def run(precision: Precision, folder: Path) -> dict[str, Any]:
    trained = engine_of(precision)
    trained.backward(-trained(TOKENS, REAL, 1).logprobs.mean() / 2)
    trained.step()
    trained.save(folder / "checkpoint")
    engine = engine_of(precision)
    engine.load(folder / "checkpoint")
    found: dict[str, Any] = {"logprobs": engine(TOKENS, REAL, 1).logprobs.detach()}

    def export() -> None:
        to_main(
            engine.weights(),
            lambda each: save_model(engine.module, each, toy.tokenizer(), folder / "model"),  # type: ignore[arg-type]
        )

    export()  # once, so that what is loaded and compiled is there
    (folder / "model").exists() and (folder / "model").rename(folder / "first")
    found["export"] = grown(export)
    found["whole state"] = grown(engine.state)
    return found


def work(folder: Path) -> dict[str, Any]:
    return {name: run(precision, folder / name) for name, precision in CASES.items()}


@pytest.fixture(scope="module")
def pair(two_ranks: Callable[[str, str], list[Any]]) -> list[Any]:
    return two_ranks(__file__, "work")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rank", [0, 1])
def test_an_export_needs_no_more_than_the_largest_parameter(pair: list[Any], name: str, rank: int) -> None:
    assert LARGEST / 2 < pair[rank][name]["export"] <= 1.2 * LARGEST


def test_the_measure_sees_a_second_copy_of_the_weights(pair: list[Any]) -> None:
    assert pair[0]["float32"]["whole state"] > 1.4 * LARGEST


@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_an_exported_checkpoint_to_the_same_numbers(pair: list[Any], name: str) -> None:
    folder = pair[0]["folder"] / name / "model"
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logprobs = loaded(TOKENS).logits.log_softmax(-1)[:, :-1].gather(-1, TOKENS[:, 1:, None])[..., 0]
    tolerance = 1e-5 if name == "float32" else 0.1  # the engine computes with 8 bits, the export has 24
    torch.testing.assert_close(logprobs, pair[0][name]["logprobs"].float(), rtol=0, atol=tolerance)
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.float32}


def test_a_large_model_is_cut_into_shards_that_transformers_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = toy.actor("sharded")
    monkeypatch.setattr(saving, "SHARD", 3000)
    save_model(actor, actor.state_dict(), toy.tokenizer(), tmp_path / "model")
    files = sorted(file.name for file in (tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    tensors: list[Tensor] = []
    for file in files:
        held = load_file(tmp_path / "model" / file)
        assert len(held) == 1 or sum(weight.nbytes for weight in held.values()) <= 3000
        tensors += held.values()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert len(tensors) == len(dict(loaded.named_parameters()))
    for name, weight in actor.model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])
