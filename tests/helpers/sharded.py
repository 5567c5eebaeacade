"""Scenes with modules that processes share, played by every process of one job.

Each returns what a test asserts; ``play`` runs them in order and writes what the leader found.
"""

import copy
import json
import sys
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import Replicate, Shard

import dar_probe as dp
from dar_probe.errors import DarProbeError
from dar_probe.models.fsdp import share_out
from tests.helpers import tiny

FEW = {"samples": 3, "batch_size": 2}


class Branch(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


class Block(nn.Module):
    """A pre-norm block; ``kind`` post: its norms follow; function: they are functions."""

    def __init__(self, width, kind):
        super().__init__()
        self.kind = kind
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Branch(width), Branch(width)
        self.scale = nn.Parameter(torch.full((width,), 0.7))

    def forward(self, x):
        if self.kind == "post":
            x = self.norm1(x + self.scale * self.attention(x))
            return self.norm2(x + self.mlp(x))
        if self.kind == "function":
            x = x + self.scale * self.attention(nn.functional.layer_norm(x, x.shape[-1:]))
            return x + self.mlp(nn.functional.layer_norm(x, x.shape[-1:]))
        x = x + self.scale * self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Stack(nn.Module):
    """Blocks between an embedding and a head; ``kind`` skip: the first state enters again, late."""

    def __init__(self, kind="pre", depth=3, width=16):
        super().__init__()
        self.join = nn.Linear(2 * width, width) if kind == "skip" else None
        self.embed = nn.Linear(5, width)
        self.blocks = nn.ModuleList(Block(width, kind) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x):
        x = self.embed(x)
        first = None
        for block in self.blocks:
            if self.join is not None and block is self.blocks[-1]:
                x = self.join(torch.cat([x, first], -1))
            x = block(x)
            first = x if first is None else first
        return self.head(self.norm(x))


def stack(kind="pre"):
    torch.manual_seed(0)
    return Stack(kind)


def batch(ids, level):
    rows = [torch.randn(6, 5, generator=torch.Generator().manual_seed(int(i))) for i in ids]
    return (torch.stack(rows),), {}


def mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def by_block(model, **options):
    for block in model.blocks:
        fully_shard(block, mesh=mesh(), **options)
    return fully_shard(model, mesh=mesh(), **options)


def by_branch(model):
    """As ``--shard`` does with models of ours."""
    share_out(model, mesh())
    return model


def blocks_alone(model):
    for block in model.blocks:
        fully_shard(block, mesh=mesh())
    # What is outside of them is not sharded at all.
    return model


def at_once(model):
    return fully_shard(model, mesh=mesh())


def every_module(model):
    """Norms and layers too: sites are modules of FSDP themselves."""
    for part in reversed(list(model.modules())):
        if next(part.parameters(), None) is not None and not isinstance(part, nn.ModuleList):
            fully_shard(part, mesh=mesh(), reshard_after_forward=True)
    return model


def hybrid(model):
    both = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("copies", "pieces"))
    for block in model.blocks:
        fully_shard(block, mesh=both)
    return fully_shard(model, mesh=both)


COLUMNS = {
    "attention.up": ColwiseParallel(), "attention.down": RowwiseParallel(),
    "mlp.up": ColwiseParallel(), "mlp.down": RowwiseParallel(),
}  # fmt: skip


def tensor_parallel(model, on=None):
    for block in model.blocks:
        parallelize_module(block, on or mesh(), COLUMNS)
    return model


def in_two_dimensions(model):
    both = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("data", "parts"))
    tensor_parallel(model, both["parts"])
    for block in model.blocks:
        fully_shard(block, mesh=both["data"])
    return fully_shard(model, mesh=both["data"])


