"""Every component that a group chooses by name."""

from __future__ import annotations

from rlhf.algorithms import (
    acquisitions,
    advantages,
    aggregation,
    corrections,
    divergences,
    kl,
    mixtures,
    policy_losses,
    preference_losses,
    preferences,
    shaping,
    value_losses,
)
from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.data import selections
from rlhf.distributed.engine_config import Plain, ZeRO
from rlhf.models.lora import LoRA, SavedLoRA
from rlhf.models.readouts import LastToken, TokenSum
from rlhf.models.sources import Pretrained, TinyGPT2, TinyLlama
from rlhf.rewards.instructions import Instructions
from rlhf.rewards.math_expression import MathExpression
from rlhf.rewards.reasoning_gym import ReasoningGym
from rlhf.rewards.sources import (
    Implicit,
    LowestOfEnsemble,
    NoReward,
    RewardEndpoint,
    RewardEnsemble,
    RewardFunction,
    RewardMixture,
    RewardModel,
)
from rlhf.rewards.unit_tests import UnitTests
from rlhf.rewards.verifiers import ExactMatch, Format, MathAnswer
from rlhf.rollout.decoding import Greedy, Sampling, Truncated
from rlhf.rollout.refinement import (
    FeedbackColumn,
    FeedbackFunction,
    RefinerFunction,
    RefinerModel,
)
from rlhf.trainers import schedules

GROUPS: dict[str, dict[str, type]] = {
    "algorithm": {"schema": PolicyGradient},
    "algorithm/advantage": {
        "gae": advantages.GAE,
        "none": advantages.NoBaseline,
        "moving_average": advantages.MovingAverage,
        "greedy": advantages.GreedyBaseline,
        "leave_one_out": advantages.LeaveOneOut,
        "group_relative": advantages.GroupRelative,
        "whitened_returns": advantages.WhitenedReturns,
        "whitened_group_deviation": advantages.WhitenedGroupDeviation,
    },
    "algorithm/policy_loss": {
        "clipped": policy_losses.Clipped,
        "clipped_sequence": policy_losses.SequenceClipped,
        "clipped_weight": policy_losses.ClippedWeight,
        "kl_penalised": policy_losses.KLPenalised,
        "kl_penalised_adaptive": policy_losses.AdaptiveKLPenalised,
        "reinforce": policy_losses.Reinforce,
    },
    "algorithm/kl": {
        "none": kl.NoKL,
        "in_reward": kl.KLInReward,
        "in_reward_adaptive": kl.AdaptiveKLInReward,
        "in_loss": kl.KLInLoss,
        "in_loss_k2": kl.K2InLoss,
        "in_loss_exact": kl.ExactKLInLoss,
    },
    "algorithm/aggregation": {
        "token_mean": aggregation.TokenMean,
        "sequence_mean": aggregation.SequenceMean,
        "constant_length": aggregation.ConstantLength,
    },
    "algorithm/value_loss": {
        "clipped": value_losses.ClippedValueLoss,
        "squared_error": value_losses.SquaredError,
    },
    "algorithm/overlong_penalty": {"schema": shaping.SoftOverlong},
    "algorithm/correction": {"truncated": corrections.Truncated, "masked": corrections.Masked},
    "engine": {"zero": ZeRO, "plain": Plain},
    "schedule": {"constant": schedules.Constant, "linear": schedules.Linear, "cosine": schedules.Cosine},
    "model": {"pretrained": Pretrained, "tiny_llama": TinyLlama, "tiny_gpt2": TinyGPT2},
    "lora": {"adapter": SavedLoRA},
    "actor/lora": {"adapter": SavedLoRA},
    "critic/lora": {"adapter": LoRA},
    "loss": {
        "bradley_terry": preferences.BradleyTerry,
        "rao_kupper": preferences.RaoKupper,
        "davidson": preferences.Davidson,
        "best_response": preferences.BestResponse,
        "dpo": preference_losses.DPO,
        "cdpo": preference_losses.ConservativeDPO,
        "ipo": preference_losses.IPO,
        "kto": preference_losses.KTO,
        "orpo": preference_losses.ORPO,
        "simpo": preference_losses.SimPO,
        "hinge": preference_losses.Hinge,
        "unlikelihood": preference_losses.Unlikelihood,
        "preferred_ft": preference_losses.PreferredFT,
    },
    "readout": {"last_token": LastToken, "token_sum": TokenSum},
    "reward": {
        "model": RewardModel,
        "ensemble": RewardEnsemble,
        "ensemble_lowest": LowestOfEnsemble,
        "implicit": Implicit,
        "function": RewardFunction,
        "endpoint": RewardEndpoint,
        "mixture": RewardMixture,
        "exact_match": ExactMatch,
        "math_answer": MathAnswer,
        "math_expression": MathExpression,
        "format": Format,
        "reasoning_gym": ReasoningGym,
        "instructions": Instructions,
        "unit_tests": UnitTests,
        "none": NoReward,
    },
    "selection": {
        "best": selections.Best,
        "top": selections.Top,
        "above": selections.Above,
        "label": selections.Label,
        "quantiles": selections.Quantiles,
        "pairs": selections.Pairs,
        "all_pairs": selections.AllPairs,
        "labelled": selections.Labelled,
    },
    "acquisition": {
        "random": acquisitions.Random,
        "uncertainty": acquisitions.Uncertainty,
        "disagreement": acquisitions.Disagreement,
        "information_gain": acquisitions.InformationGain,
    },
    "divergence": {
        "forward_kl": divergences.ForwardKL,
        "reverse_kl": divergences.ReverseKL,
        "jensen_shannon": divergences.JensenShannon,
    },
    "mixture": {
        "constant": mixtures.Constant,
        "geometric": mixtures.Geometric,
        "linear": mixtures.Linear,
    },
    "decoding": {"sampling": Sampling, "truncated": Truncated, "greedy": Greedy},
    "feedback": {"column": FeedbackColumn, "function": FeedbackFunction},
    "refiner": {"model": RefinerModel, "function": RefinerFunction},
}
"""Every component that a group chooses by name; ``conf/GROUP/`` adds presets of them."""
