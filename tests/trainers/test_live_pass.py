"""The first update of a rollout goes on from the pass that scored it, where one pass made it all (D15)."""

from types import ModuleType
from typing import Any

import pytest
import torch

from rlhf.algorithms.kl import ExactKLInLoss, NoKL
from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.algorithms.policy_losses import SequenceClipped
from rlhf.metrics import Metrics

WHOLE: dict[str, Any] = {"micro_batch": 8, "exact_kl": False}


def passes(trainer: Any) -> list[bool]:
    """Whether each forward of the actor has a gradient, from now on."""
    seen: list[bool] = []
    trainer.models.actor.module.register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    return seen


@pytest.mark.parametrize(
    ("epochs", "minibatches", "changes", "expected"),
    [
        (1, 1, {}, [True]),
        (3, 1, {}, [True, True, True]),
        (1, 2, {}, [False, True, True]),
        (1, 1, {"micro_batch": 4}, [False, False, True, True]),
        (1, 1, {"exact_kl": True}, [False, True]),
        (1, 1, {"exact_kl": True, "measure_kl": False}, [True]),
    ],
)
def test_a_forward_is_spared_where_it_would_be_the_same(
    toy: ModuleType, epochs: int, minibatches: int, changes: dict[str, Any], expected: list[bool]
) -> None:
    algorithm = toy.ppo(epochs=epochs, minibatches=minibatches)
    if changes.get("measure_kl") is False:
        algorithm = toy.ppo(epochs=epochs, minibatches=minibatches, kl=NoKL())
    trainer = toy.policy_gradient(algorithm, test=toy.prompt_set(4), **(WHOLE | changes))
    seen = passes(trainer)
    trainer.step()
    assert seen == expected
    seen.clear()
    trainer.evaluate()
    assert set(seen) == {False}


def test_a_loss_that_reads_all_logits_makes_its_own_pass(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(
        toy.grpo(epochs=1, minibatches=1, kl=ExactKLInLoss(coef=0.1)), samples=2, prompts=4, **WHOLE
    )
    seen = passes(trainer)
    trainer.step()
    assert seen == [False, True]


def test_an_actor_that_does_not_learn_yet_keeps_nothing(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(toy.ppo(epochs=1, minibatches=1, critic_warmup=1), **WHOLE)
    seen = passes(trainer)
    trainer.step()
    trainer.step()
    assert seen == [False, True]


def outcome(toy: ModuleType, algorithm: PolicyGradient, options: dict[str, Any]) -> tuple[Any, Metrics]:
    trainer = toy.policy_gradient(
        algorithm, samples=2, prompts=4, reference=toy.actor("reference", packed=True), **WHOLE, **options
    )
    metrics = trainer.step()
    return toy.parameters(trainer.models.actor), metrics


@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo", "sequence"])
@pytest.mark.parametrize("options", [{"packed": True}, {"packed": True, "gradient_checkpointing": True}, {}])
def test_weights_and_metrics_are_those_of_an_update_with_a_forward_of_its_own(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    choices: dict[str, Any] = {"epochs": 1, "minibatches": 1}
    if name == "sequence":
        name, choices["policy_loss"] = "grpo", SequenceClipped()
    algorithm = getattr(toy, name)(**choices)
    spared, metrics = outcome(toy, algorithm, options)
    monkeypatch.setattr(PolicyGradient, "starts_whole", False)
    wanted, expected = outcome(toy, algorithm, options)
    torch.testing.assert_close(spared, wanted, rtol=0, atol=1e-5)  # Adam divides rounding by 1e-5
    assert metrics.pairs.keys() == expected.pairs.keys()
    for key in metrics.pairs.keys() - {key for key in metrics.pairs if key.startswith(("time/", "through"))}:
        assert metrics.pairs[key] == pytest.approx(expected.pairs[key], rel=1e-4, abs=1e-4), key
    assert metrics.maxima["ledger/update_gap_max"] == 0.0
