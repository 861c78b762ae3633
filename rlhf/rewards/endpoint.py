"""A reward that another process computes, asked over HTTP: ``rlhf serve``, or what answers like it."""

from __future__ import annotations

import http.client
import json
import logging
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from rlhf.batch import Rollout, SequenceBatch
from rlhf.rewards.functions import as_scores
from rlhf.rewards.reward import Columns, NotFinite, Texts, expect_finite
from rlhf.rewards.sources import RewardEndpoint
from rlhf.rewards.texts import Decoder, decoded

log = logging.getLogger(__name__)

AGAIN = (429, 502, 503, 504)
"""Statuses of a server, or of a proxy before it, that may answer later."""
LONGEST_PAUSE: float = 30.0
"""Seconds between two attempts, at most."""
SHOWN = 300
"""Characters of a refusal that an error repeats."""


class NoAnswer(Exception):  # noqa: N818 - it is caught, and tried again
    """An attempt that may succeed later."""


@dataclass(kw_only=True, slots=True)
class EndpointReward:
    """Sends texts with their columns, and takes one score for each."""

    source: RewardEndpoint
    token: str | None
    """Sent as bearer token; None sends none."""

    def __call__(self, rollout: Rollout, texts: Texts) -> Tensor:
        """(B,) float32, finite.

        Raises:
            ConnectionError: no answer after all attempts.
            ValueError: the endpoint refused, or did not answer with one finite number a response.
        """
        scores = self.of_texts(
            texts.prompts(rollout), texts.responses(rollout), texts.columns(rollout), rollout.ended.tolist()
        )
        return scores.to(rollout.tokens.device)

    def sequences(self, batch: SequenceBatch, decoder: Decoder, columns: Columns | None = None) -> Tensor:
        """(B,) float32, finite; a response counts as ended whose last token is a special one.

        Raises:
            ConnectionError, ValueError: as above.
        """
        prompts = _prompts(batch, decoder)
        responses = decoded(batch.tokens, batch.mask, decoder)
        rows: Columns = [{} for _ in prompts] if columns is None else columns
        return self.of_texts(prompts, responses, rows, _ended(batch, decoder)).to(batch.tokens.device)

    def of_texts(
        self, prompts: list[str], responses: list[str], columns: Columns, ended: list[bool]
    ) -> Tensor:
        """(B,) float32, finite, on the CPU; ``batch_size`` responses a request.

        Raises:
            ConnectionError, ValueError: as above.
        """
        parts = []
        for start in range(0, len(prompts), self.source.batch_size):
            rows = slice(start, start + self.source.batch_size)
            content = {
                "prompts": prompts[rows],
                "responses": responses[rows],
                "columns": columns[rows],
                "ended": ended[rows],
            }
            reply = self._asked(json.dumps(content, default=str).encode())
            scores = as_scores(reply.get("scores"), len(prompts[rows]), self.source.url)
            parts.append(expect_finite(scores, prompts[rows], self.source.url))
        return torch.cat(parts)

    def _asked(self, body: bytes) -> dict[str, Any]:
        """The reply to one request, asked for as often as the configuration allows."""
        started, pause = time.monotonic(), self.source.backoff_seconds
        for attempt in range(self.source.retries + 1):
            try:
                return self._reply(*self._exchange(body))
            except NoAnswer as problem:
                reason = str(problem)
            if attempt < self.source.retries:
                log.warning("%s: %s; trying again in %g s", self.source.url, reason, pause)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        raise ConnectionError(
            f"{self.source.url}: no answer after {self.source.retries + 1} attempts in "
            f"{time.monotonic() - started:.0f} s: {reason}; a run that has a checkpoint goes on with "
            "resume=true once the endpoint is back"
        )

    def _exchange(self, body: bytes) -> tuple[int, bytes]:
        address = urlsplit(self.source.url)
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        connection = kind(address.hostname or "", address.port, timeout=self.source.timeout_seconds)
        headers = {"Content-Type": "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            connection.request("POST", f"{address.path.rstrip('/')}/score", body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(" ".join(str(error).split()) or type(error).__name__) from error
        finally:
            connection.close()

    def _reply(self, status: int, body: bytes) -> dict[str, Any]:
        """The object that was answered, refusals aside."""
        try:
            reply = json.loads(body)
        except ValueError:
            reply = None
        said = reply.get("error") if isinstance(reply, dict) else None
        reason = " ".join(str(said or body.decode(errors="replace")).split())[:SHOWN]
        if status in AGAIN:
            raise NoAnswer(f"status {status}, {reason}")
        if status != http.HTTPStatus.OK or not isinstance(reply, dict):
            kind = NotFinite if isinstance(reply, dict) and reply.get("not_finite") else ValueError
            raise kind(f"{self.source.url} refused with status {status}: {reason}")
        return reply


def _prompts(batch: SequenceBatch, decoder: Decoder) -> list[str]:
    """Prompt texts, with the special tokens of a chat template and without a lone begin token."""
    before = batch.attention_mask & ~batch.mask
    found = []
    for row, kept in zip(batch.tokens.cpu(), before.cpu(), strict=True):
        tokens = row[kept].tolist()
        verbatim, plain = (decoder.decode(tokens[1:], skip_special_tokens=skip) for skip in (False, True))
        found.append(decoder.decode(tokens, skip_special_tokens=verbatim == plain))
    return found


def _ended(batch: SequenceBatch, decoder: Decoder) -> list[bool]:
    """(B) whether the last token of each text is a special one."""
    last = batch.attention_mask.cpu().sum(1) - 1  # padded on the right
    tokens = batch.tokens.cpu().gather(1, last[:, None]).squeeze(1).tolist()
    return [decoder.decode([token], skip_special_tokens=True) == "" for token in tokens]
