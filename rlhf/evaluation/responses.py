"""Sample from a policy and measure every response, one response a record."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhf.batch import Rollout
from rlhf.data.loaded import PromptSet
from rlhf.evaluation.policies import Response
from rlhf.models.actor import Actor, FullLogprobs
from rlhf.ops.kl import k1
from rlhf.ops.logprobs import exact_kl
from rlhf.rewards.functions import ScoreFunction, as_scores, call_function
from rlhf.rewards.reward import Reward, expect_finite
from rlhf.rollout.contract import ResponseSampler, sampled
from rlhf.rollout.noise import row_noise
from rlhf.rollout.texts import RolloutTexts


class Evaluator:
    """Everything that responses are measured with; the policy comes with each call."""

    def __init__(
        self,
        *,
        prompts: PromptSet,
        texts: RolloutTexts,
        sampler: ResponseSampler,
        reference: Actor,
        reward: Reward,
        judge: ScoreFunction | None,
        rows: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.prompts, self.texts, self.sampler, self.reference = prompts, texts, sampler, reference
        self.reward, self.judge, self.rows, self.seed, self.device = reward, judge, rows, seed, device

    @torch.no_grad()
    def __call__(
        self,
        actor: Actor,
        index: Tensor,
        samples: int,
        progress: Callable[[int], object],
        *,
        asked: PromptSet | None = None,
    ) -> list[Response]:
        """``samples`` responses to each prompt of ``index``, those of one prompt in succession.

        The same seed and prompts give every policy the same random numbers, so that differences between
        policies are less noisy than the policies. The policy alone reads the prompts of ``asked``, which are
        the same ones behind a control prefix; everything else reads the bare ones.
        """
        responses: list[Response] = []
        for part in index.split(max(self.rows // samples, 1)):
            bare = self.prompts.batch(part, samples=samples, groups=part).to(self.device)
            read = bare if asked is None else asked.batch(part, samples=samples, groups=part).to(self.device)
            noise = row_noise(bare.group, self.sampler.max_new_tokens, self.seed, "evaluate")
            rollout = sampled(self.sampler, actor, read, noise.to(self.device))
            responses += self._measured(actor, rollout, rollout if asked is None else rollout.after(bare))
            progress(len(rollout))
        return responses

    def _measured(self, actor: Actor, own: Rollout, rollout: Rollout) -> list[Response]:
        """What the responses are worth: ``own`` is as the policy read them, ``rollout`` as all others do."""
        ref_logprobs, kl, exact = self._divergence(actor, own, rollout)
        prompts, texts = self.texts.prompts(rollout), self.texts.responses(rollout)
        scores = expect_finite(self.reward(rollout, self.texts), prompts, "the reward")
        judged = self._judged(prompts, texts, rollout)
        return [
            Response(
                prompt=prompts[row],
                text=texts[row],
                score=float(scores[row]),
                judge=judged[row],
                kl=float(kl[row]),
                exact_kl=float(exact[row]),
                ref_logprob=float(ref_logprobs[row]),
                tokens=int(rollout.lengths[row]),
                ended=bool(rollout.ended[row]),
            )
            for row in range(len(rollout))
        ]

    def _judged(self, prompts: list[str], texts: list[str], rollout: Rollout) -> Sequence[float | None]:
        if self.judge is None:
            return [None] * len(texts)
        columns = self.texts.columns(rollout)
        verdicts = call_function(self.judge, prompts, texts, columns, name="the judge")
        scores = expect_finite(as_scores(verdicts, len(texts), "the judge"), prompts, "the judge")
        judged: list[float | None] = scores.tolist()
        return judged

    def _divergence(self, actor: Actor, own: Rollout, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) each, summed over the response: log π_ref, k1, and the KL over the whole vocabulary."""
        policy = self._scored(actor, own)
        same = actor is self.reference and own is rollout
        reference = policy if same else self._scored(self.reference, rollout)
        exact = exact_kl(policy.logits, reference.logits, self.sampler.temperature)
        per_token = (reference.logprobs, k1(policy.logprobs, reference.logprobs), exact)
        summed = [torch.where(rollout.mask, part, 0.0).sum(1) for part in per_token]
        return summed[0], summed[1], summed[2]

    def _scored(self, model: Actor, rollout: Rollout) -> FullLogprobs:
        width, temperature = rollout.prompt_mask.shape[1], self.sampler.temperature
        return model(rollout.tokens, rollout.attention_mask, width, temperature, full=True)
