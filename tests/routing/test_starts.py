"""How every scheme starts, by the numbers of its paper, and the options that just fit."""

import math

import pytest
import torch

from dar_probe.errors import UsageError
from dar_probe.models.sit import SiT, SiTConfig
from dar_probe.routing import Layout, make
from dar_probe.routing.schemes import known

WIDTH = 16


def build(name, depth=4, **options):
    torch.manual_seed(0)
    config = SiTConfig(
        depth=depth, width=WIDTH, heads=2, patch=2, in_channels=1, input_size=8, num_classes=10,
        learn_sigma=False, routing=name, **options,
    )  # fmt: skip
    return SiT(config)


@pytest.mark.parametrize(
    ("blocks", "start"), [(1, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6), (48, 1e-6)]
)
def test_layer_scale_starts_smaller_in_deeper_models(blocks, start):
    """CaiT, arXiv 2103.17239, section 2: 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 beyond."""
    stream = make("layerscale", 3, Layout.transformer(blocks))
    assert stream.scale.shape == (2 * blocks, 3)
    assert torch.equal(stream.scale, torch.full((2 * blocks, 3), start))


@pytest.mark.parametrize("name", sorted(known()))
def test_the_gates_of_adaln_start_at_one_where_the_stream_starts_closed(name):
    """Of shift, scale and gate, for attention and then for the MLP, the gates are 2 and 5."""
    opened = name in ("layerscale", "highway")
    if name == "rezero":
        opened = bool(build(name).blocks[0].adaLN_modulation[1].bias.any())
    for block in build(name).blocks:
        last = block.adaLN_modulation[1]
        assert not last.weight.any()
        wanted = torch.zeros(6, WIDTH)
        if opened:
            wanted[2] = wanted[5] = 1
        assert torch.equal(last.bias.view(6, WIDTH), wanted)


def test_rezero_starts_at_zero_with_open_gates():
    model = build("rezero")
    assert model.stream.scale.shape == (8,) and not model.stream.scale.any()
    assert model.blocks[0].adaLN_modulation[1].bias.view(6, WIDTH)[[2, 5]].eq(1).all()


def test_highway_starts_by_carrying():
    model = build("highway")
    for gate in model.stream.gates:
        assert not gate.weight.any() and torch.equal(gate.bias, torch.full((WIDTH,), -2.0))


@pytest.mark.parametrize("depth", [2, 5])
def test_deep_norm_starts_smaller_by_the_fourth_root_of_8_blocks(depth):
    """arXiv 2203.00555, figure 2: values, output projections and MLPs, and nothing else."""
    plain = dict(build("residual", depth).named_parameters())
    found = dict(build("deepnorm", depth).named_parameters())
    assert plain.keys() == found.keys()
    for name, parameter in found.items():
        wanted, divisor = plain[name].clone(), (8 * depth) ** 0.25
        if name.endswith("attn.qkv.weight"):
            wanted[2 * WIDTH :] /= divisor
        elif ".attn.proj.weight" in name or ".mlp.fc" in name and name.endswith("weight"):
            wanted /= divisor
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("streams", [1, 2, 3, 4])
def test_hyper_connections_start_as_plain_addition_in_every_stream(streams):
    """arXiv 2409.19606: sublayer l, counted from 0, reads stream l mod n."""
    layout = Layout.transformer(3)
    for name in ("hc-static", "hc-dynamic"):
        stream = make(name, 4, layout, streams=streams)
        x = torch.randn(2, 5, streams, 4)
        for l in range(1, 7):
            read, mix, write = stream.coefficients(x, l)
            wanted = torch.zeros(streams)
            wanted[(l - 1) % streams] = 1
            assert torch.equal(read.expand(2, 5, -1), wanted.expand(2, 5, -1))
            eye = torch.eye(streams)
            assert torch.equal(mix.expand(2, 5, -1, -1), eye.expand(2, 5, -1, -1))
            assert torch.equal(write.expand(2, 5, -1), torch.ones(2, 5, streams))


@pytest.mark.parametrize(("name", "streams"), [("mhc", 4), ("mhc-lite", 4), ("mhc-lite", 2)])
def test_manifold_connections_start_near_the_identity(name, streams):
    """Read sigmoid(1) of stream l mod n and sigmoid(-1) of others, write twice that."""
    stream = make(name, 4, Layout.transformer(2), streams=streams).double()
    x = torch.randn(2, 5, streams, 4, dtype=torch.float64)
    up, down = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    for l in range(1, 5):
        read, mix, write = stream.coefficients(x, l)
        wanted = torch.full((streams,), down, dtype=torch.float64)
        wanted[(l - 1) % streams] = up
        torch.testing.assert_close(read, wanted.expand_as(read), rtol=1e-12, atol=0)
        torch.testing.assert_close(write, 2 * wanted.expand_as(write), rtol=1e-12, atol=0)
        for dim in (-1, -2):
            torch.testing.assert_close(
                mix.sum(dim), torch.ones_like(read), rtol=1e-9, atol=0
            )  # fmt: skip
        # Away from the identity: e^-8 for every other entry, or for every other permutation.
        others = streams - 1 if name == "mhc" else math.factorial(streams) - 1
        assert float(mix[0, 0].detach().diagonal().min()) > 1 - 2 * others * math.exp(-8)
        if name == "mhc-lite":
            share = 1 / (1 + others * math.exp(-8))
            kept = share * (1 + (math.factorial(streams - 1) - 1) * math.exp(-8))
            torch.testing.assert_close(
                mix.diagonal(dim1=-2, dim2=-1), torch.full_like(read, kept), rtol=1e-9, atol=0
            )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hc-static", {"streams": 1}),
        ("hc-static", {"streams": 16}),
        ("mhc-lite", {"streams": 1}),
        ("mhc-lite", {"streams": 5}),
        ("denseformer", {"dilation": 1, "period": 1}),
        ("attnres-block", {"chunk_size": 1}),
        ("dar", {"chunk_size": 1}),
    ],
)
def test_options_at_the_edge_of_what_fits(name, options):
    make(name, 4, Layout.transformer(2), **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hc-static", {"streams": 17}),
        ("mhc", {"streams": 0}),
        ("denseformer", {"period": 0}),
        ("dar", {"chunk_size": 0}),
    ],
)
def test_options_just_beyond(name, options):
    with pytest.raises(UsageError):
        make(name, 4, Layout.transformer(2), **options)


@pytest.mark.parametrize(("name", "fewest"), [("uvit", 2), ("hunyuan", 4), ("dar-uvit", 2)])
def test_the_fewest_blocks_of_long_skips(name, fewest):
    options = {"chunk_size": 1} if name == "dar-uvit" else {}
    make(name, 4, Layout.transformer(fewest), **options)
    with pytest.raises(UsageError, match="too few"):
        make(name, 4, Layout.transformer(fewest - 1), **options)
