"""What is run for one seed: shared pairs, every method by one command, one evaluation of all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START = "runs/quickstart"
"""Where ``launch/quickstart.sh`` has put supervised model, reward model and prompts."""
BEST_OF = (4, 16, 64)
PROMPTS = 256
"""Unseen prompts that every policy answers once."""
SAMPLES = 8
"""Responses of the supervised model to each prompt, the best and the worst of which are a pair."""
GOOD, QUANTILES = "<good> ", 5
PLAIN = ["engine=plain", "cadence.evaluate_every=0", "cadence.checkpoint_every=0"]


@dataclass(kw_only=True, slots=True)
class Method:
    """A policy of the table."""

    name: str
    words: list[str]
    """Of ``rlhf``, after which the policy lies in ``folder``."""
    folder: str
    """Under ``runs``."""
    prefix: str = ""
    """What it is conditioned on."""


def pairs(seed: int) -> Path:
    """Where the rows of the preference losses are."""
    return Path("runs", _place(seed), "pairs", "selected.jsonl")


def shared(seed: int) -> list[list[str]]:
    """Words of the commands that make them."""
    place = _place(seed)
    samples = [
        *("generate", f"name={place}/samples", f"model.path={START}/sft", f"seed={seed}"),
        *(f"prompts.path={START}/data/prompts_train.jsonl", f"samples={SAMPLES}", "micro_batch_size=256"),
        *("reward=model", f"reward.path={START}/reward", "decoding.max_new_tokens=40"),
    ]
    rows = f"input=[runs/{place}/samples/responses.jsonl]"
    return [samples, ["select", f"name={place}/pairs", rows, "selection=pairs"]]


def methods(seed: int) -> list[Method]:
    """All of them, from the same supervised model."""
    place = _place(seed)
    offline = [
        Method(name=name, words=_preference(seed, name, options), folder=f"{place}/{name}")
        for name, options in LOSSES.items()
    ]
    recipes = [
        Method(
            name=name,
            words=["recipe", f"recipe={name}", f"name={place}/{name}", f"seed={seed}", *_recipe(options)],
            folder=f"{place}/{name}/{last}",
            prefix=prefix,
        )
        for name, (options, last, prefix) in RECIPES.items()
    ]
    ppo = [
        *("rl", "experiment=quickstart/rl", f"name={place}/ppo", f"seed={seed}", "rollout.exact_kl=false"),
        *("rollout.sampling.temperature=1.0", *PLAIN),
    ]
    return [*offline, *recipes, Method(name="ppo", words=ppo, folder=f"{place}/ppo")]


LOSSES: dict[str, list[str]] = {
    "preferred_ft": ["loss=preferred_ft", "optimizer.lr=1e-3"],
    "unlikelihood": ["loss=unlikelihood", "optimizer.lr=1e-3", "loss.coef=0.3"],
    "dpo": ["loss=dpo", "optimizer.lr=2e-4", "loss.beta=0.2"],
    "dpo_sft": ["loss=dpo", "optimizer.lr=5e-4", "loss.beta=0.2", "sft_coef=1.0"],
    "cdpo": ["loss=cdpo", "optimizer.lr=2e-4", "loss.beta=0.2", "loss.label_smoothing=0.1"],
    "ipo": ["loss=ipo", "optimizer.lr=5e-4", "loss.tau=0.05"],
    "hinge": ["loss=hinge", "optimizer.lr=2e-4", "loss.beta=0.2"],
    "kto": ["loss=kto", "optimizer.lr=5e-4", "loss.beta=0.2"],
    "orpo": ["loss=orpo", "optimizer.lr=1e-3", "loss.coef=1.0"],
    "simpo": ["loss=simpo", "optimizer.lr=2e-4", "loss.beta=0.5", "loss.margin=0.0"],
}
"""Each with what it was given; epochs and batch are the same for all."""
RECIPES: dict[str, tuple[dict[str, object], str, str]] = {
    "expert_iteration": ({"rounds": 2, "best_of": 16}, "round_2/sft", ""),
    "feedme": ({"samples": SAMPLES, "lr": 1e-3}, "sft", ""),
    "conditioning": ({"samples": SAMPLES, "lr": 2e-3, "epochs": 4}, "sft", GOOD),
    "quark": (
        {"rounds": 3, "samples": 4, "lr": 1e-3, "quantiles": QUANTILES},
        "round_3/sft",
        f"<quantile_{QUANTILES}> ",
    ),
}
"""Settings of each recipe, where its last policy lies in its folder, and what that is conditioned on."""


def evaluation(seed: int, trained: list[Method]) -> list[str]:
    """Words of the command that lets all answer the same unseen prompts at temperature 1."""
    policies = ", ".join(f"{method.name}: runs/{method.folder}" for method in trained)
    prefixes = ", ".join(f'{method.name}: "{method.prefix}"' for method in trained if method.prefix)
    return [
        *("evaluate", f"name={_place(seed)}/evaluate", f"seed={seed}", "reference_name=SFT"),
        *(f"reference.path={START}/sft", f"reward.path={START}/reward", "judge=rlhf.rewards.vader:vader"),
        *(f"+policies={{{policies}}}", f"+prefixes={{{prefixes}}}", f"best_of={list(BEST_OF)}"),
        *(f"prompts.path={START}/data/prompts_test.jsonl", f"prompts.limit={PROMPTS}"),
        *("sampling.temperature=1.0", "sampling.max_new_tokens=40", "micro_batch_size=256"),
    ]


def measured(seed: int) -> list[dict[str, Any]]:
    """The lines of an evaluation that was made."""
    report = Path("runs") / _place(seed) / "evaluate" / "report.json"
    return [{"seed": seed, **row} for row in json.loads(report.read_text(encoding="utf-8"))["policies"]]


def _place(seed: int) -> str:
    return f"methods/seed_{seed}"


def _preference(seed: int, name: str, options: list[str]) -> list[str]:
    return [
        *("preference", f"name={_place(seed)}/{name}", f"model.path={START}/sft", f"seed={seed}"),
        *(f"data.path={pairs(seed)}", "batch_size=32", "micro_batch_size=32", "epochs=2"),
        *(*options, *PLAIN),
    ]


def _recipe(options: dict[str, object]) -> list[str]:
    rounds = [f"rounds={options['rounds']}"] if "rounds" in options else []
    settings = [f"settings.{key}={value}" for key, value in options.items() if key != "rounds"]
    return [*rounds, *settings, "settings.engine=plain"]
