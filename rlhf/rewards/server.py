"""A reward behind HTTP: requests of many clients are scored together, by one thread.

The thread that calls :meth:`Endpoint.serve` scores, for a function's time limit works on the main thread
alone; each connection has a thread that reads, waits and answers.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import queue
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from torch import Tensor

from rlhf.data.asked import Asked
from rlhf.rewards.asked import Scorer
from rlhf.rewards.reward import NotFinite, expect_finite

POLL: float = 0.05
"""Seconds in which a signal to stop is noticed."""
GRACE: float = 2.0
"""Seconds that answers have to leave when the endpoint goes down."""
IDLE: float = 30.0
"""Seconds that a client may take between two parts of its request."""
LONGEST_NUMBER = 18
"""Digits of a length."""
CHUNK = 1 << 16
"""Bytes that are read at a time of a request that is too large."""


@dataclass(kw_only=True, slots=True)
class Limits:
    """What one client may ask for, and how requests are put together."""

    max_bytes: int = 8 << 20
    """Largest body of a request."""
    max_rows: int = 1024
    """Most responses of a request."""
    max_waiting: int = 1024
    """Requests that wait to be scored, at most; further ones are told to come back."""
    timeout_seconds: float = 300.0
    """Longest that a request waits for its scores."""
    batch_rows: int = 256
    """Requests are scored together up to about this many responses."""
    wait_milliseconds: float = 5.0
    """How long the first of them waits for others."""

    def __post_init__(self) -> None:
        """Refuse limits that are not positive, and a negative wait."""
        for name in ("max_bytes", "max_rows", "max_waiting", "timeout_seconds", "batch_rows"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Limits.{name} must be positive, got {getattr(self, name)}")
        if not self.wait_milliseconds >= 0:
            raise ValueError(f"Limits.wait_milliseconds must not be negative, got {self.wait_milliseconds}")


@dataclass(kw_only=True, slots=True)
class Answer:
    """A status and the object that goes with it."""

    status: HTTPStatus
    content: dict[str, Any]


class Refused(Exception):  # noqa: N818 - an answer like another
    """A request that gets no scores."""

    def __init__(self, status: HTTPStatus, error: str, **more: Any) -> None:
        super().__init__(error)
        self.answer = Answer(status=status, content={"error": error, **more})


@dataclass(kw_only=True, slots=True)
class Waiting:
    """A request that waits for its scores."""

    asked: Asked
    done: threading.Event = field(default_factory=threading.Event)
    answer: Answer | None = None
    abandoned: bool = False

    def settle(self, answer: Answer) -> None:
        """Hand the answer to the connection's thread."""
        self.answer = answer
        self.done.set()


@dataclass(kw_only=True, slots=True)
class Served:
    """What was done so far."""

    requests: int = 0
    rows: int = 0
    batches: int = 0
    """Calls of the reward for one or several requests together."""


class Endpoint:
    """``POST /score`` and ``GET /health`` on one address."""

    def __init__(self, score: Scorer, *, host: str, port: int, token: str | None, limits: Limits) -> None:
        """Bind the address.

        Args:
            score: requests → (B,) scores; called by the thread that calls ``serve``.
            host: name or address to listen at.
            port: 0 takes any that is free.
            token: that a request must bring; None asks for none.
            limits: of requests and batches.

        Raises:
            ValueError: ``host`` can be reached from elsewhere and there is no token.
            OSError: the address cannot be had.
        """
        if token is None and not is_loopback(host):
            raise ValueError(
                f"host {host!r} can be reached from other machines: token_variable must name an environment "
                "variable with a token"
            )
        self.limits, self.token, self.served = limits, token, Served()
        self._score, self._stopping, self._closed = score, threading.Event(), threading.Event()
        self._waiting: queue.Queue[Waiting] = queue.Queue(maxsize=limits.max_waiting)
        self._http = _Server((host, port), self)
        address, number = self._http.server_address[:2]
        self.url = f"http://{f'[{address!s}]' if ':' in str(address) else address!s}:{number}"

    def serve(self) -> None:
        """Answer until ``stop`` is called; requests that wait then are told to come back."""
        thread = threading.Thread(target=self._http.serve_forever, args=(POLL,), daemon=True)
        thread.start()
        try:
            while not self._stopping.is_set():
                if batch := self._next():
                    self._answer(batch)
        finally:
            self._stopping.set()
            self._http.shutdown()
            thread.join()
            self._closed.set()
            self._http.server_close()
            self._http.see_off()

    def stop(self) -> None:
        """End ``serve`` after the batch in hand; may be called from a signal handler or another thread."""
        self._stopping.set()

    def scores(self, asked: Asked) -> Answer:
        """Wait for the scores of a request; called by its connection's thread.

        Raises:
            Refused: too many rows, too many requests, none in time, or the endpoint is going down.
        """
        if len(asked) > self.limits.max_rows:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{len(asked)} responses in one request, at most {self.limits.max_rows} are taken",
            )
        waiting = Waiting(asked=asked)
        try:
            self._waiting.put_nowait(waiting)
        except queue.Full:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests wait already") from None
        deadline = time.monotonic() + self.limits.timeout_seconds
        while not waiting.done.wait(POLL):
            if self._closed.is_set() and not waiting.done.is_set():
                return _GOING
            if time.monotonic() > deadline:
                waiting.abandoned = True
                raise Refused(
                    HTTPStatus.SERVICE_UNAVAILABLE, f"no scores within {self.limits.timeout_seconds:g} s"
                )
        assert waiting.answer is not None
        return waiting.answer

    @property
    def waiting(self) -> int:
        """Requests that wait to be scored."""
        return self._waiting.qsize()

    def _next(self) -> list[Waiting]:
        """Requests to be scored together; none where nobody asked for a while."""
        try:
            batch = [self._waiting.get(timeout=POLL)]
        except queue.Empty:
            return []
        until = time.monotonic() + self.limits.wait_milliseconds / 1000
        while sum(len(one.asked) for one in batch) < self.limits.batch_rows:
            try:
                batch.append(self._waiting.get(timeout=max(until - time.monotonic(), 0)))
            except queue.Empty:
                break
        return [one for one in batch if not one.abandoned]

    def _answer(self, batch: Sequence[Waiting]) -> None:
        """Score requests together; where that is refused each by itself, so that one spoils no other."""
        self.served.batches += 1
        try:
            scores = self._checked(Asked.together([one.asked for one in batch]))
        except Refused as refusal:
            if len(batch) == 1:
                batch[0].settle(refusal.answer)
                self.served.requests += 1
                return
            for one in batch:
                self._answer([one])
            return
        for one, part in zip(batch, scores.split([len(one.asked) for one in batch]), strict=True):
            one.settle(Answer(status=HTTPStatus.OK, content={"scores": part.tolist()}))
            self.served.requests += 1
            self.served.rows += len(part)

    def _checked(self, asked: Asked) -> Tensor:
        texts = [str(prompt) for prompt in asked.prompts]
        try:
            return expect_finite(self._score(asked), texts, "the reward")
        except NotFinite as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), not_finite=True) from error
        except ValueError as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
        except OSError as error:  # an endpoint behind this one
            raise Refused(HTTPStatus.BAD_GATEWAY, str(error)) from error


