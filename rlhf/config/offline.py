"""The schemas of the commands that train nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf.algorithms.acquisitions import Acquisition
from rlhf.config.checks import expect_positive
from rlhf.data.candidates import CandidateData
from rlhf.data.categories import Categories
from rlhf.data.outcomes import OutcomeData
from rlhf.data.selections import Selection
from rlhf.data.sets import PreferenceData, PromptData, SupervisedData
from rlhf.models.sources import Pretrained
from rlhf.rewards.server import Limits
from rlhf.rewards.sources import NoReward, RewardSource
from rlhf.rollout.decoding import Decoding, Sampling
from rlhf.rollout.refinement import FeedbackSource, Refiner


@dataclass(kw_only=True, slots=True)
class Offline:
    """What the commands that train nothing share."""

    name: str = "???"
    """Results go to runs/NAME; a folder with results in it is refused."""
    seed: int = 0
    """Every random stream derives from it."""
    reward: RewardSource
    """What scores a response."""
    micro_batch_size: int = 64
    """Rows of one forward pass."""

    def __post_init__(self) -> None:
        """Refuse counts that are not positive."""
        expect_positive(self, "micro_batch_size")


@dataclass(kw_only=True, slots=True)
class Generate(Offline):
    """``rlhf generate``: sample responses to a file of prompts."""

    model: Pretrained = field(default_factory=Pretrained)
    """The policy."""
    prompts: PromptData = field(default_factory=PromptData)
    """Prompts to be answered."""
    samples: int = 1
    """Responses to each prompt; with best_of they are the survivors."""
    best_of: int = 1
    """Draw this many for each that is kept, the first with the highest score; 1 keeps all, scored where a
    reward is given."""
    decoding: Decoding
    """How tokens are chosen."""
    prefix: str = ""
    """Control prefix that the policy reads before every prompt, such as the good one of rlhf select
    selection=label; rows and rewards have the bare prompt."""
    stop: list[str] = field(default_factory=list)
    """Texts that end a response, which keeps them; beside the model's end tokens."""
    resume: bool = False
    """Go on with the responses of runs/NAME: finished ones are kept, the settings have to be the same."""

    def __post_init__(self) -> None:
        """Refuse counts that are not positive, and a choice of the best without a reward."""
        Offline.__post_init__(self)
        expect_positive(self, "samples", "best_of")
        if self.best_of > 1 and isinstance(self.reward, NoReward):
            raise ValueError(f"best_of={self.best_of} needs a reward to tell which is best, got reward=none")


@dataclass(kw_only=True, slots=True)
class Refine:
    """``rlhf refine``: new responses in place of failed ones, from feedback in words."""

    name: str = "???"
    """They go to runs/NAME/refinements.jsonl; a folder that has one is refused."""
    seed: int = 0
    """Every random stream derives from it."""
    input: list[str] = field(default_factory=list)
    """Files of scored responses, those of rlhf generate with a reward or of rlhf score."""
    tasks: str | None = None
    """The prompts' file, whose other columns (tests, …) are found by prompt; null where rows have them."""
    threshold: float = 1.0
    """A response with a lower score has failed."""
    feedback: FeedbackSource
    """What is said of a response that failed."""
    refiner: Refiner
    """What writes a new one."""
    micro_batch_size: int = 64
    """Responses of one forward pass, or of one call of a function."""

    def __post_init__(self) -> None:
        """Refuse counts that are not positive."""
        expect_positive(self, "micro_batch_size")


@dataclass(kw_only=True, slots=True)
class Score(Offline):
    """``rlhf score``: score a file of responses."""

    tokenizer: str | None = None
    """Folder or name; null takes the reward model's own."""
    data: SupervisedData = field(default_factory=SupervisedData)
    """Rows with a prompt and a response."""


@dataclass(kw_only=True, slots=True)
class Serve(Offline):
    """``rlhf serve``: a reward behind HTTP."""

    tokenizer: str | None = None
    """Folder or name; null takes the reward model's own, and none where no model reads."""
    host: str = "127.0.0.1"
    """Name or address to listen at; one that other machines can reach needs a token."""
    port: int = 8420
    """Port to listen at; 0 takes any that is free."""
    token_variable: str | None = None
    """Environment variable with the bearer token that requests must bring; null asks for none."""
    max_length: int | None = None
    """Most tokens of a prompt with its response; longer ones are refused. Null takes the model's context."""
    limits: Limits = field(default_factory=Limits)
    """What one client may ask for, and how requests are put together."""

    def __post_init__(self) -> None:
        """Refuse what is no port, and a length that is not positive."""
        Offline.__post_init__(self)
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"Serve.port must be from 0 to 65535, got {self.port}")
        if self.max_length is not None:
            expect_positive(self, "max_length")


