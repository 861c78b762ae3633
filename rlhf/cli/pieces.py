"""What several commands build in the same way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from rlhf.cli.application import Place
from rlhf.cli.room import Longest
from rlhf.config import Job
from rlhf.data.sets import PromptData
from rlhf.data.tokenizers import end_ids, load_tokenizer
from rlhf.distributed import runtime
from rlhf.distributed.averaging import WeightAverage
from rlhf.distributed.collectives import is_main, on_main
from rlhf.distributed.engine import Engine, cast_parameters
from rlhf.distributed.engine_config import EngineConfig
from rlhf.distributed.gathering import is_sharded, refresh, to_main, whole_tensors
from rlhf.evaluation.plots import curves
from rlhf.models.actor import Actor
from rlhf.models.adapters import save_adapter
from rlhf.models.loading import expect_same_vocabulary, load_actor, load_scalar_model
from rlhf.models.lora import SavedLoRA, Unadapted
from rlhf.models.readouts import readout_of
from rlhf.models.saving import save_model
from rlhf.models.scalar import ScalarModel
from rlhf.models.score_shift import ScoreScale
from rlhf.models.sources import Pretrained
from rlhf.rewards.endpoint import EndpointReward
from rlhf.rewards.ensemble import EnsembleReward, LowestReward
from rlhf.rewards.functions import import_function
from rlhf.rewards.implicit import ImplicitReward
from rlhf.rewards.mixture import MixtureReward
from rlhf.rewards.reward import FunctionReward, ModelReward, Reward
from rlhf.rewards.sources import (
    Implicit,
    LowestOfEnsemble,
    RewardEndpoint,
    RewardEnsemble,
    RewardFunction,
    RewardMixture,
    RewardModel,
    RewardSource,
    own_tokenizer,
)
from rlhf.rewards.verifiers import Verifier
from rlhf.rollout.decoding import Decoding
from rlhf.rollout.graphs import Graphs
from rlhf.rollout.responses import StopStrings
from rlhf.rollout.sampler import Sampler
from rlhf.rollout.texts import RolloutTexts
from rlhf.run_folder import RunFolder
from rlhf.seeding import generator
from rlhf.tensor_file import TensorStream
from rlhf.trainers.collection import Prompts
from rlhf.trainers.loop import Trainer, run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def open_folder(config: Job, place: Place) -> RunFolder:
    """The run's folder, claimed for it, with the resolved configuration inside."""
    folder = RunFolder(place.folder, writes=is_main())
    on_main(lambda: folder.claim(place.resolved, resume=config.resume))
    return folder


def train_and_draw(trainer: Trainer, folder: RunFolder, config: Job) -> None:
    """Run the stage to its end and draw its ``curves.png``."""
    run(trainer, folder, config.cadence, resume=config.resume)
    folder.close()
    if is_main():
        curves(folder.path / "metrics.jsonl", folder.path / "curves.png")


def tokenizer_of(model: Pretrained) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model."""
    return load_tokenizer(model.folder)


def prompts_of(data: PromptData, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """A prompt set, read and encoded, and its texts."""
    rows = data.load(tokenizer)
    return Prompts(rows=rows, texts=RolloutTexts(rows, tokenizer))


def exporter(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    average: WeightAverage[Actor] | None = None,
    rescaled: Callable[[], ScoreScale] | None = None,
) -> Callable[[Path], None]:
    """Writes the engine's model, or its average, as a Hugging Face folder; every rank calls it.

    Adapters go to ``adapter/`` beside it, as they were trained. ``rescaled`` is asked what the scores of a
    reward model are to be changed to.
    """
    model = cast(Actor | ScalarModel, engine.module)

    def export(folder: Path) -> None:
        scale = None if rescaled is None else rescaled()

        def weights() -> TensorStream:
            return engine.weights() if average is None else whole_tensors(average.module)

        def write(each: TensorStream) -> None:
            save_model(model, each, tokenizer, folder, replace=True, scale=scale)

        if model.lora is not None:
            place = folder.with_name("adapter")
            to_main(weights(), lambda each: save_adapter(model, each, tokenizer, place, replace=True))
        if not isinstance(model.lora, SavedLoRA) or model.lora.merge:
            to_main(weights(), write)

    return export


def own_reference(engine: Engine) -> Unadapted | None:
    """What the engine's policy started from, where it is still there: with its adapters off."""
    adapted = cast(Actor, engine.module).lora is not None
    return Unadapted(engine, engine.module) if adapted else None


def sampling_actor(engine: Engine, plain: Actor) -> Callable[[], Actor]:
    """The engine's present weights in a plain module: its own, or ``plain`` refreshed where split."""

    def current() -> Actor:
        if not is_sharded(engine.module):
            assert isinstance(engine.module, Actor)
            return engine.module
        refresh(plain, engine.module)
        return plain

    return current


