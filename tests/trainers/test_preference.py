"""Preference optimisation through its trainer, against texts that are scored one by one."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rlhf.algorithms.preference_losses import DPO, IPO, KTO, ORPO, PreferredFT, SimPO
from rlhf.distributed.engine_config import Plain


def own_tokens(actor: Any, text: Any) -> Tensor:
    """log π of the target tokens of one text, alone and unpadded."""
    tokens = torch.tensor([text.tokens])
    logits = actor.model(input_ids=tokens).logits[0, :-1]
    found = logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    return found[torch.tensor(text.targets[1:])]


def sums(actor: Any, texts: Any) -> Tensor:
    return torch.stack([own_tokens(actor, text).sum() for text in texts])


def means(actor: Any, texts: Any) -> Tensor:
    return torch.stack([own_tokens(actor, text).mean() for text in texts])


def mean(metrics: Any, name: str) -> float:
    total, count = metrics.pairs[name]
    return total / count


def gradient_norm(loss: Tensor, module: Any) -> float:
    module.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm()
    module.zero_grad(set_to_none=True)
    return float(norm)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("source", ["LLAMA", "GPT2"])
def test_dpo_is_the_mean_over_pairs_of_summed_log_ratios(toy: ModuleType, source: str, packed: bool) -> None:
    rows, kind = toy.preference_set(), getattr(toy, source)
    trainer = toy.preference(
        DPO(beta=0.2),
        source=kind,
        batch_size=12,
        micro_batch_size=5,
        engine=Plain(clip=None),
        sft_coef=0.3,
        packed=packed,
    )
    policy, reference = trainer.engine.module, toy.actor("reference", kind)
    chosen, rejected = (
        0.2 * (sums(policy, side) - sums(reference, side).detach()) for side in (rows.chosen, rows.rejected)
    )
    expected = (F.softplus(rejected - chosen) - 0.3 * means(policy, rows.chosen)).mean()
    norm = gradient_norm(expected, policy)
    metrics = trainer.step()
    assert mean(metrics, "loss") == pytest.approx(float(expected.detach()), rel=1e-5)
    assert mean(metrics, "actor/grad_norm") == pytest.approx(norm, rel=1e-4)
    assert mean(metrics, "reward/accuracy") == pytest.approx((chosen > rejected).double().mean().item())
    for name, value in {
        "reward/margin": chosen - rejected,
        "reward/chosen": chosen,
        "reward/rejected": rejected,
        "actor/chosen_logprob": sums(policy_before(toy, kind), rows.chosen),
        "actor/rejected_logprob": sums(policy_before(toy, kind), rows.rejected),
    }.items():
        assert mean(metrics, name) == pytest.approx(value.detach().mean().item(), rel=1e-4), name
    assert metrics.pairs["loss"][1] == 12


def policy_before(toy: ModuleType, kind: Any) -> Any:
    return toy.actor("actor", kind)


def test_length_normalised_losses_count_response_tokens_alone(toy: ModuleType) -> None:
    """Neither the prompt nor padding is in the mean; the end token is."""
    rows, policy = toy.preference_set(), toy.actor("actor")
    w, l = (means(policy, side).detach() for side in (rows.chosen, rows.rejected))  # noqa: E741
    cases: list[tuple[Any, Tensor]] = [
        (SimPO(beta=2.0, margin=0.5), F.softplus(-(2 * w - 2 * l - 0.5))),
        (ORPO(coef=0.4), -w + 0.4 * F.softplus(torch.logit(l.exp()) - torch.logit(w.exp()))),
        (PreferredFT(), -sums(policy, rows.chosen).detach()),
    ]
    for loss, values in cases:
        metrics = toy.preference(loss, batch_size=12).step()
        assert mean(metrics, "loss") == pytest.approx(values.mean().item(), rel=1e-5)


def test_the_end_token_is_scored_and_the_prompt_is_not(toy: ModuleType) -> None:
    trainer = toy.preference(PreferredFT(), batch_size=12)
    rows, policy = toy.preference_set(), toy.actor("actor")
    whole = [sum(text.targets) for text in rows.chosen]
    assert all(text.tokens[-1] == toy.EOS and text.targets[-1] for text in rows.chosen)
    assert [len(own_tokens(policy, text)) for text in rows.chosen] == whole
    assert mean(trainer.step(), "actor/chosen_logprob") == pytest.approx(
        sums(policy, rows.chosen).mean().item(), rel=1e-5
    )


def test_at_the_reference_dpo_is_log_two_and_rewards_are_zero(toy: ModuleType) -> None:
    for packed in (False, True):
        trainer = toy.preference(reference=toy.actor("actor", packed=packed), packed=packed, batch_size=12)
        metrics = trainer.step()
        assert mean(metrics, "loss") == pytest.approx(math.log(2), abs=1e-6)
        for name in ("reward/margin", "reward/chosen", "reward/rejected"):
            assert abs(mean(metrics, name)) < 1e-5


LOSSES = [DPO(), IPO(), SimPO(), KTO()]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_micro_batches_packing_and_padding_do_not_change_the_update(toy: ModuleType, loss: Any) -> None:
    layouts = [
        {"micro_batch_size": 12},
        {"micro_batch_size": 1},
        {"micro_batch_size": 5},
        {"micro_batch_size": 5, "packed": True},
        {"micro_batch_size": 5, "packed": True, "micro_batch_tokens": 40},
        {"micro_batch_size": 5, "gradient_checkpointing": True},
    ]
    updated, metrics = [], []
    for layout in layouts:
        trainer = toy.preference(loss, batch_size=12, lr=1e-3, sft_coef=0.1, **layout)
        metrics.append(trainer.step())
        updated.append(toy.parameters(trainer.engine))
    for layout, other, numbers in zip(layouts, updated, metrics, strict=True):
        torch.testing.assert_close(other, updated[0], rtol=0, atol=3e-6, msg=str(layout))
        for name, (_, count) in metrics[0].pairs.items():
            if name.startswith(("loss", "reward/", "actor/")):
                assert mean(numbers, name) == pytest.approx(mean(metrics[0], name), rel=2e-5, abs=1e-6), name
                assert numbers.pairs[name][1] == count


def test_pad_is_never_read(toy: ModuleType) -> None:
    losses = []
    for pad in (toy.PAD, 999):
        rows = toy.preference_set()
        rows.pad_id = pad
        losses.append(mean(toy.preference(train=rows).step(), "loss"))
    assert losses[0] == losses[1]


def own_kto(toy: ModuleType, rows: Any, beta: float, shift: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each row, their rewards, and z, of a reference that finds mismatched texts less likely."""
    policy, reference = toy.actor("actor"), toy.actor("reference")
    ratio = (sums(policy, rows.texts) - sums(reference, rows.texts)).detach()
    others = (sums(policy, rows.mismatched) - sums(reference, rows.mismatched)).detach()
    z = beta * (others.mean() + shift).clamp(min=0)
    good = torch.tensor(rows.desirable)
    values = torch.where(good, torch.sigmoid(beta * ratio - z), torch.sigmoid(z - beta * ratio))
    return 1 - values, beta * ratio, z


