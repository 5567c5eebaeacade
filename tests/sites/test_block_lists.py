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


class Chunk(nn.ModuleList):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self:
            x = block(x)
        return x


def test_a_list_that_runs_whole_blocks_is_a_stage_and_places_in_it_are_no_blocks():
    model = nn.Module()
    model.blocks = nn.ModuleList(
        [Chunk([Block(), Block()]), Chunk([nn.Identity(), nn.Identity(), Block()])]
    )
    assert [type(block) for block in members(model)] == [Block] * 3


def test_a_list_that_runs_residuals_of_one_norm_each_is_a_block():
    model = nn.Module()
    model.blocks = nn.ModuleList(Chunk([Part(), Part()]) for _ in range(2))
    assert members(model) == list(model.blocks)
