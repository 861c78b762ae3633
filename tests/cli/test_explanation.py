"""What Hydra and OmegaConf complain about, said in one line that names what was needed."""

from __future__ import annotations

from typing import Any

import pytest

CASES = {
    "cadence.evry=1": "unknown key cadence.evry; did you mean cadence.evaluate_every?",
    "engin=zero1": "unknown key engin; did you mean engine?",
    "lr=1": "unknown key lr; did you mean optimizer.lr?",
    "+new.key=1": "unknown key new: no field of that name where it was added",
    "+optimizer.momentum=1": "unknown key optimizer.momentum: no field of that name where it was added",
    "~optimizer": "key optimizer was deleted; give it a value instead",
    "engine=zero9": "engine has no option 'zero9'; did you mean zero?; there are plain, zero, zero0",
    "experiment=quickstart/stf": "experiment has no option 'quickstart/stf'; did you mean quickstart/sft?",
    "batch_size": "'batch_size' is not KEY=VALUE: ",
    "batch_size=[1": "'batch_size=[1' is not KEY=VALUE: ",
    "data.limit=2.5": "Error merging override data.limit=2.5: Value '2.5' of type 'float' could not",
    "optimizer=null": "Error merging override optimizer=null: field 'optimizer' is not Optional",
    "data.overlong=cut": "Error merging override data.overlong=cut: Invalid value 'cut', expected one of",
}


@pytest.mark.parametrize(("override", "expected"), CASES.items())
def test_wrong_override_is_explained(
    override: str, expected: str, rlhf: Any, sft_arguments: list[str]
) -> None:
    outcome = rlhf("sft", *sft_arguments, override)
    assert outcome.status == 1
    assert outcome.err.startswith(f"rlhf sft: {expected}")
    assert outcome.err.count("\n") == 1


def test_choice_that_the_command_does_not_have_is_refused(rlhf: Any) -> None:
    outcome = rlhf("distill", "student=tiny_llama")
    assert outcome.err == "rlhf distill: student is no choice of rlhf distill; its fields are student.path\n"


def test_key_of_another_component_is_refused_with_its_owner(rlhf: Any, rl_arguments: list[str]) -> None:
    choice = ["algorithm/advantage=leave_one_out", "algorithm.value_loss=null"]
    outcome = rlhf("rl", *rl_arguments, *choice, "algorithm.advantage.lam=0.9")
    assert (
        outcome.err == "rlhf rl: unknown key algorithm.advantage.lam: it goes with algorithm/advantage=gae\n"
    )


def test_key_left_over_in_a_preset_is_named(rlhf: Any, sft_arguments: list[str]) -> None:
    own = [word for word in sft_arguments if not word.startswith("model")]
    outcome = rlhf("sft", *own, "experiment=quickstart/sft", "model=tiny_gpt2")
    assert outcome.status == 1
    assert outcome.err.startswith("rlhf sft: unknown key model.intermediate: a file or preset sets it, but")
    assert "TinyGPT2" in outcome.err
