"""Random inputs of a given shape, for modules that come without any."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dar_probe.diffusion import data as datasets
from dar_probe.errors import UsageError
from dar_probe.files.text import quote
from dar_probe.models.offload import device_of
from dar_probe.probe.measure import Batch

DIGITS = 12  # of one dimension


def random_batch(module: nn.Module, text: str, *, seed: int = 0) -> Batch:
    """Return a batch function for inputs such as "8,64" (normal) or "16:long" (token ids).

    Token ids lie below the size of the module's first embedding table. Each sample is a function
    of (seed, id) alone, the same at every noise level.

    Raises:
        UsageError: the text is no shape.
    """
    sizes, _, kind = text.partition(":")
    parts = sizes.split(",")
    if not all(p.isdecimal() and len(p) <= DIGITS for p in parts):
        parts = ["0"]
    shape = tuple(map(int, parts))
    if kind not in ("", "float", "long") or 0 in shape:
        raise UsageError(f"{quote(text)} is no input shape", hint="e.g. --input 8,64 or 16:long")
    place, dtype = device_of(module), next(module.parameters()).dtype
    tables = [m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)]
    vocabulary = tables[0] if tables else 2

    def batch(sample_ids: Tensor, noise_level: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if kind == "long":
            rows = [
                np.random.default_rng([seed, int(i)]).integers(0, vocabulary, shape)
                for i in sample_ids
            ]
            return (torch.from_numpy(np.stack(rows)).to(place),), {}
        x = datasets.noise(sample_ids, shape, seed=seed)
        return (x.to(place, dtype),), {}

    return batch
