"""When a write counts as what the branch itself returned."""

import pytest
import torch
from torch import nn

from dar_probe.sites import stream_detection, tracing
from dar_probe.sites.cross_check import agrees
from tests.test_audit import Branch

WIDTH = 16


class Noted(nn.Module):
    """Adds what its branch returns, and on each token something that no module returned."""

    def __init__(self, aside: torch.Tensor) -> None:
        super().__init__()
        self.norm, self.mlp, self.aside = nn.LayerNorm(WIDTH), Branch(WIDTH), aside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        write = self.mlp(self.norm(x))
        return x + write + write.detach().norm() * self.aside


class Two(nn.Module):
    def __init__(self, aside: torch.Tensor) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Noted(aside), Noted(aside)])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def agreement(tokens: int, share: float, *, silent: bool = False) -> bool:
    """Tell whether the first write agrees, of which ``share`` came from no module."""
    torch.manual_seed(0)
    aside = torch.randn(1, tokens, WIDTH, dtype=torch.float64)
    model = Two(share * aside / aside.norm()).double()
    for block in model.blocks if silent else ():
        block.mlp.down.weight.data.zero_()
        block.mlp.down.bias.data.zero_()
    x = torch.randn(1, tokens, WIDTH, dtype=torch.float64)
    found = tracing.trace(model, (x,), {}, set(model.blocks))
    first, following = stream_detection.follow(found)[:2]
    stop = following.read.at
    called = {at: module for at, (module, _) in enumerate(found.calls) if first.read.at < at < stop}
    return agrees(found, first, following, stop, called)


@pytest.mark.parametrize(("share", "wanted"), [(0.0, True), (5e-4, True), (1.5e-3, False)])
def test_a_thousandth_from_elsewhere_is_the_limit(share, wanted):
    assert agreement(64, share) == wanted


def test_three_tokens_prove_nothing():
    assert not agreement(3, 0.0)
    assert agreement(4, 0.0)


def test_a_branch_that_writes_nothing_disagrees_with_nothing():
    assert agreement(3, 0.0, silent=True)
