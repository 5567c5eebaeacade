"""The folder of one training run: its checkpoints and its table of losses, held by one process."""

import csv
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from dar_probe.errors import CheckpointError, UsageError
from dar_probe.files import atomic
from dar_probe.training.tensorboard import EVENTS

RETRY = "check the free space, then continue with --resume"


class RunFolder:
    """out/metrics.csv, out/checkpoints/step-0000000.pt and out/trajectory.nc.

    Args:
        path: the folder.
        columns: of the table; the first is the step.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, columns
        self.metrics, self.board = path / "metrics.csv", path / "tensorboard"
        self.trajectory = path / "trajectory.nc"

    def held(self) -> ExitStack:
        """Hold the folder against other processes; it is made where it is missing."""
        atomic.check_place(self.path)
        stack = ExitStack()
        stack.callback(os.close, atomic.hold(Path(os.path.realpath(self.path)), self.path))
        return stack

    def begin(self) -> None:
        """Start a run in an empty folder.

        Raises:
            UsageError: it holds anything, or cannot be written.
        """
        if any(self.path.iterdir()):
            raise UsageError(
                f"{str(self.path)!r} is not empty",
                hint="add --resume to continue it, or choose another --out",
            )
        with atomic.writing(self.path, "choose another folder with --out"):
            (self.path / "checkpoints").mkdir()
        self._write_rows([])

    def newest(self) -> int | None:
        """Return the step of the newest checkpoint, None (and an empty folder) without one."""
        own = {self.metrics.name, self.trajectory.name}
        for kept in ("checkpoints/", *(f".{name}" for name in own)):
            for partial in self.path.glob(f"{kept}.*.tmp"):
                partial.unlink()  # a run was killed while it wrote
        found = sorted(self.path.glob("checkpoints/step-" + "[0-9]" * 7 + ".pt"))
        if found:
            return int(found[-1].stem.removeprefix("step-"))
        entries = {entry.name for entry in self.path.iterdir()}
        if "checkpoints" in entries and entries <= {"checkpoints", self.board.name, *own}:
            # It was killed before its first checkpoint.
            for events in self.board.glob(EVENTS):
                events.unlink()
            with suppress(OSError):  # not there, or with files of somebody else
                self.board.rmdir()
            for name in own:
                (self.path / name).unlink(missing_ok=True)
            (self.path / "checkpoints").rmdir()
        return None

    def checkpoint(self, step: int) -> Path:
        """Return the path of the checkpoint of ``step``."""
        return self.path / "checkpoints" / f"step-{step:07d}.pt"

    def load(self, step: int) -> dict[str, Any]:
        """Return the checkpoint of ``step`` as it was saved.

        Raises:
            CheckpointError: it cannot be read, or is no checkpoint of this trainer.
        """
        path = self.checkpoint(step)
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if state["step"] != step or not isinstance(state["args"]["train"], dict):
                raise ValueError(f"it is no checkpoint of step {step}")
        except Exception as error:  # torch has no common error for damaged files
            raise CheckpointError(
                f"{str(path)!r} cannot be read",
                hint="remove it to continue from the checkpoint before",
            ) from error
        return state

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the checkpoint of ``step`` in one step."""

        def write(path: Path) -> None:
            try:
                with path.open("wb") as file:
                    torch.save(state, file)
            except RuntimeError as error:  # torch's words for a write that the system refused
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise

        atomic.write_atomically(self.checkpoint(step), write)

    def add(self, row: dict[str, float]) -> None:
        """Append one row; what it lacks stays empty."""
        with atomic.writing(self.metrics, RETRY), self.metrics.open("a", newline="") as file:
            csv.writer(file).writerow([row.get(name, "") for name in self.columns])

    def rewind(self, step: int) -> None:
        """Drop the rows after ``step``: a killed run may have written them, the last one half.

        Raises:
            CheckpointError: there is no table.
        """
        if not self.metrics.is_file():
            raise CheckpointError(f"{str(self.metrics)!r} is missing, the run cannot be continued")
        with self.metrics.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = [r for r in csv.reader(file) if len(r) == len(self.columns)]
        self._write_rows([r for r in rows if r[0].isdecimal() and int(r[0]) <= step])

    def _write_rows(self, rows: list[list[str]]) -> None:
        def write(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([self.columns, *rows])
                file.flush()
                os.fsync(file.fileno())

        atomic.write_atomically(self.metrics, write)
