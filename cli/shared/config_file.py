"""``--config FILE``: options of a command from a TOML file; the command line wins over it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dar_probe.errors import UsageError
from dar_probe.files.text import did_you_mean, quote


def _read(context: typer.Context, value: Path | None) -> Path | None:
    """Make what a file says the defaults of the command that is about to run.

    Raises:
        UsageError: the file cannot be read, or names what is no option of the command.
    """
    if value is None or context.resilient_parsing:
        return value
    from dar_probe.files.toml_file import read_toml

    options = _options(context.command)
    found: dict[str, Any] = {}
    for key, entry in read_toml(value).items():
        option = options.get(key.replace("-", "_"))
        if option is None:
            raise UsageError(
                f"{quote(value.name)} sets {quote(key)}, "
                f"which {context.command_path} does not take",
                hint=did_you_mean(key, options),
            )
        found[option.name] = _typed(option, entry, f"{quote(key)} in {quote(value.name)}")
    context.default_map = {**(context.default_map or {}), **found}
    return value


def _options(command: Any) -> dict[str, Any]:
    """Return the options of a command by their names in a file: "noise_levels", "json"."""
    return {
        name.removeprefix("--").replace("-", "_"): option
        for option in command.params
        if option.param_type_name == "option" and option.name != "config"
        for name in option.opts
    }


def _typed(option: Any, entry: Any, where: str) -> Any:
    """Return an entry of the file as what was typed would be, which Typer then checks as usual."""
    if option.is_flag:
        if not isinstance(entry, bool):
            raise UsageError(
                f"{where} must be true or false", hint="it is a flag, e.g. resume = true"
            )
        return entry
    parts = entry if isinstance(entry, list) else [entry]
    if not all(
        isinstance(part, str | int | float) and not isinstance(part, bool) for part in parts
    ):
        raise UsageError(
            f"{where} must be a number or a text, or several of them in a list",
            hint="e.g. samples = 16 or noise_levels = [0.1, 0.9]",
        )
    texts = [str(part) for part in parts]
    return texts if option.multiple else ",".join(texts)


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="A TOML file of these options, under their names with underscores; what is typed "
        "wins over it.",
        metavar="FILE",
        show_default="none",
        is_eager=True,
        callback=_read,
    ),
]
