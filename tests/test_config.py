"""Every file composes and builds, every key is documented and read, and what is wrong is refused."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf import config
from rlhf.cli.composition import choices, compose, groups, options
from rlhf.cli.help import documentation
from rlhf.cli.main import COMMANDS, PLAN

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
PRESETS = sorted(file.relative_to(CONF).with_suffix("").as_posix() for file in CONF.rglob("*.yaml"))
EXPERIMENTS = [preset.removeprefix("experiment/") for preset in PRESETS if preset.startswith("experiment/")]
SCHEMAS = {name: importlib.import_module(f"rlhf.cli.{name}").COMMAND.schema for name in COMMANDS}
config.register(SCHEMAS)

GROUPS, NO_CRITIC = ("rollout.samples=2",), ("algorithm.value_loss=null",)
COMPANIONS = {
    **{
        f"algorithm={name}": GROUPS
        for name in ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_plus_plus_baseline")
    },
    **{
        f"algorithm/advantage={name}": NO_CRITIC
        for name in ("none", "moving_average", "greedy", "whitened_returns")
    },
    **{
        f"algorithm/advantage={name}": NO_CRITIC + GROUPS
        for name in ("leave_one_out", "group_relative", "whitened_group_deviation")
    },
    "algorithm=ppo_ptx": ("pretraining.data.path=texts",),
    "reward=ensemble": ("reward.paths=[a,b]",),
    "reward=ensemble_lowest": ("reward.paths=[a,b]",),
    "reward=endpoint": ("reward.url=http://127.0.0.1:8420",),
    "reward=mixture": ("+reward@reward.parts.right=exact_match", "+reward.weights.right=1.0"),
}
"""What a choice cannot do without."""


def built(name: str, *overrides: str) -> object:
    """The command's configuration with a word, or a number, in place of what has no value yet."""
    raw = compose(name, overrides)
    for key in OmegaConf.missing_keys(raw):
        OmegaConf.update(raw, key, "1")
    return config.build(raw, SCHEMAS[name])


@cache
def used_groups(name: str) -> list[str]:
    return [group for group in choices(name) if group != "experiment"]


def all_choices() -> Iterator[tuple[str, str]]:
    """Each option of each group, with the commands that have the group and take the option."""
    for group in groups():
        users = [name for name in SCHEMAS if group != "experiment" and group in used_groups(name)]
        for name in users if group == "loss" else users[:1]:
            raw = compose(name)
            yield from ((name, f"{group}={option}") for option in options(group, raw))


def nested(annotation: object) -> Iterator[type]:
    """The dataclasses in a type: itself, or inside a union, list or dict."""
    if isinstance(annotation, type) and is_dataclass(annotation):
        yield annotation
    for part in typing.get_args(annotation):
        yield from nested(part)


def reachable(*starts: type) -> set[type]:
    found: set[type] = set()
    waiting = list(starts)
    while waiting:
        component = waiting.pop()
        if component not in found:
            found.add(component)
            for annotation in typing.get_type_hints(component).values():
                waiting += nested(annotation)
    return found


COMPONENTS = sorted(
    reachable(*SCHEMAS.values(), *(option for group in config.GROUPS.values() for option in group.values())),
    key=lambda component: component.__qualname__,
)


# Every file


@pytest.mark.parametrize("preset", PRESETS)
def test_every_file_is_a_command_an_experiment_or_an_option_of_a_known_group(preset: str) -> None:
    folder, _, name = preset.rpartition("/")
    if folder:
        assert folder in config.GROUPS or folder.split("/")[0] in ("experiment", "recipe")
    else:
        assert name in {*COMMANDS, "launch"}


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "launch"])
def test_every_file_says_what_it_is_and_lets_its_own_values_win(preset: str) -> None:
    text = (CONF / f"{preset}.yaml").read_text(encoding="utf-8")
    comments = [line for line in text.splitlines()[:2] if line.startswith("# ") and "@package" not in line]
    assert len(comments) == 1
    values = yaml.safe_load(text)
    defaults = [entry for entry in values.get("defaults", []) if not str(entry).startswith("{'override")]
    if preset.startswith(("experiment/", "recipe/")):
        assert defaults == []  # overrides only
    elif "/" in preset:
        assert defaults[-1] == "_self_"
    else:
        assert defaults[0] == f"{preset}_schema"
        assert defaults[-2:] == ["_self_", {"experiment": None}]


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_command_composes_and_builds(name: str) -> None:
    assert type(built(name)) is SCHEMAS[name]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_command_asks_for_paths_only(name: str) -> None:
    missing = OmegaConf.missing_keys(compose(name))
    assert {key.split(".")[-1] for key in missing} <= {"path"}
    if missing:
        with pytest.raises(ValueError, match=r"no value yet: .*give each as KEY=VALUE") as refusal:
            config.build(compose(name), SCHEMAS[name])
        assert all(key in str(refusal.value) for key in missing)


