"""A transformer of diffusers in one file, in the layout of its authors or of ComfyUI.

The names are converted by diffusers' own functions. Settings come from the config.json beside the
file, or from the shapes; the model that they build must take every weight, and no other.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dar_probe.checkpoints import diffusers_folder
from dar_probe.checkpoints.diffusers_folder import Folder
from dar_probe.checkpoints.header import Header
from dar_probe.checkpoints.peek import Peek
from dar_probe.checkpoints.quantised import EIGHT_BITS
from dar_probe.checkpoints.reader import check_finite
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.files import json_file
from dar_probe.files.text import quote
from dar_probe.models.diffusers import layouts
from dar_probe.models.diffusers import model as hub_model

# In diffusers' own layout the names do not tell the class.
OWN = re.compile(r"(single_|joint_)?transformer_blocks\.0\.")


def matches(header: Header, path: Path) -> bool:
    """Tell whether a file is of a transformer of diffusers, by its names or what lies beside it."""
    if layouts.class_of(header) is not None or any(map(OWN.match, header.shapes)):
        return True
    beside = _beside(path, None)
    return beside is not None and beside.class_name in _table()


def file_of(home: Path) -> Path | None:
    """Return the weights of a folder that are read as those of a file, None for other folders.

    They are packed, or in the layout of authors who name a class of their own in config.json.

    Raises:
        UsageError: diffusers is not installed.
        CheckpointError: the folder is refused.
    """
    if diffusers_folder.is_packed(home):
        return diffusers_folder.weights_file(home)
    found = diffusers_folder.read(home)
    if hub_model.has_transformer(found.class_name):
        return None
    header = Header(shown=found.shown, shapes=found.shapes, args={})
    return None if layouts.class_of(header) is None else diffusers_folder.weights_file(home)


def read(header: Peek, path: Path) -> Folder:
    """Return what a file says, as if it were a folder of diffusers.

    Raises:
        UsageError: diffusers is not installed.
        CheckpointError: the shapes do not tell the settings, or the file is not of its class.
    """
    packed = next((k for k, dtype in header.dtypes.items() if not dtype.is_floating_point), None)
    if packed is not None:
        kind = str(header.dtypes[packed]).removeprefix("torch.")
        raise CheckpointError(
            f"{header.shown} holds quantised weights that are not read: {quote(packed)} is {kind}",
            hint="give the file in bfloat16 or float32",
        )
    name = layouts.class_of(header)
    beside, other = _beside(path, name), _beside(path, None)
    if beside is not None:
        found, said = beside, [f"settings are those of {quote(beside.settings[0].name)} beside it"]
        config = found.config
    elif other is not None and name is not None and layouts.LAYOUTS[name].settings is None:
        raise layouts.ask(
            header,
            f"its names are those of {name}, and the config.json beside it is of "
            f"{other.class_name}, of which diffusers converts no single file",
        )
    elif name is None:
        raise layouts.ask(header, "its names are those of diffusers, which do not tell the class")
    else:
        found = Folder(
            path=path, shown=header.shown, class_name=name, config={}, scheduler=None,
            weights=(), variant=None, bytes=0, settings=(), shapes={}, dtype="", assumptions=(),
        )  # fmt: skip
        config, said = layouts.settings(header, name)
        if other is not None:
            said = [*said, f"the config.json beside it is of {other.class_name}, and not used"]
    made = replace(
        found,
        path=path,
        shown=header.shown,
        config={
            "_class_name": found.class_name,
            **{key: value for key, value in config.items() if key != "quantization_config"},
        },
        weights=(path,),
        bytes=header.bytes,
        dtype=header.dtype,
        assumptions=tuple(header.assumptions + said),
    )
    diffusers_folder.check_settings(made.config, len(header.shapes), header.shown)
    named = {key: torch.empty(shape, device="meta") for key, shape in header.shapes.items()}
    shapes = {key: tuple(value.shape) for key, value in _converted(made, named).items()}
    return replace(made, shapes=shapes)


def blank(folder: Folder) -> nn.Module:
    """Return the model without memory for its weights; the file must have its names and shapes.

    Raises:
        CheckpointError: it has others.
    """
    try:
        return hub_model.blank(folder)
    except CheckpointError as error:
        raise CheckpointError(
            str(error), hint=layouts.ASK if not folder.settings else error.hint
        ) from None


def build(folder: Folder, state: dict[str, Tensor], *, dtype: torch.dtype) -> nn.Module:
    """Return the transformer on the CPU, in eval mode, with the weights of a file.

    Args:
        folder: what ``read`` said.
        state: the file's weights, by its own names; emptied, so that no weight lies here twice.
        dtype: of the weights; in float16 some classes keep a few of them in float32.

    Raises:
        UsageError: accelerate is not installed.
        ProbeError: weights are NaN or infinite.
    """
    try:
        from accelerate import init_empty_weights
    except ImportError:
        raise UsageError(
            "this model needs accelerate, which is not installed",
            hint="pip install 'dar-probe[diffusers]'",
        ) from None
    kind = hub_model.transformer_class(folder.class_name)
    check_finite(state)
    with hub_model.quiet(), init_empty_weights(include_buffers=False):
        model: nn.Module = kind.from_config(folder.config)
    kept = hub_model.kept_in_float32(kind) if dtype is torch.float16 else []
    ignored = hub_model.left_over(kind)
    for key, value in state.items():
        if value.dtype in EIGHT_BITS:  # in which torch hardly computes
            state[key] = value.to(dtype)
    made = _converted(folder, state)
    for key in list(made):
        value = made.pop(key)
        if any(re.search(pattern, key) for pattern in ignored):
            continue
        wide = any(part in key.split(".") for part in kept)
        real = value.is_floating_point()
        made[key] = value.to(torch.float32 if wide else dtype) if real else value
    model.load_state_dict(made, assign=True)
    return model.eval()


def _beside(path: Path, name: str | None) -> Folder | None:
    """Return diffusers' settings beside a file, if they are of the class whose layout it has."""
    for home in (path.parent, path.parent / "transformer"):
        if "_class_name" in json_file.settings(home / diffusers_folder.CONFIG):
            found = diffusers_folder.read_settings(home)
            if name is None or name == found.class_name:
                return found
            table = _table()
            # Classes that are converted alike share a layout, such as Wan and SkyReels.
            alike = name in table and table.get(found.class_name) is table[name]
            # Names that tell too little for settings may be of a newer class, as LTX-2's are.
            if alike or (found.class_name in table and layouts.LAYOUTS[name].settings is None):
                return found
    return None


