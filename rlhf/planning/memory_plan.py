"""A command's memory, term by term and phase by phase, and the table that is printed of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

GB = 10**9


@dataclass(kw_only=True, slots=True, frozen=True)
class Term:
    """Bytes of one rank that one thing takes."""

    owner: str
    """The model, or what else has them."""
    part: str
    """Weights, gradients, …"""
    bytes: int
    offloaded: bool = False
    """In the memory of the host, while the device computes."""

    @property
    def name(self) -> str:
        """In the table."""
        return f"{self.owner}: {self.part}" + (" (host)" if self.offloaded else "")


@dataclass(kw_only=True, slots=True)
class Phase:
    """What is held at the same time, where the phase holds most."""

    name: str
    terms: list[Term]
    on_host: bool = False
    """All of it in the memory of the host: models are loaded there."""

    def bytes(self, *, host: bool) -> int:
        """On the device, or in the memory of its host beside it."""
        return sum(term.bytes for term in self.terms if (term.offloaded or self.on_host) == host)


@dataclass(kw_only=True, slots=True)
class MemoryPlan:
    """Of one rank of a command."""

    command: str
    ranks: int
    device: str
    """Where the models compute: ``cpu``, where device and host are one memory, or ``cuda``."""
    notes: list[str] = field(default_factory=list)
    """What the numbers rest on."""
    phases: list[Phase] = field(default_factory=list)

    def add(self, name: str, *terms: Iterable[Term], on_host: bool = False) -> None:
        """One more phase; terms of no bytes are left out."""
        kept = [term for group in terms for term in group if term.bytes]
        self.phases.append(Phase(name=name, terms=kept, on_host=on_host and self.device != "cpu"))

    def widen(self, name: str, terms: Iterable[Term]) -> None:
        """Give a phase that was added further terms."""
        for phase in self.phases:
            if phase.name == name:
                phase.terms += [term for term in terms if term.bytes]

    def held(self, phase: Phase, *, host: bool = False) -> int:
        """Bytes of a phase on the device, all there are on a CPU; with ``host`` those beside a GPU."""
        if self.device == "cpu":
            return 0 if host else sum(term.bytes for term in phase.terms)
        return phase.bytes(host=host)

    @property
    def fullest(self) -> Phase:
        """The phase that holds most on the device."""
        return max(self.phases, key=self.held)

    @property
    def peak(self) -> int:
        """Bytes that it holds."""
        return self.held(self.fullest)

    @property
    def host_peak(self) -> int:
        """The most that any phase holds in the memory of a GPU's host."""
        return max(self.held(phase, host=True) for phase in self.phases)

    def table(self) -> str:
        """A row a term, a column a phase, and their sums."""
        names = list(dict.fromkeys(term.name for phase in self.phases for term in phase.terms))
        unit, label, digits = (GB, "GB", 2) if self.peak >= 10 * GB else (10**6, "MB", 1)
        rows: list[list[str | int]] = [[name, *(_of(phase, name) for phase in self.phases)] for name in names]
        rows += self._sums()
        cells = [
            [str(name), *(f"{int(size) / unit:,.{digits}f}" if size else "" for size in sizes)]
            for name, *sizes in rows
        ]
        head = f"rlhf {self.command}: memory of each of {self.ranks} ranks, {label}" if self.ranks > 1 else ""
        head = head or f"rlhf {self.command}: memory, {label}"
        lines = _aligned([[head, *(phase.name for phase in self.phases)], *cells])
        return "\n".join([*lines, *self.notes, self.summary()]) + "\n"

    def _sums(self) -> list[list[str | int]]:
        place = "in all" if self.device == "cpu" else "on the GPU"
        sums: list[list[str | int]] = [[place, *(self.held(phase) for phase in self.phases)]]
        if self.host_peak:
            sums.append(["in host memory", *(self.held(phase, host=True) for phase in self.phases)])
        return sums

    def summary(self) -> str:
        """The peak and where it is."""
        host = f", and {readable(self.host_peak)} in host memory" if self.host_peak else ""
        each = " on each rank" if self.ranks > 1 else ""
        return f"peak: {readable(self.peak)}{each}, in {self.fullest.name}{host}"


def readable(count: int) -> str:
    """Bytes for people, decimal."""
    for size, unit in ((GB, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:,.0f} {unit}"
    return f"{count} bytes"


def _of(phase: Phase, name: str) -> int:
    return sum(term.bytes for term in phase.terms if term.name == name)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in rows
    ]
