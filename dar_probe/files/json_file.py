"""A file of JSON that nobody vouches for."""

import json
from pathlib import Path
from typing import Any

from dar_probe.errors import CheckpointError
from dar_probe.files import kinds
from dar_probe.files.text import quote

AGAIN = "download the folder again"
LARGEST = 2**20  # bytes of settings


def read_object(path: Path, limit: int) -> dict[str, Any]:
    """Return the object in a file of at most ``limit`` bytes.

    Raises:
        CheckpointError: the file cannot be opened, is larger, or holds no object.
    """
    with kinds.open_file(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise CheckpointError(f"{quote(path)} has over {limit} bytes", hint=AGAIN)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or no text
        raise CheckpointError(f"{quote(path)} is not readable JSON", hint=AGAIN) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{quote(path)} holds no settings", hint=AGAIN)
    return value


def settings(path: Path) -> dict[str, Any]:
    """Return the object in a file of settings; nothing where it is damaged or not there."""
    try:
        return read_object(path, LARGEST)
    except CheckpointError:
        return {}
