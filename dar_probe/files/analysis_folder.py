"""The folder of one analysis while it is made: its lock, its finished shards, its last step."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from dar_probe.errors import UsageError
from dar_probe.files import arrays
from dar_probe.files.atomic import check_place, hold, sync, write_atomically, writing
from dar_probe.runtime import system

BEFORE = "before.nc"  # the untrained module, beside the analysis of its trained copy
CONTENTS = {  # what a folder may hold, by what it is the folder of
    "analysis": {"analysis.nc", BEFORE, "report.html", "summary.json", "figures"},
    "comparison": {"comparison.html", "comparison.json", "comparison.csv", "figures"},
    "study": {"reproduce.html", "reproduce.json", "figures", "runs", "work"},
    "sheet": {"samples.png", "samples.npz", "latents.npz"},
}


class OutputFolder:
    """Context manager for writing one analysis folder; nothing appears in it before the end.

    Work happens in a hidden folder beside the target, held by a lock of the kernel (so a killed
    process leaves none). Finished shards stay there after a crash, for ``resume``; nothing else.

    Args:
        path: the folder; missing, empty, or holding an earlier one of its kind alone. A link to
            a folder stays one.
        key: what the numbers depend on; shards of another key are not continued. None where
            there are no shards, so that an unfinished analysis of the folder stays what it is.
        resume: keep shards that are there.
        kind: what it is the folder of, see ``CONTENTS``.

    Raises:
        UsageError: the folder holds something else, is in use, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        key: dict[str, Any] | None = None,
        resume: bool = False,
        kind: str = "analysis",
    ) -> None:
        check_target(path, kind)
        self.path = Path(os.path.realpath(path))
        self.kind = kind
        state = "saving" if key is None else "partial"
        self.work = self.path.with_name(f".{self.path.name}.{state}")
        self.key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.resume = resume
        self._published = False
        self._held = ExitStack()

    def __enter__(self) -> Self:
        with writing(self.path), ExitStack() as stack:
            stack.callback(os.close, hold(self.work, self.path))
            stack.callback(self._tidy)
            self._begin()
            self._held = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()

    def load(self, index: int) -> dict[str, np.ndarray] | None:
        """Return the arrays of shard ``index``, None where it is not there.

        Raises:
            UsageError: the shard is damaged.
        """
        path = self._shard(index)
        if not path.exists():
            return None
        try:
            return arrays.read_arrays(path)
        except UsageError:
            raise UsageError(
                f"the shard {path.name!r} of {str(self.path)!r} is damaged",
                hint="run again without --resume to start over",
            ) from None

    def save(self, index: int, part: dict[str, np.ndarray]) -> None:
        """Keep the arrays of shard ``index``."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, **part)  # type: ignore[arg-type]

        write_atomically(self._shard(index), write)

    def publish(self, write: Callable[[Path], None]) -> None:
        """Let ``write`` fill a fresh folder, then put it in the place of the earlier analysis."""
        fresh = self.work / "fresh"
        with writing(self.path):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            write(fresh)
            for path in (*fresh.rglob("*"), fresh):  # whole files, also where the power fails
                sync(path)
            # The measurement may have taken hours: what came into the folder since is not ours.
            check_target(self.path, self.kind)
            if self.path.exists():
                _exchange(fresh, self.path)
            else:
                fresh.rename(self.path)
            self.discard()
            sync(self.path.parent)

    def discard(self) -> None:
        """Drop what was kept for ``resume``; the target stays as it is."""
        self._published = True
        shutil.rmtree(self.work, ignore_errors=True)  # what stays is dropped by the next run

    def _tidy(self) -> None:
        """Drop all that ``resume`` has no use for, as far as the file system lets us."""
        shutil.rmtree(self.work / "fresh", ignore_errors=True)
        with suppress(OSError):
            left = {path.name for path in self.work.iterdir() if path.suffix != ".tmp"}
            if self._published or left <= {"key"}:
                shutil.rmtree(self.work, ignore_errors=True)

    def _begin(self) -> None:
        old = self.work / "old"
        if old.is_dir() and not self.path.exists():
            old.rename(self.path)  # killed between the two renames of ``_exchange``
        marker = self.work / "key"
        found = marker.read_text(encoding="ascii") if marker.is_file() else None
        if self.resume and found not in (None, self.key):
            raise UsageError(
                f"{str(self.path)!r} has an unfinished analysis with other settings",
                hint="resume with the settings it was started with, or drop --resume",
            )
        if not self.resume or found is None:
            for leftover in self.work.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            write_atomically(marker, self._write_key)

    def _write_key(self, path: Path) -> None:
        path.write_text(self.key, encoding="ascii")

    def _shard(self, index: int) -> Path:
        return self.work / f"{index:06d}.npz"


def check_target(path: Path, kind: str = "analysis") -> None:
    """Raise UsageError where ``path`` holds anything that is no earlier folder of its kind."""
    if os.path.lexists(path) and not os.path.isdir(path):
        what = "a file" if os.path.exists(path) else "a link that leads nowhere"
        raise UsageError(f"{str(path)!r} is {what}", hint="--out takes a folder")
    check_place(path)  # now, not after hours of measuring
    if not os.path.lexists(path):
        return
    with writing(path, "choose another folder with --out"):
        if Path.cwd().is_relative_to(os.path.realpath(path)):
            raise UsageError(
                f"{str(path)!r} is or holds the current folder, which cannot be replaced",
                hint="choose another --out, or call dar-probe from another folder",
            )
        others = sorted({entry.name for entry in path.iterdir()} - CONTENTS[kind])
    if others:
        raise UsageError(
            f"{str(path)!r} holds {others[0]!r}, which is no part of "
            f"{'an' if kind == 'analysis' else 'a'} {kind}",
            hint="choose an empty or new folder with --out",
        )


def _exchange(fresh: Path, path: Path) -> None:
    """Swap two folders in one step where the system can, else by two renames."""
    if system.exchange(fresh, path):
        return
    old = fresh.with_name("old")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    try:
        fresh.rename(path)
    except BaseException:
        old.rename(path)
        raise
