import math
import time
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from rlhf.batch import Rollout, SequenceBatch
from rlhf.models.scalar import ScalarModel
from rlhf.rewards.functions import as_scores
from rlhf.rewards.reward import FunctionReward, ModelReward, expect_finite

WORDS = ["<bos>", "<eos>", "<pad>", *"abcdefgh"]
NO_TEXTS: Any = None  # a reward model reads tokens


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<bos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> ScalarModel:
    shared = {"vocab_size": 11, "num_labels": 1, "initializer_range": 0.3, "pad_token_id": 2}
    if request.param == "gpt2":
        drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config: Any = GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=32, **drops, **shared)
    else:
        sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24}
        config = LlamaConfig(
            **sizes, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, **shared
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ScalarModel(AutoModelForSequenceClassification.from_config(config))


ROWS = [([3, 4], [5, 6, 1]), ([7], [8]), ([3, 4, 5, 6], [1]), ([9], [10, 9, 8, 1])]


def rollout(rows: list[tuple[list[int], list[int]]] = ROWS, junk: int = 2) -> Rollout:
    """Prompts padded on the left, responses on the right; ``junk`` stands on both kinds of padding."""
    P, T = (max(len(row[side]) for row in rows) for side in (0, 1))
    tokens = [
        [junk] * (P - len(prompt)) + prompt + response + [junk] * (T - len(response))
        for prompt, response in rows
    ]
    prompts, responses = (torch.tensor([[len(row[side])] for row in rows]) for side in (0, 1))
    return Rollout(
        tokens=torch.tensor(tokens),
        prompt_mask=torch.arange(P) >= P - prompts,
        mask=torch.arange(T) < responses,
        ended=torch.tensor([row[1][-1] == 1 for row in rows]),
        sampler_logprobs=torch.zeros(len(rows), T),
        index=torch.arange(len(rows)),
        group=torch.arange(len(rows)),
    )


def sequences() -> SequenceBatch:
    """The same texts, right-padded."""
    texts = [prompt + response for prompt, response in ROWS]
    width = max(map(len, texts))
    lengths = torch.tensor([[len(text)] for text in texts])
    prompts = torch.tensor([[len(prompt)] for prompt, _ in ROWS])
    attention = torch.arange(width) < lengths
    return SequenceBatch(
        tokens=torch.tensor([text + [2] * (width - len(text)) for text in texts]),
        attention_mask=attention,
        mask=attention & (torch.arange(width) >= prompts),
    )


def alone(model: ScalarModel) -> torch.Tensor:
    """w·h after the last token of each text, unpadded."""
    texts = [torch.tensor([prompt + response]) for prompt, response in ROWS]
    last = [model.model.base_model(text).last_hidden_state[0, -1] for text in texts]
    return (torch.stack(last) @ model.head.weight[0]).detach()


@pytest.mark.parametrize("micro_rows", [1, 3, 4])
def test_a_models_score_is_read_at_the_last_token(model: ScalarModel, micro_rows: int) -> None:
    reward = ModelReward(model=model, micro_rows=micro_rows)
    scores = reward(rollout(), NO_TEXTS)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    torch.testing.assert_close(scores, alone(model), rtol=0, atol=1e-5)
    torch.testing.assert_close(reward.sequences(sequences(), NO_TEXTS), alone(model), rtol=0, atol=1e-5)


def test_a_models_score_never_reads_padding(model: ScalarModel) -> None:
    reward = ModelReward(model=model, micro_rows=4)
    assert torch.equal(reward(rollout(junk=2), NO_TEXTS), reward(rollout(junk=999), NO_TEXTS))


class Texts:
    def prompts(self, rollout: Rollout) -> list[str]:
        return [f"prompt {row}" for row in rollout.index.tolist()]

    def responses(self, rollout: Rollout) -> list[str]:
        return [f"response {row}" for row in rollout.index.tolist()]

    def columns(self, rollout: Rollout) -> list[dict[str, Any]]:
        return [{"bonus": 10.0 * row} for row in rollout.index.tolist()]


def test_a_function_sees_prompts_responses_and_columns() -> None:
    def score(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        assert prompts == [f"prompt {row}" for row in range(4)]
        assert responses == [f"response {row}" for row in range(4)]
        return [column["bonus"] + 0.5 for column in columns]

    scores = FunctionReward(function=score, name="score")(rollout(), Texts())
    assert scores.tolist() == [0.5, 10.5, 20.5, 30.5]
    assert scores.dtype == torch.float32


def test_a_function_reads_texts_of_a_file_too(tokenizer: PreTrainedTokenizerFast) -> None:
    seen: list[Any] = []

    def score(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        seen.extend(zip(prompts, responses, columns, strict=True))
        return [0.0] * len(prompts)

    FunctionReward(function=score, name="score").sequences(sequences(), tokenizer)
    assert seen == [("a b", "c d", {}), ("e", "f", {}), ("a b c d", "", {}), ("g", "h g f", {})]


@pytest.mark.parametrize(
    "scores", [[1, 2.5, True], (1.0, 2.5, 1.0), torch.tensor([1, 2.5, 1], dtype=torch.float64)]
)
def test_any_sequence_of_numbers_is_an_answer(scores: Any) -> None:
    assert as_scores(scores, 3, "score").tolist() == [1.0, 2.5, 1.0]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, 2.0], r"score returned scores of shape \(2,\) for 3 responses"),
        ([1.0, None, 2.0], "score must return a list of 3 numbers, got None for response 1"),
        ([1.0, math.nan, 2.0], "score gave nan to response 1, prompt 'prompt 1': a score must be finite"),
    ],
)
def test_any_other_answer_is_refused(scores: Any, message: str, tokenizer: PreTrainedTokenizerFast) -> None:
    reward = FunctionReward(function=lambda *_: scores, name="score")
    with pytest.raises(ValueError, match=message):
        reward(rollout(ROWS[:3]), Texts())
    with pytest.raises(ValueError, match=message.replace("'prompt 1'", "'e'")):
        reward.sequences(sequences().rows(torch.arange(3)), tokenizer)


def test_a_function_that_hangs_ends_with_its_name() -> None:
    reward = FunctionReward(function=lambda *_: time.sleep(60), name="slow", timeout_seconds=0.05)
    with pytest.raises(ValueError, match=r"slow took longer than 0\.05 s over 4 responses"):
        reward(rollout(), Texts())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_named(bad: float) -> None:
    message = f"the reward gave {bad} to response 1, prompt 'why': a score must be finite"
    with pytest.raises(ValueError, match=message):
        expect_finite(torch.tensor([0.0, bad, bad]), ["how", "why", "when"], "the reward")


def test_finite_scores_pass() -> None:
    scores = torch.tensor([0.0, -1e30])
    assert expect_finite(scores, ["how", "why"], "the reward") is scores
