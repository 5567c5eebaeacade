"""The latents of one sample: axes, sizes and the grid of tokens that they become."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from dar_probe.errors import CheckpointError, UsageError

MAX_SIDE = 32  # tokens: 512 pixels for most models
IMAGE, VIDEO, LENGTH = (1, 16, 16), (3, 8, 8), 64  # tokens, where the settings name no size

# C channels, F frames, H rows, W columns, T tokens of a grid, L steps in time. Where a class is
# not listed: TC where it takes the tokens' positions, CFHW where its name says 3D, else CHW.
AXES = {
    "AceStepTransformer1DModel": "LC",
    "AnyFlowTransformer3DModel": "FCHW",
    "CogVideoXTransformer3DModel": "FCHW",
    "ConsisIDTransformer3DModel": "FCHW",
    "HiDreamImageTransformer2DModel": "CHW",
    "Ideogram4Transformer2DModel": "TC",
    "Kandinsky5Transformer3DModel": "FHWC",
    "Kandinsky6Transformer3DModel": "FHWC",
    "Krea2Transformer2DModel": "TC",
    "LongCatAudioDiTTransformer": "LC",
    "MiniMaxMusic3Transformer1DModel": "CL",
    "PriorTransformer": "C",
    "SanaWMLTX2RefinerTransformer3DModel": "CFHW",
    "StableAudio3DiTModel": "CL",
    "StableAudioDiTModel": "CL",
}
_IN = ("in_channels", "in_visual_dim", "latent_dim", "io_channels", "embedding_dim")
_OUT = ("out_channels", "out_visual_dim")


@dataclass(frozen=True, kw_only=True)
class Latents:
    """How a model takes one sample.

    Attributes:
        axes: one letter for each axis of a sample, as in ``AXES``.
        shape: the sizes along them.
        grid: tokens along frames, rows and columns.
        extra: channels that the model takes beside the latents' own, as a condition.
        reduced: the sample size in the settings where ``shape`` is smaller, else None.
    """

    axes: str
    shape: tuple[int, ...]
    grid: tuple[int, int, int]
    extra: int
    reduced: int | None

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in a batch."""
        return 1 + self.axes.index("C")

    @property
    def tokens(self) -> int:
        """Number of tokens of one sample, text not counted."""
        return math.prod(self.grid)


def describe(
    class_name: str,
    config: dict[str, Any],
    parameters: Collection[str],
    shape: Sequence[int] | None = None,
) -> Latents:
    """Return how a model takes its samples.

    Args:
        class_name: name of the transformer's class.
        config: its settings.
        parameters: names in its forward's signature.
        shape: of one sample, where somebody chose it.

    Raises:
        CheckpointError: the settings name no number of channels.
        UsageError: ``shape`` does not fit.
    """
    packed = {"img_ids", "img_shapes"} & set(parameters) or "num_frames" in parameters
    plain = "CFHW" if "3D" in class_name else "CHW"
    axes = AXES.get(class_name, "TC" if packed else plain)
    patch = _patch(config, axes)
    channels, extra = _channels(class_name, config, axes)
    if shape is not None:
        return _given(tuple(shape), axes, channels, extra, patch)
    grid, reduced = _grid(config, axes, patch, video="3D" in class_name)
    sizes = dict(zip("FHW", (g * p for g, p in zip(grid, patch, strict=True)), strict=True))
    sizes |= {"C": channels, "T": math.prod(grid), "L": grid[2]}
    return Latents(
        axes=axes, shape=tuple(sizes[a] for a in axes), grid=grid, extra=extra, reduced=reduced
    )


def first(config: dict[str, Any], keys: Sequence[str]) -> int | None:
    """Return the first of the settings ``keys`` that is a number."""
    found = (config.get(key) for key in keys)
    return next((v for v in found if isinstance(v, int) and not isinstance(v, bool)), None)


def _patch(config: dict[str, Any], axes: str) -> tuple[int, int, int]:
    """Return the patch along frames, rows and columns; packed tokens are patches already."""
    if "H" not in axes:
        return 1, 1, 1
    size = config.get("patch_size")
    if size is None and config.get("all_patch_size"):
        size = config["all_patch_size"][0]
    time = config.get("patch_size_t") or 1
    if isinstance(size, list | tuple):
        found = tuple(int(side) for side in size)
        return (time, *found) if len(found) == 2 else found  # type: ignore[return-value]
    return time, size or 2, size or 2


def _channels(class_name: str, config: dict[str, Any], axes: str) -> tuple[int, int]:
    """Return the latents' own channels, and how many more the model takes."""
    taken = first(config, _IN)
    if not taken:
        raise CheckpointError(
            f"the settings of this {class_name} do not say how many channels it takes",
            hint="dar-probe audit measures it in Python, with inputs of your own",
        )
    given = first(config, _OUT) or taken
    if axes == "TC":
        given *= (first(config, ("patch_size",)) or 1) ** 2
    own = min(taken, given)  # a learned variance makes given the larger one
    if config.get("visual_cond"):  # Kandinsky: the latents, those of a condition, and a mask
        return own, own + 1
    return own, taken - own


def _grid(
    config: dict[str, Any], axes: str, patch: tuple[int, int, int], *, video: bool
) -> tuple[tuple[int, int, int], int | None]:
    """Return the tokens along each axis, and the sample size if it had to be reduced."""
    if axes == "C":
        return (1, 1, 1), None
    if "L" in axes:
        return (1, 1, LENGTH), None
    frames, rows, columns = VIDEO if video else IMAGE
    frames = first(config, ("video_length",)) or frames
    size = config.get("sample_size")
    sides = size if isinstance(size, list | tuple) else (size, size)
    if axes == "TC" or not all(isinstance(side, int) and side > 0 for side in sides):
        return (frames, rows, columns), None
    limit = rows if video else MAX_SIDE
    wanted = [max(1, side // p) for side, p in zip(sides, patch[1:], strict=True)]
    reduced = max(sides) if max(wanted) > limit else None
    return (frames, min(wanted[0], limit), min(wanted[1], limit)), reduced


def _given(
    shape: tuple[int, ...], axes: str, channels: int, extra: int, patch: tuple[int, int, int]
) -> Latents:
    """Return the latents of a shape that somebody chose."""
    wanted = ", ".join(str(channels) if axis == "C" else axis for axis in axes)
    sizes = dict(zip(axes, shape, strict=False))
    fits = len(shape) == len(axes) and sizes["C"] == channels and min(shape) > 0
    steps = dict(zip("FHW", patch, strict=True))
    if not fits or any(sizes[axis] % steps[axis] for axis in axes if axis in steps):
        raise UsageError(
            f"samples of shape {shape} do not fit, the model takes ({wanted})",
            hint=f"rows and columns are multiples of {patch[1]} and {patch[2]}",
        )
    if "T" in axes:
        rows = next(r for r in range(math.isqrt(sizes["T"]), 0, -1) if sizes["T"] % r == 0)
        grid = (1, rows, sizes["T"] // rows)
    elif "L" in axes:
        grid = (1, 1, sizes["L"])
    else:
        frames, height, width = (sizes.get(a, steps[a]) // steps[a] for a in "FHW")
        grid = (frames, height, width)
    return Latents(axes=axes, shape=shape, grid=grid, extra=extra, reduced=None)
