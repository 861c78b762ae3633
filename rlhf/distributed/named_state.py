"""An engine's state by name, so that any number of ranks and any sharding can go on with it.

actor/engine.json          who wrote it, optimizer steps, learning rate
actor/part_0.safetensors   a rank's share: value/NAME, exp_avg/NAME, exp_avg_sq/NAME, buffer/NAME

Every tensor is whole, as the optimizer has it, and written by one rank; they are gathered one at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from rlhf.distributed.collectives import barrier, on_main, rank, world_size
from rlhf.distributed.watch import WATCH
from rlhf.tensor_file import Kind, TensorFile

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What torch's AdamW keeps of each parameter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One tensor of the state; every rank reads and sets it together with the others."""

    kind: Kind
    read: Callable[[], Tensor]
    """The whole tensor, on every rank."""
    write: Callable[[Tensor], object]
    """Takes the whole tensor, the same on every rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What an engine's state holds besides tensors."""

    engine: str
    """What wrote it, for people."""
    world_size: int
    steps: int
    """Optimizer steps made."""
    lr_scale: float
    """Of all learning rates, to those that the optimizer was made with."""


def save(folder: Path, progress: Progress, entries: Mapping[str, Entry]) -> None:
    """Write the state, each rank its part; every rank calls it.

    Raises:
        OSError: this rank could not write, which the others have not been told.
    """
    on_main(lambda: _begin(folder, progress))
    mine = {name: entries[name].kind for name in _shares(entries)[rank()]}
    fault: OSError | None = None
    with ExitStack() as stack:
        file = stack.enter_context(TensorFile(folder / f"part_{rank()}.safetensors", mine))
        for name, entry in entries.items():
            with WATCH.meeting("the gathering of a checkpoint"):
                tensor = entry.read()
            if name in mine and fault is None:
                try:
                    file.add(name, tensor)
                except OSError as error:  # the others still gather: go on with them to the end
                    fault = error
        if fault is not None:
            raise fault
    barrier()


def read_progress(folder: Path, name: str) -> Progress:
    """What ``engine.json`` says.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is something else.
    """
    path = folder / "engine.json"
    if not path.exists():
        raise FileNotFoundError(f"{name}: {path} does not exist, so {folder} is no engine's checkpoint")
    try:
        return Progress(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {path} is not what an engine writes: {error}") from None


def load(folder: Path, name: str, entries: Mapping[str, Entry]) -> None:
    """Set every entry from the files, however many ranks wrote them; every rank calls it.

    Raises:
        ValueError: the files hold other tensors than the engine has.
    """
    with ExitStack() as stack:
        opened = [
            stack.enter_context(safe_open(path, framework="pt"))
            for path in sorted(folder.glob("part_*.safetensors"))
        ]
        holders = {key: file for file in opened for key in file.keys()}  # noqa: SIM118
        different = sorted(holders.keys() ^ entries.keys())
        if different:
            has = "holds" if different[0] in holders else "lacks"
            raise ValueError(f"{name}: {folder} {has} {different[0]}, unlike the model that is to go on")
        for key, entry in entries.items():
            shape = tuple(holders[key].get_slice(key).get_shape())
            if shape != entry.kind.shape:
                raise ValueError(f"{name}: {key} in {folder} is {shape}, the model has {entry.kind.shape}")
        for key, entry in entries.items():
            with WATCH.meeting("the reading of a checkpoint"):
                entry.write(holders[key].get_tensor(key))


def plain_entries(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> dict[str, Entry]:
    """The state of a module and an optimizer that this rank holds whole."""
    entries: dict[str, Entry] = {}
    for name, parameter in module.named_parameters():
        entries[f"value/{name}"] = held(parameter)
        if parameter.requires_grad and steps:
            state = optimizer.state[parameter] or fresh(parameter, optimizer, 0)
            entries |= {f"{moment}/{name}": held(state[moment]) for moment in MOMENTS}
    return entries | buffers(module)


def buffers(module: nn.Module) -> dict[str, Entry]:
    """The buffers that belong to the module's state dict."""
    state = module.state_dict(keep_vars=True)
    return {f"buffer/{name}": held(state[name]) for name, _ in module.named_buffers() if name in state}


def held(tensor: Tensor) -> Entry:
    """A tensor that every rank holds whole."""
    return Entry(kind=Kind.of(tensor), read=lambda: tensor, write=tensor.data.copy_)


def renew(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], steps: int) -> None:
    """Give AdamW the state of one that has made so many steps, with moments to be filled in."""
    optimizer.state.clear()
    if steps:
        optimizer.state.update({each: fresh(each, optimizer, steps) for each in parameters})


def fresh(parameter: Tensor, optimizer: torch.optim.Optimizer, steps: int) -> dict[str, Tensor]:
    """AdamW's state of one parameter, without memory of gradients."""
    device = parameter.device if optimizer.defaults.get("fused") else torch.device("cpu")
    moments = {moment: torch.zeros_like(parameter, requires_grad=False) for moment in MOMENTS}
    return {"step": torch.tensor(float(steps), dtype=torch.float32, device=device), **moments}


def _begin(folder: Path, progress: Progress) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engine.json").write_text(json.dumps(asdict(progress)) + "\n")


def _shares(entries: Mapping[str, Entry]) -> list[list[str]]:
    """Which rank writes which tensors: neighbours, about as many bytes each."""
    shares: list[list[str]] = [[] for _ in range(world_size())]
    total, before = sum(entry.kind.bytes for entry in entries.values()), 0
    for name, entry in entries.items():
        shares[before * len(shares) // max(total, 1)].append(name)
        before += entry.kind.bytes
    return shares
