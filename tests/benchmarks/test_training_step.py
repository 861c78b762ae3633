"""The loss that everyone must have, and the gate on loss and tokens."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.bench import Bench
from benchmarks.cases import training_step
from benchmarks.cases.models import TINY
from benchmarks.cases.pairs import END, Pairs
from benchmarks.cases.preference_step import PreferenceStep
from benchmarks.cases.reward_step import RewardStep
from benchmarks.cases.supervised_step import SupervisedStep
from benchmarks.cases.training_step import compare, fill, truth

CPU = torch.device("cpu")


def supervised() -> SupervisedStep:
    return SupervisedStep(size=TINY, rows=[[5, 6, 7, 8], [9, 3], [4, 5, 6], [7, 8]], micro=2)


def pairs() -> Pairs:
    return Pairs.lognormal(4, 24, TINY.vocabulary)


def test_fill_counts_what_the_padded_loop_computes() -> None:
    """Passes of 2 × 4 and 2 × 3 tokens, 11 of them real."""
    assert fill(supervised()) == 11 / 14


def test_a_pair_is_padded_to_the_longer_side_of_its_pass() -> None:
    """Sides of 3 and 5, then of 4 and 2: one pass is 4 × 5, two are 2 × 5 and 2 × 4."""
    made = Pairs(prompts=[[5], [6]], chosen=[[7, 1], [7, 8, 1]], rejected=[[7, 8, 9, 1], [1]])
    together = RewardStep(size=TINY, pairs=made, micro=2)
    assert fill(together) == 14 / 20
    assert fill(replace(together, micro=1)) == 14 / 18


def test_the_supervised_loss_is_the_mean_over_all_targets() -> None:
    step = supervised()
    model = step.model().double()
    each = [
        -model(torch.tensor([row])).logits[0, i].log_softmax(0)[row[i + 1]]
        for row in step.rows
        for i in range(len(row) - 1)
    ]
    torch.testing.assert_close(truth(step, CPU), torch.stack(each).mean().reshape(1))


def test_the_reward_loss_is_bradley_terry_on_the_last_tokens() -> None:
    step = RewardStep(size=TINY, pairs=pairs(), micro=2)
    model = step.model().double()

    def score(row: list[int]) -> torch.Tensor:
        hidden = model.model(input_ids=torch.tensor([row])).last_hidden_state
        found: torch.Tensor = model.score(hidden[0, -1])[0]
        return found

    better, worse = step.pairs.texts
    each = [-F.logsigmoid(score(a) - score(b)) for a, b in zip(better, worse, strict=True)]
    torch.testing.assert_close(truth(step, CPU), torch.stack(each).mean().reshape(1))


class OwnReference(PreferenceStep):
    def reference(self) -> Any:
        return self.model()


def test_a_policy_that_is_its_reference_has_the_loss_log_2() -> None:
    step = OwnReference(size=TINY, pairs=pairs(), micro=2)
    step.prepare(CPU)
    assert float(truth(step, CPU)) == pytest.approx(math.log(2), abs=1e-6)


def test_responses_end_and_prompts_are_shared() -> None:
    made = pairs()
    assert all(row[-1] == END for row in made.chosen + made.rejected)
    data = made.data()
    for prompt, better, worse in zip(made.prompts, data.chosen, data.rejected, strict=True):
        assert better.tokens[: len(prompt)] == worse.tokens[: len(prompt)] == prompt
        assert better.targets == [False] * len(prompt) + [True] * (len(better.tokens) - len(prompt))


def lines(bench: Bench, step: Any) -> dict[str, str | None]:
    return {line.contender: line.void for line in compare(bench, "stage", step, {}).lines}


def test_everyone_passes_who_has_the_loss_and_the_tokens(bench: Bench) -> None:
    assert lines(bench, supervised()) == {"rlhf": None, "rlhf padded": None, "padded loop": None}


def test_the_products_preference_loss_is_ours_in_plain_torch(bench: Bench) -> None:
    found = lines(bench, PreferenceStep(size=TINY, pairs=pairs(), micro=2))
    assert found == {"rlhf": None, "rlhf padded": None, "padded loop": None}


def test_a_loss_that_is_a_thousandth_off_is_void(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "truth", lambda step, device: 1.001 * truth(step, device))
    for fault in lines(bench, supervised()).values():
        assert fault == "loss off by 0.001"


class Shorter(SupervisedStep):
    """Its trainer sees fewer tokens than the others."""

    def trainer(self, device: torch.device, *, packed: bool) -> Any:
        shorter = SupervisedStep(size=self.size, rows=[row[:2] for row in self.rows], micro=self.micro)
        return shorter.trainer(device, packed=packed)


def test_a_step_on_fewer_tokens_is_void(bench: Bench) -> None:
    found = lines(bench, Shorter(size=TINY, rows=supervised().rows, micro=2))
    assert found["padded loop"] is None
    for name in ("rlhf", "rlhf padded"):
        assert "tokens off by 0.27" in str(found[name])  # 8 of 11
