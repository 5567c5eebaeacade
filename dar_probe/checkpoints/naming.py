"""What an analysis of a checkpoint is called where the user gives no name."""

import os
import re
from pathlib import Path

from dar_probe.checkpoints import diffusers_folder
from dar_probe.checkpoints.shards import stem_of

# Words that trainers name every checkpoint, and the folders of checkpoints, by.
_EVERYBODYS = re.compile(
    r"(step|iter|iteration|epoch|ep|ckpt|checkpoint|model|ema|state|snapshot|weight|last|latest"
    r"|best|final|pytorch|diffusion|train|s)*"
)
_PIECES = re.compile(r"[\d\W_]+")


def display_name(path: str | Path, adapter: str | Path | None = None) -> str:
    """Return what figures and tables call a checkpoint, with an adapter behind a plus.

    The file's name; "run/step-0000300" where that says nothing but a step or "last"; for a folder
    of diffusers the model's.

    Example: display_name("runs/dar/checkpoints/step-0000300.pt") is "dar/step-0000300".
    """
    path = Path(path)
    if adapter is not None:
        return f"{display_name(path)} + {Path(adapter).name}"
    if diffusers_folder.home_of(path) is not None:
        return diffusers_folder.name_of(path)
    run = _run_of(path)
    return f"{run}/{stem_of(path)}" if run else path.name


def folder_name(path: str | Path, adapter: str | Path | None = None) -> str:
    """Return what the folder of its analysis is called, below dar-probe-out."""
    path = Path(path)
    if adapter is not None:
        return f"{folder_name(path)}-{stem_of(Path(adapter))}"
    if diffusers_folder.home_of(path) is not None or not (run := _run_of(path)):
        return diffusers_folder.name_of(path)
    return f"{run}-{stem_of(path)}"


def _run_of(path: Path) -> str:
    """Return the name of the run that a checkpoint with everybody's name is of; else nothing."""
    if not _is_everybodys(stem_of(path)):
        return ""
    for parent in Path(os.path.abspath(path)).parents:
        if parent.name and not _is_everybodys(parent.name):
            return parent.name
    return ""


def _is_everybodys(name: str) -> bool:
    return all(_EVERYBODYS.fullmatch(piece) for piece in _PIECES.split(name.lower()))
