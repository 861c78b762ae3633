"""Bugs of wrappers, loaders and samplers that other frameworks shipped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)

from rlhf.batch import PromptBatch
from rlhf.distributed.engine_config import Plain
from rlhf.models.actor import Actor
from rlhf.models.heads import LogprobHead
from rlhf.models.loading import load_actor, load_scalar_model
from rlhf.models.readouts import LastToken
from rlhf.models.saving import save_model
from rlhf.models.scalar import ScalarModel, score_at_last
from rlhf.models.sources import ModelSource, Pretrained, TinyGPT2, TinyLlama
from rlhf.rollout.decoding import Greedy, Sampling
from rlhf.rollout.sampler import Sampler
from rlhf.trainers.micro_batches import Cut
from rlhf.trainers.normalisation import Normalisation, score_sums
from rlhf.trainers.optimizers import AdamW
from tests.trainers import toy

KINDS = ["gpt2", "llama"]
TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8], [8, 3, 9, 10, 4, 5], [9, 9, 3, 4, 10, 6]])
REAL = torch.ones_like(TOKENS, dtype=torch.bool)
PAD = 2


def config(kind: str, **more: Any) -> Any:
    shared = {"vocab_size": 11, "initializer_range": 0.3, "tie_word_embeddings": False}
    shared |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": PAD} | more
    if kind == "gpt2":
        return GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=40, **shared)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaConfig(**sizes, max_position_embeddings=40, **shared)


def policy(kind: str) -> Actor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Actor(AutoModelForCausalLM.from_config(config(kind))).eval()


def reward_model(kind: str) -> ScalarModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ScalarModel(AutoModelForSequenceClassification.from_config(config(kind, num_labels=1))).eval()


def padded(left: int, right: int) -> tuple[torch.Tensor, torch.Tensor]:
    pads = [torch.full((len(TOKENS), count), PAD) for count in (left, right)]
    tokens = torch.cat([pads[0], TOKENS, pads[1]], 1)
    return tokens, tokens != PAD


def prompts(rows: int) -> PromptBatch:
    tokens = torch.tensor([[PAD, 3, 4], [5, 6, 7]]).repeat(rows // 2, 1)
    number = torch.arange(rows)
    return PromptBatch(tokens=tokens, mask=tokens != PAD, index=number, group=number)


def noise(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def words() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["<bos>", "<eos>", "<pad>", *"abcdefgh"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<bos>")),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2])
def test_logprobs_do_not_depend_on_the_scoring_batch(kind: str, rows: int) -> None:
    """verl#6280: the scoring pass and the update had different micro-batch sizes."""
    actor = policy(kind)
    tokens, mask = padded(2, 0)
    mask[0, :4] = False  # a shorter prompt, so that the rows of a micro-batch differ in padding
    whole = actor(tokens, mask, 5).logprobs
    parts = [actor(t, m, 5).logprobs for t, m in zip(tokens.split(rows), mask.split(rows), strict=True)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pads", [1, 17])
def test_left_padding_does_not_move_positions(kind: str, pads: int) -> None:
    """trlX#508, TRL#469: without position ids absolute positions shift by the pads."""
    actor = policy(kind)
    tokens, mask = padded(pads, 0)
    expected = actor(TOKENS, REAL, 2).logprobs
    torch.testing.assert_close(actor(tokens, mask, 2 + pads).logprobs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("source", [TinyGPT2(hidden=16), TinyLlama(hidden=16)], ids=KINDS)
def test_scoring_ignores_configured_dropout(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed-Chat scored old log-probs in train mode, with dropout on."""
    original = type(source).causal_lm

    def with_dropout(*args: Any) -> Any:
        model = original(*args)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.5
        return model

    monkeypatch.setattr(type(source), "causal_lm", with_dropout)
    generator = torch.Generator().manual_seed(0)
    actor = load_actor(source, words(), generator=generator)
    scalar = load_scalar_model(source, words(), generator=generator, fresh_head=True)
    assert torch.equal(actor.train()(TOKENS, REAL, 1).logprobs, actor.eval()(TOKENS, REAL, 1).logprobs)
    assert torch.equal(scalar.train()(TOKENS, REAL), scalar.eval()(TOKENS, REAL))


@pytest.mark.parametrize("kind", KINDS)
def test_logprob_t_belongs_to_token_t(kind: str) -> None:
    """prime-rl#1525: labels moved by one column, masks did not."""
    actor = policy(kind)
    before = actor(TOKENS, REAL, 2)
    for t in range(4):
        changed = TOKENS.clone()
        changed[:, 2 + t] = 0
        after = actor(changed, REAL, 2)
        moved = (after.logprobs - before.logprobs).abs() > 1e-4
        assert not moved[:, :t].any()
        assert moved[:, t].all()
        torch.testing.assert_close(
            after.entropies[:, : t + 1], before.entropies[:, : t + 1]
        )  # of the state before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampler_logprobs_equal_scorer_logprobs(kind: str, temperature: float) -> None:
    """TRL#4873, OpenRLHF#1108: sampler and trainer drift apart."""
    actor = policy(kind)
    sampler = Sampler(decoding=Sampling(max_new_tokens=10, temperature=temperature), end_ids=[1], pad_id=PAD)
    rollout = sampler.sample(actor, prompts(8), noise(8, 10))
    scored = actor(rollout.tokens, rollout.attention_mask, 3, sampler.temperature).logprobs
    torch.testing.assert_close(rollout.sampler_logprobs, scored, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_and_training_share_one_forward(kind: str) -> None:
    """DeepSpeed-Chat#821 and others: generation ran a second, injected forward."""
    actor = policy(kind)
    seen: dict[str, set[torch.nn.Module]] = {"sampler": set(), "scorer": set()}
    phase = "sampler"
    for module in (actor.model.base_model, *actor.model.base_model.modules(), actor.head):
        module.register_forward_hook(lambda module, *_: seen[phase].add(module))
    sampler = Sampler(decoding=Greedy(max_new_tokens=6), end_ids=[1], pad_id=PAD)
    before = sampler.sample(actor, prompts(2), noise(2, 6))
    phase = "scorer"
    actor(TOKENS, REAL, 1)
    assert seen["sampler"] == seen["scorer"]
    with torch.no_grad():
        actor.head.weight.neg_()  # an update in place is sampled from at once
    after = sampler.sample(actor, prompts(2), noise(2, 6))
    best = actor.logits(after.tokens, after.attention_mask, 3).argmax(2)
    assert torch.equal(best[after.mask], after.responses[after.mask])
    assert before.tokens.tolist() != after.tokens.tolist()


def test_response_ends_at_any_end_token() -> None:
    """compose-rl#31: only one of the model's end tokens was known."""
    ends = [1, 6, 9]
    sampler = Sampler(decoding=Sampling(max_new_tokens=12), end_ids=ends, pad_id=PAD)
    rollout = sampler.sample(policy("llama"), prompts(64), noise(64, 12))
    stopped = set()
    for tokens, length, ended in zip(rollout.responses.tolist(), rollout.lengths, rollout.ended, strict=True):
        content, last = tokens[: length - 1], tokens[length - 1]
        assert not set(content) & set(ends)
        assert bool(ended) == (last in ends)
        stopped.add(last)
    assert stopped >= set(ends)


@pytest.mark.parametrize("kind", KINDS)
def test_score_is_read_at_the_last_real_token(kind: str) -> None:
    """TRL#937: with no pad id in the configuration the last pad was scored."""
    model = reward_model(kind)
    model.model.config.pad_token_id = None
    tokens, mask = padded(0, 3)
    scores = score_at_last(model(tokens, mask), mask)
    torch.testing.assert_close(scores, model(TOKENS, REAL)[:, -1], rtol=0, atol=1e-5)
    changed = tokens.clone()
    changed[:, 5] = 3  # the last real token
    assert ((score_at_last(model(changed, mask), mask) - scores).abs() > 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("left", "right"), [(4, 0), (0, 4), (2, 3)])
def test_score_ignores_padding_side_and_batch_size(kind: str, left: int, right: int) -> None:
    """trlX#474: the code assumed right padding."""
    model = reward_model(kind)
    expected = score_at_last(model(TOKENS, REAL), REAL)
    tokens, mask = padded(left, right)
    for rows in (1, 2, 3):
        parts = [
            score_at_last(model(t, m), m) for t, m in zip(tokens.split(rows), mask.split(rows), strict=True)
        ]
        torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=1e-5)


def test_sampling_does_not_depend_on_the_model_name() -> None:
    """DeepSpeed-Chat turned sampling off for models called llama."""
    sampler = Sampler(decoding=Sampling(max_new_tokens=6), end_ids=[1], pad_id=PAD)
    rollouts = []
    for name in ("meta-llama/Llama-2-7b", "gpt2", "facebook/opt-1.3b"):
        actor = policy("llama")
        actor.model.config.name_or_path = name
        rollouts.append(sampler.sample(actor, prompts(8), noise(8, 6)).tokens)
    assert torch.equal(rollouts[0], rollouts[1])
    assert torch.equal(rollouts[0], rollouts[2])
    assert len({tuple(row) for row in rollouts[0].tolist()}) > 6  # eight rows, two prompts: drawn, not greedy


@pytest.mark.parametrize("source", [TinyGPT2(hidden=16), TinyLlama(hidden=16)], ids=KINDS)
def test_same_seed_gives_the_same_initial_weights(source: ModelSource) -> None:
    """Whatever else has drawn from the global random state, and without moving it."""
    states = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        generator = torch.Generator().manual_seed(7)
        actor = load_actor(source, words(), generator=generator)
        scalar = load_scalar_model(source, words(), generator=generator, fresh_head=True)
        assert torch.equal(torch.get_rng_state(), before)
        states.append([*actor.state_dict().values(), *scalar.state_dict().values()])
    assert all(torch.equal(first, second) for first, second in zip(*states, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batch_of_masked_rows_runs(kind: str) -> None:
    """verl#4165: without padding nothing was left, and the forward crashed."""
    nothing = torch.zeros_like(REAL)
    actor, model = policy(kind), reward_model(kind)
    scored = actor(TOKENS, nothing, 2)
    values = model(TOKENS, nothing)
    assert (scored.logprobs == 0).all()
    assert (scored.entropies == 0).all()
    assert (score_at_last(values, nothing) == 0).all()
    (scored.logprobs.sum() + values.sum()).backward()
    for weight in (*actor.parameters(), *model.parameters()):
        assert weight.grad is not None  # a rank whose rows are all masked takes part in the reduction
        assert (weight.grad == 0).all()


# 9. Kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_fused_logprobs_are_never_positive(dtype: torch.dtype, scale: float) -> None:
    """verl#2656: log-probs above 0 from the fused head, and the reward collapsed."""
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(16, 50, bias=False, dtype=dtype)
    linear.weight.data = torch.randn(50, 16, generator=generator).to(dtype)
    hidden = (scale * torch.randn(400, 16, generator=generator)).to(dtype)
    head = LogprobHead(linear)
    best = head.logits(hidden).argmax(-1)  # tokens that are all but certain: the sum rounds, and rounds up
    for targets in (best, torch.randint(50, (400,), generator=generator)):
        for temperature in (1.0, 0.5, 3.0):
            logprobs, entropies = head(hidden, targets, temperature)
            assert logprobs.dtype == torch.float32
            assert (logprobs <= 0).all()
            assert (entropies >= 0).all()
            exact = (head.logits(hidden).double() / temperature).log_softmax(-1).gather(-1, targets[:, None])
            torch.testing.assert_close(logprobs.double(), exact[:, 0], rtol=1e-6, atol=1e-5 + 1e-6 * scale)
    assert (head(hidden, best).logprobs > -1e-3).any()


def windowed(window: int | None) -> Actor:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"num_key_value_heads": 2, "vocab_size": 11, "initializer_range": 0.3, "pad_token_id": PAD}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = MistralConfig(**sizes, **more, sliding_window=window, max_position_embeddings=40)
        return Actor(AutoModelForCausalLM.from_config(config)).eval()


def test_window_holds_for_one_query() -> None:
    """nanochat: the branch for a single query position left the attention window out while decoding."""
    window, new = 3, 12
    actor = windowed(window)
    sampler = Sampler(decoding=Sampling(max_new_tokens=new), end_ids=[1], pad_id=PAD)
    rollout = sampler.sample(actor, prompts(16), noise(16, new))
    assert int(rollout.lengths.max()) > 2 * window
    scored = actor(rollout.tokens, rollout.attention_mask, 3).logprobs
    torch.testing.assert_close(rollout.sampler_logprobs, scored, rtol=0, atol=1e-5)
    # Two layers that see 3 tokens each look back over 5: the seventh token is not told of the first.
    tokens, whole = torch.cat([TOKENS, TOKENS[:, :1]], 1), windowed(None)
    changed = torch.cat([10 - tokens[:, :1], tokens[:, 1:]], 1)
    real = torch.ones_like(tokens, dtype=torch.bool)
    for model, same in ((actor, True), (whole, False)):
        moved = (model(tokens, real, 6).logprobs - model(changed, real, 6).logprobs).abs()
        assert (moved < 1e-6).all() if same else (moved > 1e-4).all()
    unbounded = whole(rollout.tokens, rollout.attention_mask, 3).logprobs
    assert (unbounded - rollout.sampler_logprobs)[rollout.mask].abs().max() > 0.01  # the window matters here


PACKINGS = [False, True]


def ragged() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with padding on the left, on the right, on both sides and on none."""
    tokens = torch.cat([TOKENS, TOKENS[:1].flip(1)])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :2] = mask[1, 4:] = mask[2, :1] = mask[2, 5:] = False
    return tokens, mask


def double(kind: str, *, packed: bool) -> Actor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Actor(AutoModelForCausalLM.from_config(config(kind)).double(), packed=packed).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [1, 3])
def test_packed_and_padded_logprobs_agree(kind: str, first: int) -> None:
    padded_rows, packed_rows = (double(kind, packed=packed)(*ragged(), first, 0.7) for packed in PACKINGS)
    torch.testing.assert_close(packed_rows, padded_rows, rtol=0, atol=1e-12)
    assert (padded_rows.logprobs != 0).sum() == (
        ragged()[1][:, first:] & ragged()[1][:, first - 1 : -1]
    ).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_labels_never_cross_rows(kind: str) -> None:
    """Any change of a row leaves every bit of the others: no label, no attention and no position crosses."""
    actor, (tokens, mask) = double(kind, packed=True), ragged()
    before = actor(tokens, mask, 1)
    for row in range(len(tokens)):
        changed = tokens.clone()
        changed[row] = (changed[row] + 1) % 11
        others = torch.arange(len(tokens)) != row
        after = actor(changed, mask, 1)
        for old, new in zip(before, after, strict=True):
            torch.testing.assert_close(new[others], old[others], rtol=0, atol=1e-13)
            assert (new[row] != old[row]).any()
    starts = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    assert (before.logprobs[starts[:, 1:]] == 0).all()  # a first token has no row before it


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", PACKINGS)
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2]])
def test_fused_logprobs_match_the_plain_op_in_every_layout(kind: str, packed: bool, order: list[int]) -> None:
    """Each row alone, through transformers' own model and head and a softmax over its whole vocabulary."""
    actor, (tokens, mask) = double(kind, packed=packed), ragged()
    found = actor(tokens[order], mask[order], 1, 0.7)
    own = double(kind, packed=False).model
    for place, row in enumerate(order):
        real = tokens[row, mask[row]]
        logs = (own(input_ids=real[None]).logits[0, :-1] / 0.7).log_softmax(-1)
        at = mask[row, 1:] & mask[row, :-1]
        expected = logs.gather(1, real[1:, None]).squeeze(1)
        torch.testing.assert_close(found.logprobs[place, at], expected, rtol=0, atol=1e-12)
        entropies = -(logs.exp() * logs).sum(-1)
        torch.testing.assert_close(found.entropies[place, at], entropies, rtol=0, atol=1e-12)


@pytest.mark.parametrize("unit_std", [False, True])
@pytest.mark.parametrize("source", ["GPT2", "LLAMA"])
def test_reward_statistics_survive_save_and_load(tmp_path: Path, source: str, unit_std: bool) -> None:
    """OpenRLHF#1343: constants in buffers, which a new transformers left uninitialised.

    Ours are weights: through transformers alone, our loader, a second saving and an engine's checkpoint the
    demonstrations keep the mean 0 (and deviation 1), and every score is gain·(raw − mean).
    """
    rows = toy.supervised_set(12)
    engine = Plain().train(toy.scalar("reward", getattr(toy, source)), AdamW()(torch.nn.Linear(1, 1)), "r")
    raw = scores_of(engine.module, rows)
    sums = score_sums(engine, rows, LastToken(), Cut(rows=5), toy.place())
    found = Normalisation.of(sums, unit_std=unit_std)
    expected = (raw - raw.mean()) / (raw.std(correction=0) if unit_std else 1.0)
    assert found.count == 12
    scale = found.scale(float(engine.module.head.shift))
    save_model(engine.module, engine.state(), toy.tokenizer(), tmp_path / "first", scale=scale)
    ours = load_scalar_model(
        Pretrained(path=str(tmp_path / "first")),
        toy.tokenizer(),
        generator=torch.Generator(),
        fresh_head=False,
    )
    save_model(ours, ours.state_dict(), toy.tokenizer(), tmp_path / "second")
    trained = Plain().train(ours, AdamW()(ours), "critic")
    trained.save(tmp_path / "checkpoint")
    ours.head.shift.fill_(99.0)
    trained.load(tmp_path / "checkpoint")
    theirs = [
        AutoModelForSequenceClassification.from_pretrained(tmp_path / name) for name in ("first", "second")
    ]
    for model in theirs:
        logits = torch.cat([model(torch.tensor([row.tokens])).logits[:, 0] for row in rows.encoded]).detach()
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        assert logits.double().mean().abs() < 1e-6
    torch.testing.assert_close(scores_of(ours, rows), expected, rtol=1e-5, atol=1e-5)


def scores_of(model: Any, rows: Any) -> torch.Tensor:
    """Each text alone, after its last token."""
    alone = [torch.tensor([row.tokens]) for row in rows.encoded]
    return torch.cat([model(text, torch.ones_like(text).bool())[:, -1] for text in alone]).detach()
