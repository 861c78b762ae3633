"""The schemas of the commands that train."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf.algorithms.divergences import Divergence
from rlhf.algorithms.mixtures import Mixture
from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.algorithms.preference_losses import PreferenceLoss
from rlhf.algorithms.preferences import RewardLoss
from rlhf.config.checks import expect_positive
from rlhf.data.comparisons import ComparisonData
from rlhf.data.feedback import FeedbackData
from rlhf.data.sets import PromptData, SupervisedData
from rlhf.distributed.engine_config import EngineConfig
from rlhf.models.lora import LoRA, SavedLoRA
from rlhf.models.readouts import LastToken, Readout
from rlhf.models.sources import ModelSource, Pretrained
from rlhf.rewards.sources import RewardModel, RewardSource
from rlhf.rollout.decoding import Sampling
from rlhf.trainers.faults import NonFinite
from rlhf.trainers.loop import Cadence
from rlhf.trainers.optimizers import AdamW
from rlhf.trainers.schedules import Schedule


@dataclass(kw_only=True, slots=True)
class Job:
    """What every training command has."""

    name: str = "???"
    """The run's folder is runs/NAME; a folder that holds a run already is refused."""
    resume: bool = False
    """Continue the run of this name from its last whole checkpoint, exactly."""
    seed: int = 0
    """Every random stream derives from it."""
    engine: EngineConfig
    """Sharding and precision."""
    schedule: Schedule
    """Learning rate over the run."""
    cadence: Cadence = field(default_factory=Cadence)
    """When to evaluate and to save."""
    micro_batch_size: int = 32
    """Rows of one forward and backward pass, over all ranks; changes memory, not the update."""
    micro_batch_tokens: int | None = None
    """Tokens of one forward and backward pass, over all ranks, in place of rows: passes are then equally
    full. A longer row is alone in one. Null counts rows."""
    packed: bool = True
    """Rows run end to end and nothing is computed on padding, with the same result; false pads them, for
    models whose attention knows no rows."""
    non_finite: NonFinite = NonFinite.stop
    """At a NaN in a score, log-prob, value, loss or gradient: name it, and stop or skip the step."""
    timeout_minutes: float = 30.0
    """How long a rank waits for the others before the run ends."""

    def __post_init__(self) -> None:
        """Refuse counts that are not positive."""
        expect_positive(self, "micro_batch_size", "timeout_minutes")
        if self.micro_batch_tokens is not None:
            expect_positive(self, "micro_batch_tokens")


@dataclass(kw_only=True, slots=True)
class TokenizerSource:
    """Where the tokenizer comes from."""

    path: str | None = None
    """Folder or name; null takes the model's own, or trains one when the model is built from scratch."""
    vocab_size: int = 2048
    """Tokens of one that is trained, on the texts of ``data``."""


@dataclass(kw_only=True, slots=True)
class ReferenceConfig:
    """The frozen policy that log-ratios or a KL are taken to."""

    path: str | None = None
    """A run's folder, a model folder or a hub name; null takes the policy's own start."""


@dataclass(kw_only=True, slots=True)
class SFT(Job):
    """``rlhf sft``: supervised fine-tuning."""

    model: ModelSource
    """What is trained."""
    tokenizer: TokenizerSource = field(default_factory=TokenizerSource)
    """Its tokenizer."""
    data: SupervisedData = field(default_factory=SupervisedData)
    """Demonstrations."""
    test_data: SupervisedData = field(default_factory=lambda: SupervisedData(path=None))
    """Held-out demonstrations; path=null measures none."""
    optimizer: AdamW = field(default_factory=AdamW)
    """How parameters move."""
    batch_size: int = 64
    """Rows of one optimiser step, over all ranks."""
    epochs: float = 1.0
    """Passes over the data."""
    kl_coef: float = 0.0
    """Added to the loss: this times KL(π‖π_ref) of each target token, over the whole vocabulary (Quark). 0
    loads no reference."""
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    """π_ref of kl_coef."""
    lora: SavedLoRA | None = None
    """Adapters that are trained in place of the weights; null trains them all."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same gradient."""

    def __post_init__(self) -> None:
        """Refuse counts that are not positive, and a reference that nobody reads."""
        Job.__post_init__(self)
        expect_positive(self, "batch_size", "epochs")
        if not 0 <= self.kl_coef < float("inf"):
            raise ValueError(f"SFT.kl_coef must not be negative or infinite, got {self.kl_coef}")
        if self.kl_coef == 0 and self.reference.path is not None:
            raise ValueError(f"kl_coef must be positive for reference.path={self.reference.path}, got 0")


