"""Which modules are blocks."""

import torch
from torch import nn

from dar_probe.sites.block_lists import members


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(self.norm(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Part(), Part()])


def test_a_list_within_a_block_belongs_to_that_block():
    model = nn.Module()
    model.blocks = nn.ModuleList([Block(), Block()])
    assert members(model) == list(model.blocks)
