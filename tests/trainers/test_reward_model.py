import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rlhf.algorithms.preferences import Davidson
from rlhf.distributed.engine_config import Plain
from rlhf.models.readouts import TokenSum


def own_scores(model: Any, rows: Any) -> Tensor:
    """w·h after the last token, each text alone and unpadded."""
    last = [model.model.base_model(torch.tensor([row.tokens])).last_hidden_state[0, -1] for row in rows]
    return torch.stack(last) @ model.head.weight[0]


def own_loss(trainer: Any, rows: Any) -> Tensor:
    better, worse = (own_scores(trainer.engine.module, side) for side in (rows.chosen, rows.rejected))
    return F.softplus(torch.tensor(rows.margins) - (better - worse)).mean()


def mean(metrics: Any, name: str) -> float:
    total, count = metrics.pairs[name]
    return total / count


@pytest.mark.parametrize("source", ["LLAMA", "GPT2"])
def test_loss_is_bradley_terry_over_the_pairs(toy: ModuleType, source: str) -> None:
    rows = toy.preference_set()
    rows.margins = [0.1 * row for row in range(12)]
    trainer = toy.reward_model(
        source=getattr(toy, source), train=rows, batch_size=12, micro_batch_size=5, engine=Plain(clip=None)
    )
    expected = own_loss(trainer, rows)
    expected.backward()
    gradients = [p.grad.clone() for p in trainer.engine.module.parameters() if p.grad is not None]
    trainer.engine.module.zero_grad(set_to_none=True)
    metrics = trainer.step()
    assert mean(metrics, "loss") == pytest.approx(float(expected.detach()), rel=1e-6)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert mean(metrics, "reward/grad_norm") == pytest.approx(float(norm), rel=1e-5)


def test_equal_scores_cost_log_2_and_are_no_win(toy: ModuleType) -> None:
    trainer = toy.reward_model()
    trainer.engine.module.head.weight.data.zero_()
    metrics = trainer.step()
    assert mean(metrics, "loss") == pytest.approx(math.log(2))
    assert mean(metrics, "reward/accuracy") == 0.0
    assert mean(metrics, "reward/tied") == 1.0
    assert mean(metrics, "reward/margin") == 0.0


@pytest.mark.parametrize("micro", [1, 4, 6])
def test_micro_batches_and_their_padding_do_not_change_the_update(toy: ModuleType, micro: int) -> None:
    updated, metrics = [], []
    for size in (2, micro):
        trainer = toy.reward_model(batch_size=6, micro_batch_size=size, lr=1e-3)
        metrics.append(trainer.step())
        updated.append(toy.parameters(trainer.engine))
    torch.testing.assert_close(updated[0], updated[1], rtol=0, atol=2e-6)
    for name in ("loss", "reward/accuracy", "reward/margin", "reward/score"):
        assert mean(metrics[0], name) == pytest.approx(mean(metrics[1], name), rel=1e-5)
        assert metrics[0].pairs[name][1] == 6


def test_pad_is_never_read(toy: ModuleType) -> None:
    losses = []
    for pad in (toy.PAD, 999):
        rows = toy.preference_set()
        rows.pad_id = pad
        losses.append(mean(toy.reward_model(train=rows).step(), "loss"))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("micro", [2, 5, 7])
def test_evaluation_counts_each_pair_once(toy: ModuleType, micro: int) -> None:
    held_out = toy.preference_set(7, "held out")
    trainer = toy.reward_model(test=held_out, micro_batch_size=micro)
    metrics = trainer.evaluate()
    better, worse = (own_scores(trainer.engine.module, side) for side in (held_out.chosen, held_out.rejected))
    assert mean(metrics, "eval/loss") == pytest.approx(float(own_loss(trainer, held_out).detach()), rel=1e-6)
    assert metrics.pairs["eval/reward/accuracy"] == (float((better > worse).sum()), 7)
    assert mean(metrics, "eval/reward/margin") == pytest.approx(
        float((better - worse).detach().mean()), rel=1e-5
    )


def test_without_held_out_pairs_nothing_is_evaluated(toy: ModuleType) -> None:
    assert toy.reward_model().evaluate().pairs == {}


def test_training_learns_the_pairs(toy: ModuleType) -> None:
    trainer = toy.reward_model(batch_size=12, micro_batch_size=12, total=30)
    for _ in range(30):
        metrics = trainer.step()
    assert mean(metrics, "reward/accuracy") == 1.0
    assert mean(metrics, "loss") < 0.1


def test_schedule_sets_the_learning_rate_of_every_step(toy: ModuleType) -> None:
    trainer = toy.reward_model(total=4, lr=0.01)
    assert [mean(trainer.step(), "reward/lr") for _ in range(4)] == pytest.approx(
        [0.01, 0.0075, 0.005, 0.0025]
    )


def test_continuing_is_bitwise_the_same_as_not_stopping(toy: ModuleType, tmp_path: Path) -> None:
    whole, stopped, resumed = (toy.reward_model(total=5) for _ in range(3))
    expected = [mean(whole.step(), "loss") for _ in range(5)]
    losses = [mean(stopped.step(), "loss") for _ in range(2)]
    stopped.save(tmp_path)
    resumed.load(tmp_path)
    losses += [mean(resumed.step(), "loss") for _ in range(3)]
    assert losses == expected
    assert toy.equal(toy.parameters(resumed.engine), toy.parameters(whole.engine))


