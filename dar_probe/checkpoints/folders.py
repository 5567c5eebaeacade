"""The one file of a folder of a trainer that holds the model, or why there is none to be read.

No torch: the command line looks here before it loads anything.
"""

import glob
import os
import re
import shlex
from pathlib import Path
from typing import Any

from dar_probe.checkpoints import adapters, shards
from dar_probe.errors import CheckpointError
from dar_probe.files import kinds
from dar_probe.files.json_file import settings
from dar_probe.files.text import quote

# Words by which people call an average over training.
AVERAGES = frozenset(
    {"ema", "emas", "shadow", "average", "averaged", "averages", "avg", "polyak", "target", "swa"}
    | {"emamodel", "modelema"}
)
DENIED = frozenset({"non", "no", "not", "without"})  # "non_ema" of diffusers is not averaged
RAW = frozenset({"online", "raw", "current"})  # "ema.online_model" is not averaged
# An optimizer's averages are of gradients.
MOMENTS = re.compile(r"(max_)?exp_avg\w*|(square|grad)_avg")
SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".gguf"}
# What trainers write beside the weights; Megatron's "model_optim_rng.pt" holds these too.
OTHERS = re.compile(
    r"(?<!model_)optim|scheduler|random_states|rng_state|training_args|scaler|sampler"
    r"|custom_checkpoint|dataloader|zero_pp_rank|adapter|lora|^step\.|^global_step"
)
CUSTOM = "custom_checkpoint_0.pkl"
MOST = 100  # folders in a folder that a hint looks into
SHARD = re.compile(r"\d+-of-\d+")
CONFIG = "config.json"
OWN = (
    "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)  # fmt: skip
# Classes of transformers' kind in config.json whose weights are read as those of any trainer.
READ = frozenset({"STDiT3"})
DIFFUSERS = "diffusion_pytorch_model"  # begins the names of its weights
DCP = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {} model.pt"
ZERO = "python {} {} model.pt"
ORBAX = frozenset({"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"})


def model_file(path: str | Path) -> Path:
    """Return the file, or the index of files, that holds the model of a trainer's folder.

    Other paths are returned as they are. Folders of diffusers are not entered: they are read as
    wholes. An average is preferred, by its name.

    Raises:
        CheckpointError: the folder holds adapters, partitions of processes, several models, or
            none, or the file is one shard of several; the hint says what to give instead.
    """
    path = Path(path)
    if not os.path.isdir(path):
        # A shard of diffusers stands for the folder that it lies in.
        if not path.name.startswith(DIFFUSERS) or not os.path.isfile(path.parent / CONFIG):
            shards.refuse_single(path)
        return path
    if _is_of_a_library(path):
        return path
    names = sorted(os.listdir(path))
    shown = quote(path)
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        raise CheckpointError(
            f"{shown} is a folder of torch.distributed.checkpoint, whose index is a pickle",
            hint=DCP.format(shlex.quote(str(path))),
        )
    if ORBAX & set(names):
        read = f"orbax.checkpoint.StandardCheckpointer().restore({str(path.resolve())!r})"
        raise CheckpointError(
            f"{shown} is a folder of orbax, as JAX trainers write checkpoints",
            hint=f"import orbax.checkpoint; params = {read}; {kinds.SAVE_JAX}",
        )
    adapters.refuse_folder(path, names, shown)
    _refuse_partitions(path, names, shown)
    found = [
        name
        for name in shards.without_shards(names)
        if (Path(name).suffix in SUFFIXES or shards.is_index(name)) and not OTHERS.search(name)
    ]
    averages = [name for name in found if is_average(name)]
    taken = averages or found
    if len(taken) > 1:
        parts = all(SHARD.search(name) for name in taken)
        raise CheckpointError(
            f"{shown} is a folder with {len(taken)} files of weights, such as {quote(taken[0])} "
            f"and {quote(taken[1])}",
            hint=f"these shards are joined by: {_joined(path, taken)}"
            if parts
            else "give one of them",
        )
    if not taken:
        inside = _inside(path, names)
        raise CheckpointError(
            f"{shown} is a folder without model_index.json, {CONFIG} or a file of weights",
            hint=f"give {inside}, or a file in it"
            if inside
            else "give the folder of a diffusers pipeline, its transformer folder, or a file",
        )
    if shards.is_one_of_several(taken[0]):
        raise CheckpointError(
            f"{shown} holds {quote(taken[0])} alone, one of several shards of a model",
            hint="copy the others and their index into the folder",
        )
    return path / taken[0]


def _inside(path: Path, names: list[str]) -> str:
    """Return the folders inside that have weights, for a hint; up to three, the last in order."""
    found = []
    for name in sorted(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])[-MOST:]:
        if OTHERS.search(name):
            continue
        home = path / name
        deeper = (home / one for one in sorted(_names(home))[:MOST])
        found += [inner for inner in (home, *deeper) if _has_weights(inner)][:1]
    averages = [home for home in found if is_average(home.name)]
    return " or ".join(quote(home) for home in reversed((averages or found)[-3:]))


