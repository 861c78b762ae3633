"""Configuration: whatever can be set is connected. A tiny run of each command, then one for each field."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from safetensors.torch import load_file

from rlhf import config
from rlhf.cli.application import Command, Place
from rlhf.cli.composition import compose, options
from rlhf.cli.main import COMMANDS
from rlhf.distributed import runtime
from rlhf.models.saving import save_model
from tests.trainers import toy

JOBS: dict[str, Command] = {name: importlib.import_module(f"rlhf.cli.{name}").COMMAND for name in COMMANDS}
config.register({name: command.schema for name, command in JOBS.items()})

TIMINGS = ("time/", "throughput/", "memory/")
BASE = {
    "sft": [
        *("model=tiny_llama", "model.layers=1", "model.hidden=16", "model.heads=2", "model.intermediate=16"),
        *("tokenizer.path=actor", "data.path=rows.jsonl", "test_data.path=rows.jsonl", "test_data.limit=3"),
        *("batch_size=4", "optimizer.lr=0.1", "epochs=1", "data.overlong=drop", "test_data.overlong=drop"),
    ],
    "reward": [
        *("model.path=actor", "data.path=rows.jsonl", "test_data.path=rows.jsonl", "test_data.limit=3"),
        *("batch_size=4", "optimizer.lr=0.1", "epochs=1", "data.overlong=drop", "test_data.overlong=drop"),
    ],
    "preference": [
        *("model.path=actor", "data.path=rows.jsonl", "test_data.path=rows.jsonl", "test_data.limit=3"),
        *("batch_size=4", "optimizer.lr=0.1", "epochs=1", "data.overlong=drop", "test_data.overlong=drop"),
    ],
    "rl": [
        *("actor.model.path=actor", "critic.path=critic", "reward=function"),
        *("reward.function=toy_score:count", "prompts.path=rows.jsonl", "prompts.overlong=drop"),
        *("test_prompts.path=rows.jsonl", "test_prompts.limit=4", "test_prompts.overlong=drop"),
        *("rollout.prompts=4", "rollout.samples=2", "rollout.sampling.max_new_tokens=5", "rollouts=3"),
        *("actor.optimizer.lr=0.1", "critic.optimizer.lr=0.1", "algorithm.missing_eos_score=null"),
    ],
    "distill": [
        *("student.path=actor", "teacher.path=other", "prompts.path=rows.jsonl", "prompts.overlong=drop"),
        *("test_prompts.path=rows.jsonl", "test_prompts.limit=4", "test_prompts.overlong=drop"),
        *("rollout.prompts=4", "rollout.samples=2", "rollout.sampling.max_new_tokens=5", "rounds=3"),
        *("batch_size=8", "optimizer.lr=0.1"),
    ],
}
EVERY = ["engine=plain", "micro_batch_size=4", "cadence.checkpoint_every=0"]
"""A large learning rate, so that every clip is reached."""

OPTIMIZER = {"lr": 0.05, "beta1": 0.5, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.5}
STEPS = {"seed": 1, "engine.clip": 1e-3, "schedule.warmup": 0.6, "cadence.evaluate_every": 1}
"""Each with a value that is not the base's."""