@pytest.mark.parametrize("shift", [-30.0, 0.0, 30.0])
@pytest.mark.parametrize("micro", [1, 5, 12])
def test_kto_compares_with_the_baseline_of_the_whole_batch(toy: ModuleType, micro: int, shift: float) -> None:
    rows = toy.labelled_set()
    trainer = toy.preference(KTO(beta=0.2), batch_size=12, micro_batch_size=micro)
    trainer.train.reference[:, 1] -= shift
    loss, reward, z = own_kto(toy, rows, 0.2, shift)
    assert (z > 1.0) == (shift > 0)
    assert (z == 0.0) or (shift >= 0)
    metrics = trainer.step()
    good = torch.tensor(rows.desirable)
    assert mean(metrics, "loss") == pytest.approx(loss.mean().item(), rel=1e-5)
    assert mean(metrics, "reward/baseline") == pytest.approx(z.item(), rel=1e-4, abs=1e-6)
    assert metrics.pairs["reward/chosen"][1] == sum(rows.desirable)
    assert mean(metrics, "reward/chosen") == pytest.approx(reward[good].mean().item(), rel=1e-4)
    assert mean(metrics, "reward/rejected") == pytest.approx(reward[~good].mean().item(), rel=1e-4)
    assert mean(metrics, "reward/accuracy") == pytest.approx(((reward > z) == good).double().mean().item())


