"""A trajectory on disk that grows while its model is trained."""

import json
from pathlib import Path
from typing import Any

import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.files import atomic
from dar_probe.results import schema, store, trajectory

# What a manifest tells of its own moment, or of where the model stood.
PASSING = {"model": ("name", "fresh"), "config": ("batch_size",)}


class TrajectoryFile:
    """The analyses of one training run, oldest first; the file is replaced whenever one is added.

    Args:
        path: of the file; the analyses that are there are continued.

    Raises:
        UsageError: no file can be written there, or it is an analysis without training steps.
        CheckpointError: it is no analysis, or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        atomic.check_place(self.path)
        self._left = atomic.identity(self.path)
        self._pairs: list[tuple[int, xr.Dataset]] = []
        if self._left is None:
            return
        found = store.read(self.path)
        if "step" not in found.dims:
            raise UsageError(
                f"{str(path)!r} is the analysis of one moment, no trajectory",
                hint="choose another file for the trajectory",
            )
        self._pairs = trajectory.split(found)

    @property
    def steps(self) -> list[int]:
        """The training steps that are there, rising."""
        return [step for step, _ in self._pairs]

    def check(self, manifest: dict[str, Any]) -> None:
        """Make sure that what is there is of the model and the grid of ``manifest``.

        Raises:
            UsageError: naming what differs.
        """
        if not self._pairs:
            return
        there, here = _lasting(schema.manifest(self._pairs[-1][1])), _lasting(manifest)
        other = [key for key in here | there if there.get(key) != here.get(key)]
        if other:
            raise UsageError(
                f"{str(self.path)!r} holds the trajectory of another model or grid: it differs "
                f"in {other[0]}",
                hint="choose another file, or remove that one",
            )

    def add(self, step: int, ds: xr.Dataset) -> None:
        """Add the analysis of ``step``; what is there of it and of later steps is dropped.

        Training that went back to ``step`` has left what it did afterwards behind.

        Raises:
            UsageError: the file cannot be written, or another process has changed it.
        """
        self._replace([*self._until(step - 1), (step, ds)])

    def rewind(self, step: int) -> None:
        """Drop the analyses after ``step``; the file goes with its last one."""
        kept = self._until(step)
        if len(kept) < len(self._pairs):
            self._replace(kept)

    def _until(self, step: int) -> list[tuple[int, xr.Dataset]]:
        return [pair for pair in self._pairs if pair[0] <= step]

    def _replace(self, pairs: list[tuple[int, xr.Dataset]]) -> None:
        if atomic.identity(self.path) not in (None, self._left):
            raise UsageError(
                f"{str(self.path)!r} was changed by another process meanwhile",
                hint="give every run a trajectory of its own",
            )
        if pairs:
            store.write(trajectory.join(pairs), self.path)
        else:
            with atomic.writing(self.path):
                self.path.unlink(missing_ok=True)
        self._pairs, self._left = pairs, atomic.identity(self.path)


def _lasting(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what stays the same over one training run, flat, as it comes back from a file."""
    parts = {part: manifest.get(part) for part in ("seed", "sites", *PASSING)}
    told: dict[str, Any] = json.loads(json.dumps(parts))
    flat: dict[str, Any] = {}
    for part, passing in PASSING.items():
        flat |= {key: value for key, value in told.pop(part).items() if key not in passing}
    digest = {"data_sha256": flat.pop("data_sha256", None)}  # of data and samples: they come first
    return flat | told | digest