@dataclass(kw_only=True, slots=True)
class Select:
    """``rlhf select``: from scored responses to rows that are learnt."""

    name: str = "???"
    """The rows go to runs/NAME/selected.jsonl; a folder that has one is refused."""
    input: list[str] = field(default_factory=list)
    """Files of scored responses, those of rlhf generate with a reward or of rlhf score; one pool together."""
    selection: Selection
    """Which responses are learnt, and as what."""
    score_field: str = "score"
    """Field with the score."""
    keep_cut: bool = False
    """Take responses that were cut off (ended: false) too, although training puts an end token after them."""


@dataclass(kw_only=True, slots=True)
class Query:
    """``rlhf query``: which pairs people should compare next."""

    name: str = "???"
    """They go to runs/NAME/queries.jsonl; a folder that has one is refused."""
    seed: int = 0
    """Orders pairs of equal value, and says which response is shown first."""
    pool: str | None = None
    """Rows of a prompt and two responses, a and b; null takes every two responses to a prompt in the first
    file of scores."""
    scores: list[str] = field(default_factory=list)
    """Files of rlhf score, one for each reward model of the ensemble."""
    score_field: str = "score"
    """Field with the score."""
    asked: list[str] = field(default_factory=list)
    """Files of pairs that are not asked again, labelled or not: earlier queries, or chosen and rejected."""
    acquisition: Acquisition
    """What an answer is worth."""
    count: int = 100
    """Pairs wanted."""
    per_prompt: int | None = None
    """Most pairs of one prompt, so that they do not all say the same; null for any number."""

    def __post_init__(self) -> None:
        """Refuse counts that are not positive, and a model that is asked twice."""
        expect_positive(self, "count")
        if self.per_prompt is not None:
            expect_positive(self, "per_prompt")
        if len(set(self.scores)) < len(self.scores):
            raise ValueError(f"Query.scores must name different files, got {', '.join(self.scores)}")


@dataclass(kw_only=True, slots=True)
class Rank:
    """``rlhf rank``: arms ranked from comparisons, and how far annotators agree."""

    name: str = "???"
    """Results go to runs/NAME; a folder with results in it is refused."""
    data: OutcomeData = field(default_factory=OutcomeData)
    """Who was compared with whom, and which was preferred."""
    ridge: float = 0.0
    """Precision of a Gaussian prior around 0 of each score; 0 is maximum likelihood, which needs every arm to
    have lost to, or tied with, another one that can be reached from any."""

    def __post_init__(self) -> None:
        """Refuse a prior that pushes apart."""
        if not 0 <= self.ridge < float("inf"):
            raise ValueError(f"Rank.ridge must be finite and not negative, got {self.ridge}")


@dataclass(kw_only=True, slots=True)
class Baseline:
    """The policy that others are held against."""

    path: str | None = None
    """A run's folder, a model folder or a hub name; null where there are no policies to be compared."""


@dataclass(kw_only=True, slots=True)
class Evaluate(Offline):
    """``rlhf evaluate``: policies side by side, a reward against human labels, or both."""

    tokenizer: str | None = None
    """Folder or name; null takes the reference's own, without one the reward's."""
    reference: Baseline = field(default_factory=Baseline)
    """Policy that the KL is measured to and that perplexity is taken under; first row of the table."""
    reference_name: str = "reference"
    """What the table calls it."""
    policies: dict[str, str] = field(default_factory=dict)
    """Further rows: a label and a run folder or model each."""
    prefixes: dict[str, str] = field(default_factory=dict)
    """Control prefixes that policies of these labels read before every prompt; the reward, the judge and the
    reference read the bare one."""
    best_of: list[int] = field(default_factory=list)
    """Further rows: the best of this many responses of the reference, by the reward. The largest is
    also how many the curve of score against n is estimated from."""
    judge: str | None = None
    """package.module:name of a function that nothing was trained on, for a second opinion; null for none."""
    prompts: PromptData = field(default_factory=lambda: PromptData(path=None))
    """Prompts that nobody was trained on, for the policies; path=null evaluates the reward alone."""
    sampling: Sampling = field(default_factory=Sampling)
    """The distribution that responses are drawn from."""
    pairs: PreferenceData = field(default_factory=lambda: PreferenceData(path=None))
    """Human-labelled pairs that the reward and the judge are checked against; path=null for none."""
    candidates: CandidateData = field(default_factory=lambda: CandidateData(path=None))
    """Prompts with right and wrong responses, the best of which the reward is to find; path=null for none."""
    categories: Categories = field(default_factory=Categories)
    """What pairs and candidates are divided by."""
    resamples: int = 2000
    """Bootstrap resamples behind every interval of the reward."""

    def __post_init__(self) -> None:
        """Refuse counts that are not positive."""
        Offline.__post_init__(self)
        expect_positive(self, "resamples")
        if any(n < 1 for n in self.best_of):
            raise ValueError(f"Evaluate.best_of must hold counts of at least 1, got {self.best_of}")
        if unknown := sorted(set(self.prefixes) - set(self.policies)):
            raise ValueError(
                f"Evaluate.prefixes must have labels of policies ({', '.join(self.policies) or 'none'}), "
                f"got {', '.join(unknown)}"
            )