@dataclass(kw_only=True, slots=True)
class NormaliseConfig:
    """What the scores of a finished reward model are measured from (numerics D25)."""

    data: SupervisedData = field(default_factory=lambda: SupervisedData(path=None))
    """Reference demonstrations, whose mean score becomes 0; path=null leaves the scores as they are."""
    unit_std: bool = False
    """Whether their standard deviation becomes 1 too; it changes the probability of every comparison."""

    def __post_init__(self) -> None:
        """Refuse a deviation of nothing."""
        if self.unit_std and self.data.path is None:
            raise ValueError(
                "normalise.data.path must name reference demonstrations for normalise.unit_std=true, got null"
            )


@dataclass(kw_only=True, slots=True)
class Reward(Job):
    """``rlhf reward``: reward-model training."""

    model: Pretrained = field(default_factory=Pretrained)
    """The language model that it starts from, with a new scalar head; usually the supervised one."""
    readout: Readout
    """From what the head says of each token to the score of a response."""
    data: ComparisonData = field(default_factory=ComparisonData)
    """Judgements: pairs of responses, rankings, or labels."""
    test_data: ComparisonData = field(default_factory=lambda: ComparisonData(path=None))
    """Held-out judgements; path=null measures none."""
    loss: RewardLoss
    """Loss of a prompt whose responses were compared."""
    normalise: NormaliseConfig = field(default_factory=NormaliseConfig)
    """Shift and scale of the scores in the model that is saved."""
    optimizer: AdamW = field(default_factory=AdamW)
    """How parameters move."""
    batch_size: int = 64
    """Prompts of one optimiser step, over all ranks; a pair is a prompt."""
    epochs: float = 1.0
    """Passes over the data; more than one overfits easily."""
    lora: SavedLoRA | None = None
    """Adapters that are trained in place of the weights; null trains them all."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same gradient."""

    def __post_init__(self) -> None:
        """Refuse counts that are not positive, and a constant without a place."""
        Job.__post_init__(self)
        expect_positive(self, "batch_size", "epochs")
        if self.normalise.data.path is not None and not isinstance(self.readout, LastToken):
            raise ValueError(
                f"normalise.data.path must be null for {type(self.readout).__name__}, whose sum over tokens "
                f"has no place for a constant, got {self.normalise.data.path}"
            )
        if self.normalise.data.path is not None and self.lora is not None and not self.lora.merge:
            raise ValueError(
                f"lora.merge must be true for normalise.data.path={self.normalise.data.path}, got false: "
                "adapters by themselves have no place for a constant"
            )


@dataclass(kw_only=True, slots=True)
class Preference(Job):
    """``rlhf preference``: offline preference optimisation."""

    model: Pretrained = field(default_factory=Pretrained)
    """Where the policy starts, usually the supervised model."""
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    """Read once before training, by losses that need one; its log-probs are kept in the run's folder."""
    data: FeedbackData = field(default_factory=FeedbackData)
    """Pairs of responses, the better one first; for kto also single responses with a label."""
    test_data: FeedbackData = field(default_factory=lambda: FeedbackData(path=None))
    """Held-out pairs or labelled responses; path=null measures none."""
    loss: PreferenceLoss
    """Loss of a pair, or of a labelled response."""
    sft_coef: float = 0.0
    """Added to the loss: this times −log π per token of each chosen, or good, response."""
    optimizer: AdamW = field(default_factory=AdamW)
    """How parameters move."""
    batch_size: int = 64
    """Pairs, or labelled responses, of one optimiser step, over all ranks."""
    epochs: float = 1.0
    """Passes over the data."""
    lora: SavedLoRA | None = None
    """Adapters that are trained in place of the weights; null trains them all."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same gradient."""

    def __post_init__(self) -> None:
        """Refuse counts that are not positive, and a reference that nobody reads."""
        Job.__post_init__(self)
        expect_positive(self, "batch_size", "epochs")
        if not self.sft_coef >= 0:
            raise ValueError(f"Preference.sft_coef must not be negative, got {self.sft_coef}")
        loss = type(self.loss)
        if not loss.needs_reference and self.reference.path is not None:
            raise ValueError(
                f"reference.path must be null for {loss.__name__}, which reads no reference, "
                f"got {self.reference.path}"
            )


