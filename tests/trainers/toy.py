"""Tiny real runs of every stage: thirteen words, one-layer models, data sets made of rows of our own.

No test module: the tests load it by its path, in their own process and in each of two ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from rlhf.algorithms import advantages, aggregation, kl, mixtures, policy_losses, value_losses
from rlhf.algorithms.divergences import Divergence, ForwardKL
from rlhf.algorithms.mixtures import Mixture
from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.algorithms.preference_losses import DPO, KTO, PairedLoss, PreferenceLoss
from rlhf.algorithms.preferences import BradleyTerry, RewardLoss
from rlhf.batch import Rollout
from rlhf.data.comparison_rows import Judgement
from rlhf.data.encoding import Encoded
from rlhf.data.feedback import mismatched
from rlhf.data.fitting import Report
from rlhf.data.loaded import ComparisonSet, LabelledSet, PreferenceSet, PromptSet, SupervisedSet
from rlhf.distributed import collectives, runtime
from rlhf.distributed.averaging import WeightAverage
from rlhf.distributed.engine_config import EngineConfig, Plain
from rlhf.distributed.gathering import is_sharded, refresh
from rlhf.models.actor import Actor
from rlhf.models.loading import load_actor, load_scalar_model
from rlhf.models.lora import LoRA, Unadapted
from rlhf.models.readouts import LastToken, Readout
from rlhf.models.scalar import ScalarModel
from rlhf.models.sources import ModelSource, TinyGPT2, TinyLlama
from rlhf.rewards.reward import FunctionReward, Reward
from rlhf.rollout.decoding import Sampling
from rlhf.rollout.sampler import Sampler
from rlhf.rollout.texts import RolloutTexts
from rlhf.trainers.collection import Prompts, Scored, Sizes
from rlhf.trainers.distillation import DistillationTrainer, Pair
from rlhf.trainers.faults import NonFinite
from rlhf.trainers.feedback import feedback_of
from rlhf.trainers.micro_batches import Cut
from rlhf.trainers.optimizers import AdamW
from rlhf.trainers.policy_gradient import Models, PolicyGradientTrainer
from rlhf.trainers.preference import PreferenceTrainer
from rlhf.trainers.pretraining import Pretraining
from rlhf.trainers.reference_logprobs import reference_logprobs
from rlhf.trainers.reward_model import RewardModelTrainer
from rlhf.trainers.schedules import Linear, Schedule
from rlhf.trainers.supervised import Anchor, SupervisedTrainer

WORDS = ["<bos>", "<eos>", "<pad>", *"abcdefghij"]
BOS, EOS, PAD, A = 0, 1, 2, 3
LLAMA = TinyLlama(layers=1, hidden=16, heads=2, intermediate=24, context=40)
TEACHER = TinyGPT2(layers=1, hidden=24, heads=2, context=40)
GPT2 = TinyGPT2(layers=1, hidden=16, heads=2, context=40)
SCALE = 6.0
"""Random weights of transformers are so small that every distribution is uniform and no mistake shows."""


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<bos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def place() -> runtime.Runtime:
    """This process among the ranks, if there are several."""
    return runtime.Runtime(collectives.rank(), collectives.world_size(), 0, runtime.device())


def numbers(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(name.encode()))


def actor(
    name: str = "actor",
    source: ModelSource = LLAMA,
    *,
    gradient_checkpointing: bool = False,
    packed: bool = False,
    lora: LoRA | None = None,
) -> Actor:
    loaded = load_actor(
        source,
        tokenizer(),
        generator=numbers(name),
        gradient_checkpointing=gradient_checkpointing,
        packed=packed,
    )
    return adapted(widened(loaded), lora)


def scalar(
    name: str = "critic",
    source: ModelSource = LLAMA,
    *,
    gradient_checkpointing: bool = False,
    packed: bool = False,
    lora: LoRA | None = None,
) -> ScalarModel:
    loaded = load_scalar_model(
        source,
        tokenizer(),
        generator=numbers(name),
        fresh_head=True,
        gradient_checkpointing=gradient_checkpointing,
        packed=packed,
    )
    return adapted(widened(loaded), lora)


def adapted(model: Any, lora: LoRA | None) -> Any:
    if lora is not None:
        lora(model, numbers("adapters"))
    return model


def widened(model: Any) -> Any:
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.shape[0] > 1:  # a scalar head is wide enough
            parameter.data.mul_(SCALE)
    return model


def words(generator: torch.Generator, count: int) -> list[int]:
    return torch.randint(A, len(WORDS), (count,), generator=generator).tolist()


def demonstration(generator: torch.Generator, prompt: int, response: int) -> Encoded:
    tokens = [BOS, *words(generator, prompt), *words(generator, response), EOS]
    return Encoded(tokens=tokens, targets=[False] * (1 + prompt) + [True] * (response + 1))


def supervised_set(rows: int = 12, name: str = "demonstrations") -> SupervisedSet:
    generator = numbers(name)
    encoded = [demonstration(generator, 1 + row % 4, 1 + 3 * row % 7) for row in range(rows)]
    return SupervisedSet(encoded=encoded, pad_id=PAD, report=Report(source=name))


def preference_set(rows: int = 12, name: str = "pairs") -> PreferenceSet:
    generator = numbers(name)
    sides = [
        [demonstration(generator, 2, 1 + row * step % 6) for row in range(rows)] for step in (3, 5)
    ]  # the two texts of a pair have unequal lengths
    return PreferenceSet(
        chosen=sides[0], rejected=sides[1], margins=[0.0] * rows, pad_id=PAD, report=Report(source=name)
    )


def compared(rows: PreferenceSet | ComparisonSet) -> ComparisonSet:
    return rows.compared() if isinstance(rows, PreferenceSet) else rows


def ranking_set(rows: int = 6, name: str = "rankings") -> ComparisonSet:
    """Two to four responses to a prompt, ties and gaps among their comparisons."""
    generator, found = numbers(name), []
    judged = [
        [Judgement(first=0, second=1), Judgement(first=0, second=2), Judgement(first=1, second=2, label=0.5)],
        [Judgement(first=1, second=0, margin=0.5)],
        [Judgement(first=i, second=j) for i in range(4) for j in range(i + 1, 4)],
        [Judgement(first=0, second=1, label=0.7), Judgement(first=2, second=1)],
    ]
    judgements = [judged[row % 4] for row in range(rows)]
    for row, one in enumerate(judgements):
        count = 1 + max(max(pair.first, pair.second) for pair in one)
        found.append([demonstration(generator, 2, 1 + (row * 3 + k * 5) % 6) for k in range(count)])
    return ComparisonSet(texts=found, judgements=judgements, pad_id=PAD, report=Report(source=name))


def labelled_set(rows: int = 12, name: str = "labels") -> LabelledSet:
    generator = numbers(name)
    texts = [demonstration(generator, 1 + row % 3, 1 + 5 * row % 7) for row in range(rows)]
    return LabelledSet(
        texts=texts,
        mismatched=mismatched(texts, 40, name),
        desirable=[row % 3 > 0 for row in range(rows)],
        pad_id=PAD,
        report=Report(source=name),
    )


def prompt_set(rows: int = 10, name: str = "prompts") -> PromptSet:
    generator = numbers(name)
    prompts = [[BOS, *words(generator, 1 + 2 * row % 5)] for row in range(rows)]
    strings = [" ".join(WORDS[token] for token in prompt[1:]) for prompt in prompts]
    others = [{"row": row} for row in range(rows)]
    return PromptSet(prompts=prompts, strings=strings, others=others, pad_id=PAD, report=Report(source=name))


def count_a(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
    """How often each response says "a"."""
    return [float(response.split().count("a")) for response in responses]


def exporter(engine: Any) -> Callable[[Path], None]:
    def export(folder: Path) -> None:
        state = engine.state()
        if collectives.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(state, folder / "state.pt")

    return export


def supervised(
    *,
    engine: EngineConfig | None = None,
    source: ModelSource = LLAMA,
    train: SupervisedSet | None = None,
    test: SupervisedSet | None = None,
    schedule: Schedule | None = None,
    batch_size: int = 4,
    micro_batch_size: int = 2,
    micro_batch_tokens: int | None = None,
    total: int = 5,
    lr: float = 1e-2,
    gradient_checkpointing: bool = False,
    packed: bool = False,
    kl_coef: float = 0.0,
    reference: Actor | None = None,
    lora: LoRA | None = None,
) -> SupervisedTrainer:
    module = actor("sft", source, gradient_checkpointing=gradient_checkpointing, packed=packed, lora=lora)
    anchor, engine = None, engine or Plain()
    if kl_coef > 0 and lora is None:
        frozen = engine.inference(reference or actor("reference", TEACHER, packed=packed), "reference")
        anchor = Anchor(reference=frozen, coef=kl_coef)
    wrapped = engine.train(module, AdamW(lr=lr)(module), "actor")
    if kl_coef > 0 and lora is not None:
        anchor = Anchor(reference=Unadapted(wrapped, wrapped.module), coef=kl_coef)
    return SupervisedTrainer(
        engine=wrapped,
        train=train or supervised_set(),
        test=test,
        schedule=schedule or Linear(),
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        micro_batch_tokens=micro_batch_tokens,
        total=total,
        seed=0,
        runtime=place(),
        export=exporter(wrapped),
        anchor=anchor,
    )


def reward_model(
    *,
    engine: EngineConfig | None = None,
    source: ModelSource = LLAMA,
    train: PreferenceSet | ComparisonSet | None = None,
    test: PreferenceSet | ComparisonSet | None = None,
    loss: RewardLoss | None = None,
    readout: Readout | None = None,
    batch_size: int = 4,
    micro_batch_size: int = 2,
    micro_batch_tokens: int | None = None,
    total: int = 5,
    lr: float = 1e-2,
    gradient_checkpointing: bool = False,
    packed: bool = False,
) -> RewardModelTrainer:
    module = scalar("reward", source, gradient_checkpointing=gradient_checkpointing, packed=packed)
    wrapped = (engine or Plain()).train(module, AdamW(lr=lr)(module), "reward")
    return RewardModelTrainer(
        engine=wrapped,
        train=compared(train or preference_set()),
        test=None if test is None else compared(test),
        loss=loss or BradleyTerry(),
        readout=readout or LastToken(),
        schedule=Linear(),
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        micro_batch_tokens=micro_batch_tokens,
        total=total,
        seed=0,
        runtime=place(),
        export=exporter(wrapped),
    )


def preference(
    loss: PreferenceLoss | None = None,
    *,
    engine: EngineConfig | None = None,
    source: ModelSource = LLAMA,
    train: PreferenceSet | LabelledSet | None = None,
    test: PreferenceSet | LabelledSet | None = None,
    reference: Actor | None = None,
    sft_coef: float = 0.0,
    batch_size: int = 4,
    micro_batch_size: int = 2,
    micro_batch_tokens: int | None = None,
    total: int = 5,
    lr: float = 1e-2,
    gradient_checkpointing: bool = False,
    packed: bool = False,
) -> PreferenceTrainer:
    """DPO from another model than the reference, so that log-ratios are not 0."""
    loss, engine = loss or DPO(), engine or Plain()
    paired = isinstance(loss, PairedLoss)
    module = actor("actor", source, gradient_checkpointing=gradient_checkpointing, packed=packed)
    sets = [train or (preference_set() if paired else labelled_set()), test]
    rows = [None if one is None else feedback_of(one, loss, sft_coef) for one in sets]
    if loss.needs_reference:
        frozen = engine.inference(reference or actor("reference", source, packed=packed), "reference")
        cut = Cut.shared(micro_batch_size, micro_batch_tokens, collectives.world_size(), packed=packed)
        for one in rows:
            if one is not None:
                logprobs = reference_logprobs(frozen, one.texts, pad_id=PAD, cut=cut, runtime=place())
                one.reference = logprobs.view(2, -1).T
    wrapped = engine.train(module, AdamW(lr=lr)(module), "actor")
    assert rows[0] is not None
    return PreferenceTrainer(
        engine=wrapped,
        train=rows[0],
        test=rows[1],
        schedule=Linear(),
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        micro_batch_tokens=micro_batch_tokens,
        total=total,
        seed=0,
        runtime=place(),
        export=exporter(wrapped),
    )


def kto(**changes: Any) -> PreferenceTrainer:
    return preference(KTO(), **changes)


def ppo(**changes: Any) -> PolicyGradient:
    choices: dict[str, Any] = {
        "advantage": advantages.GAE(),
        "policy_loss": policy_losses.Clipped(),
        "kl": kl.KLInReward(coef=0.1),
        "aggregation": aggregation.TokenMean(),
        "value_loss": value_losses.ClippedValueLoss(),
        "epochs": 2,
        "minibatches": 2,
    }
    return PolicyGradient(**(choices | changes))


def rloo(**changes: Any) -> PolicyGradient:
    choices: dict[str, Any] = {
        "advantage": advantages.LeaveOneOut(),
        "policy_loss": policy_losses.Reinforce(),
        "aggregation": aggregation.ConstantLength(length=1),
        "value_loss": None,
        "epochs": 1,
        "minibatches": 1,
    }
    return ppo(**(choices | changes))


def grpo(**changes: Any) -> PolicyGradient:
    choices: dict[str, Any] = {
        "advantage": advantages.GroupRelative(),
        "kl": kl.KLInLoss(),
        "aggregation": aggregation.SequenceMean(),
        "value_loss": None,
    }
    return ppo(**(choices | changes))


def policy_gradient(
    algorithm: PolicyGradient | None = None,
    *,
    engine: EngineConfig | None = None,
    critic_engine: EngineConfig | None = None,
    inference_engine: EngineConfig | None = None,
    source: ModelSource = LLAMA,
    reference: Actor | None = None,
    reward: Reward | None = None,
    train: PromptSet | None = None,
    test: PromptSet | None = None,
    schedule: Schedule | None = None,
    prompts: int = 8,
    samples: int = 1,
    micro_batch: int = 4,
    micro_batch_tokens: int | None = None,
    new_tokens: int = 6,
    temperature: float = 0.9,
    exact_kl: bool = True,
    total: int = 4,
    seed: int = 0,
    lr: float = 1e-2,
    critic_lr: float = 1e-2,
    gradient_checkpointing: bool = False,
    packed: bool = False,
    measure_kl: bool = True,
    ema_decay: float | None = None,
    pretraining: SupervisedSet | None = None,
    lora: LoRA | None = None,
) -> PolicyGradientTrainer:
    algorithm = algorithm or ppo()
    engine = engine or Plain()
    policy = actor("actor", source, gradient_checkpointing=gradient_checkpointing, packed=packed, lora=lora)
    frozen: Any = None
    if measure_kl and lora is None:
        module = copy.deepcopy(policy) if reference is None else reference
        frozen = (inference_engine or engine).inference(module, "reference")
    plain = copy.deepcopy(policy)
    average = None if ema_decay is None else WeightAverage(copy.deepcopy(policy), ema_decay)
    critic = None
    if algorithm.value_loss is not None:
        values = scalar(
            "critic", source, gradient_checkpointing=gradient_checkpointing, packed=packed, lora=lora
        )
        critic = (critic_engine or engine).train(values, AdamW(lr=critic_lr)(values), "critic")
    wrapped = engine.train(policy, AdamW(lr=lr)(policy), "actor")
    if measure_kl and lora is not None:
        frozen = Unadapted(wrapped, policy)

    def sampling_actor() -> Actor:
        if not is_sharded(wrapped.module):
            return wrapped.module  # type: ignore[return-value]
        refresh(plain, wrapped.module)
        return plain

    return PolicyGradientTrainer(
        models=Models(
            actor=wrapped,
            critic=critic,
            reference=frozen,
            reward=reward or FunctionReward(function=count_a, name="count_a"),
            sampling_actor=sampling_actor,
            average=average,
        ),
        algorithm=algorithm,
        sampler=Sampler(
            decoding=Sampling(max_new_tokens=new_tokens, temperature=temperature), end_ids=[EOS], pad_id=PAD
        ),
        train=prompts_of(train or prompt_set()),
        test=None if test is None else prompts_of(test),
        sizes=Sizes(
            prompts=prompts, samples=samples, micro_batch=micro_batch, micro_batch_tokens=micro_batch_tokens
        ),
        exact_kl=exact_kl,
        schedule=schedule or Linear(),
        total=total,
        seed=seed,
        runtime=place(),
        export=exporter(wrapped),
        pretraining=None if pretraining is None else texts_of(pretraining, micro_batch),
    )


def distillation(
    *,
    divergence: Divergence | None = None,
    mixture: Mixture | None = None,
    engine: EngineConfig | None = None,
    source: ModelSource = LLAMA,
    teacher: Actor | None = None,
    train: PromptSet | None = None,
    test: PromptSet | None = None,
    prompts: int = 8,
    samples: int = 1,
    micro_batch: int = 4,
    micro_batch_tokens: int | None = None,
    new_tokens: int = 6,
    temperature: float = 0.9,
    sampling_temperature: float = 0.9,
    keep_rounds: int | None = 1,
    steps: int = 1,
    batch_size: int = 8,
    total: int = 4,
    lr: float = 1e-2,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    packed: bool = False,
    non_finite: NonFinite = NonFinite.stop,
) -> DistillationTrainer:
    """A teacher of another width and kind of positions."""
    engine, rows = engine or Plain(), train or prompt_set()
    student = actor("student", source, gradient_checkpointing=gradient_checkpointing, packed=packed)
    expert = actor("teacher", TEACHER, packed=packed) if teacher is None else teacher
    plain, writer = copy.deepcopy(student), copy.deepcopy(expert)
    wrapped = engine.train(student, AdamW(lr=lr)(student), "student")

    def sampling_student() -> Actor:
        if not is_sharded(wrapped.module):
            return wrapped.module  # type: ignore[return-value]
        refresh(plain, wrapped.module)
        return plain

    return DistillationTrainer(
        models=Pair(
            student=wrapped,
            teacher=engine.inference(expert, "teacher"),
            sampling_student=sampling_student,
            sampling_teacher=writer.eval(),
        ),
        divergence=divergence or ForwardKL(),
        mixture=mixture or mixtures.Constant(),
        temperature=temperature,
        sampler=Sampler(
            decoding=Sampling(max_new_tokens=new_tokens, temperature=sampling_temperature),
            end_ids=[EOS],
            pad_id=PAD,
        ),
        train=prompts_of(rows),
        test=None if test is None else prompts_of(test),
        sizes=Sizes(
            prompts=prompts, samples=samples, micro_batch=micro_batch, micro_batch_tokens=micro_batch_tokens
        ),
        keep_rounds=keep_rounds,
        steps=steps,
        batch_size=batch_size,
        schedule=Linear(),
        total=total,
        seed=seed,
        runtime=place(),
        export=exporter(wrapped),
        non_finite=non_finite,
    )


def prompts_of(rows: PromptSet) -> Prompts:
    return Prompts(rows=rows, texts=RolloutTexts(rows, tokenizer()))


def texts_of(rows: SupervisedSet, micro_batch: int) -> Pretraining:
    """Four texts of pretraining a step."""
    ranks = collectives.world_size()
    return Pretraining(rows=rows, batch_size=4, cut=Cut(rows=micro_batch // ranks), seed=0, runtime=place())


def next_prompts(trainer: PolicyGradientTrainer) -> Any:
    """This rank's rows of the next rollout, before they are answered."""
    return trainer.collector.prompts(trainer.state.drawn)


def next_rollout(trainer: PolicyGradientTrainer) -> Rollout:
    """The rollout that the next step will sample."""
    return trainer.collector.sample(next_prompts(trainer))


def scored(rollout: Rollout, scores: Tensor | None = None) -> Scored:
    """The rollout with these scores, or with none."""
    return Scored(rollout=rollout, scores=torch.zeros(len(rollout)) if scores is None else scores, parts={})


def parameters(*engines: Any) -> dict[str, Tensor]:
    """Every parameter of the engines that are there, copied."""
    return {
        f"{engine.name}.{name}": tensor.detach().clone()
        for engine in engines
        if engine is not None
        for name, tensor in engine.module.named_parameters()
    }


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
