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
    grouped = found["reader_kind"].values == "mlp"
    assert grouped.sum() == 4
    assert np.isnan(conservation[..., grouped]).all()
    assert np.isfinite(conservation[..., 1:][..., ~grouped[1:]]).all()


class Convolved(nn.Module):
    """A branch whose convolution sees the tokens as a square image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = x.transpose(1, 2).unflatten(2, (2, 2))
        return self.conv(image).flatten(2).transpose(1, 2)


def test_the_output_of_a_convolution_is_kept_as_tokens():
    model = Stack()
    kept: list[torch.Tensor] = []
    for block in model.blocks:
        block.mlp = Convolved()
        block.mlp.register_forward_hook(lambda _, args, out: kept.append(out.detach()))
    found = tracing.trace(model, (torch.randn(1, 4, 5),), {}, set(model.blocks))
    tokens = [
        found.outputs[at][0]
        for at, (module, _) in enumerate(found.calls)
        if isinstance(module, nn.Conv2d)
    ]
    assert len(tokens) == 4
    for own, wanted in zip(tokens, kept[-4:], strict=True):
        torch.testing.assert_close(own, wanted, rtol=0, atol=0)


class Mixer(nn.Module):
    """Lets tokens look at a second sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        seen = x if other is None else other
        return (self.query(x) @ seen.transpose(1, 2)).softmax(-1) @ self.value(seen)


class Captioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), Mixer()
        self.norm2, self.attention2 = nn.LayerNorm(WIDTH), Mixer()

    def forward(self, x: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.attention2(self.norm2(x), words)


class Painter(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Captioned() for _ in range(3))

    def forward(self, x: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, words)
        return self.head(self.norm(x))


def test_attention_to_a_second_sequence_is_cross_attention():
    def captioned(ids, level):
        words = [
            torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(int(i) + 99)) for i in ids
        ]
        return (*batch(ids, level)[0], torch.stack(words)), {}

    torch.manual_seed(0)
    found = dp.audit(Painter(), batch=captioned, loss=loss, samples=2).dataset
    assert list(found["reader_kind"].values) == ["attention", "cross_attention"] * 3 + ["head"]
