"""Sizes of a model in the layout of SiT, DiT and REPA, from names and shapes alone."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from dar_probe.checkpoints.header import Header
from dar_probe.checkpoints.jax_model import PORT
from dar_probe.diffusion.latent_norm import MEAN
from dar_probe.files.text import quote
from dar_probe.models import conventions
from dar_probe.routing.stream import options_of

Family = Literal["sit", "dit", "repa", "dar-probe"]

# Ports to JAX, known by their names: the objective, and what is assumed with it.
PORTS = {
    "diffuse_nnx": ("repa", "its names are those of diffuse_nnx: time runs t = s"),
    "kvfrans": (
        "jax-flow",
        "its names are those of jax-flow, time runs t = 10000 (1 - s), and as well of "
        "jax-diffusion-transformer, for which --objective jax-dit is right",
    ),
}

# Heads that look at a hidden state in training alone: of iREPA, SRA, and ReDi with REPA's loss.
TRAINING = re.compile(r"(projectors\.\d+\.projection_layer|ap_head\.linear\d|projector\.[024])\.")

# Every other name, so that a part too many is refused before anybody is asked for the heads.
NAMES = re.compile(
    r"pos_embed|y_embedder\.embedding_table\.weight|bn\.(running_(mean|var)|num_batches_tracked)"
    r"|(x_embedder\.proj|t_embedder\.mlp\.[02]|final_layer\.(linear|adaLN_modulation\.1)"
    r"|projectors\.\d+\.[024]|blocks\.\d+\.(attn\.(qkv|proj|q_norm|k_norm)|mlp\.fc[12]"
    r"|adaLN_modulation\.1))\.(weight|bias)"
)

# (width, depth) -> heads of S, B, L and XL in DiT, SiT and REPA.
HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1152, 28): 16}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a file in this layout is.

    Attributes:
        family: "sit" for the layout that SiT and DiT share, "dit" where the settings say so,
            "repa" with projectors, "dar-probe" for files of our own trainer.
        objective: as the settings name it, or the family's own.
        depth, width, heads, patch: blocks, features, attention heads, side of a patch.
        in_channels, input_size: channels and side of the square input.
        num_classes: classes without the extra row for dropped labels.
        class_dropout: the label table has that extra row.
        mlp_ratio: hidden width of the MLP over the width.
        learn_sigma, qk_norm: the head has 2C channels; queries and keys are normalised.
        projectors, projector_width: output widths of REPA's projectors, and their hidden width.
        latent_norm: REPA-E's batch norm of the latents is there.
        unused: names of other heads of training, which the model is built without.
        routing: the routing of a file of our own and its options, else {}.
        assumptions: one sentence for each thing that the file could not tell.
    """

    family: Family
    objective: str
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
    projector_width: int
    latent_norm: bool
    unused: tuple[str, ...]
    routing: dict[str, Any]
    assumptions: list[str]


