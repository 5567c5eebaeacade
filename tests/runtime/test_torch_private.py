"""What torch does not tell in public: these tests fail where a new torch has moved it."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from dar_probe.runtime.torch_private import in_reentrant_checkpoint, memory_events


def test_allocations_and_releases_come_in_order():
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
    events = [size for size in memory_events(profiler) if abs(size) >= 2000]
    assert events[:3] == [4000, 2000, -4000] and second.numel() == 500


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_reentrant_checkpoint_is_seen_from_within(reentrant):
    seen = []

    def part(x):
        seen.append(in_reentrant_checkpoint())
        return x * 2

    checkpoint(part, torch.ones(2, requires_grad=True), use_reentrant=reentrant)
    assert seen == [reentrant] and not in_reentrant_checkpoint()