def _table() -> dict[str, Any]:
    """Return the conversion of each class that diffusers reads from single files."""
    hub_model.diffusers()
    try:
        from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES as classes
    except ImportError:
        raise UsageError(
            "the installed diffusers converts no single files", hint="pip install -U diffusers"
        ) from None
    return {name: entry["checkpoint_mapping_fn"] for name, entry in classes.items()}


def _converted(folder: Folder, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names of diffusers, by its own conversion; empties ``state``."""
    if hub_model.empty(folder).state_dict().keys() <= state.keys():
        return state  # they are diffusers' names already
    convert = _table().get(folder.class_name)
    if convert is None:
        raise CheckpointError(
            f"{folder.shown} has names that diffusers does not convert for {folder.class_name}",
            hint="give it in diffusers' layout, as the folder of its transformer",
        )
    try:
        with hub_model.quiet():
            made: dict[str, Tensor] = convert(checkpoint=state, config=folder.config)
    except Exception as error:  # somebody else's code fails in any way it likes
        why = f"{quote(error)} is missing" if isinstance(error, KeyError) else quote(error)
        raise CheckpointError(
            f"{folder.shown} is no {folder.class_name} that diffusers can convert: {why}",
            hint="it is of another model, or was edited",
        ) from error
    if made is not state and state:
        raise CheckpointError(
            f"{folder.shown} is no {folder.class_name}: diffusers does not convert "
            f"{quote(min(state))}",
            hint="it is of another model, or was edited",
        )
    return made
