"""Open-Sora's checkpoints: STDiT3 of versions 1.2 and 1.3, from names and shapes to sites."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from dar_probe.checkpoints.header import Header
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.files.text import quote
from dar_probe.models import conventions
from dar_probe.models.stdit3 import IMAGE_RATE, PIXELS, VIDEO_RATE, Block, STDiT3, STDiT3Config
from dar_probe.models.windows import Sizes
from dar_probe.runtime.version import PAGES
from dar_probe.sites.family import Family, Identified
from dar_probe.sites.stack import Stack
from dar_probe.sites.subject import Subject

# (width, depth) -> heads of XL and 3B.
HEADS = {(1152, 28): 16, (1872, 28): 26}
FRAMES, SIDE = 15, 32  # latents of 51 frames of 256 x 256 pixels, the shortest videos of training
BASE_SIDE = 512  # pixels
WINDOW = (8, 8, -1)  # rows, columns and frames, as version 1.3 names them; -1 for all
NORM, TURNS = "spatial_blocks.0.attn.q_norm.weight", "rope.freqs"
# They read frames that are given, of which a video has none whose frames are all noised.
GIVEN = re.compile(r"x_embedder_cond(_mask)?\.proj\.(weight|bias)")


def identify(header: Header, heads: int | None) -> Identified:
    """Read what shapes tell, and take the rest from the settings or the release.

    Raises:
        CheckpointError: the file contradicts itself, or does not tell its heads.
        UsageError: ``heads`` does not fit the file.
    """
    width, channels, *patch = header.shape("x_embedder.proj.weight", 5)
    if width % 4 or patch[1] != patch[2]:
        raise header.misshapen("x_embedder.proj.weight")
    spatial, temporal = (conventions.depth(header, f"{k}_blocks") for k in ("spatial", "temporal"))
    if spatial != temporal:
        raise header.contradiction(f"{spatial} spatial blocks, and {temporal} temporal ones")
    known = _heads(header, heads, width, spatial)
    axial, (frequencies,) = _axial(header, width // known), header.shape(TURNS, 1)
    outputs = patch[0] * patch[1] * patch[2] * channels
    sizes: dict[str, Any] = {
        "depth": spatial,
        "width": width,
        "heads": known,
        "hidden": header.shape("spatial_blocks.0.mlp.fc1.weight", 2)[0],
        "channels": channels,
        "patch": tuple(patch),
        "learn_sigma": conventions.learned_sigma(header, "final_layer.linear.bias", outputs),
        "caption": header.shape("y_embedder.y_embedding", 2),
        "frequencies": frequencies,
        "qk_norm": NORM in header.shapes,
        "window": _window(header) if axial else (0, 1, 1),
        "axial": axial,
        "spatial_turns": axial and _told(header, "use_spatial_rope", True, _is_bool),
        "base_side": _told(header, "input_sq_size", BASE_SIDE, conventions.is_count),
    }
    given = tuple(key for key in header.shapes if GIVEN.fullmatch(key))
    if given:
        header.assumptions.append("x_embedder_cond and its mask, which read given frames, are idle")
    header.assumptions += [
        f"{VIDEO_RATE} frames a second ({IMAGE_RATE} for a single one, as in training) and {PIXELS}"
        f" x {PIXELS} pixels a latent, which the model is told; all frames are noised alike",
        "read as Open-Sora 1.2 and 1.3: a flow whose time runs t = 1000 s, and whose velocity is "
        "data - noise; --objective overrides",
    ]
    side = SIDE // patch[1] * patch[1]
    return Identified(
        family="opensora",
        sizes=sizes,
        shape=(channels, FRAMES // patch[0] * patch[0], side, side),
        num_classes=0,
        objective="open-sora",
        assumptions=header.assumptions,
        any_sizes=tuple(patch),
        unused=given,
    )


def _heads(header: Header, asked: int | None, width: int, depth: int) -> int:
    """Return the heads: the norm of queries tells them, and else rotations of whole heads."""
    shaped = None
    if NORM in header.shapes:
        shaped = conventions.heads_of_size(header, NORM, width)
    elif not any(map(GIVEN.fullmatch, header.shapes)):
        (frequencies,) = header.shape(TURNS, 1)
        shaped = conventions.check_heads(header, TURNS, width // (2 * frequencies) or width, width)
    return conventions.heads(header, asked, width=width, depth=depth, shaped=shaped, presets=HEADS)


def _axial(header: Header, size: int) -> bool:
    """Tell whether a third of each head is rotated by each axis, not the whole by time."""
    (frequencies,) = header.shape(TURNS, 1)
    if size not in (2 * frequencies, 6 * frequencies):
        raise header.misshapen(TURNS)
    axial = size == 6 * frequencies
    if not axial and header.told("kernel_size") is not None:
        raise header.contradiction(f"a kernel_size, and {TURNS!r} of whole heads")
    return axial


def _window(header: Header) -> Sizes:
    """Return the frames, rows and columns that see each other in temporal blocks."""
    told = _told(header, "kernel_size", list(WINDOW), _is_window)
    rows, columns, frames = (max(size, 0) for size in told)
    return frames, rows, columns


def _is_window(value: Any) -> bool:
    sizes = isinstance(value, list) and len(value) == 3
    return sizes and all(size == -1 or conventions.is_count(size) for size in value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _told(header: Header, name: str, usual: Any, fits: Callable[[Any], bool]) -> Any:
    """Return a setting that no shape tells, or what it usually is, which is said.

    Raises:
        CheckpointError: the setting makes no sense.
    """
    told = header.told(name)
    if told is None:
        header.assumptions.append(f"{name} is {usual}, as in the release")
        return usual
    if not fits(told):
        raise CheckpointError(
            f"{header.shown} has the {name} {quote(told, 40)}, which makes no sense",
            hint=f"it is {usual} in the release",
        )
    return told


def build(identified: Identified) -> STDiT3:
    """Return the model, its weights not yet filled."""
    return STDiT3(STDiT3Config(**identified.sizes))


def subject(model: nn.Module, identified: Identified) -> Subject:
    """Name the sites: spatial and temporal blocks in turn, of three sublayers each."""
    assert isinstance(model, STDiT3)
    pairs = zip(model.spatial_blocks, model.temporal_blocks, strict=True)
    sites = Stack()
    for k, block in enumerate((block for pair in pairs for block in pair), 1):
        assert isinstance(block, Block)
        text = block.cross_attn  # reads the stream as it is
        sites.sublayer(k, "attention", block.norm1, block.attn, block.modulation, (2, 6))
        sites.sublayer(k, "cross_attention", text, text, normed=False)
        sites.sublayer(k, "mlp", block.norm2, block.mlp, block.modulation, (5, 6))
    _, *sizes = identified.shape
    tokens = math.prod(size // of for size, of in zip(sizes, model.patch, strict=True))
    return sites.subject(model, identified, head=model.final_layer.norm_final, tokens=tokens)


def captions(given: Mapping[str, Tensor], identified: Identified) -> dict[str, Tensor]:
    """Return what the model reads of a user's arrays, with a row for each sample.

    Args:
        given: ``y`` (rows, L, E) or (rows, 1, L, E), the embedded text, and maybe ``mask``
            (rows, L), not 0 where a token is text; one row may stand for all samples.
        identified: whose sizes name E.

    Raises:
        UsageError: there are others, or they do not fit.
    """
    hint = f"{PAGES}/reference/compatibility.html says what --text takes"
    if "y" not in given or not set(given) <= {"y", "mask"}:
        names = ", ".join(map(quote, given))
        raise UsageError(f"the text of {identified.family} is y and mask, not {names}", hint=hint)
    y, mask = given["y"], given.get("mask")
    y = y.squeeze(1) if y.ndim == 4 else y
    features = identified.sizes["caption"][1]
    if y.ndim != 3 or not y.is_floating_point() or y.shape[2] != features:
        raise UsageError(
            f"y has shape {tuple(given['y'].shape)}, where (rows, tokens, {features}) fits",
            hint=hint,
        )
    if mask is None:
        return {"caption": y}
    if mask.shape != y.shape[:2] or not bool((mask != 0).any(1).all()):
        raise UsageError(
            f"mask has shape {tuple(mask.shape)}, or a row without text, where "
            f"{tuple(y.shape[:2])} fits",
            hint=hint,
        )
    return {"caption": y, "mask": mask != 0}


FAMILY = Family(
    name="opensora",
    title="Open-Sora",
    marks=(r"spatial_blocks\.0\.", r"temporal_blocks\.0\.", r"fps_embedder\."),
    identify=identify,
    build=build,
    subject=subject,
    captions=captions,
)
