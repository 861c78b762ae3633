"""The mistakes of numerics 3.2, as edits of the product, and the tests that must not pass with them."""

from __future__ import annotations

from dataclasses import dataclass

from tests.detection.breaking import Edit

AGGREGATION = "rlhf.algorithms.aggregation"
KL = "rlhf.algorithms.kl"
RETURNS = "rlhf.ops.returns"
MASKING = "rlhf.ops.masking"
BUNDLE = "rlhf.algorithms.policy_gradient"
UPDATE = "rlhf.trainers.policy_update"
SCORING = "rlhf.trainers.scoring"

PENALTY = "-coef * k1(old_logprobs, ref_logprobs)"
CHARGE = f"torch.where(mask, {PENALTY}, 0.0).detach()"
REWARDS = "return token_rewards(scores, penalty, mask).detach()"
MOMENTS = "moments = masked_moments(x, mask, total)"
CONSTANT = "return mask / (self.length * responses)"

GRADIENT_TESTS = "tests/algorithms/test_gradient.py::"
SHAPE_TESTS = "tests/algorithms/test_policy_gradient.py::"
GAE_TESTS = "tests/ops/test_returns.py::"
MASKING_TESTS = "tests/ops/test_masking.py::"
ADVANTAGE_TESTS = "tests/algorithms/test_advantages.py::"
TRAINER_TESTS = "tests/trainers/test_policy_gradient.py::"
WEIGHT_TESTS = "tests/algorithms/test_aggregation.py::"
SCALAR_TESTS = "tests/models/test_scalar.py::"
TABLE_TESTS = "tests/testbed/test_table.py::"

E2 = (
    GRADIENT_TESTS + "test_kl_of_the_whole_sequence_gives_the_exact_gradient",
    GRADIENT_TESTS + "test_kl_to_go_gives_the_exact_gradient",
)
E7 = "tests/algorithms/test_fixed_points.py::test_kl_in_reward_leads_to_the_tilted_reference"
LITERAL_KL = (
    "tests/algorithms/test_kl.py::test_kl_in_reward_charges_k1_on_every_real_token_and_nothing_in_the_loss"
)
LITERAL_SHAPE = SHAPE_TESTS + "test_shape_replaces_cut_scores_and_charges_the_kl"
ROW_SUMS = SHAPE_TESTS + "test_row_sums_of_the_rewards_are_score_minus_kl"
LITERAL_WEIGHTS = WEIGHT_TESTS + "test_aggregation_is_the_literal_example"
SAMPLER_TESTS = "tests/rollout/test_sampler.py::"


@dataclass(frozen=True)
class Mutation:
    """One mistake."""

    name: str
    edits: tuple[Edit, ...]
    red: tuple[str, ...]
    """Tests of which each must fail."""
    noticed: bool = True
    """E1 must end more than 2e-3 nats from π*."""
    recipe: str = "ppo"
    offset: float = 0.0
    """Added to every score of E1's run."""


def charged(wrong: str) -> tuple[Edit, ...]:
    """Another penalty in the reward than β·k1."""
    return (Edit(KL, PENALTY, wrong),)


def whitened(wrong: str) -> tuple[Edit, ...]:
    """Token rewards whitened by their moments over the rollout."""
    lines = (
        "rewards = token_rewards(scores, penalty, mask).detach()",
        "mean, std = rewards[mask].mean(), rewards[mask].std(correction=0)",
        f"return torch.where(mask, {wrong}, 0.0)",
    )
    return (Edit(BUNDLE, REWARDS, "\n        ".join(lines)),)


K1 = "k1(old_logprobs, ref_logprobs)"

