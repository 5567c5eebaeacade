"""What torch does not tell in public: these tests fail where a new torch has moved it."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from dar_probe.runtime.torch_private import memory_events, without_checkpointing


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
