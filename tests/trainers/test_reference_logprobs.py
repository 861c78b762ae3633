"""Log-probs of the reference: right, kept, and refused where something else would be read."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.data.encoding import Encoded
from rlhf.distributed.engine_config import Plain
from rlhf.trainers.micro_batches import Cut
from rlhf.trainers.reference_logprobs import of_texts, of_weights, reference_logprobs, store, stored


def measured(toy: ModuleType, texts: list[Any], *, packed: bool = False, **sizes: Any) -> Tensor:
    reference = Plain().inference(toy.actor("reference", packed=packed), "reference")
    cut = Cut(**{"rows": 3, "packed": packed, **sizes})
    return reference_logprobs(reference, texts, pad_id=toy.PAD, cut=cut, runtime=toy.place())


def test_each_text_gets_the_sum_over_its_response(toy: ModuleType) -> None:
    texts = [*toy.preference_set().chosen, *toy.preference_set().rejected]
    model = toy.actor("reference").model
    expected = []
    for text in texts:
        tokens = torch.tensor([text.tokens])
        every = model(input_ids=tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
        expected.append(every[torch.tensor(text.targets[1:])].sum().item())
    for packed in (False, True):
        found = measured(toy, texts, packed=packed)
        assert found.dtype == torch.float32
        assert not found.requires_grad
        assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_passes_do_not_change_the_numbers(toy: ModuleType) -> None:
    texts = toy.preference_set(40).chosen  # several groups of passes
    base = measured(toy, texts, rows=1)
    for packed, sizes in ((False, {"rows": 7}), (True, {"rows": 7}), (True, {"rows": 2, "tokens": 30})):
        torch.testing.assert_close(measured(toy, texts, packed=packed, **sizes), base, rtol=1e-5, atol=1e-5)


def test_a_bad_number_is_named(toy: ModuleType) -> None:
    reference = Plain().inference(toy.actor("reference"), "reference")
    reference.module.head.weight.data[4, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="the reference's log-prob of response 0 is nan"):
        reference_logprobs(
            reference, toy.preference_set().chosen, pad_id=toy.PAD, cut=Cut(rows=3), runtime=toy.place()
        )


MADE_WITH = {"reference": "a", "tokenizer": "b", "data": "c"}


def test_what_was_stored_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "logprobs.safetensors"
    assert stored(file, MADE_WITH) is None
    columns = {"data": torch.tensor([-1.5, -2.25])}
    store(file, columns, MADE_WITH)
    found = stored(file, MADE_WITH)
    assert found is not None
    assert torch.equal(found["data"], columns["data"])
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("name", MADE_WITH)
def test_another_fingerprint_is_refused_by_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / "logprobs.safetensors"
    store(file, {"data": torch.zeros(2)}, MADE_WITH)
    with pytest.raises(
        ValueError, match=rf"was measured with something else, different in: {name};"
    ) as caught:
        stored(file, {**MADE_WITH, name: "z"})
    assert "\n" not in str(caught.value)


def test_held_out_rows_that_came_or_went_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "logprobs.safetensors"
    store(file, {"data": torch.zeros(2)}, MADE_WITH)
    with pytest.raises(ValueError, match="different in: test_data;"):
        stored(file, {**MADE_WITH, "test_data": "d"})
    with pytest.raises(ValueError, match="different in: data;"):
        stored(file, {name: MADE_WITH[name] for name in ("reference", "tokenizer")})


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "logprobs.safetensors"
    file.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"logprobs\.safetensors cannot be read"):
        stored(file, MADE_WITH)


def test_fingerprint_of_weights_sees_every_number_and_name(toy: ModuleType) -> None:
    model = toy.actor()
    first = of_weights(model)
    assert of_weights(toy.actor()) == first
    assert of_weights(toy.actor("other")) != first
    with torch.no_grad():
        parameter = next(iter(model.parameters()))
        parameter.view(-1)[-1] += 1e-3
    assert of_weights(model) != first
    assert of_weights(model.bfloat16()) != of_weights(model.float())


@pytest.mark.parametrize(
    "other",
    [
        [Encoded(tokens=[1, 2, 4], targets=[False, True, True])],
        [Encoded(tokens=[1, 2, 3], targets=[False, False, True])],
        [Encoded(tokens=[1, 2, 3], targets=[False, True, False])],
        [Encoded(tokens=[1, 2, 3], targets=[False, True, True])] * 2,
        [],
    ],
)
def test_fingerprint_of_texts_sees_tokens_targets_and_number(other: list[Encoded]) -> None:
    one = [Encoded(tokens=[1, 2, 3], targets=[False, True, True])]
    assert of_texts(one) == of_texts(list(one)) != of_texts(other)
