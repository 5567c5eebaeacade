"""Adapters such as LoRA: what they are of, and the line that makes a model of them. No torch."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dar_probe.checkpoints.header import Shapes
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.files import kinds
from dar_probe.files.json_file import settings
from dar_probe.files.safetensors_header import stored
from dar_probe.files.text import quote

CONFIG = "adapter_config.json"  # of peft
WEIGHTS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
FOLDER = {CONFIG, WEIGHTS[1]}  # one of these names makes a folder that of an adapter
# Low-rank factors, by peft, by diffusers and by kohya's scripts; the first one's rows are the rank.
FIRST = re.compile(r"(^|[._])lora([._](A|down)|_linear_layer\.down)(\.[^.]+)?\.weight$")
SECOND = re.compile(r"(^|[._])(lora([._](B|up))|lora_linear_layer\.up)(\.[^.]+)?\.weight$")
PART = re.compile(
    r"(^|[._])(lora([._](A|B|down|up|mid|magnitude)|_linear_layer)|lokr_|hada_|oft_|dora_scale)"
)
LORA = "a LoRA"
# Adapters of other factors, by the names of these and by peft's settings.
OTHERS = {
    kind: re.compile(rf"(^|[._])({names})_")
    for kind, names in {"LoKr": "lokr", "LoHa": "hada|loha", "OFT": "b?oft"}.items()
}
MERGED = "'merged.pt'"
# The module is the caller's own, so that this is a line of a script and no command.
PEFT = "torch.save(peft.PeftModel.from_pretrained(model, {!r}).merge_and_unload().state_dict(), {})"
DIFFUSERS = (
    'import diffusers; m = diffusers.AutoModel.from_pretrained({base}, subfolder="transformer"); '
    "m.load_lora_adapter({home}, weight_name={name}, prefix={prefix}); m.fuse_lora(); "
    'm.unload_lora(); m.save_pretrained("merged")'
)


def weights_of(path: Path) -> Path:
    """Return the file of weights of an adapter that is given by its folder, or as that file.

    Raises:
        UsageError: there is none.
    """
    found = [path] if path.is_file() else [path / name for name in WEIGHTS]
    file = next((one for one in found if one.is_file() and one.suffix == ".safetensors"), None)
    if file is None:
        raise UsageError(
            f"{quote(path)} is no LoRA adapter in .safetensors",
            hint=f"give a folder with {' or '.join(WEIGHTS)}, or the file itself",
        )
    return file


def of_rank(state: Mapping[str, Any]) -> str:
    """Return the rank of an adapter's tensors in words, to stand behind a noun."""
    return _of_rank(_ranks({name: tuple(value.shape) for name, value in state.items()}))


def refuse_folder(path: Path, names: list[str], shown: str) -> None:
    """Refuse a folder of an adapter, with the line that merges it into its model.

    Raises:
        CheckpointError: it is one.
    """
    if not FOLDER & set(names):
        return
    told = settings(path / CONFIG) if CONFIG in names else {}
    file = next((name for name in WEIGHTS if name in names), None)
    rank = told.get("r")
    shapes = _shapes(path / file) if file else {}
    ranks = {rank} if type(rank) is int else _ranks(shapes)
    base = told.get("base_model_name_or_path")
    # Where the names are in a pickle, the settings tell.
    kind = _kind([*shapes, f"{str(told.get('peft_type')).lower()}_"])
    raise CheckpointError(
        f"{shown} is {kind} adapter{_of_rank(ranks)}{_of(base)}, no model",
        hint=_with_model(path, shapes) + _merging(path, file or WEIGHTS[0], base, shapes),
    )


def refuse(shapes: Shapes, shown: str, path: Path) -> None:
    """Refuse a file with the names of an adapter, alone or beside those of its model.

    Raises:
        CheckpointError: it has some.
    """
    parts = [name for name in shapes if PART.search(name)]
    if not parts:
        return
    ranks = _of_rank(_ranks(shapes))
    if all(PART.search(name) or name.endswith(("alpha", "base_layer")) for name in shapes):
        told = settings(path.parent / CONFIG)
        base = told.get("base_model_name_or_path")
        raise CheckpointError(
            f"{shown} is {_kind(shapes)} adapter{ranks}{_of(base)}, no model: "
            f"it has {quote(parts[0])}",
            hint=_with_model(path, shapes) + _merging(path.parent, path.name, base, shapes),
        )
    raise CheckpointError(
        f"{shown} holds {_kind(shapes)} adapter{ranks} beside its model, not merged into it: "
        f"it has {quote(parts[0])}",
        hint=f"of a model of peft: torch.save(model.merge_and_unload().state_dict(), {MERGED})",
    )


def _kind(names: Iterable[str]) -> str:
    """Return what an adapter is called, with its article."""
    found = {kind for kind, mark in OTHERS.items() for name in names if mark.search(name)}
    kind = min(found, default="")
    return f"an {kind}" if kind == "OFT" else f"a {kind}" if kind else LORA


def _with_model(path: Path, names: Iterable[str]) -> str:
    """Return the command that merges an adapter in memory, where it can be."""
    if path.suffix in (".bin", ".pt", ".ckpt", ".pth") or not any(map(FIRST.search, names)):
        return ""
    return f"dar-probe analyze MODEL --adapter {shlex.quote(str(path))}; or "


def _merging(home: Path, name: str, base: Any, shapes: Shapes) -> str:
    """Return how an adapter is merged: peft wraps a model of anybody's, diffusers its own."""
    if any(key.startswith("base_model.") for key in shapes) or name == WEIGHTS[0]:
        return "merge it into its model, here called model, and give that file: " + PEFT.format(
            str(home), MERGED
        )
    if _kind(shapes) != LORA:
        return "merge it into its model with what trained it, and give what that makes"
    of = quote(base, 80) if isinstance(base, str) and base else "BASE"
    base = base if of != "BASE" else of
    # Strings of JSON are strings of Python, in the quotes that a shell's own leave alone.
    words = {"base": base, "home": str(home), "name": name}
    texts = {k: json.dumps(v, ensure_ascii=False) for k, v in words.items()}
    code = DIFFUSERS.format(**texts, prefix=f'"{found}"' if (found := prefix(shapes)) else None)
    return f"give the folder that this makes of it and of {of}: python -c {shlex.quote(code)}"


def prefix(names: Iterable[str]) -> str | None:
    """Return what stands before the names of a model of diffusers, as its pipelines write them.

    A prefix that no name has makes diffusers load nothing, and only log that.
    """
    return "transformer" if any(name.startswith("transformer.") for name in names) else None


def _ranks(shapes: Shapes) -> set[int]:
    return {shape[0] for name, shape in shapes.items() if FIRST.search(name) and len(shape) > 1}


def _of_rank(ranks: set[int]) -> str:
    if not ranks:
        return ""
    low, high = min(ranks), max(ranks)
    return f" of rank {low}" if low == high else f" of ranks {low} to {high}"


def _of(base: Any) -> str:
    return f" for {quote(base, 80)}" if isinstance(base, str) and base else ""


def _shapes(path: Path) -> Shapes:
    """Return the shapes of a safetensors file; nothing where it is damaged."""
    try:
        with kinds.open_file(path) as file:
            kinds.check(file, path)
            return {name: entry.shape for name, entry in stored(file).items()}
    except ValueError:  # CheckpointError is one, too
        return {}