def read_sizes(header: Header, heads: int | None = None) -> Sizes:
    """Tell family and sizes from one shape each: a model of these sizes must take the file.

    ``heads`` is the user's own word, for files that do not tell.

    Raises:
        CheckpointError: the layout is unknown or contradicts itself, or the heads are unknown.
        UsageError: ``heads`` does not fit the file.
    """
    own = header.args.get("format") == "dar-probe"
    frame = conventions.frame(header)
    width, rows = frame.width, frame.rows
    if width % 4:  # positions are sin and cos of row and column
        raise header.misshapen("x_embedder.proj.weight")
    hidden, _ = header.shape("blocks.0.mlp.fc1.weight", 2)
    depth, norm = conventions.depth(header), "blocks.0.attn.q_norm.weight"
    projectors: list[int] = []
    while (last := f"projectors.{len(projectors)}.4.bias") in header.shapes:
        projectors += header.shape(last, 1)
    between = header.shape("projectors.0.0.bias", 1)[0] if projectors else 2048
    qk_norm, ratio = norm in header.shapes, hidden / width
    if qk_norm:
        header.shape(norm, 1)
    objective = str(header.args.get("objective", "sit")) if own else ""
    family: Family = "dar-probe"
    if not own:
        family, objective = _family(header, frame.learn_sigma)
        for key in header.shapes:
            if not NAMES.fullmatch(key) and not TRAINING.match(key):
                raise header.unexpected(key)
    shaped = conventions.heads_of_size(header, norm, width) if qk_norm else None
    known = conventions.heads(header, heads, width=width, depth=depth, shaped=shaped, presets=HEADS)
    classes = conventions.classes(header, rows)
    return Sizes(
        family=family,
        objective=objective,
        depth=depth,
        width=width,
        heads=known,
        patch=frame.patch,
        in_channels=frame.channels,
        input_size=frame.side,
        num_classes=classes,
        class_dropout=rows > classes,
        # The model takes int(width * ratio), which must come back as the same number.
        mlp_ratio=ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf),
        learn_sigma=frame.learn_sigma,
        qk_norm=qk_norm,
        projectors=projectors,
        projector_width=between,
        latent_norm=MEAN in header.shapes,
        unused=() if own else _unused(header),
        routing=_routing(header) if own else {},
        assumptions=header.assumptions,
    )


def _family(header: Header, learn_sigma: bool) -> tuple[Family, str]:
    """Return the family, and its objective."""
    signs = {
        "projectors are there": any(key.startswith("projectors.") for key in header.shapes),
        "the settings name the prediction 'v'": str(header.told("prediction")).lower() == "v",
        "SRA's ap_head is there": "ap_head.linear1.weight" in header.shapes and not learn_sigma,
    }
    repa = next((sign for sign, found in signs.items() if found), "")
    named = conventions.flow(header, "repa" if repa or MEAN in header.shapes else "sit")
    if MEAN in header.shapes:
        header.assumptions.append(
            "a batch norm of latents is there (bn): read as REPA-E, time runs t = s; its running "
            "mean and variance normalise whatever --data gives; --objective overrides"
        )
        return "repa", named or "repa"
    if (port := str(header.args.get(PORT))) in PORTS:
        objective, why = PORTS[port]
        header.assumptions.append(f"{why}; --objective overrides")
        return "sit", objective
    if repa:
        header.assumptions.append(f"{repa}: read as REPA, time runs t = s; --objective overrides")
        return "repa", named or "repa"
    if named:
        return "sit", named
    if str(header.told("model")).startswith("DiT"):
        header.assumptions.append(
            f"the settings name the model {quote(header.told('model'), 40)}: read as DiT, steps "
            "0..999 of its noise; --objective overrides"
        )
        return "dit", "dit"
    if "ap_head.linear1.weight" in header.shapes:
        header.assumptions.append(
            "SRA's ap_head and learned variances are there: read as DiT; --objective overrides"
        )
        return "dit", "dit"
    header.assumptions.append(
        "a plain SiT/DiT layout: read as SiT, time runs t = 1 - s; --objective overrides"
    )
    return "sit", "sit"


def _unused(header: Header) -> tuple[str, ...]:
    """Return the names of heads that training alone uses, and say that they are left out."""
    found = tuple(filter(TRAINING.match, header.shapes))
    parts = dict.fromkeys(name.partition(".")[0] for name in found)
    for part in parts:
        header.assumptions.append(
            f"{quote(part)} is a head that only training uses: the model is built without it"
        )
    return found


def _routing(header: Header) -> dict[str, Any]:
    names: tuple[str, ...] = ("routing", *options_of(str(header.args.get("routing"))))
    routing = {name: header.args[name] for name in names if name in header.args}
    for name, value in routing.items():
        text = name in ("routing", "query")
        if not (isinstance(value, str) if text else conventions.is_count(value)):
            raise header.contradiction(f"its {name} is {quote(value, 40)}")
    if "routing" not in routing:
        raise header.contradiction("it says that it is from dar-probe, but names no routing")
    return routing
