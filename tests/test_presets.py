"""Presets are what docs/algorithms.md says, wrong ones are refused, and the page's worked example runs."""

from __future__ import annotations

import copy
import importlib.util
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from rlhf import config
from rlhf.cli.composition import choices, compose

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
PRESETS = sorted(file.stem for file in (ROOT / "conf" / "algorithm").glob("*.yaml"))
CHOICES = ["advantage", "policy_loss", "kl", "aggregation", "value_loss"]
config.register({"rl": config.RL})


def built(*overrides: str) -> config.RL:
    texts = ("pretraining.data.path=texts",) if "algorithm=ppo_ptx" in overrides else ()
    raw = compose("rl", [*overrides, *texts])
    for key in OmegaConf.missing_keys(raw):
        OmegaConf.update(raw, key, "1")
    return config.build(raw, config.RL)


def table(heading: str) -> list[list[str]]:
    """Cells of the first table under a heading of the page, without its two head rows."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split(" | ")] for row in rows]


def test_the_page_lists_every_preset() -> None:
    assert sorted(row[0] for row in table("Presets")) == PRESETS


@pytest.mark.parametrize("row", table("Presets"), ids=lambda row: row[0])
def test_a_preset_is_the_five_choices_of_the_page(row: list[str]) -> None:
    name, *expected, updates = row
    chosen = choices("rl", [f"algorithm={name}"])
    assert [chosen.get(f"algorithm/{choice}") or "–" for choice in CHOICES] == expected
    made = built(f"algorithm={name}", "rollout.samples=2").algorithm
    assert f"{made.epochs} × {made.minibatches}" == updates


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_its_paper_in_the_first_line(name: str) -> None:
    first = (ROOT / "conf" / "algorithm" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert re.match(r"# .+ (19|20)\d\d", first)


@pytest.mark.parametrize("group", [f"algorithm/{choice}" for choice in CHOICES])
def test_the_page_explains_every_option(group: str) -> None:
    section = PAGE.partition(f"| `{group}` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) - {"null"} == set(config.GROUPS[group])


def test_dr_grpo_divides_by_the_longest_response() -> None:
    made = built("algorithm=dr_grpo", "rollout.samples=2", "rollout.sampling.max_new_tokens=31").algorithm
    assert made.aggregation.length == 31
    assert not made.advantage.divide_by_std


def test_dapo_knows_the_length_limit() -> None:
    made = built("algorithm=dapo", "rollout.samples=2", "rollout.sampling.max_new_tokens=50").algorithm
    assert (made.policy_loss.clip_low, made.policy_loss.clip_high) == (0.2, 0.28)
    assert made.overlong_penalty(torch.tensor([40, 45, 50])).tolist() == [0.0, -0.5, -1.0]
    assert made.missing_eos_score is None


@pytest.mark.parametrize("name", PRESETS)
def test_what_surrounds_the_loss_can_be_chosen_with_every_preset(name: str) -> None:
    around = ("algorithm/overlong_penalty=soft", "algorithm/correction=masked")
    made = built(f"algorithm={name}", "rollout.samples=2", *around).algorithm
    assert made.overlong_penalty.limit == 24
    assert (made.correction.low, made.correction.high) == (0.5, 2.0)


# Refusals

GROUPED = [
    name
    for name in PRESETS
    if built(f"algorithm={name}", "rollout.samples=2").algorithm.advantage.needs_groups
]


@pytest.mark.parametrize("name", GROUPED)
def test_a_group_of_one_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"^rollout.samples must be at least 2 for \w+, which compares .*got 1$"
    ):
        built(f"algorithm={name}")


def test_gae_without_a_critic_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^PolicyGradient.value_loss must be given for GAE, got None$"):
        built("algorithm.value_loss=null")


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("ppo")])
def test_a_critic_that_nobody_reads_is_refused(name: str) -> None:
    message = r"^PolicyGradient.value_loss must be null for \w+, which reads no critic, got SquaredError$"
    with pytest.raises(ValueError, match=message):
        built(f"algorithm={name}", "rollout.samples=2", "+algorithm/value_loss=squared_error")


@pytest.mark.parametrize("name", config.GROUPS["algorithm/kl"])
def test_no_kl_is_charged_but_k1_and_none_descended_but_k2_k3_and_the_exact_one(name: str) -> None:
    component, real = config.GROUPS["algorithm/kl"][name](), torch.ones(1, 1).bool()
    logprobs, ref = torch.full((1, 1), -1.0), torch.full((1, 1), -4.0)  # k1 = 3, k2 = 4.5, k3 = e⁻³ + 2
    charged = -component.reward(logprobs, ref, real, 1.0).item()
    descended = component.loss(logprobs, ref, real, 1.0).item()
    descended += component.exact_loss(torch.ones(1, 1), real, 1.0).item()
    assert charged in (0.0, 3.0)
    assert any(descended == pytest.approx(loss) for loss in (0.0, 4.5, math.exp(-3) + 2, 1.0))
    assert (charged > 0) + (descended > 0) == (name != "none")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("measure_kl=false",),
            "measure_kl must be true for KLInReward, which reads the reference, got false",
        ),
        (
            ("algorithm/kl=none", "measure_kl=false", "reference=runs/x"),
            "reference must be null where measure_kl is false, got runs/x",
        ),
        (
            ("algorithm.dynamic_sampling=3",),
            "rollout.samples must be at least 2 for algorithm.dynamic_sampling, which compares the scores of "
            "the responses to one prompt, got 1",
        ),
        (
            ("algorithm.dynamic_sampling=0",),
            "PolicyGradient.dynamic_sampling must be at least 1 or null, got 0",
        ),
        (
            ("algorithm.ptx_coef=0.5",),
            "pretraining.data.path must be given for algorithm.ptx_coef=0.5, got null",
        ),
        (
            ("pretraining.data.path=texts",),
            "algorithm.ptx_coef must be positive for pretraining.data.path=texts, got 0",
        ),
        (("algorithm.ptx_coef=-1",), "PolicyGradient.ptx_coef must not be negative, got -1.0"),
        (
            ("actor.ema_decay=1",),
            "ActorConfig.ema_decay must be at least 0 and below 1, or null, got 1.0",
        ),
    ],
)
def test_choices_that_do_not_fit_are_refused_when_composed(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        built(*overrides)


def test_ppo_ptx_asks_for_its_texts() -> None:
    with pytest.raises(
        ValueError, match=r"^pretraining.data.path must be given for algorithm.ptx_coef=1.0, got"
    ):
        config.build(compose("rl", ["algorithm=ppo_ptx"]), config.RL)


# The worked example


def block(language: str) -> str:
    section = PAGE.partition("## How to add an algorithm\n")[2]
    return section.partition(f"```{language}\n")[2].partition("```")[0]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The Python of the page as a module; what it registers is forgotten after the test."""
    monkeypatch.setitem(config.GROUPS["algorithm/advantage"], "win_rate", None)
    monkeypatch.setattr(ConfigStore.instance(), "repo", copy.deepcopy(ConfigStore.instance().repo))
    file = tmp_path / "example.py"
    file.write_text(block("python"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("example", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "example", module)
    spec.loader.exec_module(module)
    return module


def test_the_worked_example_is_short() -> None:
    assert len((block("python") + block("yaml")).splitlines()) < 60


def test_the_worked_example_passes_its_own_test(example: Any) -> None:
    example.test_win_rate_counts_wins_minus_losses()


def test_the_worked_example_is_chosen_by_name(example: Any) -> None:
    config.register({"rl": config.RL})
    preset = OmegaConf.create(block("yaml"))
    ConfigStore.instance().store(group="algorithm", name="win_rate", node=preset)
    made = built("algorithm=win_rate", "rollout.samples=3").algorithm
    assert type(made.advantage) is example.WinRate
    assert type(made.kl) is config.GROUPS["algorithm/kl"]["in_loss"]
    rewards = torch.tensor([[0.5, 0.5], [4.0, 9.0], [2.0, -3.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    found = made.estimate(rewards, None, mask, torch.zeros(3).long(), lambda part: part).advantages
    assert found.tolist() == [[0.0, 0.0], [1.0, 0.0], [-1.0, -1.0]]
    with pytest.raises(ValueError, match=r"rollout.samples must be at least 2 for WinRate"):
        built("algorithm=win_rate")
