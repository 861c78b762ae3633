"""The benchmarks by number; what each is to show is in their modules."""

from __future__ import annotations

from benchmarks.bench import Case
from benchmarks.cases import (
    advantages,
    checkpoints,
    given_logits,
    growth,
    head_accuracy,
    head_backward,
    head_forward,
    iteration,
    masked_rows,
    one_pass,
    packing,
    preference_step,
    rollout,
    steps,
    tokens_in_memory,
    transition,
    utilisation,
    zero,
)

CPU = {
    "C1": Case(title="log-prob and entropy, forward", run=head_forward.run),
    "C2": Case(title="log-prob and entropy, forward and backward", run=head_backward.run),
    "C3": Case(title="clipped surrogate in one pass", run=one_pass.run),
    "C4": Case(title="masked rows and rows without a gradient", run=masked_rows.run),
    "C5": Case(title="sampled tokens a second", run=rollout.run),
    "C6": Case(title="a step of each stage, rows of uneven lengths", run=steps.run),
    "C7": Case(title="iterations of PPO, RLOO and GRPO, with phases", run=iteration.run),
    "C7e": Case(title="the same, no response ends early", run=iteration.run_even),
    "C8": Case(title="GAE, whitening, baselines of groups", run=advantages.run),
    "C9": Case(title="rows into forward passes and over ranks", run=packing.run),
    "C10": Case(title="what DeepSpeed shards, on two ranks", run=zero.run),
    "C11": Case(title="checkpoints: seconds, bytes, exactness", run=checkpoints.run),
    "C12": Case(title="errors against float64", run=head_accuracy.run),
}
GPU = {
    "G1": Case(title="log-prob and entropy, forward", run=head_forward.run),
    "G2": Case(title="log-prob and entropy, forward and backward", run=head_backward.run),
    "G3": Case(title="clipped surrogate in one pass", run=one_pass.run),
    "G4": Case(title="row kernels on given logits", run=given_logits.run),
    "G5": Case(title="small hidden sizes, forward", run=head_forward.run_small),
    "G5b": Case(title="small hidden sizes, forward and backward", run=head_backward.run_small),
    "G6": Case(title="most tokens", run=tokens_in_memory.run),
    "G7": Case(title="sampled tokens a second", run=rollout.run_large),
    "G8": Case(title="utilisation of a supervised step", run=utilisation.run),
    "G9": Case(title="an iteration of PPO", run=iteration.run_ppo),
    "G10": Case(title="an iteration of GRPO", run=iteration.run_grpo),
    "G11": Case(title="from training to sampling and back", run=transition.run),
    "G12": Case(title="a step of direct preference optimisation", run=preference_step.run_large),
}
GROWTH = {"growth": Case(title="cost over tokens, vocabulary, ranks and ZeRO's stage", run=growth.run)}
SUITES = {"cpu": CPU, "gpu": GPU, "growth": GROWTH}
