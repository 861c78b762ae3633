import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf.data.fitting import Report
from rlhf.data.loaded import PromptSet
from rlhf.evaluation.policies import Response
from rlhf.evaluation.responses import Evaluator
from rlhf.models.actor import Actor
from rlhf.models.loading import load_actor
from rlhf.models.sources import TinyLlama
from rlhf.rewards.reward import FunctionReward, ScoreFunction
from rlhf.rollout.decoding import Sampling
from rlhf.rollout.sampler import Sampler
from rlhf.rollout.texts import RolloutTexts

WORDS = ["<bos>", "<eos>", "<pad>", *"abcdefgh"]
EOS, PAD, TEMPERATURE = 1, 2, 0.8


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<bos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def actor(seed: int) -> Actor:
    tiny = TinyLlama(layers=1, hidden=16, heads=2, intermediate=24, context=24)
    loaded = load_actor(tiny, tokenizer(), generator=torch.Generator().manual_seed(seed))
    for parameter in loaded.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(8.0)
    return loaded


def words(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
    return [float(len(response.split())) for response in responses]


def evaluator(
    *, judge: ScoreFunction | None = None, reward: ScoreFunction = words, rows: int = 4
) -> Evaluator:
    prompts = PromptSet(
        prompts=[[0, 3], [0, 4, 5, 6], [0, 7, 8]],
        strings=["a", "b c d", "e f"],
        others=[{"bonus": row} for row in range(3)],
        pad_id=PAD,
        report=Report(source="prompts"),
    )
    return Evaluator(
        prompts=prompts,
        texts=RolloutTexts(prompts, tokenizer()),
        sampler=Sampler(
            decoding=Sampling(max_new_tokens=8, temperature=TEMPERATURE), end_ids=[EOS], pad_id=PAD
        ),
        reference=actor(0),
        reward=FunctionReward(function=reward, name="words"),
        judge=judge,
        rows=rows,
        seed=0,
        device=torch.device("cpu"),
    )


def respond(policy: Actor, samples: int = 2, **changes: Any) -> list[Response]:
    return evaluator(**changes)(policy, torch.arange(3), samples, lambda count: None)


def by_hand(model: Actor, prompt: list[int], response: list[int]) -> torch.Tensor:
    """(t, V) log-probs at the temperature of sampling, unpadded."""
    logits = model.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return (logits / TEMPERATURE).log_softmax(-1).detach()


def test_responses_to_a_prompt_stand_together() -> None:
    assert [row.prompt for row in respond(actor(1))] == ["a", "a", "b c d", "b c d", "e f", "e f"]


def test_a_response_is_measured_as_by_hand() -> None:
    policy, reference = actor(1), actor(0)
    for row in respond(policy):
        prompt = [0, *tokenizer()(row.prompt)["input_ids"]]
        shown = tokenizer()(row.text)["input_ids"]
        if len(shown) != row.tokens - row.ended:
            continue  # it said <pad> or <bos>, which the text does not show
        response = [*shown, EOS] if row.ended else shown
        picked = torch.tensor(response)[:, None]
        own, other = by_hand(policy, prompt, response), by_hand(reference, prompt, response)
        k1 = (own - other).gather(1, picked).sum()
        assert row.score == len(shown)
        assert row.kl == pytest.approx(float(k1), rel=1e-4, abs=1e-5)
        assert row.exact_kl == pytest.approx(float((own.exp() * (own - other)).sum()), rel=1e-4, abs=1e-5)
        assert row.ref_logprob == pytest.approx(float(other.gather(1, picked).sum()), rel=1e-4)


def test_the_policy_alone_reads_what_stands_before_the_prompt() -> None:
    policy, reference, measure = actor(1), actor(0), evaluator()
    asked = replace(measure.prompts, prompts=[[0, 9, *row[1:]] for row in measure.prompts.prompts])
    rows = measure(policy, torch.arange(3), 2, lambda count: None, asked=asked)
    assert [row.text for row in rows] != [row.text for row in respond(policy)]
    checked = 0
    for row in rows:
        prompt = tokenizer()(row.prompt)["input_ids"]
        shown = tokenizer()(row.text)["input_ids"]
        if len(shown) != row.tokens - row.ended:
            continue  # it said <pad> or <bos>, which the text does not show
        response = [*shown, EOS] if row.ended else shown
        picked = torch.tensor(response)[:, None]
        own, other = by_hand(policy, [0, 9, *prompt], response), by_hand(reference, [0, *prompt], response)
        assert row.kl == pytest.approx(float((own - other).gather(1, picked).sum()), rel=1e-4, abs=1e-5)
        assert row.exact_kl == pytest.approx(float((own.exp() * (own - other)).sum()), rel=1e-4, abs=1e-5)
        assert row.ref_logprob == pytest.approx(float(other.gather(1, picked).sum()), rel=1e-4)
        checked += 1
    assert checked > 2


def test_the_reference_has_no_kl_to_itself() -> None:
    assert all(row.kl == 0.0 and row.exact_kl == 0.0 for row in respond(actor(0)))


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_the_batch_size_changes_no_response(rows: int) -> None:
    whole = respond(actor(1))
    for one, other in zip(respond(actor(1), rows=rows), whole, strict=True):
        assert one.text == other.text
        assert one.kl == pytest.approx(other.kl, rel=1e-4, abs=1e-5)


def test_the_judge_gives_a_second_opinion() -> None:
    def judge(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        return [10.0 * column["bonus"] for column in columns]

    assert [row.judge for row in respond(actor(1), judge=judge)] == [0.0, 0.0, 10.0, 10.0, 20.0, 20.0]
    assert [row.judge for row in respond(actor(1))] == [None] * 6


def test_progress_counts_every_response() -> None:
    counts: list[int] = []
    evaluator(rows=4)(actor(1), torch.arange(3), 2, counts.append)
    assert counts == [4, 2]


@pytest.mark.parametrize(("who", "name"), [("reward", "words"), ("judge", "the judge")])
def test_a_verdict_that_is_no_number_is_refused(who: str, name: str) -> None:
    changes: dict[str, Any] = {who: lambda prompts, responses, columns: [math.nan] * len(prompts)}
    with pytest.raises(ValueError, match=f"{name} gave nan to response 0, prompt 'a'"):
        respond(actor(1), **changes)
