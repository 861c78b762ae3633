"""``rlhf serve``: a reward behind HTTP, for training runs and whoever else wants scores."""

from __future__ import annotations

import signal
import sys

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import load_reward, reward_tokenizer, single_process
from rlhf.cli.room import Longest, context_of_reward
from rlhf.config import Serve
from rlhf.data.asked import Reader
from rlhf.data.tokenizers import load_tokenizer
from rlhf.distributed import runtime
from rlhf.distributed.engine_config import Plain
from rlhf.rewards.asked import TextScorer
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
        reader=Reader(tokenizer=tokenizer, max_length=config.max_length or context_of_reward(reward)),
        device=place.runtime.device,
    )


COMMAND = Command(schema=Serve, job=serve)