_GOING = Answer(status=HTTPStatus.SERVICE_UNAVAILABLE, content={"error": "the endpoint is going down"})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(ThreadingHTTPServer):
    """Knows its endpoint."""

    request_queue_size = 1024  # connections that the kernel holds until they are accepted

    def __init__(self, address: tuple[str, int], endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._busy, self._lock = 0, threading.Lock()
        super().__init__(address, _Handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Count the connections that are being answered."""
        with self._lock:
            self._busy += 1
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._busy -= 1

    def see_off(self) -> None:
        """Give the last answers time to leave; the threads of clients that hang end with the process."""
        until = time.monotonic() + GRACE
        while self._busy and time.monotonic() < until:
            time.sleep(POLL)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: _Server
    timeout = IDLE
    server_version, sys_version = "rlhf", ""

    def do_GET(self) -> None:
        """``/health``: that the endpoint is there, and what it did so far."""
        if self.path != "/health":
            self._send(Answer(status=HTTPStatus.NOT_FOUND, content={"error": f"no {self.path}; GET /health"}))
            return
        served = self.server.endpoint.served
        counts = {"requests": served.requests, "responses": served.rows, "batches": served.batches}
        self._send(Answer(status=HTTPStatus.OK, content={"status": "ok", **counts}))

    def do_POST(self) -> None:
        """``/score``: an object of lists in, one number a response out."""
        try:
            answer = self.server.endpoint.scores(self._asked())
        except Refused as refusal:
            answer = refusal.answer
        self._send(answer)

    def _asked(self) -> Asked:
        body = self._body()
        token = self.server.endpoint.token
        given = self.headers.get("Authorization", "")
        if token is not None and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise Refused(HTTPStatus.UNAUTHORIZED, "the request brings no valid bearer token")
        if self.path != "/score":
            raise Refused(HTTPStatus.NOT_FOUND, f"no {self.path}; POST /score")
        if self.headers.get_content_type() != "application/json":  # which no web page can send unasked
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json")
        try:
            return Asked.of(json.loads(body))
        except (ValueError, RecursionError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST, f"cannot be read: {error}") from error

    def _body(self) -> bytes:
        length, most = self.headers.get("Content-Length", ""), self.server.endpoint.limits.max_bytes
        if not length.isdecimal() or len(length) > LONGEST_NUMBER:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length must say how long the request is")
        if int(length) > most:
            self._discard(int(length))  # a client that is still sending would not see the answer
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{length} bytes in one request, at most {most} are taken",
            )
        return self.rfile.read(int(length))

    def _discard(self, length: int) -> None:
        left = min(length, 8 * self.server.endpoint.limits.max_bytes)
        while left > 0 and (found := self.rfile.read(min(left, CHUNK))):
            left -= len(found)

    def _send(self, answer: Answer) -> None:
        body = json.dumps(answer.content).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: counts are told at the end."""
