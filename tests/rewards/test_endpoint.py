"""A reward behind HTTP, on the loopback interface: many clients, refusals, and a server that comes back."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rlhf.batch import Rollout, SequenceBatch
from rlhf.data.asked import Asked, Reader
from rlhf.models.readouts import TokenSum
from rlhf.rewards.asked import Scorer, TextScorer
from rlhf.rewards.endpoint import EndpointReward
from rlhf.rewards.mixture import MixtureReward
from rlhf.rewards.reward import FunctionReward, ModelReward, NotFinite
from rlhf.rewards.server import Endpoint, Limits, Refused, is_loopback
from rlhf.rewards.sources import RewardEndpoint
from rlhf.rewards.verifiers import ExactMatch
from tests.trainers import toy

CPU = torch.device("cpu")


def tokenizer() -> PreTrainedTokenizerFast:
    """The toy's, which writes a begin token."""
    made = toy.tokenizer()
    begin = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", toy.BOS)])
    made.backend_tokenizer.post_processor = begin
    return made


def model_reward() -> ModelReward:
    return ModelReward(model=toy.scalar(), micro_rows=64)


def text_scorer(reward: Any, max_length: int | None = 40) -> TextScorer:
    return TextScorer(reward=reward, reader=Reader(tokenizer=tokenizer(), max_length=max_length), device=CPU)


def function(call: Any) -> FunctionReward:
    return FunctionReward(function=call, name="call")


