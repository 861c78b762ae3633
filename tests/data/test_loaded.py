from __future__ import annotations

import torch

from rlhf.data.encoding import Encoded
from rlhf.data.fitting import Report
from rlhf.data.loaded import PreferenceSet, PromptSet, SupervisedSet

REPORT = Report(source="f")
ROWS = [Encoded(tokens=[1, token], targets=[False, True]) for token in (10, 11, 12)]


def test_batches_follow_the_index() -> None:
    batch = SupervisedSet(encoded=ROWS, pad_id=0, report=REPORT).batch(torch.tensor([2, 0]))
    assert batch.tokens.tolist() == [[1, 12], [1, 10]]


def test_pairs_follow_the_index_together() -> None:
    pairs = PreferenceSet(chosen=ROWS, rejected=ROWS[::-1], margins=[0.0, 1.0, 2.0], pad_id=0, report=REPORT)
    batch = pairs.batch(torch.tensor([2, 1]))
    assert batch.chosen.tokens[:, 1].tolist() == [12, 11]
    assert batch.rejected.tokens[:, 1].tolist() == [10, 11]
    assert batch.margin.tolist() == [2.0, 1.0]


def test_each_drawn_prompt_is_repeated_with_a_group_of_its_own() -> None:
    prompts = PromptSet(
        prompts=[[5], [6, 7]], strings=["a", "b"], others=[{"n": 0}, {"n": 1}], pad_id=0, report=REPORT
    )
    index = torch.tensor([1, 0, 1])  # drawn twice, prompt 1 is two groups
    batch = prompts.batch(index, samples=2)
    assert batch.index.tolist() == [1, 1, 0, 0, 1, 1]
    assert batch.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.tokens.tolist() == [[6, 7], [6, 7], [0, 5], [0, 5], [6, 7], [6, 7]]
    assert prompts.texts(batch.index) == ["b", "b", "a", "a", "b", "b"]
    assert prompts.columns(index) == [{"n": 1}, {"n": 0}, {"n": 1}]


def test_groups_can_be_named() -> None:
    prompts = PromptSet(prompts=[[5], [6]], strings=["a", "b"], others=[{}, {}], pad_id=0, report=REPORT)
    batch = prompts.batch(torch.tensor([1, 0]), samples=2, groups=torch.tensor([7, 3]))
    assert batch.group.tolist() == [7, 7, 3, 3]
