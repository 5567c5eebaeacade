"""A file of JSON that nobody vouches for."""

import json
from pathlib import Path
from typing import Any

from dar_probe.errors import CheckpointError
from dar_probe.files import kinds
from dar_probe.files.text import quote

AGAIN = "download the folder again"


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