MUTATIONS = (
    Mutation("KL clamped at 0", charged(f"-coef * {K1}.clamp(min=0)"), (*E2, E7, LITERAL_KL)),
    Mutation(
        "no KL on the last token",
        (
            Edit(
                KL,
                CHARGE,
                f"torch.where(mask & torch.nn.functional.pad(mask, (0, 1))[:, 1:], {PENALTY}, 0.0).detach()",
            ),
        ),
        (*E2, E7, LITERAL_KL),
    ),
    Mutation("k3 in the reward", charged("-coef * k3(old_logprobs, ref_logprobs)"), (*E2, E7, LITERAL_KL)),
    Mutation("k2 in the reward", charged(f"-coef * 0.5 * {K1}.square()"), (*E2, E7, LITERAL_KL)),
    Mutation("absolute k1 in the reward", charged(f"-coef * {K1}.abs()"), (*E2, E7, LITERAL_KL)),
    Mutation("KL clipped to ±1", charged(f"-coef * {K1}.clamp(-1, 1)"), (*E2, E7)),
    Mutation("KL over the length", charged(f"-coef * {K1} / mask.sum(1, keepdim=True)"), (*E2, LITERAL_KL)),
    Mutation("KL with the wrong sign", charged(f"coef * {K1}"), (*E2, E7, LITERAL_KL)),
    Mutation(
        "k1 as a loss",
        (
            Edit(KL, PENALTY, f"0.0 * {K1}"),
            Edit(
                KL,
                "return torch.zeros_like(logprobs)",
                "return coef * torch.where(mask, k1(logprobs, ref_logprobs), 0.0)",
            ),
        ),
        (*E2, E7, LITERAL_KL),
    ),
    Mutation(
        "score clipped to ±1",
        (
            Edit(
                BUNDLE,
                "missing_eos(scores, ended, self.missing_eos_score)",
                "missing_eos(scores, ended, self.missing_eos_score).clamp(-1, 1)",
            ),
        ),
        (*E2, LITERAL_SHAPE, ROW_SUMS),
    ),
    Mutation(
        "score in the last column, then masked",
        (
            Edit(
                "rlhf.ops.shaping",
                "last = mask & ~following",
                "last = mask & (torch.arange(mask.shape[1]) == mask.shape[1] - 1)",
            ),
        ),
        (
            "tests/ops/test_shaping.py::test_rewards_are_the_literal_table",
            LITERAL_SHAPE,
            ROW_SUMS,
        ),
    ),
    Mutation(
        "V bootstrapped at T",
        (
            Edit(
                RETURNS,
                "next_value = next_advantage = values.new_zeros(len(values))",
                "next_value, next_advantage = values[:, -1], values.new_zeros(len(values))",
            ),
        ),
        (
            GAE_TESTS + "test_reaching_the_length_limit_bootstraps_nothing",
            GAE_TESTS + "test_gae_is_the_literal_example",
        ),
    ),
    Mutation(
        "γ = 0.9",
        (Edit("rlhf.algorithms.advantages", "gamma=self.gamma", "gamma=0.9 * self.gamma"),),
        (
            ADVANTAGE_TESTS + "test_gae_reads_its_discount_and_its_lambda",
            GRADIENT_TESTS + "test_gae_with_exact_values_gives_the_exact_gradient_for_every_lambda",
        ),
    ),
    Mutation(
        "sampled at temperature 0.7, scored at 1",
        (
            Edit(
                "rlhf.rollout.decoding",
                "return drawn(logits, noise, temperature=self.temperature)",
                "return drawn(logits, noise, temperature=0.7 * self.temperature)",
            ),
        ),
        (
            SAMPLER_TESTS + "test_logprobs_are_those_of_the_scorer",
            "tests/rollout/test_decoding.py::test_a_grid_of_noise_gives_every_token_its_share_at_the_temperature",
            TRAINER_TESTS + "test_old_logprobs_are_the_samplers",
            TABLE_TESTS + "test_the_sampler_draws_every_outcome_as_often_as_the_policy_says",
        ),
    ),
    Mutation(
        "rewards whitened, mean kept",
        whitened("(rewards - mean) / std + mean"),
        (*E2, LITERAL_SHAPE, ROW_SUMS),
        noticed=False,
    ),
    Mutation(
        "rewards whitened, mean kept; scores + 2",
        whitened("(rewards - mean) / std + mean"),
        (*E2, LITERAL_SHAPE, ROW_SUMS),
        offset=2.0,
    ),
    Mutation(
        "rewards whitened, mean removed",
        whitened("(rewards - mean) / std"),
        (*E2, LITERAL_SHAPE, ROW_SUMS),
        noticed=False,
    ),
    Mutation(
        "rewards whitened, mean removed; scores + 2",
        whitened("(rewards - mean) / std"),
        (*E2, LITERAL_SHAPE, ROW_SUMS),
        offset=2.0,
    ),
    Mutation(
        "values after the end not masked",
        (
            Edit(RETURNS, "    values = torch.where(mask, values, 0.0)\n", ""),
            Edit(
                "rlhf.models.scalar",
                "torch.where(mask, values[:, first - 1 : -1], 0.0)",
                "values[:, first - 1 : -1]",
            ),
        ),
        (
            GAE_TESTS + "test_padding_never_reaches_the_result",
            GAE_TESTS + "test_a_padded_row_is_the_row_alone",
            SCALAR_TESTS + "test_values_are_of_the_state_before_each_token",
        ),
        noticed=False,
    ),
    Mutation(
        "noise N(0, 0.3) on the old log-probs",
        (
            Edit(
                SCORING,
                'policy=columns["policy"],',
                "policy=torch.where(rollout.mask, columns['policy'] + 0.3 * torch.randn_like(rollout.mask,"
                " dtype=torch.float32), 0.0),",
            ),
        ),
        (
            TRAINER_TESTS + "test_old_logprobs_are_the_samplers",
            TRAINER_TESTS + "test_first_update_is_on_policy",
            "tests/bugs/test_trainers.py::test_first_minibatch_ratio_is_exactly_one",
        ),
    ),
    Mutation(
        "whitening counts padding",
        (
            Edit(
                MASKING,
                MOMENTS,
                "moments = masked_moments(torch.where(mask, x, 0.0), torch.ones_like(mask), total)",
            ),
        ),
        (MASKING_TESTS + "test_whitened_numbers_have_mean_zero_and_population_variance_one",),
        noticed=False,
    ),
    Mutation(
        "whitening by the unbiased deviation",
        (
            Edit(
                MASKING,
                "(moments.variance + eps).sqrt()",
                "(moments.variance * moments.count / (moments.count - 1) + eps).sqrt()",
            ),
        ),
        (
            MASKING_TESTS + "test_whitening_is_the_hand_worked_example",
            MASKING_TESTS + "test_whitened_numbers_have_mean_zero_and_population_variance_one",
        ),
        noticed=False,
    ),
    Mutation(
        "whitening on each rank by itself",
        (Edit(MASKING, MOMENTS, "moments = masked_moments(x, mask, lambda part: part)"),),
        (
            MASKING_TESTS + "test_whitening_on_several_ranks_is_whitening_on_one",
            ADVANTAGE_TESTS + "test_two_ranks_are_one",
        ),
        noticed=False,
    ),
    Mutation(
        "returns from whitened advantages",
        (
            Edit(
                "rlhf.algorithms.advantages",
                "advantages = masking.whiten(advantages, mask, total)",
                "advantages = masking.whiten(advantages, mask, total)\n"
                "            returns = advantages + values",
            ),
        ),
        (
            ADVANTAGE_TESTS + "test_gae_whitens_advantages_and_leaves_returns_bitwise_alone",
            TRAINER_TESTS + "test_returns_minus_raw_advantages_are_the_old_values",
        ),
        noticed=False,
    ),
    Mutation(
        "mean of each micro-batch",
        (
            Edit(
                UPDATE,
                "part = minibatch.rows(rows).trimmed()",
                "part = minibatch.rows(rows).trimmed()\n"
                "            weights[rows] = self.algorithm.aggregation(weights[rows] > 0, all_sum)",
            ),
        ),
        (TRAINER_TESTS + "test_micro_batches_do_not_change_the_update",),
        noticed=False,
    ),
    Mutation(
        "mean of each rank",
        (Edit(AGGREGATION, "tokens = total(mask.sum())", "tokens = mask.sum()"),),
        (WEIGHT_TESTS + "test_uneven_ranks_weigh_tokens_as_one_process",),
        noticed=False,
    ),
    Mutation(
        "RLOO: tokens over the length",
        (
            Edit(
                AGGREGATION,
                CONSTANT,
                "return mask / (mask.sum(1, keepdim=True).clamp(min=1) * responses)",
            ),
        ),
        (
            LITERAL_WEIGHTS,
            GRADIENT_TESTS + "test_constant_length_one_on_replicated_rows_is_the_policy_gradient",
        ),
        noticed=False,
        recipe="rloo",
    ),
    Mutation(
        "RLOO: mean over tokens",
        (Edit(AGGREGATION, CONSTANT, "return mask / total(mask.sum())"),),
        (
            LITERAL_WEIGHTS,
            GRADIENT_TESTS + "test_constant_length_one_on_replicated_rows_is_the_policy_gradient",
        ),
        noticed=False,
        recipe="rloo",
    ),
    Mutation(
        "RLOO: over the deviation",
        (
            Edit(
                "rlhf.ops.baselines",
                "return _centred(scores, group, counted, size) * size / (size - 1).clamp(min=1)",
                "return _centred(scores, group, counted, size) / (group_std(scores, group, counted) + 1e-4)",
            ),
        ),
        (
            "tests/ops/test_baselines.py::test_leave_one_out_is_the_literal_example",
            "tests/algorithms/test_group_baselines.py::test_leave_one_out_is_unbiased",
        ),
        noticed=False,
        recipe="rloo",
    ),
    Mutation(
        "log-probs of the token before",
        (Edit("rlhf.models.actor", "scored.shape[1] - 1, 1))", "scored.shape[1], 0))"),),
        (
            "tests/models/test_actor.py::test_logprob_is_the_log_softmax_of_the_column_before",
            "tests/models/test_actor.py::test_probabilities_of_all_responses_sum_to_one",
            TABLE_TESTS + "test_the_policy_scores_every_outcome_as_its_table_does",
        ),
    ),
    Mutation(
        "values of the state after",
        (Edit("rlhf.models.scalar", "values[:, first - 1 : -1]", "values[:, first:]"),),
        (
            SCALAR_TESTS + "test_values_are_of_the_state_before_each_token",
            TABLE_TESTS + "test_the_critic_reads_the_state_before_each_token",
        ),
    ),
    Mutation(
        "the end token left out of the mask",
        (
            Edit(
                "rlhf.rollout.decode_loop",
                "        if t + 1 == T:",
                "        steps._alive[-1:] = [alive]\n        if t + 1 == T:",
            ),
        ),
        (SAMPLER_TESTS + "test_the_mask_reaches_the_first_end_token_and_pad_follows",),
    ),
)
