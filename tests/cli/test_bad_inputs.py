"""Bad inputs end in one line that names the thing and what was needed, and overwrite nothing.

Every test runs a command as ``rlhf COMMAND …`` does; those without an own set-up spoil a run that would
succeed (``sft_arguments``, ``rl_arguments``) in one place.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.data.tokenizers import train_bpe
from rlhf.trainers.micro_batches import exact_div

Refused = Callable[..., None]


@pytest.fixture
def refused(rlhf: Any, workspace: Any, tmp_path: Path) -> Refused:
    """``refused(what, "sft", …)``: status 1, one line that has ``what``, and every file as it was."""

    def files() -> dict[Path, bytes]:
        everything = (path for folder in (workspace.folder, tmp_path) for path in folder.rglob("*"))
        return {path: path.read_bytes() for path in everything if path.is_file()}

    def check(what: str, name: str, *arguments: str) -> None:
        before = files()
        outcome = rlhf(name, *arguments)
        after = files()
        assert outcome.status == 1
        ours = [line for line in outcome.err.splitlines() if line.startswith("rlhf ")]
        assert ours == outcome.err.splitlines()[-1:]  # one, and nothing after it
        assert ours[0].startswith(f"rlhf {name}: ")
        assert re.search(what, ours[0]), ours[0]
        assert "Traceback" not in outcome.err
        assert {path: after.get(path) for path in before} == before
        assert all(path.name == "config.yaml" for path in after.keys() - before.keys())

    return check


def rows(file: Path, *values: object) -> str:
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(file)


def demonstration(prompt: object, response: object) -> dict[str, object]:
    return {"prompt": prompt, "response": response}


def chat(role: str, answer: str) -> dict[str, object]:
    return {"messages": [{"role": role, "content": "hello"}, {"role": "assistant", "content": answer}]}


# 1 unknown key, and a run of the real process


def test_unknown_key_is_refused_with_the_nearest_one(refused: Refused, sft_arguments: list[str]) -> None:
    refused(
        r"unknown key optimizer\.lrr; did you mean optimizer\.lr\?$", "sft", *sft_arguments, "optimizer.lrr=1"
    )


def test_process_ends_with_status_one_and_nothing_but_our_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "rlhf", "sft", "optimizer.lrr=1"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == "rlhf sft: unknown key optimizer.lrr; did you mean optimizer.lr?\n"
    assert list(tmp_path.iterdir()) == []


# 2 wrong type


def test_word_for_a_number_is_refused(refused: Refused, sft_arguments: list[str]) -> None:
    refused(r"optimizer\.lr=fast.*'fast'.*Float", "sft", *sft_arguments, "optimizer.lr=fast")


# 3 batch not divisible


def test_rows_that_do_not_divide_by_minibatches_are_refused(
    refused: Refused, rl_arguments: list[str]
) -> None:
    refused(r"rows per rank=4 .* algorithm\.minibatches=3$", "rl", *rl_arguments, "algorithm.minibatches=3")


def test_rows_that_do_not_divide_by_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^batch_size=7 cannot be shared out equally over ranks=2$"):
        exact_div(7, 2, "batch_size", "ranks")


# 4 – 8 files and rows


def test_missing_file_is_refused(refused: Refused, sft_arguments: list[str], tmp_path: Path) -> None:
    refused("nowhere.jsonl: no such file", "sft", *sft_arguments, f"data.path={tmp_path / 'nowhere.jsonl'}")


def test_empty_file_is_refused(refused: Refused, sft_arguments: list[str], tmp_path: Path) -> None:
    refused(
        "empty.jsonl: holds no rows", "sft", *sft_arguments, f"data.path={rows(tmp_path / 'empty.jsonl')}"
    )


def test_broken_json_is_refused_with_its_line(
    refused: Refused, sft_arguments: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "broken.jsonl"
    file.write_text('{"prompt": "a", "response": "b"}\n\n{"prompt": "a", "response": \n')
    refused(
        r"broken\.jsonl:3: broken JSON at column 30: Expecting value",
        "sft",
        *sft_arguments,
        f"data.path={file}",
    )


def test_row_without_a_prompt_is_refused(refused: Refused, rl_arguments: list[str], tmp_path: Path) -> None:
    path = rows(tmp_path / "prompts.jsonl", {"prompt": "a"}, {"promt": "b"})
    refused(
        r"prompts\.jsonl:2: no field 'prompt'; the row has 'promt'",
        "rl",
        *rl_arguments,
        f"prompts.path={path}",
    )


def test_field_that_is_no_string_is_refused(
    refused: Refused, sft_arguments: list[str], tmp_path: Path
) -> None:
    path = rows(tmp_path / "typed.jsonl", demonstration("a", "b"), demonstration(7, "b"))
    what = r"typed\.jsonl:2: field 'prompt' is a number, expected a string"
    refused(what, "sft", *sft_arguments, f"data.path={path}")


# 9 prompt longer than the context


def test_prompt_that_leaves_no_room_in_the_context_is_refused_before_sampling(
    refused: Refused, rl_arguments: list[str], tmp_path: Path
) -> None:
    """The tokenizer has seen none of x, q, z, so that 25 letters and <bos> are 26 tokens, of 32 positions."""
    path = rows(tmp_path / "long.jsonl", {"prompt": "xqzxqzxqzxq"}, {"prompt": "xqz" * 8 + "x"})
    what = r"long\.jsonl: kept row 1 has 26 tokens and max_new_tokens=8, .* context of .*sft.*, 32 positions$"
    refused(what, "rl", *rl_arguments, f"prompts.path={path}", "rollout.sampling.max_new_tokens=8")


def test_memory_that_no_row_fits_in_is_refused(refused: Refused, rl_arguments: list[str]) -> None:
    refused(r"decoding one row takes \d+ bytes", "rl", *rl_arguments, "rollout.memory_gib=1e-7")
    refused(r"memory_gib must be positive or null, got 0\.0", "rl", *rl_arguments, "rollout.memory_gib=0")


def test_held_out_prompt_that_leaves_no_room_is_refused_too(
    refused: Refused, rl_arguments: list[str], tmp_path: Path
) -> None:
    path = rows(tmp_path / "held_out.jsonl", *[{"prompt": "xqz" * 8 + "xqzxq"}] * 2)
    what = r"held_out\.jsonl: kept row 0 has 30 tokens and max_new_tokens=4"
    refused(what, "rl", *rl_arguments, f"test_prompts.path={path}")


def test_demonstration_longer_than_the_context_is_refused(
    refused: Refused, sft_arguments: list[str], tmp_path: Path
) -> None:
    path = rows(tmp_path / "long.jsonl", demonstration("a", "b"), demonstration("x", "abcde"))
    arguments = [*sft_arguments, f"data.path={path}", "tokenizer.vocab_size=259"]  # no merges: a token a byte
    what = r"long\.jsonl: kept row 1 has 8 tokens, more than the context of TinyLlama, 7 positions$"
    refused(what, "sft", *arguments, "model.context=7")


# 10 – 11 chat rows


def test_response_that_the_template_empties_is_refused(
    refused: Refused, sft_arguments: list[str], workspace: Any, tmp_path: Path
) -> None:
    path = rows(tmp_path / "chat.jsonl", chat("user", "fine"), chat("user", "  "))
    tokenizer = f"tokenizer.path={workspace.chat_tokenizer}"
    what = r"chat\.jsonl:2: the response is empty after the chat template"
    refused(what, "sft", *sft_arguments, f"data.path={path}", tokenizer)


def test_unknown_chat_role_is_refused(
    refused: Refused, sft_arguments: list[str], workspace: Any, tmp_path: Path
) -> None:
    path = rows(tmp_path / "chat.jsonl", chat("user", "fine"), chat("human", "fine"))
    tokenizer = f"tokenizer.path={workspace.chat_tokenizer}"
    what = (
        r"chat\.jsonl:2: field 'messages', message 0 has the role 'human', known are system, user, assistant"
    )
    refused(what, "sft", *sft_arguments, f"data.path={path}", tokenizer)


# 12 – 13 models and tokenizers


def test_language_model_as_reward_model_is_refused(
    refused: Refused, rl_arguments: list[str], workspace: Any
) -> None:
    what = r"sft is no reward model: its architecture is LlamaForCausalLM, needed is a …ForSequenceClass"
    refused(what, "rl", *rl_arguments, f"reward.path={workspace.sft}")


def test_tokenizer_that_does_not_fit_the_model_is_refused(
    refused: Refused, workspace: Any, tmp_path: Path
) -> None:
    train_bpe(["zebra zebra zoo zoo"], 264, path=tmp_path / "other")
    arguments = [
        "name=new",
        f"data.path={workspace.demonstrations}",
        "model=pretrained",
        f"model.path={workspace.sft}",
        f"tokenizer.path={tmp_path / 'other'}",
        "engine=plain",
    ]
    what = r"the tokenizer does not fit .*sft: \d+ of the \d+ tokens .* have another number or none"
    refused(what, "sft", *arguments)


# 14 – 16 run folders


def test_run_folder_in_use_is_refused(
    refused: Refused, sft_arguments: list[str], workspace: Any, tmp_path: Path
) -> None:
    shutil.copytree(workspace.sft, tmp_path / "runs" / "used")
    what = r"runs/used already holds a run \(.*metrics.jsonl.*model\): choose another name=…, .*resume=true"
    refused(what, "sft", *sft_arguments, "name=used")


def test_results_in_use_are_refused(refused: Refused, workspace: Any, tmp_path: Path) -> None:
    (tmp_path / "runs" / "used").mkdir(parents=True)
    (tmp_path / "runs" / "used" / "scores.jsonl").write_text("{}\n")
    arguments = [f"reward.path={workspace.reward}", f"data.path={workspace.demonstrations}"]
    refused(r"runs/used already holds scores\.jsonl: choose another name=…", "score", "name=used", *arguments)


def test_resume_from_nothing_is_refused(refused: Refused, sft_arguments: list[str]) -> None:
    what = r"resume=true, but .*runs/new holds no checkpoints to continue from"
    refused(what, "sft", *sft_arguments, "resume=true")


def test_torn_checkpoint_is_refused(
    refused: Refused, sft_arguments: list[str], workspace: Any, tmp_path: Path
) -> None:
    used = tmp_path / "runs" / "used"
    shutil.copytree(workspace.sft, used)
    for checkpoint in (used / "checkpoints").glob("step_*"):
        largest = max(checkpoint.rglob("*"), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-1])
    what = r"no whole checkpoint in .*used/checkpoints: .*step_\d+/.* has \d+ bytes, expected \d+"
    refused(what, "sft", *sft_arguments, "name=used", "resume=true", "optimizer.lr=1")


# 17 chat rows without a template


@pytest.mark.parametrize("name", ["sft", "rl"])
def test_chat_rows_without_a_chat_template_are_refused(
    name: str, refused: Refused, sft_arguments: list[str], rl_arguments: list[str], tmp_path: Path
) -> None:
    turns = chat("user", "fine")
    path = rows(tmp_path / "chat.jsonl", turns | {"prompt": turns["messages"][:1]})  # type: ignore[index]
    data = {"sft": [*sft_arguments, f"data.path={path}"], "rl": [*rl_arguments, f"prompts.path={path}"]}
    what = r"chat\.jsonl:1: chat messages need a chat template, the tokenizer has none"
    refused(what, name, *data[name])


# 18 NaN reward


def test_reward_that_is_not_a_number_is_refused(
    refused: Refused, rl_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "def score(prompts, responses, columns):\n    return [float('nan')] * len(prompts)\n"
    (tmp_path / "undefined_reward.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    arguments = [word for word in rl_arguments if not word.startswith("reward.")]
    what = r"undefined_reward:score gave nan to response 0, prompt '.+': a score must be finite"
    refused(what, "rl", *arguments, "reward=function", "reward.function=undefined_reward:score")


# 19 vocabulary of actor and reference


def test_reference_with_another_vocabulary_is_refused(
    refused: Refused, rl_arguments: list[str], tmp_path: Path
) -> None:
    """Without a tokenizer beside it, whose disagreement would be refused first."""
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng():
        LlamaForCausalLM(config).save_pretrained(tmp_path / "larger")
    what = r"vocabulary mismatch: .*sft.* has \d+ tokens, .*larger has 400"
    refused(what, "rl", *rl_arguments, f"reference={tmp_path / 'larger'}")


def test_reference_with_another_tokenizer_is_refused(
    refused: Refused, rl_arguments: list[str], workspace: Any, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(workspace.sft / "model", other)
    train_bpe(["zebra zebra zoo zoo"], 264, path=other)
    refused(r"the tokenizer does not fit .*other: \d+ of the", "rl", *rl_arguments, f"reference={other}")


# 20 reward model without its head


def test_reward_model_that_lost_its_head_is_refused(
    refused: Refused, rl_arguments: list[str], workspace: Any, tmp_path: Path
) -> None:
    headless = tmp_path / "headless"
    shutil.copytree(workspace.reward / "model", headless)
    weights = load_file(headless / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, headless / "model.safetensors", metadata={"format": "pt"})
    what = r"headless is no reward model: its weights lack the head, score\.weight"
    refused(what, "rl", *rl_arguments, f"reward.path={headless}")
