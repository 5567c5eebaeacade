"""What counts as a norm that reads the stream, by what a norm does and not by what it is called."""

import numpy as np
import pytest
import torch
from torch import nn

import dar_probe as dp
from dar_probe.sites import tracing
from tests.test_audit import Block, Stack, batch, loss

TOKENS, WIDTH = 3, 16
NORMS = {
    "layer": nn.LayerNorm(WIDTH),
    "rms": nn.RMSNorm(WIDTH),
    "groups of one": nn.GroupNorm(TOKENS, TOKENS),
    "one group": nn.GroupNorm(1, TOKENS),
    "batch": nn.BatchNorm1d(TOKENS),
    "instance": nn.InstanceNorm1d(TOKENS),
    "sync batch": nn.SyncBatchNorm(TOKENS),
    "linear": nn.Linear(WIDTH, WIDTH),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_over_the_batch_or_over_groups_do_not_read_tokens(name):
    assert tracing.is_norm(NORMS[name]) == (name in ("layer", "rms"))


class Grouped(nn.Module):
    """A branch that begins with a norm over groups of tokens: the linear layers read the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH)
        self.inner = nn.GroupNorm(TOKENS, TOKENS)
        self.down = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.inner(self.up(x))))


class GroupedFirst(Grouped):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(self.inner(x))))


@pytest.mark.parametrize("kind", [Grouped, GroupedFirst])
def test_a_group_norm_inside_a_branch_is_no_reader(kind):
    torch.manual_seed(0)
    model = Stack()
    for block in model.blocks:
        assert isinstance(block, Block)
        block.mlp = kind()
    found = dp.audit(model, batch=batch, loss=loss, samples=2).dataset
    names = [str(name) for name in found["reader_name"].values]
    assert len(names) == 2 * 4 + 1
    assert not any("inner" in name for name in names)
    conservation = found["gate_conservation"].values[:, :, 1:]  # the first reader has one source
    np.testing.assert_array_less(conservation, 1e-3)


def test_the_law_of_norms_is_not_claimed_for_a_group_norm_that_reads_the_stream():
    torch.manual_seed(0)
    model = Stack()
    for block in model.blocks:
        block.norm2 = nn.GroupNorm(TOKENS, TOKENS)
    found = dp.audit(model, batch=batch, loss=loss, samples=2).dataset
    conservation = found["gate_conservation"].values
    grouped = np.array(["norm2" in str(name) for name in found["reader_name"].values])
    assert grouped.sum() == 4
    assert np.isnan(conservation[..., grouped]).all()
    assert np.isfinite(conservation[..., 1:][..., ~grouped[1:]]).all()
