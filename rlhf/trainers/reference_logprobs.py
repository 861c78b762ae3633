"""Log-probs of the reference: measured once, before training, and kept in the run's folder.

The file carries fingerprints of what the numbers were measured with. A run that is continued reads it, and is
refused where a fingerprint differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rlhf.data.collation import pad_sequences
from rlhf.data.encoding import Encoded
from rlhf.distributed.collectives import all_sum, is_main, on_main
from rlhf.distributed.engine_config import Inference
from rlhf.distributed.runtime import Runtime
from rlhf.progress_bar import progress
from rlhf.trainers.feedback import response_logprobs
from rlhf.trainers.micro_batches import Cut, held_out

FILE = "reference_logprobs.safetensors"
BATCH = 16
"""Passes whose rows are taken from the data at a time."""


@torch.no_grad()
def reference_logprobs(
    reference: Inference, texts: Sequence[Encoded], *, pad_id: int, cut: Cut, runtime: Runtime
) -> Tensor:
    """(N,) float32 log π_ref of the response in each text, on the CPU of every rank, which all take part.

    Raises:
        FloatingPointError: one is not finite.
    """
    found = torch.zeros(len(texts), dtype=torch.float64)
    order = torch.tensor([len(text.tokens) for text in texts]).argsort(stable=True)
    shares = list(held_out(len(texts), BATCH * cut.rows, runtime.rank, runtime.world_size))
    with progress(len(texts), label="reference log-probs", shown=is_main()) as bar:
        for places, real in shares:
            index = order[places]
            batch = pad_sequences([texts[row] for row in index.tolist()], pad_id=pad_id).to(runtime.device)
            for rows in cut(batch.lengths):
                part = batch.rows(rows).trimmed()
                sums = response_logprobs(reference, part).sum(1).cpu().double()
                counted = real[rows]
                found[index[rows][counted]] = sums[counted]
            bar.update(min(len(index) * runtime.world_size, len(texts) - bar.n))
    found = all_sum(found).float()  # each of them is 0 on all ranks but one
    if not found.isfinite().all():
        row = int((~found.isfinite()).nonzero()[0])
        raise FloatingPointError(f"the reference's log-prob of response {row} is {found[row].item()}")
    return found


def stored(file: Path, fingerprints: Mapping[str, str]) -> dict[str, Tensor] | None:
    """What the file holds, if it is there; every rank calls it.

    Raises:
        ValueError: it was measured with something else, or is damaged.
    """
    return on_main(lambda: _read(file, fingerprints) if file.exists() else None)


def store(file: Path, columns: Mapping[str, Tensor], fingerprints: Mapping[str, str]) -> None:
    """Write the file whole or not at all; every rank calls it."""

    def write() -> None:
        partial = file.with_suffix(".partial")
        save_file(
            {name: column.contiguous() for name, column in columns.items()}, partial, dict(fingerprints)
        )
        partial.replace(file)

    on_main(write)


def _read(file: Path, fingerprints: Mapping[str, str]) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            before = opened.metadata() or {}
            columns = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read: {error}; remove it to measure again") from None
    different = sorted(
        name for name in before.keys() | fingerprints.keys() if before.get(name) != fingerprints.get(name)
    )
    if different:
        raise ValueError(
            f"{file} was measured with something else, different in: {', '.join(different)}; give back what "
            "it was measured with, or start under another name=…"
        )
    return columns


def of_weights(module: nn.Module) -> str:
    """Fingerprint of a whole model's weights, which must not be split among ranks."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_texts(texts: Sequence[Encoded]) -> str:
    """Fingerprint of tokens and of which of them are targets."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text.tokens} {text.targets.index(True)} {sum(text.targets)}\n".encode())
    return digest.hexdigest()
