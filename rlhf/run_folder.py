"""The folder that a run leaves behind: configuration, metrics, samples, TensorBoard, checkpoints, model."""

from __future__ import annotations

import difflib
import json
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SIGNS_OF_A_RUN = ("metrics.jsonl", "samples.jsonl", "checkpoints", "model", "adapter")


class RunFolder:
    """One run's files. Rank 0 alone writes."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self._board: Any = None
        self._continuation: str | None = None

    def claim(self, config: str, *, resume: bool) -> None:
        """Take the folder for this run and save its resolved configuration, before anything else runs.

        That of a run to be continued waits for ``rewind``: until a checkpoint has been loaded the folder
        stays as it is.

        Raises:
            ValueError: the folder holds a run already and ``resume`` is false, or none and it is true.
        """
        found = [name for name in SIGNS_OF_A_RUN if (self.path / name).exists()]
        if found and not resume:
            raise ValueError(
                f"{self.path} already holds a run ({', '.join(found)}): choose another name=…, or continue "
                "it with resume=true; nothing was overwritten"
            )
        if resume and not self.checkpoints.is_dir():
            raise ValueError(
                f"resume=true, but {self.path} holds no checkpoints to continue from; a run that was stopped "
                "before its first one starts again under another name=…, or after its folder is removed"
            )
        if resume:
            self._continuation = config
            self._tell_changes(config)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.yaml").write_text(config, encoding="utf-8")

    def _tell_changes(self, config: str) -> None:
        """Log what differs from the run so far: with other settings it is continued, but not as it was."""
        file = self.path / "config.yaml"
        before = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        changes = [
            " ".join(line.split())
            for line in difflib.ndiff(before, config.splitlines())
            if line[:2] in ("- ", "+ ") and not line[2:].startswith("resume:")
        ]
        if changes:
            log.warning("continuing %s with a changed configuration: %s", self.path, ", ".join(changes))

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are written."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Where the trained model is exported to."""
        return self.path / "model"

    def rewind(self, step: int) -> None:
        """Forget what was logged after ``step``, and a last line that was cut while being written.

        From here on the folder is that of the continued run, its configuration included.
        """
        if not self.writes:
            return
        if self._continuation is not None:
            (self.path / "config.yaml").write_text(self._continuation, encoding="utf-8")
        for name in ("metrics.jsonl", "samples.jsonl"):
            file = self.path / name
            if file.exists():
                kept = [line for line in _whole_lines(file) if json.loads(line)["step"] <= step]
                shorter = file.with_suffix(".rewound")  # renamed when whole: a kill here loses nothing
                shorter.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
                shorter.replace(file)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step's metrics to ``metrics.jsonl`` and TensorBoard."""
        if not self.writes:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._append("metrics.jsonl", [{"step": step, **finite}])
        board = self._tensorboard(step)
        for name, value in metrics.items():
            board.add_scalar(name, value, step)

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append texts with their scores to ``samples.jsonl``."""
        if self.writes:
            self._append("samples.jsonl", [{"step": step, **row} for row in rows])

    def close(self) -> None:
        """Flush what is buffered."""
        if self._board is not None:
            self._board.close()

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def _tensorboard(self, step: int) -> Any:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
        return self._board


def _whole_lines(file: Path) -> list[str]:
    *lines, _cut = file.read_text(encoding="utf-8").split("\n")
    return lines
