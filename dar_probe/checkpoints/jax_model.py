"""A JAX model in a .npz: a pytree of arrays by their paths, under the official torch names.

Kernels are (in, out) or (h, w, in, out) in JAX; its attention may hold queries, keys and values
apart, and heads in a dimension of their own. Every array must have a place in DiT's layout: what
is left over is named, and the file refused.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dar_probe.checkpoints.folders import is_average
from dar_probe.errors import CheckpointError, blamed
from dar_probe.files import arrays
from dar_probe.files.kinds import SAVE_JAX
from dar_probe.files.text import quote

PORT = "jax"  # the setting that names the port by the style of its names
# What trainers keep beside parameters.
BESIDE = frozenset({"opt_state", "opt", "mu", "nu", "step", "rng", "rngs", "count"})
WRAPPERS = frozenset({"layers", "_flax_linear", "_flax_embedding", "_flax_layernorm"})
LISTS = re.compile(r"(blocks|DiTBlock|SiTBlock|layers|projectors)_(\d+)")
ATTENTION = "(?:attn|(?:MultiHeadDotProduct|MultiHead|Self|)Attention_0)"
FINAL, MLP = "(?:final_layer|FinalLayer_0)", "(?:mlp|Mlp_0|MlpBlock_0)"
# A part's path to its official name; group 1 is whatever holds the model.
PARTS = {
    r"x_embedder/proj|x_proj|PatchEmbed_0/Conv_0": "x_embedder.proj",
    r"(?:t_embedder|TimestepEmbedder_0)/(?:mlp/0|Dense_0)": "t_embedder.mlp.0",
    r"(?:t_embedder|TimestepEmbedder_0)/(?:mlp/2|Dense_1)": "t_embedder.mlp.2",
    r"(?:y_embedder|LabelEmbedder_0)/(?:embedding_table|Embed_0)": "y_embedder.embedding_table",
    rf"{FINAL}/(?:linear|Dense_1)": "final_layer.linear",
    rf"{FINAL}/(?:adaLN_mod(?:ulation)?/1|Dense_0)": "final_layer.adaLN_modulation.1",
    rf"blocks/(\d+)/{ATTENTION}/(qkv|query|key|value)": r"blocks.\2.attn.\3",
    rf"blocks/(\d+)/{ATTENTION}/(?:proj|out)": r"blocks.\2.attn.proj",
    rf"blocks/(\d+)/{ATTENTION}/([qk]_norm)": r"blocks.\2.attn.\3",
    rf"blocks/(\d+)/{MLP}/(?:fc1|linear1|Dense_0)": r"blocks.\2.mlp.fc1",
    rf"blocks/(\d+)/{MLP}/(?:fc2|linear2|Dense_1)": r"blocks.\2.mlp.fc2",
    r"blocks/(\d+)/(?:adaLN_mod(?:ulation)?/1|Dense_0)": r"blocks.\2.adaLN_modulation.1",
    r"projectors/(\d+)/([024])": r"projectors.\2.\3",
}
PLACES = [(re.compile(f"(?:(.+?)/)?(?:{part})/(kernel|bias|scale|embedding|weight)"), name)
          for part, name in PARTS.items()]  # fmt: skip
POSITIONS = re.compile("(?:(.+?)/)?(?:pos_embed|x_embedder/pe)")
APART = ("query", "key", "value")
SAID = (
    "a JAX model: its kernels were transposed, and it is taken for a port that computes what the "
    "official DiT does, as its arrays do not tell"
)


class Place(NamedTuple):
    """Where an array goes.

    Attributes:
        holder: the path above the model, part by part; () for a model at the top.
        name: the official one; of queries, keys and values that are apart, their own.
        leaf: what JAX calls the array: "kernel", "bias", ...
    """

    holder: tuple[str, ...]
    name: str
    leaf: str


class Content(NamedTuple):
    """A model's tensors under the official names, behind the names of what holds them.

    Attributes:
        state: tensors by name.
        settings: what the arrays tell beside: the heads, and the port by the style of its names.
        note: what is assumed of such a file; empty where its arrays lie as torch has them.
        bytes: that the arrays take.
        averages: how many numbers lie under names of an average among what is left out, by place.
    """

    state: dict[str, Tensor]
    settings: dict[str, Any]
    note: str
    bytes: int
    averages: Mapping[str, int]


def outline(file: BufferedReader, path: Path) -> Content:
    """Return the content of an open .npz on "meta", from the headers of its arrays.

    Raises:
        CheckpointError: it is damaged, or arrays have no place in DiT's layout.
    """
    with blamed(lambda why: _unreadable(path, why)):
        held = arrays.outline(file)
        blank = {
            name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            for name, (shape, dtype) in held.items()
        }
        return _content(blank, path, held)


def load(file: BufferedReader, path: Path) -> Content:
    """Return the content of an open .npz; see ``outline``."""
    with blamed(lambda why: _unreadable(path, why)):
        found = arrays.load(file, lambda name: not _is_beside(name))
        tensors = {name: torch.from_numpy(a) for name, a in found.items()}
        return _content(tensors, path, arrays.outline(file))


def place(name: str) -> Place | None:
    """Return where the array of this path goes; None: nowhere."""
    parts = _parts(name)
    if len(parts) > 1 and parts[-1] in ("value", "raw_value"):  # what NNX wraps arrays in
        del parts[-1]
    found: list[str] = []
    for part in parts:
        listed = LISTS.fullmatch(part)
        kept = listed.groups() if listed else (part,)
        found += ("blocks" if p in ("DiTBlock", "SiTBlock") else p for p in kept)
    path = "/".join(part for part in found if part not in WRAPPERS)
    if match := POSITIONS.fullmatch(path):
        return Place(tuple((match[1] or "").split("/")) if match[1] else (), "pos_embed", "")
    for pattern, official in PLACES:
        if match := pattern.fullmatch(path):
            holder = tuple(match[1].split("/")) if match[1] else ()
            return Place(holder, match.expand(official), match[match.re.groups])
    return None


def _parts(name: str) -> list[str]:
    """Return the parts of a path, which are apart by / or . or in brackets."""
    return [part for part in re.split(r"[/.\[\]'\"]+", name) if part]


def _is_beside(name: str) -> bool:
    return not BESIDE.isdisjoint(_parts(name))


def _averages(held: arrays.Outline) -> dict[str, int]:
    """Return how many numbers an optimiser keeps under the name of an average, by place.

    Optax averages updates, and some train with an average of parameters in its state.
    """
    found: Counter[str] = Counter()
    for name, (shape, _) in held.items():
        parts = _parts(name)
        if _is_beside(name) and (at := next((i for i, p in enumerate(parts) if is_average(p)), 0)):
            found["/".join(parts[: at + 1])] += math.prod(shape)
    return dict(found)


def _content(tensors: dict[str, Tensor], path: Path, held: arrays.Outline) -> Content:
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    placed: dict[Place, str] = {}
    left: list[str] = []
    heads = set()
    for name, tensor in tensors.items():
        if _is_beside(name):
            continue
        where = place(name)
        if where is None or where in placed:
            left.append(name)
            continue
        placed[where] = name
        if where.name.endswith(APART) and where.leaf == "kernel" and tensor.ndim == 3:
            heads.add(tensor.shape[1])
    state = dict(_joined(placed, tensors, left))
    _require_all(state, left, placed, quote(path))
    settings: dict[str, Any] = {PORT: _port(placed.values())}
    if len(heads) == 1:
        settings["heads"] = heads.pop()
    note = SAID if any(where.leaf == "kernel" for where in placed) else ""
    return Content(state, settings, note, claimed, _averages(held))


def _joined(
    placed: Mapping[Place, str], tensors: dict[str, Tensor], left: list[str]
) -> Iterable[tuple[str, Tensor]]:
    """Yield the official names with their tensors, which leave ``tensors``."""
    for where, name in placed.items():
        stem, _, last = where.name.rpartition(".")
        parts = [name]
        if last in APART:
            trio = [where._replace(name=f"{stem}.{part}") for part in APART]
            if not all(part in placed for part in trio):
                left.append(name)
            if last != APART[0] or name in left:
                continue
            parts = [placed[part] for part in trio]
            last = "qkv"
        turned = [_turned(tensors.pop(part), where) for part in parts]
        kind = {"": "", "bias": ".bias"}.get(where.leaf, ".weight")
        official = f"{stem}.{last}{kind}" if stem else f"{last}{kind}"
        tensor = turned[0] if len(turned) == 1 else _cat(turned)
        yield ".".join((*where.holder, official)), tensor.contiguous()


def _cat(parts: list[Tensor]) -> Tensor:
    """Return torch.cat, which for tensors on "meta" would import 150 MB of torch."""
    if len({part.shape[1:] for part in parts}) > 1:
        raise ValueError("its queries, keys and values differ in shape")
    if parts[0].device.type != "meta":
        return torch.cat(parts)
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    return torch.empty(shape, dtype=parts[0].dtype, device="meta")


def _turned(tensor: Tensor, where: Place) -> Tensor:
    """Return an array in torch's order of dimensions."""
    if where.leaf == "bias":
        return tensor.flatten()
    if where.leaf != "kernel" or tensor.ndim < 2:
        return tensor
    if where.name == "x_embedder.proj":
        return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor
    return (tensor.flatten(0, -2) if where.name.endswith("attn.proj") else tensor.flatten(1)).T


