"""What torch does not tell in public: these tests fail where a new torch has moved it."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from dar_probe.runtime.torch_private import (
    forget_reduction_dtypes,
    memory_events,
    without_checkpointing,
)


def test_allocations_and_releases_come_in_order():
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
    events = [size for size in memory_events(profiler) if abs(size) >= 2000]
    assert events[:3] == [4000, 2000, -4000] and second.numel() == 500


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_can_be_switched_off(reentrant):
    """Within the context a part runs once, its inner states have gradients; then all is as ever."""
    seen = []

    def part(x):
        seen.append(x * 2)
        return seen[-1].exp()

    def run():
        seen.clear()
        x = torch.ones(2, requires_grad=True)
        return x, checkpoint(part, x, use_reentrant=reentrant).sum()

    with without_checkpointing():
        x, total = run()
        assert torch.autograd.grad(total, seen[0])[0] is not None and len(seen) == 1
    x, total = run()
    total.backward()
    assert x.grad is not None and len(seen) == 2


def test_a_sharded_module_that_first_ran_frozen_can_be_trained():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        mesh = init_device_mesh("cpu", (1,))
        model = fully_shard(nn.Linear(3, 3), mesh=mesh, mp_policy=half)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        with torch.no_grad():
            model(torch.ones(2, 3))
        model.reshard()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        group = model._get_fsdp_state()._fsdp_param_groups[0]
        assert group._orig_dtype is None, "torch has changed: this is needed no more"
        forget_reduction_dtypes(model)
        assert group._orig_dtype is torch.float32
        model(torch.ones(2, 3)).sum().backward()
        assert all(p.grad.dtype is torch.float32 for p in model.parameters())
    finally:
        dist.destroy_process_group()
