"""Which family a checkpoint is of, and the sizes of its model, from names and shapes alone."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from dar_probe.checkpoints.reader import Checkpoint
from dar_probe.checkpoints.sniff import quote
from dar_probe.errors import CheckpointError, UsageError

Family = Literal["sit", "dit", "repa", "dar-probe"]
Shapes = dict[str, tuple[int, ...]]

# (width, depth) -> heads of S, B, L and XL in DiT, SiT and REPA.
HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1152, 28): 16}
FREQUENCIES = 256  # width of the sinusoid of the time
PROJECTOR_WIDTH = 2048  # hidden width of REPA's projectors

# What only one other layout has in its names, and what it is called.
OTHERS = {
    "transformer_blocks.": "a diffusers layout",
    "double_blocks.": "a Flux layout",
    "en_inblocks.": "an MDT layout",
    "in_blocks.": "a U-ViT layout",
    "encoder_level_1.": "a U-DiT layout",
    "input_blocks.": "a U-Net layout",
    "mlp.w12.": "a LightningDiT layout",
    "feat_rope.": "a LightningDiT layout",
    "norm1.weight": "a LightningDiT or ViT layout",
    "stream.": "a routed dar-probe model without its settings",
}


@dataclass(frozen=True, kw_only=True)
class Identified:
    """What a checkpoint is.

    Attributes:
        family: "sit" for the layout that SiT and DiT share, "dit" where the settings say so,
            "repa" with projectors, "dar-probe" for files of our own trainer.
        depth, width, heads, patch: blocks, features, attention heads, side of a patch.
        in_channels, input_size: channels and side of the square input.
        num_classes: classes without the extra row for dropped labels.
        class_dropout: the label table has that extra row.
        mlp_ratio: hidden width of the MLP over the width.
        learn_sigma, qk_norm: the head has 2C channels; queries and keys are normalised.
        projectors: output widths of REPA's projectors.
        routing: routing, query and chunk_size of a file of our own, else {}.
        assumptions: one sentence for each thing that the file could not tell.
    """

    family: Family
    depth: int
    width: int
    heads: int
    patch: int
    in_channels: int
    input_size: int
    num_classes: int
    class_dropout: bool
    mlp_ratio: float
    learn_sigma: bool
    qk_norm: bool
    projectors: list[int]
    routing: dict[str, Any]
    assumptions: list[str]


def identify(checkpoint: Checkpoint, *, heads: int | None = None) -> Identified:
    """Tell family and sizes; every parameter has been compared with what they imply.

    ``heads`` is the user's own word, for files that do not tell. The parameters of a routing
    scheme (``stream.``) are left to whoever builds the model.

    Raises:
        CheckpointError: the layout is unknown or contradicts itself, or the heads are unknown.
        UsageError: ``heads`` does not fit the file.
    """
    shapes = {key: tuple(value.shape) for key, value in checkpoint.state.items()}
    file = _File(quote(checkpoint.path.name), shapes, checkpoint.args, [])
    own = file.args.get("format") == "dar-probe"
    if own:
        file.shapes = {k: shape for k, shape in shapes.items() if not k.startswith("stream.")}
    sizes = _sizes(file)
    _compare(file, _expected(file.shapes, sizes))
    if checkpoint.weights == "flat":
        file.assumptions.append("the file does not say whether its weights are averaged (EMA)")
    return Identified(
        family="dar-probe" if own else _family(file, sizes),
        heads=_heads(file, sizes, heads),
        **_classes(file, sizes.pop("rows")),
        routing=_routing(file) if own else {},
        assumptions=file.assumptions,
        **sizes,
    )


@dataclass
class _File:
    shown: str
    shapes: Shapes
    args: dict[str, Any]
    assumptions: list[str]

    def shape(self, key: str, dims: int) -> tuple[int, ...]:
        if key not in self.shapes:
            raise self.unknown(key, "missing")
        if len(self.shapes[key]) != dims or 0 in self.shapes[key]:
            raise self.misshapen(key)
        return self.shapes[key]

    def unknown(self, culprit: str, what: str) -> CheckpointError:
        """Name the layout that the names resemble, or else the first culprit."""
        for mark, layout in OTHERS.items():
            for key in self.shapes:
                if f".{mark}" in f".{key}":
                    return CheckpointError(
                        f"{self.shown} looks like {layout}, not supported yet: it has {quote(key)}",
                        hint="dar-probe audit measures a model of any layout in Python",
                    )
        return CheckpointError(
            f"{self.shown} is no known layout: {quote(culprit)} is {what}",
            hint="SiT, DiT and REPA in their official layout are read, and dar-probe's own files",
        )

    def contradiction(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.shown} contradicts itself: {why}",
            hint="it was edited, or put together from two models",
        )

    def misshapen(self, key: str, fit: tuple[int, ...] | None = None) -> CheckpointError:
        why = f"where {fit} fits the rest" if fit else "which fits no known model"
        return self.contradiction(f"{quote(key)} has shape {self.shapes[key]}, {why}")


def _sizes(file: _File) -> dict[str, Any]:
    """Read every size from one shape each; ``_compare`` holds the rest of the file to them."""
    width, in_channels, patch, _ = file.shape("x_embedder.proj.weight", 4)
    _, tokens, _ = file.shape("pos_embed", 3)
    rows, _ = file.shape("y_embedder.embedding_table.weight", 2)
    hidden, _ = file.shape("blocks.0.mlp.fc1.weight", 2)
    (outputs,) = file.shape("final_layer.linear.bias", 1)
    side = math.isqrt(tokens)
    if side * side != tokens:
        why = f"{file.shown} has no square grid of tokens: 'pos_embed' has {tokens} of them"
        raise CheckpointError(why, hint="only models of square images are supported yet")
    channels, rest = divmod(outputs, patch * patch)
    if rest or channels not in (in_channels, 2 * in_channels):
        raise file.misshapen("final_layer.linear.bias")
    blocks = {int(m[1]) for m in map(re.compile(r"blocks\.([0-9]{1,4})\.").match, file.shapes) if m}
    projectors: list[int] = []
    while (last := f"projectors.{len(projectors)}.4.bias") in file.shapes:
        projectors += file.shape(last, 1)
    ratio = hidden / width
    return {
        "depth": max(blocks) + 1,
        "width": width,
        "patch": patch,
        "in_channels": in_channels,
        "input_size": patch * side,
        "rows": rows,
        # The model takes int(width * ratio), which must come back as the same number.
        "mlp_ratio": ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf),
        "learn_sigma": channels == 2 * in_channels,
        "qk_norm": "blocks.0.attn.q_norm.weight" in file.shapes,
        "projectors": projectors,
    }


def _expected(shapes: Shapes, sizes: dict[str, Any]) -> Shapes:
    """Return name and shape of every parameter of the model with these sizes."""
    d, p, c = sizes["width"], sizes["patch"], sizes["in_channels"]
    hidden = int(d * sizes["mlp_ratio"])
    outputs = p * p * c * (2 if sizes["learn_sigma"] else 1)
    expected: Shapes = {
        "pos_embed": (1, (sizes["input_size"] // p) ** 2, d),
        "x_embedder.proj.weight": (d, c, p, p),
        "x_embedder.proj.bias": (d,),
        "y_embedder.embedding_table.weight": (sizes["rows"], d),
    }

    def linear(name: str, out: int, into: int) -> None:
        expected[f"{name}.weight"] = (out, into)
        expected[f"{name}.bias"] = (out,)

    linear("t_embedder.mlp.0", d, FREQUENCIES)
    linear("t_embedder.mlp.2", d, d)
    for block in (f"blocks.{k}" for k in range(sizes["depth"])):
        linear(f"{block}.attn.qkv", 3 * d, d)
        linear(f"{block}.attn.proj", d, d)
        linear(f"{block}.mlp.fc1", hidden, d)
        linear(f"{block}.mlp.fc2", d, hidden)
        linear(f"{block}.adaLN_modulation.1", 6 * d, d)
        if sizes["qk_norm"]:
            head = shapes["blocks.0.attn.q_norm.weight"][:1]
            for norm in ("q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias"):
                expected[f"{block}.attn.{norm}"] = head
    linear("final_layer.linear", outputs, d)
    linear("final_layer.adaLN_modulation.1", 2 * d, d)
    for k, out in enumerate(sizes["projectors"]):
        linear(f"projectors.{k}.0", PROJECTOR_WIDTH, d)
        linear(f"projectors.{k}.2", PROJECTOR_WIDTH, PROJECTOR_WIDTH)
        linear(f"projectors.{k}.4", out, PROJECTOR_WIDTH)
    return expected


def _compare(file: _File, expected: Shapes) -> None:
    for key in expected:
        if key not in file.shapes:
            raise file.unknown(key, "missing")
    for key, shape in file.shapes.items():
        if key not in expected:
            raise file.unknown(key, "unexpected")
        if shape != expected[key]:
            raise file.misshapen(key, expected[key])


def _family(file: _File, sizes: dict[str, Any]) -> Family:
    path, prediction = file.args.get("path_type"), file.args.get("prediction")
    if path not in (None, "Linear", "linear") or prediction not in (None, "velocity", "v"):
        file.assumptions.append(
            f"the settings name path_type {quote(path, 40)} and prediction {quote(prediction, 40)}:"
            " read as a linear path and velocity all the same; --objective overrides"
        )
    if sizes["projectors"]:
        file.assumptions.append(
            "projectors are there: read as REPA, time runs t = s; --objective overrides"
        )
        return "repa"
    if path is None and prediction is None:
        if str(file.args.get("model")).startswith("DiT"):
            return "dit"
        file.assumptions.append(
            "a plain SiT/DiT layout: read as SiT, time runs t = 1 - s; --objective overrides"
        )
    return "sit"


def _heads(file: _File, sizes: dict[str, Any], asked: int | None) -> int:
    """Return the heads: from qk-norm, the user, the settings, or the table of presets."""
    width, depth = sizes["width"], sizes["depth"]
    if asked is not None and (asked < 1 or width % asked):
        why = f"--heads {asked} does not divide the width {width} of {file.shown}"
        raise UsageError(why, hint="one head is width / heads wide, 64 or 72 in the presets")
    if sizes["qk_norm"]:
        (size,) = file.shape("blocks.0.attn.q_norm.weight", 1)
        if width % size:
            raise file.misshapen("blocks.0.attn.q_norm.weight")
        if asked not in (None, width // size):
            why = f"--heads {asked} contradicts {file.shown}: it has {width // size}"
            raise UsageError(why, hint="leave --heads out")
        return int(width // size)
    told = file.args.get("heads", file.args.get("num_heads"))
    if asked is not None:
        if _is_count(told) and told != asked:
            why = f"--heads {asked} contradicts {file.shown}: it was trained with {told}"
            raise UsageError(why, hint="leave --heads out")
        return asked
    if told is not None:
        if not _is_count(told) or width % told:
            why = f"{file.shown} names {quote(told, 40)} heads, which do not fit its width {width}"
            raise CheckpointError(why, hint="give the right number with --heads")
        return int(told)
    if (width, depth) not in HEADS:
        why = f"and no preset has width {width} and depth {depth}"
        raise CheckpointError(
            f"{file.shown} does not tell its heads, {why}", hint="give the number with --heads"
        )
    file.assumptions.append(f"heads from the preset table for width {width}, depth {depth}")
    return HEADS[width, depth]


def _classes(file: _File, rows: int) -> dict[str, Any]:
    """Return the number of classes, and whether one more row stands for dropped labels."""
    told: Any = file.args.get("num_classes")
    shares = [file.args.get(name) for name in ("class_dropout_prob", "cfg_prob")]  # SiT, REPA
    share = next((value for value in shares if isinstance(value, int | float)), None)
    if not _is_count(told) and share is None:
        file.assumptions.append(
            f"the last of {rows} rows in the label table is taken for the dropped labels"
        )
    classes: int = told if _is_count(told) else rows - (share != 0)
    if classes < 1 or rows - classes not in (0, 1):
        raise file.contradiction(f"{classes} classes, and a label table of {rows} rows")
    return {"num_classes": classes, "class_dropout": rows > classes}


def _routing(file: _File) -> dict[str, Any]:
    names: tuple[str, ...] = ("routing", "query", "chunk_size")
    routing = {name: file.args[name] for name in names if name in file.args}
    for name, value in routing.items():
        if not (_is_count(value) if name == "chunk_size" else isinstance(value, str)):
            raise file.contradiction(f"its {name} is {quote(value, 40)}")
    if "routing" not in routing:
        raise file.contradiction("it says that it is from dar-probe, but names no routing")
    return routing


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
