"""A transformer of diffusers in one file, in the layout of its authors or of ComfyUI.

The names are converted by diffusers' own functions. Settings come from the config.json beside the
file, or from the shapes; the model that they build must take every weight, and no other.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dar_probe.checkpoints import diffusers_folder, folders
from dar_probe.checkpoints.diffusers_folder import Folder
from dar_probe.checkpoints.header import Header
from dar_probe.checkpoints.peek import Peek
from dar_probe.checkpoints.quantised import EIGHT_BITS
from dar_probe.checkpoints.reader import check_finite
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.files.text import quote
from dar_probe.models.diffusers import model as hub_model

FLUX_AXES = (16, 56, 56)  # of rotary positions, in every released Flux
SD3_HEAD = 64  # channels of a head, in every released SD3
SD3_SAMPLE = 128  # of latents, for images of 1,024 pixels
WAN_HEAD = 128

_ASK = (
    "put the config.json of its transformer folder (on the Hugging Face Hub, in diffusers' layout) "
    "beside the file"
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the files of one class are known, and what their shapes tell.

    Attributes:
        marks: names that are all there.
        counts: setting -> the list of blocks that it counts.
        settings: header to the settings that shapes tell, and what they assume. Raises
            CheckpointError where they tell too little.
    """

    marks: tuple[str, ...]
    counts: dict[str, str]
    settings: Callable[[Header], tuple[dict[str, Any], list[str]]]