def compared(found, wanted):
    """Return per variable the largest difference, over the largest number; and what differs."""
    error = {}
    for name in wanted.dataset.data_vars:
        one, other = found.dataset[name], wanted.dataset[name]
        if one.dtype.kind == "f":
            size = float(np.nanmax(np.abs(other))) if np.isfinite(other).any() else 1.0
            same = np.array_equal(one, other, equal_nan=True)
            error[name] = 0.0 if same else float(np.nanmax(np.abs(one - other))) / size
            if not np.array_equal(np.isnan(one), np.isnan(other)):
                error[name] = float("inf")
        elif not one.equals(other):
            error[name] = float("inf")
    said = {
        key: [found.manifest[key], value]
        for key, value in wanted.manifest.items()
        if key != "created" and found.manifest[key] != value
    }
    axes = all(found.dataset[n].equals(c) for n, c in wanted.dataset.coords.items())
    return {"error": error, "said": said, "axes": axes}


def audited(wrap, make=stack, **settings):
    """Audit a module plain and shared, in every process."""
    options = {"batch": batch, **FEW, **settings}
    wanted = dp.audit(make(), **options)
    return compared(dp.audit(wrap(make()), **options), wanted)


def ablated(wrap, routing):
    model = tiny.model(dtype=torch.float32, **routing)
    _, problem = tiny.problem(model, dtype=torch.float32)
    options = {
        "batch": problem.batch, "loss": problem.loss, "noise_levels": [0.2, 0.8], "pairs": 4, **FEW,
    }  # fmt: skip
    wanted = dp.ablate(model, **options)
    return compared(dp.ablate(wrap(copy.deepcopy(model)), **options), wanted)


def in_half(model):
    return by_block(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))


