"""A LoRA adapter merged into its model in memory: by peft, and by diffusers for its own classes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dar_probe.checkpoints import adapters
from dar_probe.checkpoints.reader import check_finite, read_named
from dar_probe.errors import CheckpointError, UsageError, blamed
from dar_probe.files.text import quote

OF_PEFT = "base_model."  # begins the names of an adapter that peft saved


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What was merged into a model.

    Attributes:
        name: of the adapter's file, or of the folder that it is in.
        sha256: of its weights and settings.
        bytes: size of its weights.
        said: one sentence, for the assumptions.
    """

    name: str
    sha256: str
    bytes: int
    said: str


def merge(model: nn.Module, path: str | Path) -> Merged:
    """Add an adapter's products to the weights of its model, in place.

    Args:
        model: in float32 or float64; what is added is rounded to its type.
        path: a folder of peft or diffusers, or the .safetensors file in it.

    Raises:
        CheckpointError: it is no adapter, or does not fit the model.
        UsageError: peft is not installed, or there is no such file.
    """
    path = Path(path)
    file = adapters.weights_of(path)
    state = read_named(file)
    parts = [name for name in state if adapters.FIRST.search(name)]
    shown = quote(path.name)
    if not parts:
        raise CheckpointError(
            f"{shown} holds no LoRA adapter: none of its names is that of a low-rank factor",
            hint="give the folder, or the .safetensors file, that peft or diffusers saved",
        )
    check_finite(state)
    of_peft = all(name.startswith(OF_PEFT) for name in state)
    if of_peft and not (file.parent / adapters.CONFIG).is_file():  # peft would ask the Hub for it
        raise CheckpointError(
            f"{shown} was saved by peft, and {adapters.CONFIG} does not lie beside it",
            hint="give the folder that model.save_pretrained wrote",
        )
    try:
        import peft
    except ImportError as error:
        raise UsageError(
            f"{shown} is merged into its model by peft, which is not installed",
            hint="pip install 'dar-probe[peft]'",
        ) from error
    before = _marks(model)
    with blamed(lambda why: _unfit(shown, why)):
        if of_peft:
            _by_peft(peft, model, file.parent, state)
        else:
            _by_diffusers(model, file, state)
    after = _marks(model)
    if before.keys() != after.keys():
        raise _unfit(shown, "the model is not what it was without its adapter")
    changed = sum(before[name] != after[name] for name in before)
    zero = sum(_is_second(name) and not bool(value.any()) for name, value in state.items())
    if changed != len(parts) - zero:
        raise _unfit(shown, f"of its {len(parts)} pairs {changed} changed a weight of the model")
    settings = file.parent / adapters.CONFIG
    digest = hashlib.sha256(file.read_bytes())
    digest.update(settings.read_bytes() if settings.is_file() else b"")
    return Merged(
        name=path.name,
        sha256=digest.hexdigest(),
        bytes=file.stat().st_size,
        said=f"the LoRA adapter {shown}{adapters.of_rank(state)} is merged into the model: "
        f"{changed} of its weights are changed",
    )


def _by_peft(peft: Any, model: nn.Module, home: Path, state: dict[str, Tensor]) -> None:
    config = peft.PeftConfig.from_pretrained(str(home))
    wrapped = peft.PeftModel(model, config)
    loaded = peft.set_peft_model_state_dict(wrapped, state)
    left = [*loaded.unexpected_keys, *(key for key in loaded.missing_keys if "lora_" in key)]
    if left:
        raise ValueError(f"{left[0]} has no place")
    wrapped.merge_and_unload()


def _by_diffusers(model: Any, file: Path, state: Mapping[str, Tensor]) -> None:
    if not hasattr(model, "load_lora_adapter"):
        raise ValueError("it is of a class of diffusers, and the model is none")
    model.load_lora_adapter(
        str(file.parent), weight_name=file.name, prefix=adapters.prefix(state),
        use_safetensors=True,  # else a file that cannot be read is looked for as a pickle
    )  # fmt: skip
    model.fuse_lora()
    model.unload_lora()


def _marks(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Return two numbers of each weight, by which a changed one is told."""
    return {
        name: (float(value.detach().double().sum()), float(value.detach().double().norm()))
        for name, value in model.named_parameters()
    }


def _is_second(name: str) -> bool:
    return bool(adapters.SECOND.search(name))


def _unfit(shown: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"the adapter {shown} does not fit the model: {quote(why, 200)}",
        hint="give the adapter with the model that it was trained on",
    )
