import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.algorithms.preferences import BestResponse, BradleyTerry, Davidson, RaoKupper
from rlhf.batch import Comparisons


def row(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_loss_is_the_hand_worked_pair() -> None:
    found = BradleyTerry()(row(2.0, 1.0), row(1.0, 2.0), row(0.0, 0.0))
    torch.testing.assert_close(found, row(math.log1p(math.exp(-1)), math.log1p(math.exp(1))))


def test_margin_is_read() -> None:
    found = BradleyTerry()(row(2.0), row(1.0), row(1.0))
    assert found.item() == pytest.approx(math.log(2))


def test_centring_is_added_with_its_weight() -> None:
    found = BradleyTerry(center=0.25)(row(3.0), row(3.0), row(0.0))
    assert found.item() == pytest.approx(math.log(2) + 9.0)


def test_a_little_centring_pins_the_mean_and_leaves_the_gap() -> None:
    """The first wins four of five comparisons: Δ = logit 0.8 = log 4, whatever the mean."""
    scores = row(5.0, 2.0).requires_grad_()
    optimizer = torch.optim.SGD([scores], lr=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        first, second, none = scores[:1], scores[1:], row(0.0)
        loss = BradleyTerry(center=0.05)
        (0.8 * loss(first, second, none) + 0.2 * loss(second, first, none)).sum().backward()
        optimizer.step()
    gap, mean = (scores[0] - scores[1]).item(), scores.mean().item()
    assert gap == pytest.approx(math.log(4), abs=1e-6)
    assert mean == pytest.approx(0, abs=1e-6)


def test_negative_centring_is_refused() -> None:
    with pytest.raises(ValueError, match=r"BradleyTerry.center must not be negative, got -1.0"):
        BradleyTerry(center=-1.0)


def test_scores_are_not_centred_unless_said() -> None:
    assert BradleyTerry().center == 0.0
    assert BradleyTerry()(row(3.0), row(3.0), row(0.0)).item() == pytest.approx(math.log(2))


def test_loss_of_a_pair_is_differentiable() -> None:
    chosen, rejected = row(0.3, -1.0, 3.0).requires_grad_(), row(0.5, 1.0, -2.0).requires_grad_()
    assert gradcheck(lambda a, b: BradleyTerry(center=0.1)(a, b, row(0.1, 0.0, 0.2)), (chosen, rejected))


# Prompts with several responses


def judged(*prompts: list[tuple[int, int, float]], responses: int) -> Comparisons:
    """(first, second, μ) of each comparison."""
    shape = (len(prompts), responses, responses)
    compared, label = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    for prompt, pairs in enumerate(prompts):
        for first, second, mu in pairs:
            compared[prompt, first, second], label[prompt, first, second] = True, mu
    return Comparisons(compared=compared, label=label, margin=torch.zeros(shape))


def ranked(responses: int) -> list[tuple[int, int, float]]:
    return [(i, j, 1.0) for i in range(responses) for j in range(i + 1, responses)]


PARTIAL = [(0, 1, 1.0), (2, 1, 1.0), (3, 4, 0.5), (4, 0, 0.25)]
RANKINGS = judged(ranked(4), ranked(9), PARTIAL, [(1, 0, 1.0)], responses=9)
SCORES = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def explicit(scores: Tensor, pairs: list[tuple[int, int, float]]) -> Tensor:
    """Numerics D23: the mean over the comparable pairs of −μ·log σ(Δ) − (1 − μ)·log σ(−Δ), one by one."""
    total = torch.zeros((), dtype=torch.float64)
    for first, second, mu in pairs:
        p = 1 / (1 + torch.exp(scores[second] - scores[first]))
        total = total - mu * torch.log(p) - (1 - mu) * torch.log(1 - p)
    return total / len(pairs)


def test_a_ranking_is_the_loop_over_its_pairs() -> None:
    """Numerics E9: K = 4, 9, a partial order with a tie and a probability, and a pair; value and gradient."""
    scores, again = SCORES.clone().requires_grad_(), SCORES.clone().requires_grad_()
    found = BradleyTerry().prompts(scores, RANKINGS)
    pairs = [ranked(4), ranked(9), PARTIAL, [(1, 0, 1.0)]]
    expected = torch.stack([explicit(line, of) for line, of in zip(again, pairs, strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    found.mean().backward()
    expected.mean().backward()
    torch.testing.assert_close(scores.grad, again.grad, rtol=0, atol=1e-10)


def test_nine_responses_weigh_as_much_as_four() -> None:
    found = BradleyTerry().prompts(torch.zeros(4, 9).double(), RANKINGS)
    torch.testing.assert_close(found, torch.full((4,), math.log(2)).double())


def test_two_responses_are_the_pair() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.3, 1.5]], dtype=torch.float64)
    found = BradleyTerry(center=0.1).prompts(scores, judged(ranked(2), [(1, 0, 1.0)], responses=2))
    torch.testing.assert_close(found, BradleyTerry(center=0.1)(row(2.0, 1.5), row(1.0, 0.3), row(0.0, 0.0)))


def test_what_stands_where_no_response_is_changes_nothing() -> None:
    poisoned = SCORES.clone()
    poisoned[0, 4:], poisoned[2, 5:], poisoned[3, 2:] = math.nan, 1e9, -math.inf
    for loss in (BradleyTerry(), Davidson(), RaoKupper(), BestResponse()):
        one, other = (loss.prompts(scores, RANKINGS) for scores in (SCORES, poisoned))
        assert torch.equal(one, other)


def test_each_tie_model_has_its_own_outcomes() -> None:
    """Δ = log 4, p = 1/5. Rao and Kupper, θ = 3/2: 4/(4 + θ), 1/(1 + 4θ). Davidson, ν = ½: 2 : ½ : ½."""
    shares = {RaoKupper: (4 / 5.5, 1 / 7), Davidson: (2 / 3, 1 / 6)}
    for kind, (win, loss) in shares.items():
        losses = [kind(tie_probability=0.2)(row(math.log(4)), row(0.0), row(0.0), mu) for mu in (1, 0.5, 0)]
        expected = [-math.log(share) for share in (win, 1 - win - loss, loss)]
        assert [one.item() for one in losses] == pytest.approx(expected)


@pytest.mark.parametrize("loss", [RaoKupper(tie_probability=0.2), Davidson(tie_probability=0.2)])
def test_ties_end_where_they_are_as_frequent_as_expected(loss: RaoKupper | Davidson) -> None:
    """Wins, ties and losses at the model's own frequencies for Δ = 0.8: that Δ is the minimum."""
    outcomes = [math.exp(-float(loss(row(0.8), row(0.0), row(0.0), mu))) for mu in (1.0, 0.5, 0.0)]
    assert sum(outcomes) == pytest.approx(1)
    gap = row(0.8).requires_grad_()
    terms = [
        share * loss(gap, row(0.0), row(0.0), mu) for share, mu in zip(outcomes, (1.0, 0.5, 0.0), strict=True)
    ]
    torch.stack(terms).sum().backward()
    assert gap.grad is not None
    assert gap.grad.item() == pytest.approx(0, abs=1e-12)
    assert loss.ties(row(0.8)).item() == pytest.approx(outcomes[1])  # type: ignore[union-attr]
    assert BradleyTerry().ties(row(0.8)) is None


@pytest.mark.parametrize("kind", [RaoKupper, Davidson])
def test_a_margin_moves_the_optimum_of_a_tie_model_by_itself(kind: type[RaoKupper | Davidson]) -> None:
    loss = kind(tie_probability=0.3)
    torch.testing.assert_close(
        loss(row(2.0), row(0.5), row(0.75), 0.5), loss(row(1.25), row(0.5), row(0.0), 0.5)
    )


@pytest.mark.parametrize("kind", [RaoKupper, Davidson])
@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, math.nan])
def test_a_tie_probability_out_of_range_is_refused(kind: type[RaoKupper | Davidson], bad: float) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}.tie_probability must lie between 0 and 1, got"):
        kind(tie_probability=bad)


def test_the_best_response_is_chosen_from_the_compared_ones() -> None:
    """Prompt 0 of RANKINGS: the first of four; PARTIAL: 1 lost twice, 4 lost to 0 with 3/4."""
    chosen, best = RANKINGS.best()
    assert chosen.sum(1).tolist() == [4, 9, 5, 2]
    assert [line.nonzero().flatten().tolist() for line in best] == [[0], [0], [0, 2, 3], [1]]
    found = BestResponse().prompts(SCORES, RANKINGS)
    torch.testing.assert_close(found[0], SCORES[0, :4].logsumexp(0) - SCORES[0, 0])
    torch.testing.assert_close(found[3], BradleyTerry().prompts(SCORES, RANKINGS)[3])
