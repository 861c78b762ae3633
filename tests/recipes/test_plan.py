"""What a recipe's stages are, in which order, and what their references stand for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rlhf.recipes.plan import Planned, Recipe, Stage, plan


def stage(command: str, *overrides: str) -> Stage:
    return Stage(command=command, overrides=list(overrides))


def planned(**fields: Any) -> list[Planned]:
    return plan(Recipe(name="r", **fields))


def overrides(**fields: Any) -> dict[str, list[str]]:
    return {one.label: one.overrides for one in planned(**fields)}


LOOP = {
    "first": {"sft": stage("sft", "data.path={settings.data}")},
    "start": {"policy": "{stages.sft}"},
    "each_round": {
        "generate": stage("generate", "model.path={previous.policy}", "seed={seed}"),
        "select": stage("select", "input=[{rounds.generate}/responses.jsonl]"),
        "policy": stage("sft", "data.path={stages.select}/selected.jsonl", "name_of={round}"),
    },
    "last": {
        "evaluate": stage("evaluate", "+policies.best={stages.policy}", "reference.path={start.policy}")
    },
    "rounds": 2,
    "seed": 3,
    "settings": {"data": "rows.jsonl"},
}


def test_stages_run_once_then_round_by_round_then_once() -> None:
    assert [(one.label, one.command, str(one.folder)) for one in planned(**LOOP)] == [
        ("sft", "sft", "runs/r/sft"),
        ("round_1/generate", "generate", "runs/r/round_1/generate"),
        ("round_1/select", "select", "runs/r/round_1/select"),
        ("round_1/policy", "sft", "runs/r/round_1/policy"),
        ("round_2/generate", "generate", "runs/r/round_2/generate"),
        ("round_2/select", "select", "runs/r/round_2/select"),
        ("round_2/policy", "sft", "runs/r/round_2/policy"),
        ("evaluate", "evaluate", "runs/r/evaluate"),
    ]


def test_a_stage_is_given_its_name_first() -> None:
    assert planned(**LOOP)[1].arguments[0] == "name=r/round_1/generate"


def test_every_reference_is_what_it_says() -> None:
    found = overrides(**LOOP)
    assert found["sft"] == ["data.path=rows.jsonl"]
    assert found["round_1/generate"] == ["model.path=runs/r/sft", "seed=3001"]
    assert found["round_2/generate"] == ["model.path=runs/r/round_1/policy", "seed=3002"]
    assert found["round_1/select"] == ["input=[runs/r/round_1/generate/responses.jsonl]"]
    assert found["round_2/select"] == [
        "input=[runs/r/round_1/generate/responses.jsonl,runs/r/round_2/generate/responses.jsonl]"
    ]
    assert found["round_1/policy"] == ["data.path=runs/r/round_1/select/selected.jsonl", "name_of=1"]
    assert found["round_2/policy"] == ["data.path=runs/r/round_2/select/selected.jsonl", "name_of=2"]
    assert found["evaluate"] == ["+policies.best=runs/r/round_2/policy", "reference.path=runs/r/sft"]


def test_rounds_of_a_stage_that_has_not_been_run_add_nothing_to_a_list() -> None:
    found = overrides(
        first={"begin": stage("generate")},
        each_round={
            "select": stage("select", "input=[{stages.begin}/a,{rounds.generate}/b,c]"),
            "generate": stage("generate"),
        },
        rounds=3,
    )
    assert found["round_1/select"] == ["input=[runs/r/begin/a,c]"]
    assert found["round_3/select"] == [
        "input=[runs/r/begin/a,runs/r/round_1/generate/b,runs/r/round_2/generate/b,c]"
    ]


def test_a_start_can_be_read_before_the_rounds() -> None:
    found = overrides(
        first={"begin": stage("generate", "model.path={start.sft}")},
        start={"sft": "{settings.policy}"},
        settings={"policy": "runs/x"},
        each_round={"sft": stage("sft", "model.path={previous.sft}")},
    )
    assert found == {"begin": ["model.path=runs/x"], "round_1/sft": ["model.path=runs/x"]}


@pytest.mark.parametrize(
    ("value", "typed"),
    [
        (True, "true"),
        (None, "null"),
        (2, "2"),
        (0.5, "0.5"),
        (1e-6, "1e-06"),
        (["a", 1], '["a", 1]'),
        ("", ""),
    ],
)
def test_a_setting_is_typed_as_on_the_command_line(value: object, typed: str) -> None:
    assert overrides(settings={"x": value}, first={"a": stage("sft", "k={settings.x}")}) == {
        "a": [f"k={typed}"]
    }


def test_a_setting_is_not_read_for_references_again() -> None:
    found = overrides(settings={"x": "<{}> {round}"}, first={"a": stage("sft", "k='{settings.x}'")})
    assert found == {"a": ["k='<{}> {round}'"]}


def test_braces_of_a_dict_are_left_alone() -> None:
    found = overrides(first={"a": stage("sft", "k={b: 1, c: {round}}", "d={}")})
    assert found == {"a": ["k={b: 1, c: 0}", "d={}"]}


def test_extra_overrides_come_last_in_every_round() -> None:
    fields = LOOP | {"extra": {"policy": ["epochs={round}"]}}
    found = overrides(**fields)
    assert found["round_1/policy"][-1] == "epochs=1"
    assert found["round_2/policy"][-1] == "epochs=2"
    assert found["round_2/select"] == overrides(**LOOP)["round_2/select"]


def test_more_rounds_begin_with_the_same_stages() -> None:
    without_end = LOOP | {"last": {}}
    assert planned(**(without_end | {"rounds": 5}))[:7] == planned(**without_end)


# What is wrong


def sole(*texts: str) -> dict[str, Any]:
    """A round of the stages a, with the overrides, and b after it."""
    return {"each_round": {"a": stage("sft", *texts), "b": stage("sft")}}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "Recipe must have a stage in first, each_round or last, got none"),
    (sole() | {"rounds": 0}, "Recipe.rounds must be positive, got 0"),
    (sole() | {"first": {"b": stage("sft")}}, "a stage must have a name of its own, got b twice"),
    ({"first": {"a/b": stage("sft")}}, "a stage must have a name of letters, digits and _, got 'a/b'"),
    (sole() | {"start": {"c": "x"}}, "start.c: there is no stage in each_round of that name; there are a, b"),
    (sole() | {"extra": {"bb": []}}, "extra.bb: there is no stage of that name; did you mean b?"),
    (sole("k={stages.b}"), "stage round_1/a: {stages.b} comes later; a stage reads what ran before it"),
    (sole("k={stages.a}"), "stage round_1/a: {stages.a} comes later; a stage reads what ran before it"),
    (sole("k={stages.c}"), "stage round_1/a: there is no {stages.c}; there are a, b"),
    (sole("k=[{rounds.b}]"), "stage round_1/a: {rounds.b} comes later; a stage reads what ran before it"),
    (
        sole("k={rounds.c}"),
        "stage round_1/a: {rounds.c}: there is no stage in each_round of that name; there are a, b",
    ),
    (sole("k={previous.a}"), "stage round_1/a: {previous.a} has no value in the first round; give start.a"),
    (sole("k={previous.c}"), "stage round_1/a: there is no {previous.c}; there are a, b"),
    ({"first": {"a": stage("sft", "k={previous.a}")}}, "stage a: {previous.a} is for stages of each_round"),
    (
        sole() | {"last": {"c": stage("sft", "k={previous.a}")}},
        "stage c: {previous.a} is for stages of each_round",
    ),
    (
        sole("k={previous.a}") | {"start": {"a": "{start.a}"}},
        "start.a: {start.a} is a start itself; write what it stands for",
    ),
    (
        sole("k={previous.a}") | {"start": {"a": "{stages.b}"}},
        "start.a: {stages.b} comes later; a stage reads what ran before it",
    ),
    (sole("k={settings.lr}"), "stage round_1/a: there is no {settings.lr}; there are none"),
    (
        {"each_round": {"a": stage("sft"), "b": stage("sft", "k={start.a}")}, "start": {"a": "{stages.a}"}},
        "start.a: {stages.a} comes later; a stage reads what ran before it",
    ),
    (
        sole("k={settings.learn}") | {"settings": {"learning": 1}},
        "stage round_1/a: there is no {settings.learn}; did you mean learning?",
    ),
    (
        sole("k={stage.b}"),
        "stage round_1/a: {stage.b} is no reference; there are {settings.…}, {start.…}, {stages.…}, "
        "{previous.…}, {rounds.…}, {round} and {seed}",
    ),
    (sole("name=x"), "stage round_1/a must not set name=x: that is for the recipe to give"),
    (sole("++resume=true"), "stage round_1/a must not set ++resume=true: that is for the recipe to give"),
    (sole("hydra.run.dir=x"), "stage round_1/a must not set hydra.run.dir=x: that is for the recipe to give"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_ends_in_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        planned(**fields)
