"""The settings stored beside the weights, as plain data."""

import argparse
from collections.abc import Iterator
from typing import Any

import torch

from dar_probe.checkpoints.state_dict import plain
from dar_probe.errors import CheckpointError

MAX_SETTINGS = 10_000  # values in args, counted as often as they are reached
MAX_SETTING_DEPTH = 16
MAX_TEXT = 10_000  # characters of one text in args


def settings(content: Any, label: str, shown: str) -> dict[str, Any]:
    """Return the args of a checkpoint's content, {} where it has none or is one state dict.

    Raises:
        CheckpointError: they are no settings, or too large.
    """
    content = {} if label == "flat" or not isinstance(content, dict) else plain(content)
    args = content.get("args")
    if args is None and isinstance(content.get("config"), dict):
        args = content["config"]  # as LightningDiT calls them
    if args is None:
        return {}
    if not isinstance(args, argparse.Namespace | dict):
        raise CheckpointError(
            f"{shown} has args of type {type(args).__name__}, not settings",
            hint="save them as a dict of plain values",
        )
    found: dict[str, Any] = _plain(args, iter(range(MAX_SETTINGS)), 0, shown)
    return found


def _plain(value: Any, room: Iterator[int], depth: int, shown: str) -> Any:
    """Return ``value`` as None, bool, int, float, str, list and dict with str keys.

    Anything else becomes its type in angle brackets. ``room`` runs out for settings that refer
    to each other so often that written out they would fill the memory.
    """
    long = isinstance(value, str) and len(value) > MAX_TEXT
    if next(room, None) is None or depth > MAX_SETTING_DEPTH or long:
        raise CheckpointError(
            f"{shown} is refused: its args are too large to be settings",
            hint="save them as a dict of plain values",
        )
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return {
            str(_plain(key, room, depth + 1, shown)): _plain(item, room, depth + 1, shown)
            for key, item in plain(value).items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, room, depth + 1, shown) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value) if isinstance(value, torch.dtype) else f"<{type(value).__name__}>"