def within(part: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {f"{part}.{name}": value for name, value in fields.items()}


ADAPTER = {"rank": 3, "alpha": 5.0, "target_modules": "[q_proj]"}
GRPO = ["algorithm=grpo", "algorithm.advantage.eps=1e-4"]
PENALTY = ["algorithm=ppo_penalty"]
TEXTS = ["pretraining.data.path=rows.jsonl", "pretraining.data.overlong=drop"]
LABELS = [
    *("loss=kto", "data.label_field=good", "test_data.label_field=good", "engine.clip=null"),
]
PTX = [*TEXTS, "pretraining.batch_size=4", "algorithm.ptx_coef=0.5"]
ADAPTIVE = ["algorithm/kl=in_reward_adaptive"]
NORMALISED = ["normalise.data.path=rows.jsonl", "normalise.data.overlong=drop"]
REFERENCE = {"limit": 5, "max_length": 5, "prompt_field": "other", "response_field": "rejected"}


def judged(part: str) -> dict[str, Any]:
    """What says how responses compare: of pairs, rankings, labelled responses and labelled contexts."""
    ranked = [f"{part}.responses_field=many", f"{part}.ranks_field=order"]
    labelled = [f"{part}.chosen_field=none", f"{part}.label_field=good"]
    single = [*labelled, f"{part}.prompt_field=same"]
    context = [*labelled, f"{part}.response_field=none", f"{part}.label_texts=[a,b]"]
    return {
        "probability_field": "sure",
        "ties": ([f"{part}.probability_field=sure"], "drop"),
        "responses_field": (ranked[1:], "many"),
        "ranks_field": (ranked, "turned"),
        "response_field": (single, "other"),
        "label_field": (single, "bad"),
        "label_texts": (context, "[b,a]"),
    }


OTHER: dict[str, dict[str, Any]] = {
    "sft": {
        **STEPS,
        "schedule.final": 0.9,
        **within("optimizer", OPTIMIZER),
        **within("model", {"layers": 2, "hidden": 32, "heads": 1, "intermediate": 24}),
        "model.tie_embeddings": False,
        "tokenizer.path": (["tokenizer.vocab_size=300"], "null"),
        "tokenizer.vocab_size": (["tokenizer.path=null", "tokenizer.vocab_size=300"], 260),
        **within("data", {"limit": 5, "max_length": 5, "overlong": (["data.max_length=5"], "truncate")}),
        **within("data", {"prompt_field": "other", "response_field": "rejected", "targets": "all"}),
        **within("test_data", {"limit": 5, "max_length": 5, "prompt_field": "other", "targets": "all"}),
        **within("test_data", {"response_field": "rejected"}),
        "test_data.overlong": (["test_data.max_length=5"], "truncate"),
        "test_data.path": "null",
        "batch_size": 6,
        "epochs": 2,
        "kl_coef": 0.5,
        "reference.path": (["kl_coef=0.5"], "other"),
    },
    "reward": {
        **STEPS,
        "schedule.final": 0.9,
        **within("optimizer", OPTIMIZER),
        **within("data", {"limit": 5, "max_length": 7, "overlong": (["data.max_length=7"], "truncate")}),
        **within("data", {"prompt_field": "other", "chosen_field": "other", "rejected_field": "other"}),
        **within("data", {"margin_field": "gap"}),
        **within("test_data", {"limit": 5, "max_length": 7, "prompt_field": "other"}),
        **within("test_data", {"chosen_field": "other", "rejected_field": "other", "margin_field": "gap"}),
        "test_data.overlong": (["test_data.max_length=7"], "truncate"),
        "test_data.path": "null",
        **{f"{part}.{name}": value for part in ("data", "test_data") for name, value in judged(part).items()},
        "model.path": "other",
        "lora": "adapter",
        **{f"lora.{name}": (["lora=adapter"], value) for name, value in ADAPTER.items()},
        "loss.center": 0.5,
        "loss.tie_probability": (["loss=davidson"], 0.8),
        "normalise.data.path": "rows.jsonl",
        "normalise.unit_std": (NORMALISED, True),
        **{f"normalise.data.{name}": (NORMALISED, value) for name, value in REFERENCE.items()},
        "normalise.data.overlong": ([*NORMALISED, "normalise.data.max_length=5"], "truncate"),
        "batch_size": 6,
        "epochs": 2,
    },
    "preference": {
        **STEPS,
        **within("optimizer", OPTIMIZER),
        **within("data", {"limit": 5, "max_length": 7, "overlong": (["data.max_length=7"], "truncate")}),
        **within("data", {"prompt_field": "other", "chosen_field": "other", "rejected_field": "other"}),
        **within("data", {"response_field": (LABELS, "other"), "label_field": (LABELS, "bad")}),
        **within("test_data", {"limit": 5, "max_length": 7, "prompt_field": "other"}),
        **within("test_data", {"chosen_field": "other", "rejected_field": "other"}),
        **within("test_data", {"response_field": (LABELS, "other"), "label_field": (LABELS, "bad")}),
        "test_data.overlong": (["test_data.max_length=7"], "truncate"),
        "test_data.path": "null",
        "model.path": "other",
        "lora": "adapter",
        **{f"lora.{name}": (["lora=adapter"], value) for name, value in ADAPTER.items()},
        "reference.path": "other",
        "loss.beta": 0.5,
        "loss.label_smoothing": (["loss=cdpo"], 0.3),
        "loss.tau": (["loss=ipo"], 0.5),
        "loss.margin": (["loss=simpo"], 0.2),
        "loss.coef": (["loss=orpo"], 0.9),
        "loss.desirable_weight": (LABELS, 2.0),
        "loss.undesirable_weight": (LABELS, 2.0),
        "sft_coef": 0.5,
        "batch_size": 6,
        "epochs": 2,
    },
    "rl": {
        "critic.engine.clip": (["engine@critic.engine=plain"], 1e-6),
        "inference_engine.precision": (["engine@inference_engine=zero2"], "bfloat16"),
        **STEPS,
        **within("actor.optimizer", OPTIMIZER),
        **within("critic.optimizer", OPTIMIZER),
        "actor.model.path": "other",
        "actor/lora": "adapter",
        "critic/lora": "adapter",
        **{
            f"{who}.lora.{name}": ([f"{who}/lora=adapter"], value)
            for who in ("actor", "critic")
            for name, value in ADAPTER.items()
        },
        "critic.path": "other_critic",
        "reference": "other",
        "reward.function": "toy_score:length",
        **within("prompts", {"limit": 5, "prompt_field": "other", "max_prompt_length": 3}),
        **within("test_prompts", {"limit": 5, "prompt_field": "other", "max_prompt_length": 3}),
        "test_prompts.path": "null",
        "rollout.prompts": 6,
        "rollout.samples": 3,
        "rollout.sampling.max_new_tokens": 6,
        "rollout.sampling.temperature": 0.5,
        "rollout.exact_kl": False,
        "rollouts": 2,
        "algorithm.epochs": 2,
        "algorithm.minibatches": 2,
        "algorithm.advantage.gamma": 0.5,
        "algorithm.advantage.lam": 0.5,
        "algorithm.advantage.whiten": False,
        "algorithm.advantage.divide_by_std": (GRPO, False),
        "algorithm.advantage.eps": (GRPO, 0.5),
        "algorithm.advantage.decay": (["algorithm=reinforce"], 0.1),
        "algorithm.aggregation.length": (["algorithm=dr_grpo"], 7),
        "algorithm.policy_loss.clip_low": 0.01,
        "algorithm.policy_loss.clip_high": 0.01,
        "algorithm.policy_loss.dual_clip": 1.21,
        "algorithm.policy_loss.coef": (PENALTY, 3.0),
        "algorithm.policy_loss.target": ([*PENALTY, "algorithm.policy_loss.target=1e-9"], 1e9),
        "algorithm.kl.coef": 0.5,
        "algorithm.kl.target": (ADAPTIVE, 0.1),
        "algorithm.kl.horizon": (ADAPTIVE, 100),
        "algorithm.value_loss.clip": 0.01,
        "algorithm.missing_eos_score": -3.0,
        "algorithm.score_clip": 0.5,
        "algorithm.overlong_penalty.buffer": (["algorithm/overlong_penalty=soft"], 0.9),
        "algorithm.overlong_penalty.limit": (["algorithm/overlong_penalty=soft"], 4),
        "algorithm.overlong_filter": True,
        "algorithm.entropy_coef": 0.5,
        "algorithm.max_old_kl": 1e-6,
        "algorithm.critic_warmup": 1,
        "algorithm.dynamic_sampling": 3,
        "algorithm.ptx_coef": (PTX, 1.0),
        "pretraining.batch_size": (PTX, 6),
        "pretraining.data.limit": (PTX, 5),
        "pretraining.data.max_length": (PTX, 5),
        "pretraining.data.overlong": ([*PTX, "pretraining.data.max_length=5"], "truncate"),
        "pretraining.data.prompt_field": (PTX, "other"),
        "pretraining.data.response_field": (PTX, "rejected"),
        "pretraining.data.targets": (PTX, "all"),
        "actor.ema_decay": 0.5,
        "measure_kl": (["algorithm/kl=none"], False),
    },
    "distill": {
        **STEPS,
        **within("optimizer", OPTIMIZER),
        "student.path": "other",
        "lora": "adapter",
        **{f"lora.{name}": (["lora=adapter"], value) for name, value in ADAPTER.items()},
        "teacher.path": "actor",
        **within("prompts", {"limit": 5, "prompt_field": "other", "max_prompt_length": 3}),
        **within("test_prompts", {"limit": 5, "prompt_field": "other", "max_prompt_length": 3}),
        "test_prompts.path": "null",
        "rollout.prompts": 6,
        "rollout.samples": 3,
        "rollout.sampling.max_new_tokens": 6,
        "rollout.sampling.temperature": 0.5,
        "mixture.beta": 0.5,
        "mixture.decay": (["mixture=geometric"], 0.9),
        "mixture.rounds": (["mixture=linear"], 2),
        "divergence.beta": (["divergence=jensen_shannon"], 0.9),
        "temperature": 2.0,
        "keep_rounds": "null",
        "rounds": 2,
        "steps": 2,
        "batch_size": 6,
    },
}
"""A value for each field that must show, after what has to be set for it to matter."""
ELSEWHERE = {
    "name": "names the folder: test_all_ranks_share_one_run_directory",
    "resume": "test_resume_option_is_used_or_refused",
    "timeout_minutes": "test_collective_timeout_names_rank_and_phase",
    "non_finite": "tests/trainers/test_faults.py",
    "micro_batch_size": "must not show: tests/invariance",
    "micro_batch_tokens": "must not show: tests/invariance",
    "packed": "must not show: tests/invariance",
    "rollout.memory_gib": "must not show: tests/rollout/test_decode_loop.py, tests/cli/test_bad_inputs.py",
    "lora.merge": "tests/cli/test_lora.py",
    "actor.lora.merge": "tests/cli/test_lora.py",
    "gradient_checkpointing": "must not show: tests/invariance",
    "actor.gradient_checkpointing": "must not show: tests/invariance",
    "critic.gradient_checkpointing": "must not show: tests/invariance",
    "engine.compile": "must not show: tests/distributed/test_compilation.py",
    "cadence.checkpoint_every": "tests/trainers/test_loop.py",
    "cadence.keep_checkpoints": "tests/trainers/test_loop.py",
    "lora": "of sft, whose model is random here: tests/cli/test_lora.py",
    "actor.lora": "a group, actor/lora",
    "critic.lora": "a group, critic/lora",
    "data.path": "a run cannot start without it",
    "normalise.data.targets": "the score is read at the last token, whichever are trained",
    "prompts.path": "a run cannot start without it",
    "pretraining.data.path": "ptx_coef and it need each other",
    "prompts.overlong": "refuse is the other value: tests/data/test_fitting.py",
    "test_prompts.overlong": "refuse is the other value: tests/data/test_fitting.py",
    "model.context": "an upper limit: tests/cli/test_bad_inputs.py",
    "reward.timeout_seconds": "tests/rewards/test_time_limit.py",
    "algorithm.correction": "tests/algorithms/test_around_the_loss.py: sampler and scorer are one here",
    "algorithm.overlong_penalty": "its fields",
    "algorithm.value_loss": "its field",
    "critic.engine": "its field",
    "inference_engine": "its field",
}
OF_SETS = ("split", "config", "as_chat", "messages_field")
"""Of data sets with a name, and of conversations: tests/data/test_sources.py and test_chat.py."""


def fields(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, branch in tree.items():
        if isinstance(branch, dict):
            yield from fields(branch, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.mark.parametrize("command", OTHER)
def test_no_field_is_left_out(command: str) -> None:
    choices = {
        "rl": [
            ["reward=function", "actor/lora=adapter", "critic/lora=adapter"],
            *(["reward=function", f"algorithm={name}"] for name in options("algorithm")),
        ],
        "reward": [
            ["lora=adapter"],
            *([f"loss={name}"] for name in options("loss", compose("reward"))),
        ],
        "preference": [
            ["lora=adapter"],
            *([f"loss={name}"] for name in options("loss", compose("preference"))),
        ],
        "distill": [
            ["lora=adapter"],
            *([f"mixture={name}"] for name in options("mixture")),
            *([f"divergence={name}"] for name in options("divergence")),
        ],
    }
    variants = choices.get(command, [[]])
    found = {
        name
        for variant in variants
        for name in fields(OmegaConf.to_container(compose(command, ["engine=plain", *variant])))
        if name.rpartition(".")[2] not in OF_SETS
    }
    assert found - set(OTHER[command]) - set(ELSEWHERE) == set()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict[str, Any]]]:
    """What a command leaves with these settings; each is run once."""
    place, known = tmp_path_factory.mktemp("fields"), {}
    tokenizer = toy.tokenizer()
    models = {"actor": toy.actor(), "other": toy.actor("other")}
    models |= {"critic": toy.scalar(), "other_critic": toy.scalar("other")}
    for name, model in models.items():
        save_model(model, model.state_dict(), tokenizer, place / name)
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (place / "toy_score.py").write_text(
        "def count(prompts, responses, columns):\n    return [float(r.count('a')) for r in responses]\n\n\n"
        "def length(prompts, responses, columns):\n    return [float(len(r)) for r in responses]\n"
    )

    def of(command: str, settings: tuple[str, ...]) -> dict[str, Any]:
        if (command, settings) not in known:
            folder = place / f"run{len(known)}"
            launch(folder, command, [*BASE[command], *EVERY, *settings, "name=run"])
            known[command, settings] = left_in(folder)
        return known[command, settings]

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}.items():
            patch.setenv(name, value)
        patch.setattr(Figure, "savefig", lambda *_, **__: None)  # most of a run's time
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        yield of


