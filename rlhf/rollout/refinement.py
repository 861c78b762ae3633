"""Who says what is wrong with a response, and who writes a better one (Chen et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf.rollout.decoding import Sampling


@dataclass(kw_only=True, slots=True)
class FeedbackSource:
    """What is said, in words, of a response that failed."""


@dataclass(kw_only=True, slots=True)
class FeedbackColumn(FeedbackSource):
    """Texts that stand beside the responses or beside the prompts, from people for instance."""

    column: str = "feedback"
    """Column with the text."""


@dataclass(kw_only=True, slots=True)
class FeedbackFunction(FeedbackSource):
    """A Python function of the texts."""

    function: str = "???"
    """package.module:name, called with prompts, responses and their other columns; one text each."""
    timeout_seconds: float = 300.0
    """Longest that one call may take; after it the command ends and says so."""

    def __post_init__(self) -> None:
        """Refuse a limit that is not positive."""
        _expect_limit(self)


@dataclass(kw_only=True, slots=True)
class Refiner:
    """What writes a new response from a prompt, a failed one and the feedback to it."""


@dataclass(kw_only=True, slots=True)
class RefinerFunction(Refiner):
    """A Python function of the texts."""

    function: str = "???"
    """package.module:name, called with prompts, responses and their other columns, in which «feedback» is the
    feedback; one new response each."""
    timeout_seconds: float = 300.0
    """Longest that one call may take; after it the command ends and says so."""

    def __post_init__(self) -> None:
        """Refuse a limit that is not positive."""
        _expect_limit(self)


@dataclass(kw_only=True, slots=True)
class RefinerModel(Refiner):
    """A language model that reads all three in one prompt."""

    path: str = "???"
    """Run folder, Hugging Face folder or name."""
    template: str = "{prompt}{response}\n\n# {feedback}\n{prompt}"
    """What it reads; it goes on with the new response."""
    samples: int = 1
    """New responses for each failed one."""
    sampling: Sampling = field(default_factory=Sampling)
    """The distribution that they are drawn from, and their length."""
    stop: list[str] = field(default_factory=list)
    """Texts that end a response, which keeps them; beside the model's end tokens."""
    max_prompt_length: int = 1024
    """Most tokens in what it reads."""

    def __post_init__(self) -> None:
        """Refuse counts that are not positive, and a template with other holes."""
        if self.samples < 1:
            raise ValueError(f"RefinerModel.samples must be at least 1, got {self.samples}")
        try:
            self.asked("", "", "")
        except (KeyError, IndexError, ValueError, AttributeError):
            raise ValueError(
                "RefinerModel.template must have {prompt}, {response} and {feedback} as its only holes, "
                f"got {self.template!r}"
            ) from None

    def asked(self, prompt: str, response: str, feedback: str) -> str:
        """The prompt that the model gets."""
        return self.template.format(prompt=prompt, response=response, feedback=feedback)


def _expect_limit(source: FeedbackFunction | RefinerFunction) -> None:
    if not source.timeout_seconds > 0:
        name = f"{type(source).__name__}.timeout_seconds"
        raise ValueError(f"{name} must be positive, got {source.timeout_seconds}")
