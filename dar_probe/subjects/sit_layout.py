"""Sizes of a model in the layout of SiT, DiT and REPA, from names and shapes alone."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from dar_probe.checkpoints.header import Header, Shapes
from dar_probe.checkpoints.sniff import quote
from dar_probe.errors import CheckpointError, UsageError

Family = Literal["sit", "dit", "repa", "dar-probe"]

# (width, depth) -> heads of S, B, L and XL in DiT, SiT and REPA.
HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1152, 28): 16}
FREQUENCIES = 256  # width of the sinusoid of the time
PROJECTOR_WIDTH = 2048  # hidden width of REPA's projectors


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a file in this layout is.

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


def read_sizes(header: Header, heads: int | None = None) -> Sizes:
    """Tell family and sizes; every parameter has been compared with what they imply.

    ``heads`` is the user's own word, for files that do not tell. The parameters of a routing
    scheme (``stream.``) are left to whoever builds the model.

    Raises:
        CheckpointError: the layout is unknown or contradicts itself, or the heads are unknown.
        UsageError: ``heads`` does not fit the file.
    """
    own = header.args.get("format") == "dar-probe"
    if own:
        plain = {k: shape for k, shape in header.shapes.items() if not k.startswith("stream.")}
        header = replace(header, shapes=plain)
    sizes = _sizes(header)
    header.compare(_expected(header.shapes, sizes))
    if header.weights == "flat":
        header.assumptions.append("the file does not say whether its weights are averaged (EMA)")
    return Sizes(
        family="dar-probe" if own else _family(header, sizes),
        heads=_heads(header, sizes, heads),
        **_classes(header, sizes.pop("rows")),
        routing=_routing(header) if own else {},
        assumptions=header.assumptions,
        **sizes,
    )


def _sizes(header: Header) -> dict[str, Any]:
    """Read every size from one shape each; ``Header.compare`` holds the rest to them."""
    width, in_channels, patch, _ = header.shape("x_embedder.proj.weight", 4)
    _, tokens, _ = header.shape("pos_embed", 3)
    rows, _ = header.shape("y_embedder.embedding_table.weight", 2)
    hidden, _ = header.shape("blocks.0.mlp.fc1.weight", 2)
    (outputs,) = header.shape("final_layer.linear.bias", 1)
    side = math.isqrt(tokens)
    if side * side != tokens:
        why = f"{header.shown} has no square grid of tokens: 'pos_embed' has {tokens} of them"
        raise CheckpointError(why, hint="only models of square images are supported yet")
    channels, rest = divmod(outputs, patch * patch)
    if rest or channels not in (in_channels, 2 * in_channels):
        raise header.misshapen("final_layer.linear.bias")
    blocks = {
        int(m[1]) for m in map(re.compile(r"blocks\.([0-9]{1,4})\.").match, header.shapes) if m
    }
    projectors: list[int] = []
    while (last := f"projectors.{len(projectors)}.4.bias") in header.shapes:
        projectors += header.shape(last, 1)
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
        "qk_norm": "blocks.0.attn.q_norm.weight" in header.shapes,
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


def _family(header: Header, sizes: dict[str, Any]) -> Family:
    path, prediction = header.args.get("path_type"), header.args.get("prediction")
    if path not in (None, "Linear", "linear") or prediction not in (None, "velocity", "v"):
        header.assumptions.append(
            f"the settings name path_type {quote(path, 40)} and prediction {quote(prediction, 40)}:"
            " read as a linear path and velocity all the same; --objective overrides"
        )
    if sizes["projectors"]:
        header.assumptions.append(
            "projectors are there: read as REPA, time runs t = s; --objective overrides"
        )
        return "repa"
    if path is None and prediction is None:
        if str(header.args.get("model")).startswith("DiT"):
            return "dit"
        header.assumptions.append(
            "a plain SiT/DiT layout: read as SiT, time runs t = 1 - s; --objective overrides"
        )
    return "sit"


def _heads(header: Header, sizes: dict[str, Any], asked: int | None) -> int:
    """Return the heads: from qk-norm, the user, the settings, or the table of presets."""
    width, depth = sizes["width"], sizes["depth"]
    if asked is not None and (asked < 1 or width % asked):
        why = f"--heads {asked} does not divide the width {width} of {header.shown}"
        raise UsageError(why, hint="one head is width / heads wide, 64 or 72 in the presets")
    if sizes["qk_norm"]:
        (size,) = header.shape("blocks.0.attn.q_norm.weight", 1)
        if width % size:
            raise header.misshapen("blocks.0.attn.q_norm.weight")
        if asked not in (None, width // size):
            why = f"--heads {asked} contradicts {header.shown}: it has {width // size}"
            raise UsageError(why, hint="leave --heads out")
        return int(width // size)
    told = header.args.get("heads", header.args.get("num_heads"))
    if asked is not None:
        if _is_count(told) and told != asked:
            why = f"--heads {asked} contradicts {header.shown}: it was trained with {told}"
            raise UsageError(why, hint="leave --heads out")
        return asked
    if told is not None:
        if not _is_count(told) or width % told:
            why = (
                f"{header.shown} names {quote(told, 40)} heads, which do not fit its width {width}"
            )
            raise CheckpointError(why, hint="give the right number with --heads")
        return int(told)
    if (width, depth) not in HEADS:
        why = f"and no preset has width {width} and depth {depth}"
        raise CheckpointError(
            f"{header.shown} does not tell its heads, {why}", hint="give the number with --heads"
        )
    header.assumptions.append(f"heads from the preset table for width {width}, depth {depth}")
    return HEADS[width, depth]


def _classes(header: Header, rows: int) -> dict[str, Any]:
    """Return the number of classes, and whether one more row stands for dropped labels."""
    told: Any = header.args.get("num_classes")
    shares = [header.args.get(name) for name in ("class_dropout_prob", "cfg_prob")]  # SiT, REPA
    share = next((value for value in shares if isinstance(value, int | float)), None)
    if not _is_count(told) and share is None:
        header.assumptions.append(
            f"the last of {rows} rows in the label table is taken for the dropped labels"
        )
    classes: int = told if _is_count(told) else rows - (share != 0)
    if classes < 1 or rows - classes not in (0, 1):
        raise header.contradiction(f"{classes} classes, and a label table of {rows} rows")
    return {"num_classes": classes, "class_dropout": rows > classes}


def _routing(header: Header) -> dict[str, Any]:
    names: tuple[str, ...] = ("routing", "query", "chunk_size")
    routing = {name: header.args[name] for name in names if name in header.args}
    for name, value in routing.items():
        if not (_is_count(value) if name == "chunk_size" else isinstance(value, str)):
            raise header.contradiction(f"its {name} is {quote(value, 40)}")
    if "routing" not in routing:
        raise header.contradiction("it says that it is from dar-probe, but names no routing")
    return routing


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