def rows() -> list[dict[str, Any]]:
    """Prompts and responses of one to six words; nothing is as long as its neighbour."""
    texts = ["a b c d", "b", "c a", "d e f", "e a b c", "f g", "g a h", "h"]
    return [
        {
            "prompt": text,
            "other": texts[-1 - row],
            "response": f"a {text} b",
            "chosen": f"b {text}",
            "rejected": texts[row - 1],
            "gap": float(row),
            "good": row % 2 == 0,
            "bad": row % 3 == 0,
            "same": "a",
            "sure": 0.5 + row % 2 / 4,
            "many": [text, texts[-1 - row], "a h"],
            "order": [1, 2, 2],
            "turned": [2, 1, 2],
        }
        for row, text in enumerate(texts)
    ]


def launch(folder: Path, command: str, settings: list[str]) -> None:
    raw = compose(command, settings)
    made = config.build(raw, JOBS[command].schema)
    place = Place(runtime=runtime.start(timeout=timedelta(minutes=1)), folder=folder, resolved="")
    try:
        JOBS[command].job(made, place)
    finally:
        runtime.stop()


def left_in(folder: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return {
        "weights": load_file(folder / "model" / "model.safetensors"),
        "metrics": [
            {key: row[key] for key in row if not key.startswith(TIMINGS) and not key.endswith("/lr")}
            for row in rows
        ],
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    first, second = one["weights"], other["weights"]
    return (
        one["metrics"] == other["metrics"]
        and first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) for name in first)
    )


CASES = [(command, key) for command, keys in OTHER.items() for key in keys]


@pytest.mark.parametrize(("command", "key"), CASES, ids=[f"{command} {key}" for command, key in CASES])
def test_every_field_changes_the_result(
    outcome: Callable[..., dict[str, Any]], command: str, key: str
) -> None:
    value = OTHER[command][key]
    before, value = value if isinstance(value, tuple) else ([], value)
    base = outcome(command, tuple(before))
    assert not same(outcome(command, (*before, f"{key}={str(value).lower()}")), base)


@pytest.mark.parametrize("command", OTHER)
def test_the_same_settings_give_the_same_result(outcome: Callable[..., dict[str, Any]], command: str) -> None:
    """The control: without it every field would seem to matter."""
    assert same(outcome(command, ("micro_batch_size=4",)), outcome(command, ()))
