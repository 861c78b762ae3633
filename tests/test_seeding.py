import torch

from rlhf.seeding import generator


def drawn(*names: str | int, seed: int = 0) -> float:
    return torch.rand((), generator=generator(seed, *names), dtype=torch.float64).item()


def test_the_same_seed_and_name_give_the_same_stream() -> None:
    assert drawn("sampling", 3) == drawn("sampling", 3)


def test_every_name_and_seed_has_a_stream_of_its_own() -> None:
    streams = [
        drawn("sampling"),
        drawn("minibatches"),
        drawn("sampling", 0),
        drawn("sampling", 1),
        drawn("sampling", 1, 0),
        drawn("sampling", 10),
        drawn("sampling", seed=1),
        drawn("sampling", "1"),
        drawn(),
    ]
    assert len(set(streams)) == len(streams)


def test_the_stream_is_the_same_on_every_machine() -> None:
    # sha256 of '[0, "weights"]' begins with 04d76d62; nothing of Python's own hashing enters.
    assert generator(0, "weights").initial_seed() == 0x04D76D62


def test_the_global_stream_is_left_alone() -> None:
    before = torch.get_rng_state()
    drawn("sampling")
    assert torch.equal(torch.get_rng_state(), before)
