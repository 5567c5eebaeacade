"""Models without weights: nothing is allocated or initialised, and real tensors are left alone."""

import torch
from torch import nn

from dar_probe.models.blank import without_weights
from tests.helpers import tiny


def test_every_parameter_is_on_the_meta_device_and_has_its_shape():
    real = tiny.model()
    with without_weights():
        blank = tiny.model()
    shapes = {name: value.shape for name, value in blank.state_dict().items()}
    assert shapes == {name: value.shape for name, value in real.state_dict().items()}
    assert all(parameter.is_meta for parameter in blank.parameters())


def test_tensors_with_memory_are_filled_as_ever():
    with without_weights():
        kept = torch.empty(3, device="cpu").fill_(2.0)
        nn.init.constant_(other := torch.empty(3, device="cpu"), 5.0)
        nn.init.constant_(tensor=(named := torch.empty(3, device="cpu")), val=7.0)
        nn.init.zeros_(blank := torch.empty(3))
    assert kept.tolist() == [2.0] * 3 and other.tolist() == [5.0] * 3
    assert named.tolist() == [7.0] * 3 and blank.is_meta


def test_the_random_state_is_left_alone():
    before = torch.get_rng_state()
    with without_weights():
        nn.TransformerEncoderLayer(8, 2, 16)
    assert torch.equal(torch.get_rng_state(), before)