def _has_weights(home: Path) -> bool:
    names = _names(home)
    own = {".metadata", CONFIG} & set(names)
    return bool(own) or any(Path(n).suffix in SUFFIXES and not OTHERS.search(n) for n in names)


def _names(home: Path) -> list[str]:
    """Return what is in a folder; nothing where it is none, is a link or cannot be read."""
    try:
        return [] if os.path.islink(home) else os.listdir(home)
    except OSError:
        return []


def is_average(*path: str) -> bool:
    """Tell whether a file's name, or the path of names of weights in it, is that of an average."""
    parts = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", part).lower() for part in path]  # "netEMA"
    words = [set(re.split(r"[^a-z]+", MOMENTS.sub("", part))) for part in parts]  # "ema2" is one
    averaged = any(AVERAGES & one and not DENIED & one for one in words)
    return averaged and not any(RAW & one for one in words)


def said_of(path: Path, file: Path) -> list[str]:
    """Return what is assumed where ``model_file`` chose a file of a folder."""
    if file == path:
        return []
    said = [f"{quote(file.name)} is the model of the folder that was given"]
    # What accelerate was asked to keep with a model has no names: it may be an average of it.
    if not is_average(file.name) and os.path.isfile(file.parent / CUSTOM):
        said.append(f"{CUSTOM} beside it was not looked into, and may be an average (EMA)")
    return said


def settings_beside(file: Path) -> dict[str, Any]:
    """Return the settings that a Hub mixin keeps in config.json beside its weights."""
    if file.name not in OWN:
        return {}
    found = settings(file.parent / CONFIG)
    return {} if _names_a_library(found) else found


def _names_a_library(found: dict[str, Any]) -> bool:
    """Tell whether settings are those of a class of diffusers or transformers."""
    classes = found.get("architectures", [])
    ours = isinstance(classes, list) and all(isinstance(c, str) and c in READ for c in classes)
    return "_class_name" in found or ("architectures" in found and not (classes and ours))


def _is_of_a_library(path: Path) -> bool:
    """Tell whether diffusers or transformers wrote a folder."""
    if os.path.isfile(path / "model_index.json"):
        return True
    if not os.path.isfile(path / CONFIG):
        return False
    found = settings(path / CONFIG)
    own = any(os.path.isfile(path / name) for name in OWN)
    return _names_a_library(found) or not own


def _refuse_partitions(path: Path, names: list[str], shown: str) -> None:
    """Refuse DeepSpeed's ZeRO partitions, also one folder above, with the command that joins them.

    Raises:
        CheckpointError: the weights are spread over processes.
    """
    steps = [name for name in names if re.fullmatch(r"global_step\d+", name)]
    last = max(steps, key=lambda name: int(name.removeprefix("global_step")), default="")
    inside = names
    if steps and "latest" in names:
        inside = sorted(os.listdir(path / last))
    if any("zero_pp_rank" in name for name in inside):
        home = path if steps else path.parent
        script = path / "zero_to_fp32.py"
        script = script if script.is_file() else path.parent / "zero_to_fp32.py"
        raise CheckpointError(
            f"{shown} holds partitions of DeepSpeed's ZeRO, one for each process",
            hint=ZERO.format(*(shlex.quote(str(p)) for p in (script, home))),
        )
    if steps:
        raise CheckpointError(f"{shown} is a folder of DeepSpeed", hint=f"give its folder {last}")


def _joined(path: Path, names: list[str]) -> str:
    """Return a command that makes one file of shards whose names begin alike."""
    kind = Path(names[0]).suffix
    if kind == ".safetensors":
        each, module = "safetensors.torch.load_file(p)", "safetensors.torch"
    else:
        each, module = "torch.load(p, map_location='cpu', weights_only=True)", "torch"
    shards = f"{glob.escape(str(path / os.path.commonprefix(names)))}*{kind}"
    code = (
        f"import glob, torch, {module}; torch.save({{k: v for p in glob.glob({shards!r}) "
        f"for k, v in {each}.items()}}, 'model.pt')"
    )
    return f"python -c {shlex.quote(code)}"