@dataclass(kw_only=True, slots=True)
class ActorConfig:
    """The policy being trained."""

    model: Pretrained = field(default_factory=Pretrained)
    """Where it starts, usually the supervised model."""
    optimizer: AdamW = field(default_factory=AdamW)
    """How parameters move."""
    lora: SavedLoRA | None = None
    """Adapters that are trained in place of the weights; null trains them all."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same gradient."""
    ema_decay: float | None = None
    """Decay, per rollout, of an average of the weights that is evaluated and exported in their place; null
    evaluates and exports the last ones."""

    def __post_init__(self) -> None:
        """Refuse an average that never moves."""
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"ActorConfig.ema_decay must be at least 0 and below 1, or null, got {self.ema_decay}"
            )


@dataclass(kw_only=True, slots=True)
class CriticConfig:
    """The value model, trained beside the actor by an engine of its own."""

    path: str | None = None
    """Reward model that it starts from (numerics D34). Null takes the run's own, or, where the reward is a
    function, the actor's start with a new head."""
    engine: EngineConfig | None = None
    """Sharding and precision; null takes the actor's."""
    optimizer: AdamW = field(default_factory=AdamW)
    """How parameters move."""
    lora: LoRA | None = None
    """Adapters that are trained in place of the weights; null trains them all."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same gradient."""


@dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """How much is sampled at a time, and how."""

    prompts: int = 128
    """Prompts of one rollout, over all ranks."""
    samples: int = 1
    """Responses to each prompt."""
    sampling: Sampling = field(default_factory=Sampling)
    """The distribution that responses are drawn from, and their length."""
    memory_gib: float | None = None
    """GiB that sampling may take on each rank for keys, values and logits; more is sampled in parts,
    with the same tokens. null sets no limit."""

    def __post_init__(self) -> None:
        """Refuse counts and sizes that are not positive."""
        expect_positive(self, "prompts", "samples")
        if self.memory_gib is not None and self.memory_gib <= 0:
            name = type(self).__name__
            raise ValueError(f"{name}.memory_gib must be positive or null, got {self.memory_gib}")


@dataclass(kw_only=True, slots=True)
class RolloutConfig(SamplingConfig):
    """Sampling for online RL."""

    exact_kl: bool = True
    """Report the KL over the whole vocabulary beside its estimate; costs two logit tensors."""


@dataclass(kw_only=True, slots=True)
class PretrainingConfig:
    """Texts whose likelihood is kept up while the policy learns (PPO-ptx)."""

    data: SupervisedData = field(default_factory=lambda: SupervisedData(path=None))
    """The texts; path=null for none."""
    batch_size: int = 32
    """Texts of one optimizer step, over all ranks."""

    def __post_init__(self) -> None:
        """Refuse counts that are not positive."""
        expect_positive(self, "batch_size")


