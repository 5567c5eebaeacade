"""The settings of a run, gathered from a file, a warm start and what the user names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dar_probe.adapt import warm_start
from dar_probe.errors import UsageError
from dar_probe.files.toml_file import read_toml
from dar_probe.routing.schemes import OPTIONS, known
from dar_probe.routing.stream import options_of
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
    _refuse_idle(named, str(given.get("routing", TrainConfig().routing)))
    return configs.from_dict(given)


def _refuse_idle(named: Mapping[str, Any], routing: str) -> None:
    """Refuse options of routings that the chosen one does not take: they would do nothing.

    Raises:
        UsageError: naming the routings that take it.
    """
    if routing not in known():
        return  # the settings themselves say so
    for option in OPTIONS:
        if option in named and option not in options_of(routing):
            takers = [name for name in known() if option in options_of(name)]
            raise UsageError(
                f"the routing {routing} has no {option.replace('_', ' ')}",
                hint=f"it is an option of {', '.join(takers)}: add --routing {takers[0]}",
            )
