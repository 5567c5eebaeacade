"""Small random models with every gate open, and problems to probe them with."""

import torch

from dar_probe.diffusion import objectives
from dar_probe.diffusion.data import Data
from dar_probe.models.sit import SiT, SiTConfig
from dar_probe.probe.denoising import Denoising

ROUTINGS = [
    {"routing": "residual"},
    {"routing": "dar", "query": "static", "chunk_size": 2},
    {"routing": "dar", "query": "static+t", "chunk_size": 2},
    {"routing": "dar", "query": "dynamic", "chunk_size": 2},
    {"routing": "dar", "query": "dynamic", "chunk_size": 1},
]


def name_of(options):
    return "-".join(str(value) for value in options.values())


def model(*, depth=2, width=16, heads=2, seed=0, dtype=torch.float64, size=4, **options):
    """A model whose writes, queries and head are random instead of zero."""
    config = SiTConfig(
        depth=depth, width=width, heads=heads, patch=2, input_size=size, num_classes=10,
        **{"in_channels": 1, "learn_sigma": False, **options},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = SiT(config)
        for name, parameter in made.named_parameters():
            if name != "pos_embed":
                scale = 0.3
                if "adaLN" in name or name.endswith("query.weight"):
                    scale = 0.01 if "stream" in name and parameter.ndim == 2 else 0.5
                offset = 1.0 if name.endswith("norm.weight") else 0.0
                torch.nn.init.normal_(parameter, mean=offset, std=scale)
    return made.to(dtype).eval()


def problem(model, *, samples=4, seed=0, dtype=torch.float64, name="sit"):
    """Random data for ``model`` as (Data, Denoising)."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    shape = (samples, config.in_channels, config.input_size, config.input_size)
    data = Data(
        name="random",
        description="random",
        latents=torch.randn(shape, generator=generator),
        labels=torch.arange(samples) % config.num_classes,
        ids=torch.arange(samples),
    )
    denoising = Denoising(
        objectives.get(name), data, seed=seed, device=torch.device("cpu"), dtype=dtype
    )
    return data, denoising