def steps(model, count=2):
    """Train a little and return the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(count):
        (x,), _ = batch(range(3 * step, 3 * step + 3), None)
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def flags(model):
    return [(p.requires_grad, p.grad is None) for p in model.parameters()] + [
        part.training for part in model.modules()
    ]


def trained_on(wrap, *, before=0, fails=False):
    """Whether a run goes on as if nobody had looked; ``fails``: the audit ends half-way."""
    plain, model = wrap(stack()), wrap(stack())
    plain.embed.bias.requires_grad_(False)
    model.embed.bias.requires_grad_(False)
    wanted = steps(plain, before) + steps(plain)
    losses = steps(model, before)
    was, hooks = flags(model), len(model.blocks[0]._forward_pre_hooks)
    if fails:
        with torch.no_grad():
            shown = message(lambda: dp.audit(model, batch=batch, loss=breaks, **FEW))
        assert "breaks" in shown, shown
    else:
        dp.audit(model, batch=batch, **FEW)
    kept = flags(model) == was and len(model.blocks[0]._forward_pre_hooks) == hooks
    kept &= all(type(p).__name__ == "DTensor" for p in model.blocks.parameters())
    losses += steps(model)
    return {"kept": kept, "losses": [losses, wanted]}


def breaks(output, ids, level):
    """A loss that fails in the backward."""
    if output.requires_grad:
        output.register_hook(_break)
    return output.square().flatten(1).mean(1)


def _break(grad):
    raise ValueError("it breaks")


def message(call):
    """Return what a call is refused with, in every process."""
    try:
        call()
    except (DarProbeError, ValueError) as error:  # ours, and that of ``breaks``
        return f"{type(error).__name__}: {error} | {getattr(error, 'hint', '')}"
    return "not refused"


def refused(wrap, **settings):
    return message(lambda: dp.audit(wrap(stack()), **{"batch": batch, **FEW, **settings}))


def sequence_parallel(model, *, local):
    """Norms see a part of the tokens each; so does the stream between, a DTensor or a part."""
    plan = {
        "norm1": SequenceParallel(use_local_output=False),
        "norm2": SequenceParallel(use_local_output=False),
        "attention": PrepareModuleInput(
            input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)
        ),
        "mlp": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
    }
    for branch in ("attention", "mlp"):
        plan[f"{branch}.up"] = ColwiseParallel()
        plan[f"{branch}.down"] = RowwiseParallel(output_layouts=Shard(1), use_local_output=local)
    outside = {
        "embed": RowwiseParallel(
            input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=local
        ),
        "norm": SequenceParallel(use_local_output=False),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    parallelize_module(model, mesh(), outside)
    for block in model.blocks:
        if not local:  # a parameter of the block itself, beside a state that is a DTensor
            block.scale = nn.Parameter(distribute_tensor(block.scale.detach(), mesh()))
        parallelize_module(block, mesh(), plan)
    return model


def of_its_rank(ids, level):
    (x,), _ = batch(ids, level)
    return (x + dist.get_rank(),), {}


def written(folder):
    """Analyse into a folder, and once more: the second time it is found finished."""
    cells = []
    options = {
        "batch": batch, **FEW, "out": folder / "out", "resume": True, "figures": False,
        "report": False, "on_cells": lambda done, all: cells.append(done),
    }  # fmt: skip
    dp.analyze(by_block(stack()), **options)
    once = len(cells)
    dp.analyze(by_block(stack()), **options)
    return {"once": once, "twice": len(cells)}


def of_diffusers(name):
    from tests.models.diffusers import tiny as models

    def wrap(model):
        from dar_probe.sites.block_lists import members

        for block in members(model):
            fully_shard(block, mesh=mesh())
        return fully_shard(model, mesh=mesh())

    return audited(wrap, lambda: models.build(name), batch=None, noise_levels=[0.3])


ROUTED = [{"routing": "residual"}, tiny.ROUTINGS[1], tiny.ROUTINGS[3]]
SCENES = {
    "blocks and the rest": lambda _: audited(by_block),
    "blocks alone": lambda _: audited(blocks_alone),
    "all at once": lambda _: audited(at_once),
    "every module": lambda _: audited(every_module),
    "kept after the forward": lambda _: audited(partial(by_block, reshard_after_forward=False)),
    "post-norm": lambda _: audited(by_block, lambda: stack("post")),
    "post-norm, every module": lambda _: audited(every_module, lambda: stack("post")),
    "norms as functions": lambda _: audited(by_block, lambda: stack("function")),
    "norms as functions, every module": lambda _: audited(every_module, lambda: stack("function")),
    "a long skip": lambda _: audited(by_block, lambda: stack("skip")),
    "recomputed": lambda _: audited(by_block, recompute=True),
    "copies of pieces": lambda _: audited(hybrid),
    **{
        f"ablated {tiny.name_of(one)}": lambda _, one=one: ablated(by_branch, one) for one in ROUTED
    },
    "flux": lambda _: of_diffusers("flux"),
    "sd3": lambda _: of_diffusers("sd3"),
    "bfloat16": lambda _: audited(in_half),
    "tensor parallel": lambda _: audited(tensor_parallel),
    "two dimensions": lambda _: audited(in_two_dimensions),
    "trained": lambda _: trained_on(by_block, before=1),
    "trained from the start": lambda _: trained_on(by_block),
    "trained after a failure": lambda _: trained_on(by_block, before=1, fails=True),
    "sequence of DTensors": lambda _: refused(partial(sequence_parallel, local=False)),
    "sequence of parts": lambda _: refused(partial(sequence_parallel, local=True)),
    "inputs of the rank": lambda _: refused(by_block, batch=of_its_rank),
    "another question": lambda _: refused(by_block, noise_levels=[0.1 * dist.get_rank()]),
    "copy": lambda _: message(
        lambda: dp.audit(by_block(stack()), batch=batch, loss=breaks, train_steps=1)
    ),
    "watch": lambda folder: message(
        lambda: dp.Probe.watch(by_block(stack()), out=folder / "w.nc", batch=batch)
    ),
    "probe": lambda _: message(lambda: dp.Probe(by_block(stack()), batch=batch)),
    "moved": lambda _: message(
        lambda: dp.audit(by_block(stack()), batch=batch, dtype="float64", **FEW)
    ),
    "written": written,
}


def play(folder, names=None):
    """Play scenes in every process; the leader writes what it found, and all that went wrong."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {}
    for name in names or SCENES:
        try:
            found[name] = SCENES[name](folder)
        except Exception:
            found[name] = traceback.format_exc()
            print(found[name], file=sys.stderr)
            break  # the processes may be out of step
    everybody = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, found)
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(everybody))
    dist.destroy_process_group()


if __name__ == "__main__":
    play(Path(sys.argv[1]), sys.argv[2:])
