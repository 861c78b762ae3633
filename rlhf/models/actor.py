"""A causal language model as a policy: log-probabilities of tokens, and next-token logits for the sampler."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import pad

from rlhf.batch import position_ids
from rlhf.kernels.linear_token_loss import SweptLoss, TokenLoss, linear_token_loss
from rlhf.models.comparison import Against, Compared
from rlhf.models.heads import LogprobHead, logit_transform
from rlhf.models.lora import LoRA
from rlhf.models.packing import Packed, pack, unpacked
from rlhf.ops.logprobs import TokenLogprobs


class FullLogprobs(NamedTuple):
    """Log-probs, entropies, and the logits that they are made of."""

    logprobs: Tensor
    """(B, T) float32."""
    entropies: Tensor
    """(B, T) float32."""
    logits: Tensor
    """(B, T, V) float32, before the temperature."""


class Actor(nn.Module):
    """Any ``AutoModelForCausalLM``, kept whole as ``model``, its ``lm_head`` swapped for a log-prob head.

    The reference is an ``Actor`` too (``rlhf.models.frozen``). Scorer and sampler run the same modules.
    """

    def __init__(self, model: Any, *, gradient_checkpointing: bool = False, packed: bool = False) -> None:
        """Wrap a transformers model.

        Args:
            model: a causal language model of transformers; its head is replaced in place.
            gradient_checkpointing: recompute activations in backward (in ``train()`` mode only).
            packed: run rows end to end (`rlhf.models.packing`), not side by side with padding.

        Raises:
            ValueError: the model has no linear head, takes no explicit positions, or cannot be packed.
        """
        super().__init__()
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ValueError(f"{type(model).__name__} has no linear output head, got {type(head).__name__}")
        expect_positions(model)
        scale, softcap = logit_transform(model.config)
        model.set_output_embeddings(LogprobHead(head, scale=scale, softcap=softcap))
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if packed:
            pack(model)
        self.packed: bool = packed
        self.lora: LoRA | None = None  # set where it has adapters
        self.model: Any = model

    @property
    def head(self) -> LogprobHead:
        """The head, in the place where the model keeps its ``lm_head``."""
        return self.model.get_output_embeddings()

    @property
    def vocabulary(self) -> int:
        """Tokens that the policy chooses from."""
        return self.head.out_features

    @property
    def context(self) -> int | None:
        """Positions that the model was made for; None where the configuration names no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor,
        first: int,
        temperature: float = 1.0,
        *,
        wanted: Tensor | None = None,
        token_loss: TokenLoss | None = None,
        against: Against | None = None,
        states: bool = False,
        full: bool = False,
    ) -> TokenLogprobs | SweptLoss | Compared | FullLogprobs | Tensor:
        """log π(tokens[:, i] | tokens[:, :i]) for i ≥ first (numerics D9).

        What is asked for is this forward's choice and no method's, because ZeRO-3 gathers weights only for
        what runs through the module's call.

        Args:
            tokens: (B, L) int64; what stands on masked positions is not read (numerics D4).
            attention_mask: (B, L) bool, padding on either side.
            first: first column scored, in [1, L); P for rows ``[prompt | response]``.
            temperature: positive, divides the logits in log-probs and entropies.
            wanted: (B, L − first) bool, the tokens that the head sees; None for all.
            token_loss: of the (B, L − first) log-probs and entropies, token by token: the head then makes its
                gradients in this forward, in one sweep (`rlhf.kernels.linear_token_loss`).
            against: another model's head over the same tokens, and a loss against its distributions: made in
                one sweep too (`rlhf.kernels.linear_divergence`).
            states: return what the head would see, for `LogprobHead.over`.
            full: return the logits too, for the exact KL.

        Returns:
            log-probs and entropies (B, L − first) float32, 0 where nothing is wanted, where the mask is False
            and at a row's first token, which nothing precedes; the same bits with ``full``, and then
            (B, L − first, V) float32 logits before the temperature. With ``token_loss`` the loss's sum, and
            detached log-probs and entropies; with ``against`` what that sweep knows; with ``states`` (M, H)
            hidden states before the M tokens that are scored, row after row.

        Raises:
            ValueError: ``first`` is out of range, or the temperature not positive.
        """
        if not 1 <= first < tokens.shape[1]:
            raise ValueError(f"Actor: first must lie in [1, {tokens.shape[1]}), got {first}")
        scored = attention_mask[:, first - 1 : -1] & attention_mask[:, first:]
        if wanted is not None:
            scored &= wanted
        hidden, targets = self._before(tokens, attention_mask, scored), tokens[:, first:][scored]
        if states:
            return hidden
        if against is not None:
            found: Compared = self.head(hidden, targets, temperature, measure=against.measure(scored))
            return Compared(found.loss, *(unpacked(values, scored) for values in found[1:]))
        if token_loss is not None:
            sweep = partial(linear_token_loss, token_loss=_of_rows(token_loss, scored))
            swept: SweptLoss = self.head(hidden, targets, temperature, measure=sweep)
            return SweptLoss(swept.loss, *(unpacked(values, scored) for values in swept[1:]))
        logprobs, entropies = (unpacked(values, scored) for values in self.head(hidden, targets, temperature))
        if not full:
            return TokenLogprobs(logprobs, entropies)
        return FullLogprobs(logprobs, entropies, unpacked(self.head.logits(hidden), scored))

    def _before(self, tokens: Tensor, attention_mask: Tensor, scored: Tensor) -> Tensor:
        """(M, H) hidden states before each scored token, row after row.

        The shift is made while rows are apart: no token meets the next row.

        Args:
            tokens: (B, L) int64.
            attention_mask: (B, L) bool.
            scored: (B, L − first) bool, tokens that are real and have a real one before them.
        """
        before = pad(scored, (tokens.shape[1] - scored.shape[1] - 1, 1))  # (B, L)
        if self.packed:
            packed = Packed.of(tokens, attention_mask)
            return packed.states(self.model)[packed.place[before[attention_mask]]]
        return backbone(self.model, tokens, attention_mask)[before]

    def logits(self, tokens: Tensor, attention_mask: Tensor, first: int) -> Tensor:
        """(B, L − first, V) float32 logits that predict ``tokens[:, first:]``."""
        return self(tokens, attention_mask, first, full=True).logits

    def next_logits(
        self, tokens: Tensor, attention_mask: Tensor, positions: Tensor, cache: Any = None
    ) -> tuple[Tensor, Any]:
        """Logits of the token after the last column, and the key-value cache with these columns added.

        Call it in eval mode: checkpointing models keep no cache while training.

        Args:
            tokens: (B, N) int64 columns that the cache lacks, all inside the vocabulary.
            attention_mask: (B, C + N) bool over cached and new columns.
            positions: (B, N) int64.
            cache: what the last call returned; None at the start of a row.

        Returns:
            (B, V) float32 logits before the temperature, and the cache.
        """
        output = self.model.base_model(
            input_ids=tokens,
            attention_mask=attention_mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        return self.head.logits(output.last_hidden_state[:, -1]), output.past_key_values


def _of_rows(token_loss: TokenLoss, scored: Tensor) -> TokenLoss:
    """A loss of (B, T) numbers for a head that sees those of the scored tokens alone, (M,)."""

    def loss(found: TokenLogprobs) -> Tensor:
        return token_loss(TokenLogprobs(*(unpacked(values, scored) for values in found)))[scored]

    return loss


def backbone(model: Any, tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, L, H) hidden states after the final norm, with explicit positions (numerics D3, D4)."""
    output = model.base_model(
        input_ids=tokens.masked_fill(~attention_mask, 0),
        attention_mask=attention_mask.long(),
        position_ids=position_ids(attention_mask),
        use_cache=False,
    )
    return output.last_hidden_state


def expect_positions(model: Any) -> None:
    """Refuse a model that cannot be told its positions: left padding would move them (numerics D3)."""
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        raise ValueError(f"{type(model).__name__} takes no position_ids, which rows with left padding need")
