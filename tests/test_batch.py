from typing import Any

import pytest
import torch

from rlhf.batch import (
    Experience,
    PreferenceBatch,
    PromptBatch,
    Rollout,
    SequenceBatch,
    concatenate,
    position_ids,
)


def bools(*rows: str) -> torch.Tensor:
    return torch.tensor([[mark == "1" for mark in row] for row in rows])


def rollout(**changes: Any) -> Rollout:
    """The two rows that the module's docstring shows."""
    fields: dict[str, Any] = {
        "tokens": torch.tensor([[0, 11, 12, 13, 14, 2, 0], [21, 22, 23, 24, 25, 26, 27]]),
        "prompt_mask": bools("011", "111"),
        "mask": bools("1110", "1111"),
        "ended": torch.tensor([True, False]),
        "sampler_logprobs": torch.arange(8.0).view(2, 4),
        "index": torch.tensor([5, 6]),
        "group": torch.tensor([0, 1]),
    }
    return Rollout(**(fields | changes))


def sequences(**changes: Any) -> SequenceBatch:
    fields: dict[str, Any] = {
        "tokens": torch.arange(10).view(2, 5),
        "attention_mask": bools("11100", "11000"),
        "mask": bools("01100", "01000"),
    }
    return SequenceBatch(**(fields | changes))


def test_positions_count_real_tokens_only() -> None:
    expected = torch.tensor([[0, 0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 4, 5, 6]])
    assert torch.equal(position_ids(rollout().attention_mask), expected)


def test_a_rollout_derives_responses_lengths_and_attention() -> None:
    batch = rollout()
    assert batch.responses.tolist() == [[13, 14, 2, 0], [24, 25, 26, 27]]
    assert batch.lengths.tolist() == [3, 4]
    assert torch.equal(batch.attention_mask, bools("0111110", "1111111"))
    assert len(batch) == 2


def test_responses_are_moved_behind_other_prompts() -> None:
    whole = rollout()
    other = PromptBatch(
        tokens=torch.tensor([[7], [8]]),
        mask=torch.ones(2, 1, dtype=torch.bool),
        index=whole.index,
        group=whole.group,
    )
    moved = whole.after(other)
    assert moved.tokens[:, 0].tolist() == [7, 8]
    torch.testing.assert_close(moved.responses, whole.responses)
    torch.testing.assert_close(moved.attention_mask, torch.cat([other.mask, whole.mask], dim=1))
    torch.testing.assert_close(moved.sampler_logprobs, whole.sampler_logprobs)
    assert whole.tokens.shape == rollout().tokens.shape


def test_rows_are_selected_by_number_and_by_mask() -> None:
    batch = rollout()
    for index in (torch.tensor([1]), torch.tensor([False, True])):
        (row,) = batch.rows(index).tokens.tolist()
        assert row == [21, 22, 23, 24, 25, 26, 27]
    swapped = batch.rows(torch.tensor([1, 0, 1]))
    assert swapped.index.tolist() == [6, 5, 6]
    assert swapped.ended.tolist() == [False, True, False]


def test_rows_of_an_experience_are_selected_throughout() -> None:
    numbers = torch.arange(8.0).view(2, 4)
    batch = Experience(
        rollout=rollout(), old_logprobs=numbers, ref_logprobs=numbers + 10, advantages=numbers + 20
    )
    part = batch.rows(torch.tensor([1]))
    assert part.rollout.index.tolist() == [6]
    assert part.advantages.tolist() == [[24, 25, 26, 27]]
    assert part.returns is None
    assert len(part) == 1


def test_concatenating_the_rows_gives_the_batch_back() -> None:
    numbers = torch.arange(8.0).view(2, 4)
    batch = Experience(rollout=rollout(), old_logprobs=numbers, ref_logprobs=numbers, advantages=numbers)
    whole = concatenate([batch.rows(torch.tensor([row])) for row in range(2)])
    assert torch.equal(whole.rollout.tokens, batch.rollout.tokens)
    assert torch.equal(whole.advantages, batch.advantages)
    assert whole.old_values is None


def test_moving_a_batch_moves_every_part() -> None:
    numbers = torch.arange(2)
    batch = PromptBatch(
        tokens=torch.zeros(2, 3).long(), mask=bools("011", "111"), index=numbers, group=numbers
    )
    moved = batch.to(torch.device("meta"))
    assert all(part.device.type == "meta" for part in (moved.tokens, moved.mask, moved.index, moved.group))
    assert batch.tokens.device.type == "cpu"


def test_trimming_drops_columns_of_padding_alone() -> None:
    short = sequences().trimmed()
    assert short.tokens.tolist() == [[0, 1, 2], [5, 6, 7]]
    assert torch.equal(short.attention_mask, bools("111", "110"))
    assert torch.equal(short.mask, bools("011", "010"))
    assert sequences().lengths.tolist() == [3, 2]


def test_a_response_with_a_gap_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Rollout.mask has a gap: a response must be a contiguous prefix"):
        rollout(mask=bools("1010", "1111"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "tokens",
            torch.zeros(2, 6, dtype=torch.int64),
            r"Rollout.tokens has shape \(2, 6\), expected \(2, 7\)",
        ),
        ("mask", torch.ones(2, 4), "Rollout.mask is torch.float32, expected torch.bool"),
        (
            "sampler_logprobs",
            torch.zeros(2, 4).double(),
            "sampler_logprobs is torch.float64, expected torch.fl",
        ),
        ("group", torch.zeros(3, dtype=torch.int64), r"Rollout.group has shape \(3,\), expected \(2,\)"),
    ],
)
def test_a_rollout_of_wrong_shape_or_dtype_is_refused(field: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rollout(**{field: value})


@pytest.mark.parametrize("name", ["old_logprobs", "ref_logprobs", "advantages", "returns", "old_values"])
def test_an_experience_of_wrong_shape_or_dtype_is_refused(name: str) -> None:
    fields = dict.fromkeys(("old_logprobs", "ref_logprobs", "advantages"), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=rf"Experience.{name} has shape \(2, 5\), expected \(2, 4\)"):
        Experience(rollout=rollout(), **(fields | {name: torch.zeros(2, 5)}))
    with pytest.raises(ValueError, match=f"Experience.{name} is torch.bfloat16, expected torch.float32"):
        Experience(rollout=rollout(), **(fields | {name: torch.zeros(2, 4, dtype=torch.bfloat16)}))


@pytest.mark.parametrize("mask", [bools("11100", "01000"), bools("01110", "01000")])
def test_a_first_token_or_padding_is_no_target(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"SequenceBatch.mask marks a first token or padding as a target"):
        sequences(mask=mask)


def test_a_pair_has_two_sides() -> None:
    one = sequences().rows(torch.tensor([0]))
    with pytest.raises(ValueError, match="2 chosen and 1 rejected sequences"):
        PreferenceBatch(chosen=sequences(), rejected=one, margin=torch.zeros(2))
    with pytest.raises(ValueError, match=r"PreferenceBatch.margin has shape \(1,\), expected \(2,\)"):
        PreferenceBatch(chosen=sequences(), rejected=sequences(), margin=torch.zeros(1))


def test_prompts_of_wrong_shape_are_refused() -> None:
    numbers = torch.arange(2)
    with pytest.raises(ValueError, match=r"PromptBatch.mask has shape \(2, 4\), expected \(2, 3\)"):
        PromptBatch(
            tokens=torch.zeros(2, 3, dtype=torch.int64),
            mask=bools("1111", "1111"),
            index=numbers,
            group=numbers,
        )
