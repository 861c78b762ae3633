"""Which rows run the beginning of which, and where the states are found."""

import random

import pytest

from rlhf.models.beginnings import LEAST, Beginning, beginnings, places

PROMPT = list(range(100, 100 + LEAST))


def test_rows_that_begin_alike_follow_one_of_them() -> None:
    rows = [[1, *PROMPT, 3], [*PROMPT, 2, 2], [*PROMPT, 1], [*PROMPT, 2, 1]]
    assert beginnings(rows) == [
        Beginning(0, 0),
        Beginning(2, LEAST),
        Beginning(2, 0),
        Beginning(2, LEAST),
    ]


def test_a_common_beginning_too_short_is_run_again() -> None:
    assert beginnings([[*PROMPT[1:], 1], [*PROMPT[1:], 2]]) == [Beginning(0, 0), Beginning(1, 0)]


def test_of_equal_rows_each_still_runs_its_last_token() -> None:
    assert beginnings([PROMPT, PROMPT, PROMPT]) == [
        Beginning(0, 0),
        Beginning(0, LEAST - 1),
        Beginning(0, LEAST - 1),
    ]


def test_a_row_that_is_another_ones_beginning_leads_it() -> None:
    assert beginnings([[*PROMPT, 5, 6], PROMPT]) == [Beginning(1, LEAST), Beginning(1, 0)]


def test_rows_under_one_template_follow_those_with_their_own_prompt() -> None:
    own = [[*PROMPT, *range(start, start + 3 * LEAST)] for start in (200, 300)]
    rows = [[*prompt, response] for prompt in own for response in (1, 2)]
    assert [row.leader for row in beginnings(rows)] == [0, 0, 2, 2]


def test_responses_that_agree_a_little_further_do_not_split_a_group() -> None:
    rows = [[*PROMPT, 1, 1], [*PROMPT, 2, 1], [*PROMPT, 2, 2]]
    assert beginnings(rows) == [Beginning(0, 0), Beginning(0, LEAST), Beginning(0, LEAST)]


@pytest.mark.parametrize("seed", range(20))
def test_what_a_row_does_not_run_is_in_its_leader_who_runs_whole(seed: int) -> None:
    draw = random.Random(seed)
    prompts = [[draw.randrange(2) for _ in range(draw.randrange(4 * LEAST))] for _ in range(3)]
    rows = [
        draw.choice(prompts) + [draw.randrange(2) for _ in range(draw.randrange(1, 6))] for _ in range(30)
    ]
    for row, (leader, same) in zip(rows, beginnings(rows), strict=True):
        assert beginnings(rows)[leader] == (leader, 0)
        assert row[:same] == rows[leader][:same]
        assert same == 0 or LEAST - 1 <= same < len(row)


def test_states_of_a_beginning_are_the_leaders() -> None:
    found = places([2, 3, 4], [Beginning(2, 1), Beginning(1, 0), Beginning(2, 0)])
    assert found.run.tolist() == [False, True, True, True, True, True, True, True, True]
    assert found.place.tolist() == [4, 0, 1, 2, 3, 4, 5, 6, 7]
