import torch

from rlhf.models.actor import Actor
from rlhf.models.frozen import frozen


def test_a_frozen_model_is_the_same_model_without_gradients(actor: Actor) -> None:
    reference = frozen(actor.train())
    assert reference is actor
    assert not actor.training
    scored = reference(torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.bool), 1)
    assert not scored.logprobs.requires_grad
