"""``rlhf serve``: a reward behind HTTP, for training runs and whoever else wants scores."""

from __future__ import annotations

import signal
import sys

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import load_reward, reward_tokenizer, single_process
from rlhf.cli.room import Longest, context_of
from rlhf.config import Serve
from rlhf.data.asked import Reader
from rlhf.data.tokenizers import load_tokenizer
from rlhf.distributed import runtime
from rlhf.distributed.engine_config import Plain
from rlhf.models.actor import Actor
from rlhf.models.scalar import ScalarModel
from rlhf.rewards.asked import TextScorer
from rlhf.rewards.implicit import ImplicitReward
from rlhf.rewards.mixture import CombinedReward
from rlhf.rewards.reward import ModelReward, Reward
from rlhf.rewards.server import Endpoint


def serve(config: Serve, place: Place) -> None:
    """Answer until SIGINT or SIGTERM; the requests of the batch in hand get their scores."""
    single_process(place, "rlhf serve")
    token = None if config.token_variable is None else runtime.secret(config.token_variable)
    scorer = _scorer(config, place)
    endpoint = Endpoint(scorer, host=config.host, port=config.port, token=token, limits=config.limits)
    previous = {
        number: signal.signal(number, lambda *_: endpoint.stop())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        sys.stdout.write(f"listening at {endpoint.url}: POST /score, GET /health; Ctrl-C ends it\n")
        sys.stdout.flush()
        endpoint.serve()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    served = endpoint.served
    sys.stdout.write(f"{served.requests} requests, {served.rows} responses, {served.batches} batches\n")


def _scorer(config: Serve, place: Place) -> TextScorer:
    source = config.tokenizer or reward_tokenizer(config.reward)
    tokenizer = None if source is None else load_tokenizer(source)
    reward = load_reward(
        config.reward,
        engine=Plain(),
        actor=None,
        tokenizer=tokenizer,
        longest=Longest(source="max_length", row=0, tokens=config.max_length or 1, new_tokens=0),
        micro_rows=config.micro_batch_size,
    )
    return TextScorer(
        reward=reward,
        reader=Reader(tokenizer=tokenizer, max_length=config.max_length or _context(reward)),
        device=place.runtime.device,
    )


def _context(reward: Reward) -> int | None:
    """The fewest positions of the models in a reward; None where there is no limit."""
    if isinstance(reward, CombinedReward):
        found = [_context(part) for part in reward.parts.values()]
    else:
        found = [context_of(model) for model in _models(reward)]
    return min((positions for positions in found if positions is not None), default=None)


def _models(reward: Reward) -> list[Actor | ScalarModel]:
    """The models that a single reward runs."""
    engines: list[object] = []
    if isinstance(reward, ModelReward):
        engines = [reward.model]
    if isinstance(reward, ImplicitReward):
        engines = [reward.policy, reward.reference]
    modules = [getattr(engine, "module", None) for engine in engines]
    return [module for module in modules if isinstance(module, Actor | ScalarModel)]


COMMAND = Command(schema=Serve, job=serve)
