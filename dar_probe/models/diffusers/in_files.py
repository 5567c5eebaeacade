"""A folder's transformer whose weights stay in its files until somebody asks for them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dar_probe.checkpoints.diffusers_folder import Folder
from dar_probe.checkpoints.reader import check_finite
from dar_probe.files import kinds
from dar_probe.files.safetensors_header import stored
from dar_probe.models import offload
from dar_probe.models.blank import without_parameters
from dar_probe.models.diffusers import model as hub_model


def build(
    folder: Folder, *, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """Return what ``model.build`` returns without its parameters, and where these are read.

    Its buffers are real, its parameters are on the meta device, in the types that they have there.
    Every weight is read once, and none is kept.

    Args:
        folder: what ``folder.read`` said about it.
        dtype: of the weights; some classes keep a few of them in float32.

    Raises:
        UsageError: diffusers or accelerate is not installed.
        CheckpointError: there is no such transformer, or the weights are not that class's.
        ProbeError: weights are NaN or infinite.
    """
    offload.accelerate()
    from accelerate.utils import OffloadedWeightsLoader, set_module_tensor_to_device

    hub_model.blank(folder)
    kind = hub_model.transformer_class(folder.class_name)
    with _numbers_of(dtype):
        model = hub_model.made(folder, without_parameters())
    kept = hub_model.kept_in_float32(kind)
    index: dict[str, dict[str, str]] = {}
    names = model.state_dict().keys()
    for path in folder.weights:
        with kinds.open_file(path) as file:
            for name, tensor in stored(file).items():
                if name not in names:  # what diffusers lets a file hold beside the weights
                    continue
                wide = any(part in name.split(".") for part in kept)
                real = getattr(torch, tensor.dtype).is_floating_point
                own = "float32" if wide else str(dtype).removeprefix("torch.")
                index[name] = {
                    "safetensors_file": str(path),
                    "weight_name": name,
                    "dtype": own if real else tensor.dtype,
                }
    weights = OffloadedWeightsLoader(index=index)
    for name, value in list(model.state_dict().items()):
        read = weights[name]
        check_finite({name: read})
        place = "meta" if value.is_meta else "cpu"
        set_module_tensor_to_device(model, name, place, value=read, dtype=read.dtype)
    return model, weights


@contextmanager
def _numbers_of(dtype: torch.dtype) -> Iterator[None]:
    """Let modules compute their tables in a type, as ``from_pretrained`` does."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
