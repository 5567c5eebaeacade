"""A model as it was made is told from one that has learnt anything."""

import pytest
import torch
from torch import nn

from dar_probe.sites.freshness import LAYERS, NORMS, freshness


class Block(nn.Module):
    def __init__(self, *, affine, width=64):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=affine)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


def stack(*, affine):
    torch.manual_seed(0)
    return nn.Sequential(*(Block(affine=affine) for _ in range(3)))


def learn(model, kind, rate):
    step = kind(model.parameters(), lr=rate)
    model(torch.randn(8, 64)).square().mean().backward()
    step.step()


@pytest.mark.parametrize(("affine", "why"), [(True, NORMS), (False, LAYERS)])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_the_first_step_of_training_is_noticed(affine, why, kind):
    model = stack(affine=affine)
    assert freshness(model) == why
    learn(model, kind, 1e-4 if kind is torch.optim.AdamW else 1.0)
    assert freshness(model) == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_of_numbers_are_as_fresh(dtype):
    assert freshness(stack(affine=False).to(dtype)) == LAYERS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [None, torch.float32])
def test_gains_that_cannot_move_say_nothing(dtype, stored):
    """In 16 bits one and a step of 1e-4 round to one, however long a model was trained."""
    model = stack(affine=True).to(dtype)
    assert freshness(model) == LAYERS
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data += 0.05 * torch.randn_like(module.weight)
    assert freshness(model.to(stored or dtype)) == ""


def test_other_ways_to_initialise_tell_nothing():
    """Nobody can know whether normal numbers were learnt: no model is called untrained for them."""
    model = stack(affine=False)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
    assert freshness(model) == ""
    assert freshness(nn.Sequential(nn.Conv2d(3, 64, 3))) == ""
    assert freshness(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3))) == NORMS


def test_a_few_layers_may_be_initialised_by_other_means():
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(20)))
    nn.init.zeros_(model[3].weight)
    assert freshness(model) == LAYERS
    for layer in model[:10]:
        nn.init.xavier_normal_(layer.weight)
    assert freshness(model) == ""