def _flux(header: Header) -> tuple[dict[str, Any], list[str]]:
    width, channels = header.shape("img_in.weight", 2)
    (head,) = header.shape("double_blocks.0.img_attn.norm.key_norm.scale", 1)
    if head != sum(FLUX_AXES):
        raise _ask(header, f"heads of {head} channels do not tell their rotary axes")
    out = header.shape("final_layer.linear.weight", 2)[0]
    return {
        "in_channels": channels,
        "out_channels": None if out == channels else out,
        "attention_head_dim": head,
        "num_attention_heads": max(width // head, 1),
        "joint_attention_dim": header.shape("txt_in.weight", 2)[1],
        "pooled_projection_dim": header.shape("vector_in.in_layer.weight", 2)[1],
        "guidance_embeds": "guidance_in.in_layer.weight" in header.shapes,
        "axes_dims_rope": FLUX_AXES,
    }, [f"the rotary axes are {FLUX_AXES}, as in every released Flux"]


def _sd3(header: Header) -> tuple[dict[str, Any], list[str]]:
    width, text = header.shape("context_embedder.weight", 2)
    _, channels, patch, _ = header.shape("x_embedder.proj.weight", 4)
    depth = _count(header, "joint_blocks")
    norm = "joint_blocks.0.x_block.attn.ln_q.weight"
    head, said = SD3_HEAD, []
    if norm in header.shapes:
        (head,) = header.shape(norm, 1)
    elif width != SD3_HEAD * depth:
        raise _ask(header, f"{depth} blocks of width {width} do not tell their heads")
    else:
        said.append(f"its heads have {SD3_HEAD} channels, as in every released SD3")
    most = math.isqrt(header.shape("pos_embed", 3)[1])
    sample = min(SD3_SAMPLE, most * patch)
    said.append(f"its samples are of {sample} x {sample}, as its positions do not tell")
    dual = (
        k for k in range(depth) if f"joint_blocks.{k}.x_block.attn2.qkv.weight" in header.shapes
    )
    return {
        "sample_size": sample,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": header.shape("final_layer.linear.weight", 2)[0] // patch**2,
        "attention_head_dim": head,
        "num_attention_heads": max(width // head, 1),
        "joint_attention_dim": text,
        "caption_projection_dim": width,
        "pooled_projection_dim": header.shape("y_embedder.mlp.0.weight", 2)[1],
        "pos_embed_max_size": most,
        "dual_attention_layers": tuple(dual),
        "qk_norm": "rms_norm" if norm in header.shapes else None,
    }, said


def _wan(header: Header) -> tuple[dict[str, Any], list[str]]:
    width, channels, *patch = header.shape("patch_embedding.weight", 5)
    found: dict[str, Any] = {
        "patch_size": tuple(patch),
        "in_channels": channels,
        "out_channels": header.shape("head.head.weight", 2)[0] // math.prod(patch),
        "attention_head_dim": WAN_HEAD,
        "num_attention_heads": max(width // WAN_HEAD, 1),
        "text_dim": header.shape("text_embedding.0.weight", 2)[1],
        "freq_dim": header.shape("time_embedding.0.weight", 2)[1],
        "ffn_dim": header.shape("blocks.0.ffn.0.weight", 2)[0],
    }
    if "img_emb.proj.1.weight" in header.shapes:
        found["image_dim"] = header.shape("img_emb.proj.1.weight", 2)[1]
        found["added_kv_proj_dim"] = width
    return found, [f"its heads have {WAN_HEAD} channels, as in every released Wan"]


LAYOUTS = {
    "FluxTransformer2DModel": Layout(
        marks=(
            "double_blocks.0.img_attn.norm.key_norm.scale", "img_in.weight",
            "vector_in.in_layer.weight",
        ),
        counts={"num_layers": "double_blocks", "num_single_layers": "single_blocks"},
        settings=_flux,
    ),
    "SD3Transformer2DModel": Layout(
        marks=("joint_blocks.0.context_block.adaLN_modulation.1.bias", "context_embedder.weight"),
        counts={"num_layers": "joint_blocks"},
        settings=_sd3,
    ),
    "WanTransformer3DModel": Layout(
        marks=("head.modulation", "patch_embedding.weight"),
        counts={"num_layers": "blocks"},
        settings=_wan,
    ),
}  # fmt: skip
# In diffusers' own layout the names do not tell the class.
OWN = re.compile(r"(single_|joint_)?transformer_blocks\.0\.")


def class_of(header: Header) -> str | None:
    """Return the class of diffusers whose original layout a file has, None for other files."""
    for name, layout in LAYOUTS.items():
        if all(mark in header.shapes for mark in layout.marks):
            return name
    return None


def matches(header: Header, path: Path) -> bool:
    """Tell whether a file is of a transformer of diffusers, by its names or what lies beside it."""
    if class_of(header) is not None or any(map(OWN.match, header.shapes)):
        return True
    beside = _beside(path, None)
    return beside is not None and beside.class_name in _table()


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
    name = class_of(header)
    beside = _beside(path, name)
    if beside is not None:
        found, said = beside, [f"settings are those of {quote(beside.settings[0].name)} beside it"]
        config = found.config
    elif name is None:
        raise _ask(header, "its names are those of diffusers, which do not tell the class")
    else:
        found = Folder(
            path=path, shown=header.shown, class_name=name, config={}, scheduler=None,
            weights=(), variant=None, bytes=0, settings=(), shapes={}, dtype="", assumptions=(),
        )  # fmt: skip
        config, said = _told(header, name)
    kinds = [str(dtype).removeprefix("torch.") for dtype in header.dtypes.values()]
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
        dtype=max(sorted(set(kinds)), key=kinds.count),
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
            str(error), hint=_ASK if not folder.settings else error.hint
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
        if "_class_name" in folders.settings(home / folders.CONFIG):
            found = diffusers_folder.read_settings(home)
            table = _table()
            # Classes that are converted alike share a layout, such as Wan and SkyReels.
            if name is None or table.get(found.class_name) == table[name]:
                return found
    return None


def _told(header: Header, name: str) -> tuple[dict[str, Any], list[str]]:
    layout = LAYOUTS[name]
    config, said = layout.settings(header)
    counted = {key: _count(header, blocks) for key, blocks in layout.counts.items()}
    version = hub_model.diffusers().__version__
    said = [
        *said,
        f"what the shapes do not tell is as diffusers {version} has it by default for {name}",
    ]
    return {**config, **counted}, said


def _count(header: Header, blocks: str) -> int:
    start = f"{blocks}."
    found = {
        int(part)
        for key in header.shapes
        if key.startswith(start) and (part := key[len(start) :].partition(".")[0]).isdecimal()
        and len(part) < 5
    }  # fmt: skip
    return 1 + max(found, default=-1)


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


def _ask(header: Header, why: str) -> CheckpointError:
    return CheckpointError(f"{header.shown} does not tell all of its settings: {why}", hint=_ASK)
