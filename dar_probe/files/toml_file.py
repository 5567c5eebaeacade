"""Settings in a TOML file."""

import tomllib
from pathlib import Path
from typing import Any

from dar_probe.errors import UsageError


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds.

    Raises:
        UsageError: no such file, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(
            f"the config file {str(path)!r} cannot be read", hint="--config takes a TOML file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path.name} is no TOML: {error}", hint="a line of it is e.g. samples = 16"
        ) from error
