"""The settings of a run, gathered from a file, a warm start and what the user names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dar_probe.adapt import warm_start
from dar_probe.files.toml_file import read_toml
from dar_probe.training import config as configs
from dar_probe.training.config import TrainConfig


def gather(named: Mapping[str, Any], file: str | Path | None = None) -> TrainConfig:
    """Return the settings of a run.

    Args:
        named: fields of ``TrainConfig``; they win over the file.
        file: a TOML file of such fields.

    Raises:
        UsageError: a setting that is unknown or does not fit.
        CheckpointError: the checkpoint of ``init_from`` is refused.
    """
    given = {**(read_toml(Path(file)) if file else {}), **named}
    if isinstance(given.get("init_from"), str) and given["init_from"]:
        given = {**warm_start.sizes(given["init_from"]), **given}
    return configs.from_dict(given)