@dataclass(kw_only=True, slots=True)
class RL(Job):
    """``rlhf rl``: online reinforcement learning."""

    actor: ActorConfig = field(default_factory=ActorConfig)
    """The policy."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """The value model; not loaded by algorithms whose value_loss is null."""
    reference: str | None = None
    """Model that the KL is measured to; null takes the actor's start."""
    inference_engine: EngineConfig | None = None
    """Sharding and precision of reference and reward model; null takes the actor's."""
    measure_kl: bool = True
    """Load the reference; false saves its memory and its forward passes, for algorithms that read no KL."""
    reward: RewardSource
    """What scores a response."""
    prompts: PromptData = field(default_factory=PromptData)
    """Prompts to be answered."""
    test_prompts: PromptData = field(default_factory=lambda: PromptData(path=None))
    """Held-out prompts; path=null measures none."""
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    """Texts for algorithm.ptx_coef."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Sampling."""
    algorithm: PolicyGradient
    """Advantage × policy loss × KL × aggregation × critic loss."""
    rollouts: int = 100
    """Rollouts of the run, each followed by its updates."""

    def __post_init__(self) -> None:
        """Refuse counts that are not positive, and choices that do not fit together."""
        Job.__post_init__(self)
        expect_positive(self, "rollouts")
        advantage, samples = type(self.algorithm.advantage), self.rollout.samples
        if advantage.needs_groups and samples < 2:
            raise ValueError(
                f"rollout.samples must be at least 2 for {advantage.__name__}, which compares the "
                f"responses to one prompt, got {samples}"
            )
        if self.algorithm.dynamic_sampling is not None and samples < 2:
            raise ValueError(
                "rollout.samples must be at least 2 for algorithm.dynamic_sampling, which compares the "
                f"scores of the responses to one prompt, got {samples}"
            )
        self._expect_reference()
        self._expect_pretraining()

    @property
    def critic_start(self) -> tuple[Pretrained, bool] | None:
        """What the critic starts from, and whether its head is new; None without a critic (numerics D34)."""
        if self.algorithm.value_loss is None:
            return None
        if self.critic.path is not None:
            return Pretrained(path=self.critic.path), False
        if isinstance(self.reward, RewardModel):
            return Pretrained(path=self.reward.path), False
        return Pretrained(path=self.actor.model.path), True

    @property
    def reference_start(self) -> ModelSource | None:
        """The reference that is a model of its own; None for none, or the actor with its adapters off."""
        if not self.measure_kl:
            return None
        if self.reference is not None:
            return Pretrained(path=self.reference)
        return self.actor.model if self.actor.lora is None else None

    def _expect_reference(self) -> None:
        """Refuse a KL to nothing, and a reference for nothing."""
        if self.measure_kl:
            return
        kl = type(self.algorithm.kl)
        if kl.needs_reference:
            raise ValueError(
                f"measure_kl must be true for {kl.__name__}, which reads the reference, got false"
            )
        if self.reference is not None:
            raise ValueError(f"reference must be null where measure_kl is false, got {self.reference}")

    def _expect_pretraining(self) -> None:
        """Refuse a coefficient without texts, and texts without a coefficient."""
        path, coef = self.pretraining.data.path, self.algorithm.ptx_coef
        if coef > 0 and path is None:
            raise ValueError(f"pretraining.data.path must be given for algorithm.ptx_coef={coef}, got null")
        if coef == 0 and path is not None:
            raise ValueError(f"algorithm.ptx_coef must be positive for pretraining.data.path={path}, got 0")


@dataclass(kw_only=True, slots=True)
class Distill(Job):
    """``rlhf distill``: on-policy distillation, DAgger with a language model for the expert."""

    student: Pretrained = field(default_factory=Pretrained)
    """Where the policy that learns starts."""
    teacher: Pretrained = field(default_factory=Pretrained)
    """The policy that is imitated; it must have the student's tokenizer."""
    prompts: PromptData = field(default_factory=PromptData)
    """Prompts to be answered."""
    test_prompts: PromptData = field(default_factory=lambda: PromptData(path=None))
    """Held-out prompts; path=null measures none."""
    rollout: SamplingConfig = field(default_factory=SamplingConfig)
    """The prefixes that a round collects."""
    mixture: Mixture
    """Who writes them: the teacher's share, round by round."""
    divergence: Divergence
    """What is made small after each prefix: how far the student's next-token distribution is from the
    teacher's."""
    temperature: float = 1.0
    """Divides the logits of both before they are compared; above 1 the teacher's lesser choices count for
    more."""
    keep_rounds: int | None = 1
    """Rounds whose prefixes are learnt from: the newest alone, or null for all so far (DAgger)."""
    rounds: int = 100
    """Rounds of the run."""
    steps: int = 1
    """Optimiser steps of a round."""
    batch_size: int = 128
    """Responses of one optimiser step, over all ranks."""
    optimizer: AdamW = field(default_factory=AdamW)
    """How parameters move."""
    lora: SavedLoRA | None = None
    """Adapters that are trained in place of the weights; null trains them all."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same gradient."""

    def __post_init__(self) -> None:
        """Refuse counts that are not positive, and a temperature that is none."""
        Job.__post_init__(self)
        expect_positive(self, "rounds", "steps", "batch_size")
        if self.keep_rounds is not None:
            expect_positive(self, "keep_rounds")
        if not 0.0 < self.temperature < float("inf"):
            raise ValueError(f"Distill.temperature must be positive and finite, got {self.temperature}")
