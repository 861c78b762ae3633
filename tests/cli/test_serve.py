"""``rlhf serve`` as a process, and an online run whose endpoint is killed in the middle of a rollout."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.cli.room import context_of_reward
from rlhf.data.asked import Reader
from rlhf.distributed.engine_config import Frozen
from rlhf.rewards.asked import TextScorer
from rlhf.rewards.ensemble import EnsembleReward
from rlhf.rewards.implicit import ImplicitReward
from rlhf.rewards.mixture import MixtureReward
from rlhf.rewards.reward import FunctionReward, ModelReward
from rlhf.rewards.server import Endpoint, Limits
from tests.trainers import toy

PATIENCE = 120.0
"""Seconds for a process to start on a busy machine."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def health(port: int) -> dict[str, Any] | None:
    """What the endpoint has done; None where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class Server:
    """A process that serves the tiny reward model; each request takes a tenth of a second."""

    def __init__(self, workspace: Any, port: int) -> None:
        self.port = port
        words = [sys.executable, "-m", "rlhf", "serve", f"reward.path={workspace.reward}", f"port={port}"]
        words += ["limits.wait_milliseconds=100", "limits.batch_rows=1000"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            words, cwd=workspace.folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        until = time.monotonic() + PATIENCE
        while health(port) is None:
            assert self.process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)

    def end(self, number: int) -> str:
        self.process.send_signal(number)
        return self.process.communicate(timeout=PATIENCE)[0]


@contextmanager
def killed_after(server: Server, responses: int, then: Any) -> Iterator[None]:
    """In a thread of its own: once so many responses have their scores, kill -9, and call ``then``."""
    before = (health(server.port) or {})["responses"]

    def watch() -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            found = health(server.port)
            if found is not None and found["responses"] >= before + responses:
                break
            time.sleep(0.02)
        server.end(signal.SIGKILL)
        then()

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join(2 * PATIENCE)


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    timed = ("time/", "throughput/", "memory/")
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(timed)} for line in lines]


@pytest.mark.slow
def test_a_run_survives_its_endpoint_and_goes_on_after_it_gave_up(
    rlhf: Any, workspace: Any, rl_arguments: list[str], tmp_path: Path
) -> None:
    """Four responses a rollout, one a request. The endpoint dies after the sixth, in the second rollout."""
    port, servers = free_port(), []

    def start() -> None:
        servers.append(Server(workspace, port))

    arguments = [word for word in rl_arguments if not word.startswith(("name=", "reward.path=", "rollouts="))]
    arguments += [
        "reward=endpoint",
        f"reward.url=http://127.0.0.1:{port}",
        "reward.batch_size=1",
        "rollouts=3",
    ]
    start()
    try:
        whole = rlhf("rl", "name=whole", *arguments)
        assert whole.status == 0, whole.err
        expected = metrics(tmp_path / "runs" / "whole")
        assert len({row["reward/score"] for row in expected}) == 3
        assert (health(port) or {})["responses"] == 12

        with killed_after(servers[-1], 6, then=start):
            survived = rlhf("rl", "name=survived", *arguments, "reward.retries=12")
        assert survived.status == 0, survived.err
        assert "trying again" in survived.err
        assert metrics(tmp_path / "runs" / "survived") == expected
        assert 4 <= (health(port) or {})["responses"] <= 6  # what the first process had not answered

        with killed_after(servers[-1], 6, then=lambda: None):
            ended = rlhf("rl", "name=ended", *arguments, "reward.retries=0")
        assert ended.status == 1
        (line,) = [line for line in ended.err.splitlines() if line.startswith("rlhf rl: ")]
        assert f"http://127.0.0.1:{port}: no answer after 1 attempts" in line
        assert line.endswith("goes on with resume=true once the endpoint is back")
        assert len(metrics(tmp_path / "runs" / "ended")) == 1
        start()
        resumed = rlhf("rl", "name=ended", *arguments, "reward.retries=0", "resume=true")
        assert resumed.status == 0, resumed.err
        assert metrics(tmp_path / "runs" / "ended") == expected

        told = servers[-1].end(signal.SIGTERM)
        assert servers[-1].process.returncode == 0
        assert told.splitlines()[-1] == "8 requests, 8 responses, 8 batches"
    finally:
        for server in servers:
            server.process.kill()


def test_the_longest_text_is_what_the_smallest_model_of_a_reward_has_room_for() -> None:
    """A text beyond it would otherwise end the server, where a model has a table of positions."""
    small, large = (toy.scalar(), toy.actor())
    small.model.config.max_position_embeddings = 9
    single = ModelReward(model=Frozen(small), micro_rows=1)
    implicit = ImplicitReward(policy=Frozen(large), reference=Frozen(large), beta=1.0, micro_rows=1)
    call = FunctionReward(function=lambda p, r, c: [0.0] * len(p), name="call")
    room = large.model.config.max_position_embeddings
    assert (context_of_reward(single), context_of_reward(implicit), context_of_reward(call)) == (
        9,
        room,
        None,
    )
    ensemble = EnsembleReward(parts={"member_1": single, "member_2": single})
    mixture = MixtureReward(parts={"a": implicit, "b": ensemble, "c": call}, weights={})
    assert context_of_reward(ensemble) == context_of_reward(mixture) == 9


def test_an_open_address_without_a_token_is_refused(rlhf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    function = ["reward=function", "reward.function=rlhf.rewards.vader:vader", "port=0"]
    outcome = rlhf("serve", "host=0.0.0.0", *function)
    assert outcome.status == 1
    assert "rlhf serve: host '0.0.0.0' can be reached from other machines: token_variable must" in outcome.err
    monkeypatch.delenv("RLHF_TEST_TOKEN", raising=False)
    outcome = rlhf("serve", "host=0.0.0.0", "token_variable=RLHF_TEST_TOKEN", *function)
    assert outcome.status == 1
    assert "the environment variable RLHF_TEST_TOKEN must hold a token, and is empty" in outcome.err


def test_scores_come_with_a_token_that_no_file_holds(
    rlhf: Any, workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions see the columns of the rows."""

    def call(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        return [len(response) + row["extra"] for response, row in zip(responses, columns, strict=True)]

    rows = [{"prompt": "the film", "response": " is good", "extra": n} for n in range(3)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = TextScorer(
        reward=FunctionReward(function=call, name="call"),
        reader=Reader(tokenizer=None, max_length=None),
        device=torch.device("cpu"),
    )
    monkeypatch.setenv("RLHF_TEST_TOKEN", "correct horse battery staple")
    endpoint = Endpoint(
        score, host="127.0.0.1", port=0, token="correct horse battery staple", limits=Limits()
    )
    thread = threading.Thread(target=endpoint.serve)
    thread.start()
    try:
        arguments = ["reward=endpoint", f"reward.url={endpoint.url}", f"data.path={data}"]
        arguments += [f"tokenizer={workspace.sft / 'model'}"]
        refused = rlhf("score", "name=refused", *arguments)
        assert refused.status == 1
        assert "refused with status 401" in refused.err
        outcome = rlhf("score", "name=scored", *arguments, "reward.token_variable=RLHF_TEST_TOKEN")
    finally:
        endpoint.stop()
        thread.join(10)
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "runs" / "scored"
    found = [json.loads(line)["score"] for line in (folder / "scores.jsonl").open()]
    assert found == [8, 9, 10]
    written = (folder / "config.yaml").read_text()
    assert "token_variable: RLHF_TEST_TOKEN" in written
    assert "correct horse" not in written + outcome.out + outcome.err
