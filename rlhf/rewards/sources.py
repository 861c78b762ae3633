"""What a configuration can name as reward; the commands build the reward from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from urllib.parse import urlsplit

RESERVED = ("score", "score_std", "total")
"""Metrics ``reward/…`` that no part of a mixture may be called."""


@dataclass(kw_only=True, slots=True)
class RewardSource:
    """What scores a response."""


@dataclass(kw_only=True, slots=True)
class RewardModel(RewardSource):
    """A trained reward model, read at the last token."""

    path: str = "???"
    """Run folder, Hugging Face folder or name. Its tokenizer must be the actor's."""


@dataclass(kw_only=True, slots=True)
class Implicit(RewardSource):
    """The reward that a policy of DPO's stands for: β log π(y|x)/π_ref(y|x) (Rafailov et al. 2023, eq. 5)."""

    policy: str = "???"
    """The tuned policy: run folder, Hugging Face folder or name. Its tokenizer must be the actor's."""
    reference: str = "???"
    """The policy that it was tuned from, with the same tokenizer."""
    beta: float = 0.1
    """β of the loss it was tuned with: units of the score for a nat of log-ratio."""

    def __post_init__(self) -> None:
        """Refuse a coefficient that is not positive."""
        if not 0 < self.beta < math.inf:
            raise ValueError(f"Implicit.beta must be positive and finite, got {self.beta}")


@dataclass(kw_only=True, slots=True)
class RewardFunction(RewardSource):
    """A Python function of the texts."""

    function: str = "???"
    """package.module:name, called with prompts, responses and the prompts' other columns; one number each."""
    timeout_seconds: float = 300.0
    """Longest that one call may take; after it the run ends and says so."""

    def __post_init__(self) -> None:
        """Refuse a limit that is not positive."""
        if not self.timeout_seconds > 0:
            raise ValueError(f"RewardFunction.timeout_seconds must be positive, got {self.timeout_seconds}")


@dataclass(kw_only=True, slots=True)
class RewardEndpoint(RewardSource):
    """A reward that another process computes: rlhf serve, or what answers like it."""

    url: str = "???"
    """Where it listens, as http://127.0.0.1:8420; requests go to URL/score."""
    token_variable: str | None = None
    """Environment variable with the bearer token that requests bring; null brings none."""
    timeout_seconds: float = 300.0
    """Longest that the endpoint may be silent before a request is given up."""
    retries: int = 8
    """How often a request that was given up, or that found nobody, is sent again before the run ends."""
    backoff_seconds: float = 0.5
    """Pause before the first retry; each further one is twice as long, up to half a minute."""
    batch_size: int = 64
    """Responses of one request."""

    def __post_init__(self) -> None:
        """Refuse what is no address, and times and counts out of range."""
        if self.url != "???" and not _is_address(self.url):
            raise ValueError(f"RewardEndpoint.url must be as http://127.0.0.1:8420, got {self.url!r}")
        for name in ("timeout_seconds", "backoff_seconds", "batch_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"RewardEndpoint.{name} must be positive, got {getattr(self, name)}")
        if self.retries < 0:
            raise ValueError(f"RewardEndpoint.retries must not be negative, got {self.retries}")


@dataclass(kw_only=True, slots=True)
class RewardMixture(RewardSource):
    """A weighted sum of rewards, each of which is also logged by itself."""

    parts: dict[str, RewardSource] = field(default_factory=dict)
    """A name for each reward that is summed; it is logged, without its weight, as reward/NAME."""
    weights: dict[str, float] = field(default_factory=dict)
    """What the score of each part is multiplied by; negative makes it a penalty."""

    def __post_init__(self) -> None:
        """Refuse weights without a part, parts without a weight or with a taken name, and nested mixtures."""
        if not self.parts:
            raise ValueError(
                "RewardMixture.parts must name at least one reward: +reward@reward.parts.NAME=OPTION"
            )
        if set(self.weights) != set(self.parts):
            wanted, found = (", ".join(names) or "none" for names in (self.parts, self.weights))
            raise ValueError(
                f"RewardMixture.weights must name every part ({wanted}) and no other, got {found}"
            )
        for name, part in self.parts.items():
            _expect_part(name, part, self.weights[name])


@dataclass(kw_only=True, slots=True)
class RewardEnsemble(RewardSource):
    """Several reward models of the same thing: their mean, less a multiple of their standard deviation."""

    paths: list[str] = field(default_factory=list)
    """Run folders, Hugging Face folders or names, at least two; logged as reward/member_1, …"""
    std_coef: float = 0.0
    """What their standard deviation is multiplied by before it is taken off; 0 is the mean."""

    def __post_init__(self) -> None:
        """Refuse an ensemble of one, and a coefficient that rewards disagreement."""
        _expect_several(self, self.paths)
        if not 0 <= self.std_coef < math.inf:
            raise ValueError(f"RewardEnsemble.std_coef must not be negative or infinite, got {self.std_coef}")


@dataclass(kw_only=True, slots=True)
class LowestOfEnsemble(RewardSource):
    """Several reward models of the same thing: the lowest of their scores."""

    paths: list[str] = field(default_factory=list)
    """Run folders, Hugging Face folders or names, at least two; logged as reward/member_1, …"""

    def __post_init__(self) -> None:
        """Refuse an ensemble of one."""
        _expect_several(self, self.paths)


@dataclass(kw_only=True, slots=True)
class NoReward(RewardSource):
    """Nothing is scored."""


def _expect_several(source: RewardSource, paths: list[str]) -> None:
    if len(paths) < 2 or len(set(paths)) < len(paths):
        raise ValueError(
            f"{type(source).__name__}.paths must name at least two different models, got {list(paths)}"
        )


def own_tokenizer(source: RewardSource) -> str | None:
    """The model whose tokenizer the reward was made with, a mixture's part's; None where it reads texts."""
    if isinstance(source, RewardMixture):
        return next(filter(None, map(own_tokenizer, source.parts.values())), None)
    if isinstance(source, Implicit):
        return source.policy
    if isinstance(source, RewardEnsemble | LowestOfEnsemble):
        return source.paths[0]
    return source.path if isinstance(source, RewardModel) else None


def _is_address(url: str) -> bool:
    """Whether it has a scheme and a host, and nothing that no request uses or no file may hold."""
    try:
        address = urlsplit(url)
        port = address.port
    except ValueError:  # brackets, or a port, that are none
        return False
    extra = address.username or address.password or address.query or address.fragment
    return address.scheme in ("http", "https") and bool(address.hostname) and port != 0 and not extra


def _expect_part(name: str, part: RewardSource, weight: float) -> None:
    if not name.isidentifier() or name in RESERVED:
        taken = ", ".join(RESERVED)
        raise ValueError(f"RewardMixture.parts must have names like a_1 other than {taken}, got {name!r}")
    if isinstance(part, RewardMixture | NoReward):
        raise ValueError(f"RewardMixture.parts.{name} must be a single reward, got {type(part).__name__}")
    if not math.isfinite(weight):
        raise ValueError(f"RewardMixture.weights.{name} must be finite, got {weight}")