def test_another_stages_checkpoint_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    toy.supervised().save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"reward: .*engine.json does not exist"):
        toy.reward_model().load(tmp_path)


def test_headline_shows_accuracy(toy: ModuleType) -> None:
    trainer = toy.reward_model()
    shown = trainer.headline({"loss": 0.5, "reward/accuracy": 0.75, "eval/reward/accuracy": 0.625})
    assert shown == "loss 0.500, accuracy 0.75, held-out accuracy 0.625"
    assert trainer.headline({"loss": 0.5, "reward/accuracy": 0.75}) == "loss 0.500, accuracy 0.75"


# Rankings


def by_hand(trainer: Any, rows: Any) -> Tensor:
    """Numerics D23, each text alone, each comparison by itself."""
    losses = []
    for texts, judgements in zip(rows.texts, rows.judgements, strict=True):
        scores = own_scores(trainer.engine.module, texts)
        pairs = [(one.label, scores[one.first] - scores[one.second] - one.margin) for one in judgements]
        terms = [mu * F.softplus(-gap) + (1 - mu) * F.softplus(gap) for mu, gap in pairs]
        losses.append(torch.stack(terms).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("packed", [False, True])
def test_a_ranking_is_the_loss_of_its_pairs_with_one_forward_a_response(
    toy: ModuleType, packed: bool
) -> None:
    """Numerics E9: loss and gradient of the explicit loop; texts read by the backbone = responses."""
    rows = toy.ranking_set(6)
    trainer = toy.reward_model(
        train=rows, batch_size=6, micro_batch_size=3, engine=Plain(clip=None), packed=packed
    )
    expected = by_hand(toy.reward_model(train=rows), rows)
    seen: list[int] = []
    forward = trainer.engine.module.forward
    trainer.engine.module.forward = lambda tokens, mask: (seen.append(len(tokens)), forward(tokens, mask))[1]
    twin = toy.reward_model(train=rows, engine=Plain(clip=None))
    by_hand(twin, rows).backward()
    norm = torch.cat([p.grad.flatten() for p in twin.engine.module.parameters() if p.grad is not None]).norm()
    metrics = trainer.step()
    assert mean(metrics, "loss") == pytest.approx(float(expected.detach()), rel=1e-6)
    assert mean(metrics, "reward/grad_norm") == pytest.approx(float(norm), rel=1e-5)
    assert sum(seen) == sum(map(len, rows.texts)) == 17


def test_measurements_are_means_over_prompts_of_decided_comparisons(toy: ModuleType) -> None:
    rows = toy.ranking_set(4)
    trainer = toy.reward_model(train=rows, test=rows, loss=Davidson(tie_probability=0.4))
    trainer.engine.module.head.weight.data.zero_()
    metrics = trainer.evaluate()
    assert metrics.pairs["eval/reward/accuracy"] == (0.0, 4)
    assert metrics.pairs["eval/reward/tied"] == (4.0, 4)
    assert mean(metrics, "eval/reward/ties_judged") == pytest.approx(
        1 / 3 / 4
    )  # one of three, of four prompts
    gaps = [[-one.margin for one in judgements] for judgements in rows.judgements]  # all scores are 0
    nu = 2 * 0.4 / (1 - 0.4)
    ties = [[nu / (math.exp(gap / 2) + nu + math.exp(-gap / 2)) for gap in row] for row in gaps]
    expected = sum(sum(row) / len(row) for row in ties) / 4
    assert expected < 0.3999  # a margin is there
    assert mean(metrics, "eval/reward/ties_expected") == pytest.approx(expected, rel=1e-5)


def test_the_likelier_response_is_the_better_one(toy: ModuleType) -> None:
    rows = toy.preference_set(8).compared()
    trainer = toy.reward_model(train=rows, test=rows)
    likely = trainer.evaluate()
    for (one,) in rows.judgements:
        one.label = 0.2
    unlikely = trainer.evaluate()
    assert mean(likely, "eval/reward/accuracy") + mean(unlikely, "eval/reward/accuracy") == 1
    assert mean(unlikely, "eval/reward/margin") == pytest.approx(-mean(likely, "eval/reward/margin"))


def test_ties_alone_are_neither_right_nor_wrong(toy: ModuleType) -> None:
    rows = toy.ranking_set(4)
    for judgements in rows.judgements:
        for one in judgements:
            one.label = 0.5
    metrics = toy.reward_model(train=rows).step()
    assert metrics.pairs["reward/accuracy"] == (0.0, 0)
    assert toy.reward_model().headline({"loss": 0.5}) == "loss 0.500"


# The sum over tokens


def test_a_sum_over_tokens_is_of_the_response_alone(toy: ModuleType) -> None:
    rows = toy.preference_set(4)
    trainer = toy.reward_model(train=rows, readout=TokenSum(), batch_size=4)
    model, sums = trainer.engine.module, []
    for side in (rows.chosen, rows.rejected):
        values = [
            model.model.base_model(torch.tensor([text.tokens])).last_hidden_state[0] @ model.head.weight[0]
            for text in side
        ]
        sums.append([v[torch.tensor(text.targets)].sum() for v, text in zip(values, side, strict=True)])
    better, worse = (torch.stack(side) for side in sums)
    expected = F.softplus(worse - better).mean()
    assert mean(trainer.step(), "loss") == pytest.approx(float(expected.detach()), rel=1e-5)
