"""A model shared out over the processes of a job by FSDP2, block by block."""

import os
from typing import Any

import torch
from torch import nn

from dar_probe.errors import UsageError, blamed
from dar_probe.models.sit import SiT
from dar_probe.runtime.ranks import Ranks
from dar_probe.sites.block_lists import members
from dar_probe.sites.homes import uncalled

# What a model itself calls of a block, past the block: it is shared out by itself.
ALONE = {"DiTTransformer2DModel": ("transformer_blocks.0.norm1.emb",)}
HINT = "leave --shard out: processes then share the samples, and each holds the whole model"


def mesh(device: torch.device, ranks: Ranks) -> Any:
    """Return the mesh of all processes of the job; all of them must ask for it.

    Args:
        device: where the model is to lie; of several GPUs each process takes its own.
        ranks: this process among them.
    """
    from torch.distributed.device_mesh import init_device_mesh

    if device.type == "cuda":
        own = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        torch.cuda.set_device(own)
    return init_device_mesh(device.type, (ranks.world,))


def share_out(model: nn.Module, place: Any) -> None:
    """Leave of every block, and of the rest, one part of the parameters in each process.

    A forward gathers the parameters of one block at a time, on the device of the mesh.

    Args:
        model: whole, on the CPU; it is changed itself.
        place: what ``mesh`` returns.

    Raises:
        UsageError: the model has no blocks, or FSDP cannot take them.
    """
    from torch.distributed.fsdp import fully_shard

    parts = _parts(model)
    if not parts:
        raise UsageError("this model has no blocks whose parameters could be shared out", hint=HINT)

    def refuse(why: str) -> UsageError:
        return UsageError(f"FSDP cannot share out this model: {why}", hint=HINT)

    with blamed(refuse):
        for part in parts:
            fully_shard(part, mesh=place)
        fully_shard(model, mesh=place)


def _parts(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose parameters are gathered together, the inner ones first."""
    blocks = list(dict.fromkeys(members(model)))
    # Blocks of ours hand on states beside what they return, where FSDP would not see them; lists of
    # modules run nothing themselves.
    inner = isinstance(model, SiT)
    found = [
        part
        for block in blocks
        for part in (block.children() if inner or uncalled(block) else (block,))
    ]
    alone = [model.get_submodule(name) for name in ALONE.get(type(model).__name__, ())]
    return [p for p in (*alone, *found) if next(p.parameters(), None) is not None]