def test_the_sft_term_of_kto_is_of_good_responses(toy: ModuleType) -> None:
    rows = toy.labelled_set()
    good = torch.tensor(rows.desirable)
    imitation = -means(toy.actor("actor"), rows.texts).detach()
    without, with_it = (toy.preference(KTO(), batch_size=12, sft_coef=coef).step() for coef in (0.0, 0.5))
    added = mean(with_it, "loss") - mean(without, "loss")
    assert added == pytest.approx(0.5 * torch.where(good, imitation, 0.0).mean().item(), rel=1e-4)


@pytest.mark.parametrize("micro", [2, 5, 7])
@pytest.mark.parametrize("stage", ["preference", "kto"])
def test_evaluation_counts_each_row_once(toy: ModuleType, stage: str, micro: int) -> None:
    held_out = (toy.preference_set if stage == "preference" else toy.labelled_set)(7, "held out")
    trainer = getattr(toy, stage)(test=held_out, micro_batch_size=micro)
    metrics = trainer.evaluate()
    if stage == "kto":
        expected = own_kto(toy, held_out, 0.1)[0]
    else:
        policy, reference = toy.actor("actor"), toy.actor("reference")
        w, l = (  # noqa: E741
            0.1 * (sums(policy, side) - sums(reference, side))
            for side in (held_out.chosen, held_out.rejected)
        )
        expected = F.softplus(l - w)
    assert metrics.pairs["eval/loss"][1] == 7
    assert mean(metrics, "eval/loss") == pytest.approx(expected.detach().mean().item(), rel=1e-5)


def test_without_held_out_rows_nothing_is_evaluated(toy: ModuleType) -> None:
    assert toy.preference().evaluate().pairs == {}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_training_learns_what_was_preferred(toy: ModuleType, loss: Any) -> None:
    trainer = toy.preference(loss, batch_size=12, micro_batch_size=12, total=40)
    first = trainer.step()
    for _ in range(39):
        last = trainer.step()
    assert mean(last, "reward/accuracy") == 1.0
    assert mean(last, "loss") < mean(first, "loss")


def test_the_reference_does_not_learn(toy: ModuleType) -> None:
    trainer = toy.preference()
    before = trainer.train.reference.clone()
    for _ in range(3):
        trainer.step()
    assert torch.equal(trainer.train.reference, before)


def test_schedule_sets_the_learning_rate_of_every_step(toy: ModuleType) -> None:
    trainer = toy.preference(total=4, lr=0.01)
    rates = [mean(trainer.step(), "actor/lr") for _ in range(4)]
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


@pytest.mark.parametrize("stage", ["preference", "kto"])
def test_continuing_is_bitwise_the_same_as_not_stopping(toy: ModuleType, stage: str, tmp_path: Path) -> None:
    whole, stopped, resumed = (getattr(toy, stage)(total=5) for _ in range(3))
    expected = [mean(whole.step(), "loss") for _ in range(5)]
    losses = [mean(stopped.step(), "loss") for _ in range(2)]
    stopped.save(tmp_path)
    resumed.load(tmp_path)
    losses += [mean(resumed.step(), "loss") for _ in range(3)]
    assert losses == expected
    assert toy.equal(toy.parameters(resumed.engine), toy.parameters(whole.engine))


def test_bad_log_probs_are_named_by_pair_and_side(toy: ModuleType) -> None:
    trainer = toy.preference()
    with torch.no_grad():
        trainer.engine.module.head.weight[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"^step 1: the chosen log-prob of pair \d+ is nan"):
        trainer.step()


def test_headline_shows_accuracy(toy: ModuleType) -> None:
    trainer = toy.preference()
    shown = trainer.headline({"loss": 0.5, "reward/accuracy": 0.75, "eval/reward/accuracy": 0.625})
    assert shown == "loss 0.500, accuracy 0.75, held-out accuracy 0.625"
    assert trainer.headline({"loss": 0.5, "reward/accuracy": 0.75}) == "loss 0.500, accuracy 0.75"
    assert trainer.headline({}) == "skipped: not finite"