def _require_all(
    state: Mapping[str, Tensor], left: list[str], placed: Mapping[Place, str], shown: str
) -> None:
    """Refuse what is no model, has arrays without a place, or has no table of positions."""
    if not placed:
        raise CheckpointError(
            f"{shown} is a NumPy .npz archive that holds no model of JAX",
            hint=f"latents go to --data latents:PATH; of a JAX model: {SAVE_JAX}",
        )
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise CheckpointError(
            f"{shown} is a JAX model with arrays that have no place in DiT's layout: "
            f"{', '.join(quote(name, 90) for name in left[:3])}{more}",
            hint="only ports of DiT and SiT are read; parameters of anything else, such as "
            "optimisers and random states, are to be left out",
        )
    holders = {where.holder for where in placed if where.name != "pos_embed"}
    if not all(Place(holder, "pos_embed", "") in placed for holder in holders):
        raise CheckpointError(
            f"{shown} is a JAX model without its table of positions, which tells how large its "
            "inputs are",
            hint="add it beside the model's own: params['pos_embed'] = "
            "dar_probe.models.sit.sincos_2d(WIDTH, SIDE).numpy(), for SIDE tokens on a side",
        )


def _port(names: Iterable[str]) -> str:
    """Return whose names these are: of ports that train with other clocks than the official one."""
    text = "\n".join(names)
    return "diffuse_nnx" if "x_proj" in text else "kvfrans" if "DiTBlock_0" in text else "unknown"


def _unreadable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{quote(path)} is a NumPy .npz archive that cannot be read: {quote(why, 200)}",
        hint="save it again with numpy.savez",
    )
