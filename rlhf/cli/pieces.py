"""What several commands build in the same way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf.cli.application import Place
from rlhf.config import Job, RewardFunction, RewardModel, RewardSource
from rlhf.data.tokenizers import load_tokenizer
from rlhf.distributed.collectives import is_main, on_main
from rlhf.distributed.engine import Engine
from rlhf.distributed.engine_config import EngineConfig
from rlhf.distributed.gathering import is_sharded, refresh
from rlhf.distributed.runtime import generator
from rlhf.models.actor import Actor
from rlhf.models.loading import expect_same_vocabulary, load_scalar_model
from rlhf.models.saving import save_model
from rlhf.models.sources import Pretrained
from rlhf.rewards.reward import FunctionReward, ModelReward, Reward, import_function
from rlhf.run_folder import RunFolder


def open_folder(config: Job, place: Place) -> RunFolder:
    """The run's folder, claimed for it, with the resolved configuration inside."""
    folder = RunFolder(place.folder, writes=is_main())
    on_main(lambda: folder.claim(place.resolved, resume=config.resume))
    return folder


def tokenizer_of(model: Pretrained) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model."""
    return load_tokenizer(model.folder)


def exporter(engine: Engine, tokenizer: PreTrainedTokenizerBase) -> Callable[[Path], None]:
    """Writes the engine's model as a Hugging Face folder; every rank calls it."""

    def export(folder: Path) -> None:
        state = engine.state()
        on_main(lambda: save_model(engine.module, state, tokenizer, folder, replace=True))  # type: ignore[arg-type]

    return export


def sampling_actor(engine: Engine, plain: Actor) -> Callable[[], Actor]:
    """The engine's present weights in a plain module: its own, or ``plain`` refreshed where they are split."""

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
    actor: Actor,
    tokenizer: PreTrainedTokenizerBase,
    micro_rows: int,
) -> Reward:
    """The reward that a configuration names.

    Raises:
        ValueError: it does not fit the actor, or cannot be loaded.
    """
    if isinstance(source, RewardFunction):
        return FunctionReward(function=import_function(source.function), name=source.function)
    assert isinstance(source, RewardModel)
    model = load_scalar_model(
        Pretrained(path=source.path), tokenizer, generator=generator(0, "unused"), fresh_head=False
    )
    expect_same_vocabulary(actor, model)
    return ModelReward(model=engine.inference(model, "reward model"), micro_rows=micro_rows)


def copy_for_sampling(actor: Actor, engine: EngineConfig) -> Actor:
    """A plain copy where the engine will split the actor's parameters, else the actor itself."""
    return copy.deepcopy(actor) if engine.splits_parameters else actor