def lengths(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
    return [float(len(response)) for response in responses]


@contextmanager
def serving(score: Scorer, *, port: int = 0, token: str | None = None, **limits: Any) -> Iterator[Endpoint]:
    """An endpoint that answers for as long as the block runs."""
    endpoint = Endpoint(score, host="127.0.0.1", port=port, token=token, limits=Limits(**limits))
    thread = threading.Thread(target=endpoint.serve, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.stop()
        thread.join(10)
        assert not thread.is_alive()


def client(url: str, token: str | None = None, **fields: Any) -> EndpointReward:
    quick: dict[str, Any] = {"timeout_seconds": 20, "retries": 0, "backoff_seconds": 0.01}
    return EndpointReward(source=RewardEndpoint(url=url, **quick | fields), token=token)


def asked(url: str, path: str = "/score", body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
    """One bare request, a GET without a body."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    given = {} if content is None else {"Content-Type": "application/json"}
    connection.request("GET" if content is None else "POST", path, content, given | headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


ROWS = [([0, 3, 4], [5, 6, 1]), ([0, 7], [8]), ([0, 3, 4, 5, 6], [1]), ([0, 9], [10, 9, 8, 1])]
"""Prompts with a begin token; the second response was cut off, the third is empty."""
ONE = {"prompts": ["a b"], "responses": ["c d"]}


def rollout() -> Rollout:
    P, T = (max(len(row[side]) for row in ROWS) for side in (0, 1))
    tokens = [[2] * (P - len(p)) + p + r + [2] * (T - len(r)) for p, r in ROWS]
    prompts, responses = (torch.tensor([[len(row[side])] for row in ROWS]) for side in (0, 1))
    return Rollout(
        tokens=torch.tensor(tokens),
        prompt_mask=torch.arange(P) >= P - prompts,
        mask=torch.arange(T) < responses,
        ended=torch.tensor([row[1][-1] == 1 for row in ROWS]),
        sampler_logprobs=torch.zeros(len(ROWS), T),
        index=torch.arange(len(ROWS)),
        group=torch.arange(len(ROWS)),
    )


class Texts:
    """The rows as text, and a column each."""

    def prompts(self, rollout: Rollout) -> list[str]:
        return [tokenizer().decode(prompt[1:]) for prompt, _ in ROWS]

    def responses(self, rollout: Rollout) -> list[str]:
        return [tokenizer().decode(response, skip_special_tokens=True) for _, response in ROWS]

    def columns(self, rollout: Rollout) -> list[dict[str, Any]]:
        return [{"answer": response} for response in ("c d", "wrong", "", "h g f")]


# What is answered


def test_two_hundred_clients_at_once_get_their_own_scores() -> None:
    """Issue 7: every answer is right, and requests are scored together."""
    reward, generator = model_reward(), torch.Generator().manual_seed(0)
    texts = [
        (
            " ".join("abcdefghij"[i] for i in torch.randint(10, (3,), generator=generator)),
            " ".join("abcdefghij"[i] for i in torch.randint(10, (1 + n % 6,), generator=generator)),
        )
        for n in range(200)
    ]
    expected = []
    for prompt, response in texts:  # one by one, without padding
        tokens = torch.tensor([tokenizer().encode(f"{prompt} {response} <eos>")])
        everything = torch.ones_like(tokens, dtype=torch.bool)
        alone = SequenceBatch(tokens=tokens, attention_mask=everything, mask=~everything)
        expected.append(reward.sequences(alone, tokenizer()).item())
    found: dict[int, float] = {}
    together = threading.Barrier(200)

    def ask(number: int, url: str) -> None:
        prompt, response = texts[number]
        together.wait()
        found[number] = client(url).of_texts([prompt], [response], [{}], [True]).item()

    with serving(text_scorer(reward), wait_milliseconds=50) as endpoint:
        threads = [threading.Thread(target=ask, args=(n, endpoint.url)) for n in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        served = endpoint.served
    assert [found[n] for n in range(200)] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert len(set(expected)) > 150  # an answer to somebody else would show
    assert served.requests == served.rows == 200
    assert served.batches < 100


def test_a_rollout_is_scored_as_without_the_endpoint() -> None:
    """By models, a verifier, and both, a response that was cut off and an empty one included."""
    verifier = FunctionReward(function=ExactMatch(), name="ExactMatch")
    mixture = MixtureReward(parts={"a": model_reward(), "b": verifier}, weights={"a": 0.5, "b": -2.0})
    summed = ModelReward(model=toy.scalar(), micro_rows=64, readout=TokenSum())
    for reward in (model_reward(), summed, verifier, mixture):
        for found in answered(text_scorer(reward), sizes=(1, 3, 64)):
            torch.testing.assert_close(found, reward(rollout(), Texts()), rtol=1e-4, atol=1e-5)
    assert verifier(rollout(), Texts()).tolist() == [1, 0, 0, 1]


def answered(score: Scorer, sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """The rollout's scores, in requests of each size; served on this thread, where verifiers' limits work."""
    endpoint = Endpoint(score, host="127.0.0.1", port=0, token=None, limits=Limits())

    def ask() -> list[torch.Tensor]:
        try:
            return [client(endpoint.url, batch_size=size)(rollout(), Texts()) for size in sizes]
        finally:
            endpoint.stop()

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(ask)
        endpoint.serve()
        return found.result()


def test_rows_of_a_file_are_scored_as_without_the_endpoint() -> None:
    """Right-padded, as rlhf score has them; the second is cut off, and has a special token in its prompt."""
    rows = [([0, 3, 4], [5, 6, 1]), ([0, 7, 1, 3], [8]), ([0, 9], [10, 1])]
    width = max(len(p) + len(r) for p, r in rows)
    places = torch.arange(width)
    starts, ends = torch.tensor([[len(p), len(p) + len(r)] for p, r in rows]).unbind(1)
    batch = SequenceBatch(
        tokens=torch.tensor([p + r + [2] * (width - len(p) - len(r)) for p, r in rows]),
        attention_mask=places < ends[:, None],
        mask=(places >= starts[:, None]) & (places < ends[:, None]),
    )
    reward = model_reward()
    with serving(text_scorer(reward)) as endpoint:
        found = client(endpoint.url).sequences(batch, tokenizer())
    torch.testing.assert_close(found, reward.sequences(batch, tokenizer()), rtol=1e-4, atol=1e-5)


def test_health_counts_what_was_done() -> None:
    with serving(text_scorer(function(lengths)), token="t" * 20) as endpoint:
        assert asked(endpoint.url, "/health") == (
            200,
            {"status": "ok", "requests": 0, "responses": 0, "batches": 0},
        )
        client(endpoint.url, "t" * 20, batch_size=2).of_texts(["p"] * 5, ["r"] * 5, [{}] * 5, [True] * 5)
        assert asked(endpoint.url, "/health")[1]["responses"] == 5
        assert asked(endpoint.url, "/health")[1]["requests"] == 3


# What is refused


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "cannot be read: Expecting property name"),
        ([1], 400, "cannot be read: the request is a JSON list, expected an object"),
        (b"[" * 100_000, 400, "cannot be read"),
        ({"responses": ["a"]}, 400, "field 'prompts' is NoneType, expected a list"),
        ({"prompts": [], "responses": []}, 400, "field 'responses' is empty"),
        (
            {"prompts": ["a"], "responses": ["b", "c"]},
            400,
            "field 'prompts' has 1 entries, 'responses' has 2",
        ),
        ({"prompts": ["a"], "responses": [3]}, 400, "field 'responses', entry 0 is int"),
        (ONE | {"columns": [3]}, 400, "field 'columns', entry 0 is int"),
        (ONE | {"promts": []}, 400, "unknown field 'promts'"),
        (
            ONE | {"prompts": [[{"role": "user"}]]},
            400,
            "prompt 0: field 'prompt', message 0 has content = null",
        ),
        ({"prompts": ["a"] * 5, "responses": ["b"] * 5}, 413, "5 responses in one request, at most 4"),
        (ONE | {"prompts": ["a " * 600]}, 413, "bytes in one request, at most 1000 are taken"),
        (ONE | {"prompts": ["a " * 37]}, 422, "row 0 has 41 tokens, more than max_length=40"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(body: Any, status: int, message: str) -> None:
    most = 200_000 if body == b"[" * 100_000 else 1000
    with serving(text_scorer(model_reward()), max_bytes=most, max_rows=4) as endpoint:
        got, reply = asked(endpoint.url, body=body)
        assert got == status
        assert message in reply["error"]
        longest = ONE | {"prompts": ["a " * 36]}  # 40 tokens
        assert asked(endpoint.url, body=longest)[0] == 200  # and the next one is answered


def test_a_token_is_asked_for_where_there_is_one() -> None:
    with serving(text_scorer(function(lengths)), token="secret" * 4) as endpoint:
        for headers in ({}, {"Authorization": "Bearer secret"}, {"Authorization": "secret" * 4}):
            assert asked(endpoint.url, body=ONE, **headers)[0] == 401
        assert client(endpoint.url, "secret" * 4).of_texts(["p"], ["four"], [{}], [True]).tolist() == [4]
        with pytest.raises(ValueError, match="refused with status 401: the request brings no valid bearer"):
            client(endpoint.url, "another").of_texts(["p"], ["r"], [{}], [True])


def test_an_address_for_others_needs_a_token() -> None:
    score = text_scorer(function(lengths))
    for host in ("0.0.0.0", "", "192.0.2.1", "::"):
        assert not is_loopback(host)
        with pytest.raises(ValueError, match="reached from other machines: token_variable must name"):
            Endpoint(score, host=host, port=0, token=None, limits=Limits())
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))


def test_other_paths_and_kinds_are_refused() -> None:
    with serving(text_scorer(function(lengths))) as endpoint:
        assert asked(endpoint.url, "/scores", ONE)[0] == 404
        assert asked(endpoint.url, "/")[0] == 404
        assert asked(endpoint.url, body=ONE, **{"Content-Type": "text/plain"})[0] == 415


def test_one_bad_request_spoils_no_other_in_its_batch() -> None:
    def picky(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        return [1 / len(response) for response in responses]

    replies: dict[str, tuple[int, dict[str, Any]]] = {}

    def ask(response: str, url: str) -> None:
        replies[response] = asked(url, body={"prompts": ["p"], "responses": [response]})

    with serving(text_scorer(function(picky)), wait_milliseconds=300) as endpoint:
        threads = [threading.Thread(target=ask, args=(text, endpoint.url)) for text in ("ab", "", "abcd")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert replies["ab"] == (200, {"scores": [0.5]})
    assert replies["abcd"] == (200, {"scores": [0.25]})
    assert replies[""][0] == 422
    assert "ZeroDivisionError" in replies[""][1]["error"]


def test_a_score_that_is_not_finite_is_that_for_the_client_too() -> None:
    undefined = text_scorer(function(lambda p, r, c: [float("nan")] * len(p)))
    with serving(undefined) as endpoint, pytest.raises(NotFinite, match="call gave nan to response 0"):
        client(endpoint.url).of_texts(["p"], ["r"], [{}], [True])


def test_a_request_that_waits_too_long_is_told_to_come_back() -> None:
    def slow(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        time.sleep(0.5)
        return [0.0] * len(prompts)

    with serving(text_scorer(function(slow)), timeout_seconds=0.1) as endpoint:
        status, reply = asked(endpoint.url, body=ONE)
    assert (status, reply) == (503, {"error": "no scores within 0.1 s"})


def test_a_request_that_nobody_waits_for_any_more_is_not_scored() -> None:
    seen: list[str] = []

    def slow(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        seen.extend(responses)
        time.sleep(0.6 if responses == ["slow"] else 0.0)
        return lengths(prompts, responses, columns)

    limits = Limits(timeout_seconds=0.2, wait_milliseconds=0)
    endpoint = Endpoint(text_scorer(function(slow)), host="127.0.0.1", port=0, token=None, limits=limits)
    with ThreadPoolExecutor(3) as pool:
        busy = pool.submit(endpoint.serve)
        first = pool.submit(endpoint.scores, Asked.of({"prompts": ["p"], "responses": ["slow"]}))
        time.sleep(0.1)  # it is being scored
        with pytest.raises(Refused, match=r"no scores within 0\.2 s"):
            endpoint.scores(Asked.of({"prompts": ["p"], "responses": ["late"]}))
        with pytest.raises(Refused):
            first.result()
        while not busy.done() and endpoint.served.requests < 1:
            time.sleep(0.01)
        assert endpoint.scores(Asked.of(ONE)).content == {"scores": [3.0]}
        endpoint.stop()
    assert seen == ["slow", "c d"]


def test_requests_are_put_together_up_to_the_size_of_a_batch() -> None:
    sizes: list[int] = []

    def counted(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        sizes.append(len(prompts))
        return lengths(prompts, responses, columns)

    limits = Limits(batch_rows=4, wait_milliseconds=200)
    endpoint = Endpoint(text_scorer(function(counted)), host="127.0.0.1", port=0, token=None, limits=limits)
    two = {"prompts": ["p", "p"], "responses": ["a", "bb"]}
    with ThreadPoolExecutor(7) as pool:
        waiting = [pool.submit(endpoint.scores, Asked.of(two)) for _ in range(6)]
        while endpoint.waiting < 6:
            time.sleep(0.01)
        pool.submit(endpoint.serve)
        assert [one.result(20).content for one in waiting] == [{"scores": [1.0, 2.0]}] * 6
        endpoint.stop()
    assert sizes == [4, 4, 4]


def test_a_full_queue_and_a_server_that_goes_tell_clients_to_come_back() -> None:
    limits = Limits(max_waiting=1, timeout_seconds=5)
    endpoint = Endpoint(text_scorer(function(lengths)), host="127.0.0.1", port=0, token=None, limits=limits)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(endpoint.scores, Asked.of(ONE))
        while endpoint.waiting < 1:
            time.sleep(0.01)
        with pytest.raises(Refused, match="too many requests wait already") as full:
            endpoint.scores(Asked.of(ONE))
        assert full.value.answer.status == 503
        endpoint.stop()
        endpoint.serve()
        going = waiting.result(20)
    assert (going.status, going.content) == (503, {"error": "the endpoint is going down"})


def test_a_request_that_is_being_read_is_answered_before_the_server_goes() -> None:
    body = json.dumps(ONE).encode()
    endpoint = Endpoint(text_scorer(function(lengths)), host="127.0.0.1", port=0, token=None, limits=Limits())
    thread = threading.Thread(target=endpoint.serve, daemon=True)
    thread.start()
    with socket.create_connection(("127.0.0.1", int(endpoint.url.rpartition(":")[2]))) as half:
        head = (
            f"POST /score HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        half.sendall(head.encode())
        time.sleep(0.2)  # its thread waits for the body
        endpoint.stop()
        time.sleep(0.4)
        assert thread.is_alive()
        half.sendall(body)
        answer = half.makefile("rb").read()
    thread.join(10)
    assert b" 503 " in answer.splitlines()[0]
    assert answer.endswith(b'{"error": "the endpoint is going down"}')


# What the client makes of a server


@contextmanager
def answering(*replies: tuple[int, bytes]) -> Iterator[str]:
    """A server that is not ours, with one reply after the other."""
    left = iter(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = next(left)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(10)


def test_what_may_pass_is_tried_again_and_what_will_not_is_told() -> None:
    later = [(status, b"later") for status in (429, 502, 503, 504)]
    with answering(*later, (200, b'{"scores": [7]}'), (500, b"broken\n  for good")) as url:
        patient = client(url, retries=4)
        assert patient.of_texts(["p"], ["r"], [{}], [True]).tolist() == [7]
        with pytest.raises(ValueError, match=r"refused with status 500: broken for good$"):
            patient.of_texts(["p"], ["r"], [{}], [True])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"scores": [1, NaN]}', r":\d+ gave nan to response 1, prompt 'q': a score must be finite"),
        (b'{"scores": [1]}', r":\d+ returned scores of shape \(1,\) for 2 responses"),
        (b'{"score": [1, 2]}', r":\d+ must return a list of 2 numbers, got NoneType"),
        (b"[1, 2]", r":\d+ refused with status 200: \[1, 2\]"),
    ],
)
def test_an_answer_without_a_finite_number_for_each_response_is_refused(body: bytes, message: str) -> None:
    with answering((200, body)) as url, pytest.raises(ValueError, match=message):
        client(url).of_texts(["p", "q"], ["r", "s"], [{}, {}], [True, True])


def test_pauses_double_up_to_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(ConnectionError, match="no answer after 9 attempts"):
        client(f"http://127.0.0.1:{free_port()}", retries=8, backoff_seconds=0.5).of_texts(
            ["p"], ["r"], [{}], [True]
        )
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]


# A server that goes and comes back


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_client_survives_a_restart_between_its_requests() -> None:
    """Three responses are scored, then nobody listens for a while, then the same address answers again."""
    port = free_port()
    scored = threading.Event()

    def counted(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        if responses == ["aaa"]:
            scored.set()
        return lengths(prompts, responses, columns)

    found: list[list[float]] = []
    patient = client(f"http://127.0.0.1:{port}", batch_size=1, retries=20)
    texts = ["a" * n for n in range(1, 9)]

    def ask() -> None:
        found.append(patient.of_texts(["p"] * 8, texts, [{}] * 8, [True] * 8).tolist())

    thread = threading.Thread(target=ask)
    with serving(text_scorer(function(counted)), port=port) as first:
        thread.start()
        assert scored.wait(10)
    time.sleep(0.2)
    assert not found
    with serving(text_scorer(function(lengths)), port=port) as second:
        thread.join(20)
    assert found == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert 3 <= first.served.requests < 8
    assert first.served.requests + second.served.requests >= 8


def test_nobody_there_is_one_line_in_the_end() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        ConnectionError, match=r"no answer after 3 attempts in \d+ s: .*refused; a run"
    ) as end:
        client(url, retries=2).of_texts(["p"], ["r"], [{}], [True])
    assert str(end.value).startswith(url)
    assert "\n" not in str(end.value)


def test_a_server_that_is_silent_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="no answer after 2 attempts in 0 s: timed out"):
            client(url, timeout_seconds=0.1, retries=1).of_texts(["p"], ["r"], [{}], [True])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"url": "127.0.0.1:80"}, r"RewardEndpoint.url must be as http://127.0.0.1:8420, got '127.0.0.1:80'"),
        ({"url": "http://h:99999"}, "RewardEndpoint.url must be as"),
        ({"url": "http://me:password@h"}, "RewardEndpoint.url must be as"),
        ({"url": "http://h/a?b=c"}, "RewardEndpoint.url must be as"),
        ({"retries": -1}, "RewardEndpoint.retries must not be negative, got -1"),
        ({"batch_size": 0}, "RewardEndpoint.batch_size must be positive, got 0"),
        ({"timeout_seconds": 0.0}, "RewardEndpoint.timeout_seconds must be positive"),
        ({"backoff_seconds": -1.0}, "RewardEndpoint.backoff_seconds must be positive"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardEndpoint(**{"url": "http://127.0.0.1:1", **fields})


def test_what_a_request_may_leave_out() -> None:
    found = Asked.of(ONE)
    assert (found.columns, found.ended) == ([{}], [True])