def load_reward(
    source: RewardSource,
    *,
    engine: EngineConfig,
    actor: Actor | None,
    tokenizer: PreTrainedTokenizerBase,
    longest: Longest,
    micro_rows: int,
    packed: bool = False,
) -> Reward:
    """The reward that a configuration names.

    Raises:
        ValueError: it does not fit the actor or the longest text, or cannot be loaded.
    """
    load = partial(
        load_reward,
        engine=engine,
        actor=actor,
        tokenizer=tokenizer,
        longest=longest,
        micro_rows=micro_rows,
        packed=packed,
    )
    if isinstance(source, RewardEnsemble | LowestOfEnsemble):
        members = {
            f"member_{number}": load(RewardModel(path=path)) for number, path in enumerate(source.paths, 1)
        }
        if isinstance(source, LowestOfEnsemble):
            return LowestReward(parts=members)
        return EnsembleReward(parts=members, std_coef=source.std_coef)
    if isinstance(source, RewardMixture):
        parts = {name: load(part) for name, part in source.parts.items()}
        return MixtureReward(parts=parts, weights=source.weights)
    if isinstance(source, RewardFunction):
        function, limit = import_function(source.function), source.timeout_seconds
        return FunctionReward(function=function, name=source.function, timeout_seconds=limit)
    if isinstance(source, RewardEndpoint):
        variable = source.token_variable
        return EndpointReward(source=source, token=None if variable is None else runtime.secret(variable))
    if isinstance(source, Verifier):
        return FunctionReward(function=source, name=type(source).__name__)
    if isinstance(source, Implicit):
        return _implicit(source, engine, actor, tokenizer, longest, micro_rows, packed=packed)
    if not isinstance(source, RewardModel):
        raise ValueError("this command needs a reward: reward=model reward.path=…, or reward=function")
    model = load_scalar_model(
        Pretrained(path=source.path),
        tokenizer,
        generator=generator(0, "unused"),
        fresh_head=False,
        packed=packed,
    )
    longest.expect_room(model)
    if actor is not None:
        expect_same_vocabulary(actor, model)
    readout, inference = readout_of(model), engine.inference(model, "reward model")
    return ModelReward(model=inference, micro_rows=micro_rows, readout=readout)


def _implicit(  # noqa: PLR0917 - what load_reward knows
    source: Implicit,
    engine: EngineConfig,
    actor: Actor | None,
    tokenizer: PreTrainedTokenizerBase,
    longest: Longest,
    micro_rows: int,
    *,
    packed: bool,
) -> ImplicitReward:
    load = partial(load_actor, tokenizer=tokenizer, generator=generator(0, "unused"), packed=packed)
    policy, reference = (load(Pretrained(path=path)) for path in (source.policy, source.reference))
    expect_same_vocabulary(policy, reference)
    for model in (policy, reference):
        longest.expect_room(model)
    if actor is not None:
        expect_same_vocabulary(actor, policy)
    return ImplicitReward(
        policy=engine.inference(policy, "reward's policy"),
        reference=engine.inference(reference, "reward's reference"),
        beta=source.beta,
        micro_rows=micro_rows,
    )


def reward_tokenizer(source: RewardSource) -> str | None:
    """Folder of the tokenizer that a reward brings with it, if it is, or has, a model."""
    own = own_tokenizer(source)
    return None if own is None else Pretrained(path=own).folder


def copy_for_sampling(actor: Actor, engine: EngineConfig) -> Actor:
    """A plain copy where the engine will split the actor's parameters, else the actor itself.

    It has the engine's precision, for the sampler must be the policy that is scored.
    """
    if not engine.splits_parameters:
        return actor
    plain = copy.deepcopy(actor)
    cast_parameters(plain, engine.dtype)
    return plain.to(runtime.device())


def float32_copy(actor: Actor) -> Actor:
    """A plain copy in float32 on this rank's device."""
    plain = copy.deepcopy(actor)
    cast_parameters(plain, torch.float32)
    return plain.to(runtime.device())


def sampler_for(
    actor: Actor,
    tokenizer: PreTrainedTokenizerBase,
    decoding: Decoding,
    *,
    stop: Sequence[str] = (),
    memory_gib: float | None = None,
) -> Sampler:
    """A sampler that stops at every end token of tokenizer and model, and at the texts of ``stop``.

    On a GPU it captures its steps.
    """
    return Sampler(
        decoding=decoding,
        end_ids=end_ids(tokenizer, actor.model.generation_config.eos_token_id),
        pad_id=int(tokenizer.pad_token_id),
        stop=StopStrings(strings=stop, tokenizer=tokenizer) if stop else None,
        memory=None if memory_gib is None else max(int(memory_gib * 2**30), 1),
        graphs=Graphs() if runtime.device().type == "cuda" else None,
    )


def claim_results(place: Place, files: Sequence[str]) -> None:
    """Take the folder for the results of a command that trains nothing.

    Raises:
        ValueError: one of ``files`` is there already.
    """

    def claim() -> None:
        found = [name for name in files if (place.folder / name).exists()]
        if found:
            listed = ", ".join(found)
            raise ValueError(
                f"{place.folder} already holds {listed}: choose another name=…; nothing was overwritten"
            )
        place.folder.mkdir(parents=True, exist_ok=True)
        (place.folder / "config.yaml").write_text(place.resolved, encoding="utf-8")

    on_main(claim)


def single_process(place: Place, command: str) -> None:
    """Refuse several ranks where they would write the same file.

    Raises:
        ValueError: there are several.
    """
    if place.runtime.world_size > 1:
        raise ValueError(f"{command} runs as one process, not as {place.runtime.world_size} ranks")
