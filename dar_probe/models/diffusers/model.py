"""A folder's transformer, built by diffusers' own class of that name."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from dar_probe.checkpoints.diffusers_folder import Folder
from dar_probe.checkpoints.reader import check_finite
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.files.text import quote
from dar_probe.models.blank import without_weights

_HOME = "diffusers.models.transformers."
_SCHEDULERS = "diffusers.schedulers."


def build(folder: Folder, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the transformer on the CPU, in eval mode, every weight taken from the folder.

    Args:
        folder: what ``folder.read`` said about it.
        dtype: of the weights; some classes keep a few of them in float32.

    Raises:
        UsageError: diffusers is not installed.
        CheckpointError: it has no such transformer, or the weights are not that class's.
        ProbeError: weights are NaN or infinite.
    """
    kind = transformer_class(folder.class_name)
    blank(folder)  # settings that the weights do not fit must not cost the memory they ask for
    with quiet():
        try:
            model, report = kind.from_pretrained(
                os.fspath(folder.path),
                local_files_only=True,
                use_safetensors=True,
                variant=folder.variant,
                torch_dtype=dtype,
                output_loading_info=True,
                disable_mmap=False,
            )
        except Exception as error:  # somebody else's code fails in any way it likes
            raise _misfit(folder, f" that diffusers can build: {quote(error)}") from error
    for what in ("missing", "unexpected", "mismatched"):
        if culprits := sorted(map(str, report[f"{what}_keys"])):
            raise _misfit(folder, f": {quote(culprits[0])} is {what}")
    check_finite(model.state_dict())
    built: nn.Module = model.eval()
    return built


def blank(folder: Folder) -> nn.Module:
    """Return the transformer without memory for its weights, in eval mode.

    Raises:
        UsageError: diffusers is not installed.
        CheckpointError: it has no such transformer, cannot build it from these settings, or the
            weights are not that class's.
    """
    built = empty(folder)
    _compare(folder, built)
    return built


def empty(folder: Folder) -> nn.Module:
    """Return what ``blank`` returns, whatever weights the folder has.

    Raises:
        UsageError: diffusers is not installed.
        CheckpointError: it has no such transformer, or cannot build it from these settings.
    """
    return made(folder, without_weights())


def made(folder: Folder, manner: AbstractContextManager[None]) -> nn.Module:
    """Return the transformer as a folder's settings make it within a context, in eval mode.

    Raises:
        UsageError: diffusers is not installed.
        CheckpointError: it has no such transformer, or cannot build it from these settings.
    """
    kind = transformer_class(folder.class_name)
    with quiet(), manner:
        try:
            built: nn.Module = kind.from_config(folder.config).eval()
        except Exception as error:  # a constructor may raise anything on settings that do not fit
            raise _misfit(folder, f" that diffusers can build: {quote(error)}") from error
    return built


def _compare(folder: Folder, model: nn.Module) -> None:
    """Hold the folder's weights to the names and shapes of the class, as diffusers does."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    ignored = left_over(type(model))
    for name in sorted(expected.keys() | folder.shapes.keys()):
        if name not in folder.shapes:
            what = "missing"
        elif name in expected and folder.shapes[name] != expected[name]:
            what = f"of shape {folder.shapes[name]}, where {expected[name]} fits its settings"
        elif name in expected or any(re.search(pattern, name) for pattern in ignored):
            continue
        else:
            what = "unexpected"
        raise _misfit(folder, f": {quote(name)} is {what}")


def kept_in_float32(kind: type) -> list[str]:
    """Return the modules that diffusers keeps in float32 where the rest is in float16."""
    return list(getattr(kind, "_keep_in_fp32_modules", None) or [])


def left_over(kind: type) -> list[str]:
    """Return the patterns of names that diffusers lets a file hold beside a class's weights."""
    return list(getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or [])


def _misfit(folder: Folder, why: str) -> CheckpointError:
    return CheckpointError(
        f"{folder.shown} is no {folder.class_name}{why}",
        hint="try the diffusers version in its config.json under _diffusers_version",
    )


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the type of most weights: some classes keep a few of them in float32."""
    sizes: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        sizes[parameter.dtype] += parameter.numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


def transformer_class(name: str) -> Any:
    """Return the transformer of that name which diffusers itself exports.

    Raises:
        UsageError: diffusers is not installed.
        CheckpointError: it exports none.
    """
    if not has_transformer(name):
        raise CheckpointError(
            f"{quote(name)} is no transformer of the installed diffusers",
            hint="pip install -U diffusers; classes from elsewhere are never run",
        )
    return _exported(name, _HOME)


def has_transformer(name: str) -> bool:
    """Tell whether diffusers itself exports a transformer of that name.

    Raises:
        UsageError: diffusers is not installed.
    """
    kind = _exported(name, _HOME)
    return kind is not None and issubclass(kind, nn.Module) and hasattr(kind, "from_pretrained")


def scheduler_class(name: str) -> Any:
    """Return the scheduler of that name which diffusers itself exports.

    Raises:
        UsageError: diffusers is not installed.
        CheckpointError: it exports none.
    """
    kind = _exported(name, _SCHEDULERS)
    if kind is None or not hasattr(kind, "set_timesteps"):
        raise CheckpointError(
            f"{quote(name)} is no scheduler of the installed diffusers",
            hint="pip install -U diffusers; classes from elsewhere are never run",
        )
    return kind


def diffusers() -> Any:
    """Return the package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import diffusers as package
    except ImportError:
        raise UsageError(
            "this model needs diffusers, which is not installed",
            hint="pip install 'dar-probe[diffusers]'",
        ) from None
    return package


@contextmanager
def quiet() -> Iterator[None]:
    """Keep diffusers from logging and from warning of itself, and restore what was set."""
    diffusers()
    from diffusers.utils import logging

    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Its solvers make arrays of tensors in a way that numpy 2 is going to refuse.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            # Some of its classes use parts that it has deprecated.
            warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
            # Settings may be zeros, which are refused in our own words.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


def _exported(name: str, home: str) -> Any:
    """Return a class that the package lists and defines itself below ``home``, else None."""
    package = diffusers()
    if name not in dir(package):
        return None
    with quiet():
        kind = getattr(package, name)
    inside = isinstance(kind, type) and f"{kind.__module__}.".startswith(home)
    return kind if inside else None