@pytest.mark.parametrize(("name", "choice"), all_choices())
def test_every_option_of_every_group_composes_and_builds(name: str, choice: str) -> None:
    assert type(built(name, choice, *COMPANIONS.get(choice, ()))) is SCHEMAS[name]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_builds_with_the_command_it_is_named_for(experiment: str) -> None:
    name = Path(experiment).name
    raw = compose(name, [f"experiment={experiment}"])
    assert OmegaConf.missing_keys(raw) == set()
    assert type(config.build(raw, SCHEMAS[name])) is SCHEMAS[name]
    assert raw.name == experiment


def test_every_group_belongs_to_a_command() -> None:
    assert {group for name in SCHEMAS for group in used_groups(name)} == {*config.GROUPS, "recipe"}


# Every key


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.__qualname__)
def test_every_field_is_documented(component: type) -> None:
    assert [name for name, meaning in documentation(component).items() if not meaning] == []


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.__qualname__)
def test_every_component_refuses_stray_attributes(component: type) -> None:
    """``slots``: a plain dataclass would take a misspelt name in silence."""
    assert all("__slots__" in vars(cls) for cls in component.__mro__ if is_dataclass(cls))
    assert all(item.kw_only for item in fields(component))


def test_every_key_is_read_by_something() -> None:
    """By name, as an attribute or through getattr; a ``__post_init__`` checks values and uses none."""
    read: set[str] = set()
    for file in (ROOT / "rlhf").rglob("*.py"):
        read |= set(names_read(ast.parse(file.read_text(encoding="utf-8"))))
    unread = [
        f"{component.__qualname__}.{item.name}"
        for component in COMPONENTS
        for item in fields(component)
        if item.name not in read
    ]
    assert unread == []


def names_read(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef) and child.name == "__post_init__":
            continue
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
            yield child.attr
        if isinstance(child, ast.Call) and ast.unparse(child.func) == "getattr":
            yield from (part.value for part in child.args[1:2] if isinstance(part, ast.Constant))
        yield from names_read(child)


def test_a_check_of_a_value_does_not_count_as_reading_it() -> None:
    checks = "def __post_init__(self):\n    self.a\n"
    source = checks + "def f(x):\n    x.b, getattr(x, 'c'), getattr(x, d)\n    x.e = 1"
    assert set(names_read(ast.parse(source))) == {"b", "c"}


# What is wrong

UNKNOWN = [
    ("sft", "optimizer.lrr=1"),
    ("sft", "learning_rate=1"),
    ("sft", "engine=zero9"),
    ("sft", "experiment=quickstart/nothing"),
    ("sft", "algorithm=ppo"),
    ("reward", "model=tiny_llama"),
    ("rl", "algorithm=ppoo"),
    ("rl", "algorithm.advantage.lamb=1"),
    ("rl", "algorithm/advantage=leave_one_out algorithm.value_loss=null algorithm.advantage.lam=0.9"),
    ("rl", "engine=plain engine.stage=1"),
    ("sft", "experiment=quickstart/sft model=tiny_gpt2"),
]
WRONG_TYPE = [
    ("sft", "optimizer.lr=fast"),
    ("sft", "batch_size=2.5"),
    ("sft", "resume=perhaps"),
    ("sft", "optimizer.lr=null"),
    ("sft", "optimizer=null"),
    ("sft", "engine.precision=int8"),
    ("sft", "data=file.jsonl"),
    ("rl", "algorithm.aggregation=token_mean"),
    ("evaluate", "best_of=16"),
    ("select", "input=scores.jsonl"),
]
ADDED_OR_DELETED = [
    ("sft", "+new.key=1"),
    ("sft", "+momentum=1"),
    ("sft", "+optimizer.momentum=1"),
    ("rl", "+algorithm.advantage.horizon=1"),
    ("rl", "~algorithm.kl"),
    ("sft", "~optimizer"),
    ("sft", "~batch_size"),
]
OUT_OF_RANGE = [
    ("sft", "optimizer.lr=0"),
    ("sft", "optimizer.beta1=1"),
    ("sft", "optimizer.eps=0"),
    ("sft", "optimizer.weight_decay=-1"),
    ("sft", "schedule.warmup=1"),
    ("sft", "schedule.final=2"),
    ("sft", "engine.stage=4"),
    ("sft", "engine.clip=0"),
    ("sft", "engine=zero0 engine.precision=bfloat16"),
    ("sft", "engine=zero3 engine.compile=true"),
    ("sft", "batch_size=0"),
    ("sft", "epochs=0"),
    ("sft", "micro_batch_size=-1"),
    ("rl", "micro_batch_tokens=0"),
    ("sft", "timeout_minutes=0"),
    ("sft", "cadence.evaluate_every=-1"),
    ("sft", "cadence.keep_checkpoints=0"),
    ("sft", "data.max_length=1"),
    ("sft", "data.limit=0"),
    ("sft", "model.hidden=15"),
    ("reward", "epochs=-1"),
    ("reward", "data.max_length=0"),
    ("reward", "loss.center=-1"),
    ("rl", "rollouts=0"),
    ("rl", "rollout.prompts=0"),
    ("rl", "rollout.samples=0"),
    ("rl", "rollout.sampling.temperature=0"),
    ("rl", "rollout.sampling.max_new_tokens=0"),
    ("rl", "prompts.overlong=truncate"),
    ("rl", "prompts.max_prompt_length=0"),
    ("rl", "algorithm.advantage.gamma=1.5"),
    ("rl", "algorithm.advantage.lam=-0.1"),
    ("rl", "algorithm.policy_loss.clip_low=-0.1"),
    ("rl", "algorithm.policy_loss.clip_high=-0.1"),
    ("rl", "algorithm.kl.coef=-1"),
    ("rl", "algorithm.value_loss.clip=-1"),
    ("rl", "algorithm.epochs=0"),
    ("rl", "algorithm.minibatches=0"),
    ("rl", "algorithm.value_loss=null"),
    ("rl", "algorithm=grpo"),
    ("generate", "samples=0"),
    ("generate", "best_of=2"),
    ("generate", "micro_batch_size=0"),
    ("evaluate", "best_of=[16,0]"),
    ("rank", "ridge=-1"),
    ("query", "count=0"),
    ("serve", "port=70000"),
    ("serve", "max_length=0"),
    ("serve", "limits.max_rows=0"),
    ("query", "per_prompt=0"),
    ("select", "selection=top selection.fraction=0"),
    ("select", "selection=quantiles selection.count=1"),
    ("select", "selection=pairs selection.margin=-1"),
]


