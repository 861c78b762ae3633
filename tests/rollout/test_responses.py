"""What ends a response."""

from collections.abc import Callable

import pytest
import torch

from rlhf.batch import PromptBatch
from rlhf.models.actor import Actor
from rlhf.rollout import sampler
from rlhf.rollout.decoding import Sampling
from rlhf.rollout.responses import StopStrings
from rlhf.rollout.sampler import Sampler


class Letters:
    """Token 2 is "a", 3 is "b" …; 0 and 1 are special."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(ord("a") + token - 2) for token in token_ids if token > 1)


class Bytes:
    """A token is a byte of UTF-8."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return bytes(token_ids).decode(errors="replace")


def test_a_string_ends_the_response_when_its_last_token_is_there() -> None:
    stop = StopStrings(strings=["bc", "d"], tokenizer=Letters())
    assert [stop(tokens) for tokens in ([2, 3], [2, 3, 4], [3, 2, 4], [5], [])] == [
        False,
        True,
        False,
        True,
        False,
    ]


def test_a_string_may_take_a_token_for_every_byte() -> None:
    stop, text = StopStrings(strings=["né…"], tokenizer=Bytes()), list("a long line, né…".encode())
    assert [stop(text[: n + 1]) for n in range(len(text))] == [False] * (len(text) - 1) + [True]


def test_empty_strings_are_refused() -> None:
    for strings in ([], ["a", ""]):
        with pytest.raises(ValueError, match=r"StopStrings\.strings must hold texts of a character"):
            StopStrings(strings=strings, tokenizer=Letters())


@pytest.mark.parametrize("loop", ["fast", "slow"])
def test_responses_are_those_without_stops_up_to_the_first(
    build: Callable[..., Actor],
    prompts: Callable[..., PromptBatch],
    noise: Callable[..., torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    loop: str,
) -> None:
    if loop == "slow":
        monkeypatch.setattr(sampler, "decodes", lambda model: False)
    actor, batch, numbers = build("llama"), prompts(*[[3, 4]] * 30), noise(30, 12)
    free = Sampler(decoding=Sampling(max_new_tokens=12, temperature=2.0), end_ids=(1,), pad_id=999)
    stop = StopStrings(strings=["ab", "ij", "g"], tokenizer=Letters())
    stopped = Sampler(decoding=free.decoding, end_ids=(1,), pad_id=999, stop=stop).sample(
        actor, batch, numbers
    )
    whole, cut = free.sample(actor, batch, numbers), 0
    for row in range(30):
        tokens = whole.responses[row][whole.mask[row]].tolist()
        ends = [n for n in range(1, len(tokens) + 1) if stop(tokens[:n])]
        length = ends[0] if ends else len(tokens)
        assert stopped.responses[row][stopped.mask[row]].tolist() == tokens[:length]
        assert bool(stopped.ended[row]) == (bool(ends) or bool(whole.ended[row]))
        cut += bool(ends)
    assert 3 < cut < 27