@pytest.mark.parametrize(("name", "overrides"), [*UNKNOWN, *WRONG_TYPE])
def test_wrong_override_does_not_compose(name: str, overrides: str) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException)):
        compose(name, overrides.split())


@pytest.mark.parametrize(("name", "overrides"), ADDED_OR_DELETED)
def test_added_or_deleted_key_does_not_build(name: str, overrides: str) -> None:
    first = re.split(r"[.=]", overrides.lstrip("+~"))[0]
    with pytest.raises((HydraException, OmegaConfBaseException, ValueError), match=rf"\b{first}\b"):
        config.build(compose(name, overrides.split()), SCHEMAS[name])


@pytest.mark.parametrize(("name", "overrides"), OUT_OF_RANGE)
def test_value_out_of_range_does_not_build(name: str, overrides: str) -> None:
    with pytest.raises(ValueError, match=r"got|must|needs") as refusal:
        built(name, *overrides.split())
    named = re.findall(r"(\w+)=", overrides)[-1]
    assert {"algorithm": "rollout.samples"}.get(named, named) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_building_leaves_the_configuration_as_it_was(name: str) -> None:
    raw = compose(name, ["rollout.samples=2"] if name == "rl" else [])
    for key in OmegaConf.missing_keys(raw):
        OmegaConf.update(raw, key, "1")
    before = OmegaConf.to_yaml(raw)
    first, second = config.build(raw, SCHEMAS[name]), config.build(raw, SCHEMAS[name])
    assert first == second
    assert OmegaConf.to_yaml(raw) == before


def test_values_arrive_with_their_types() -> None:
    made = built("rl", "algorithm.kl.coef=1", "engine.precision=bfloat16", "seed=3")
    assert isinstance(made, config.RL)
    assert made.seed == 3
    assert repr(made.algorithm.kl.coef) == "1.0"  # type: ignore[attr-defined]
    assert made.engine.precision.name == "bfloat16"  # type: ignore[attr-defined]


# What people are told to type


def documented_commands() -> list[str]:
    """The commands in the code blocks of README and docs."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [
        block
        for page in pages
        for block in re.findall(
            r"```(?:bash|sh|python)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
        )
    ]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [found[1] for line in lines if (found := re.search(r"(?:^|\s)(rlhf (?:\w+).*)$", line))]


@pytest.mark.parametrize("line", documented_commands())
def test_documented_command_composes(line: str) -> None:
    """Without what «…» leaves open."""
    _, name, *words = shlex.split(line, comments=True)
    if name == PLAN:  # takes the words of another command
        name = next(word for word in words if word in COMMANDS)
    compose(name, [word for word in words if "=" in word and "…" not in word])


@pytest.mark.parametrize(
    ("overrides", "critic", "reference"),
    [
        ([], ("runs/quickstart/reward", False), "runs/quickstart/sft"),
        (
            ["reward=function", "reward.function=my:reward"],
            ("runs/quickstart/sft", True),
            "runs/quickstart/sft",
        ),
        (["critic.path=values", "reference=old"], ("values", False), "old"),
        (["algorithm=reinforce"], None, "runs/quickstart/sft"),
        (["actor/lora=adapter"], ("runs/quickstart/reward", False), None),
        (["actor/lora=adapter", "reference=old"], ("runs/quickstart/reward", False), "old"),
        (["algorithm=reinforce", "algorithm/kl=none", "measure_kl=false"], None, None),
    ],
)
def test_critic_and_reference_start_where_the_configuration_says(
    overrides: list[str], critic: tuple[str, bool] | None, reference: str | None
) -> None:
    found = built("rl", *overrides)
    assert isinstance(found, config.RL)
    start, other = found.critic_start, found.reference_start
    assert (None if start is None else (start[0].path, start[1])) == critic
    assert getattr(other, "path", None) == reference
