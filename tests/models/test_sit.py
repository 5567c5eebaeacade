"""The backbone: counts, names, the published forward, and the plain residual bit for bit."""

import pytest
import torch

import dar_probe as dp
from dar_probe.models.sit import SiT, SiTConfig, modulate, unpatchify
from tests.helpers import reference, tiny


def count(**changes):
    with torch.device("meta"):
        model = SiT(SiTConfig.preset("SiT-XL/2", **changes))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 675_129_632),
        ({"learn_sigma": False}, 675_111_184),
        ({"routing": "dar", "query": "static"}, 675_129_632 + 131_328),
        ({"routing": "dar", "query": "static+t"}, 675_129_632 + 131_328),
        ({"routing": "dar", "query": "dynamic"}, 675_129_632 + 57 * 1152**2 + 65_664),
    ],
)
def test_parameter_counts_of_xl(changes, expected):
    assert count(**changes) == expected


def test_presets():
    shapes = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
    for size, (depth, width, heads) in shapes.items():
        for patch in (2, 4, 8):
            config = SiTConfig.preset(f"SiT-{size}/{patch}")
            assert (config.depth, config.width, config.heads, config.patch) == (
                depth, width, heads, patch,
            )  # fmt: skip
    for wrong in ("SiT-XXL/2", "SiT-XL/3", "XL/2", "UViT-S/2", ""):
        with pytest.raises(dp.UsageError):
            dp.build(wrong)


def test_names_are_the_official_ones():
    names = set(tiny.model(depth=1).state_dict())
    block = {
        f"blocks.0.{part}.{kind}"
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
        for kind in ("weight", "bias")
    }
    outside = {
        f"{part}.{kind}"
        for part in (
            "x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "final_layer.linear",
            "final_layer.adaLN_modulation.1",
        )
        for kind in ("weight", "bias")
    }  # fmt: skip
    assert names == block | outside | {"pos_embed", "y_embedder.embedding_table.weight"}


@pytest.mark.parametrize("options", tiny.ROUTINGS, ids=tiny.name_of)
@pytest.mark.parametrize("changes", [{}, {"learn_sigma": True}, {"qk_norm": True}], ids=str)
def test_forward_equals_the_transcription(options, changes):
    model = tiny.model(depth=3, **options, **changes)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    t, y = torch.tensor([0.0, 0.37, 1.0], dtype=torch.float64), torch.tensor([0, 4, 10])
    slow, _ = reference.forward(
        model.state_dict(), x, t, y, heads=2, patch=2,
        qk_norm=changes.get("qk_norm", False), **options,
    )  # fmt: skip
    # Measured: at most 1.1e-14 of the output's size.
    error = (model(x, t, y) - slow[:, :1]).abs().max()
    assert float(error.detach()) < 1e-13 * float(slow.detach().abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_residual_stream_is_plain_addition_bit_for_bit(dtype):
    model = tiny.model(depth=3, dtype=dtype)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    t, y = torch.tensor([0.2, 0.9], dtype=dtype), torch.tensor([1, 2])
    stream = model.x_embedder(x) + model.pos_embed
    c = model.t_embedder(t) + model.y_embedder(y)
    for block in model.blocks:
        parts = block.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)
        a = block.attn(modulate(block.norm1(stream), parts[0], parts[1]))
        stream = stream + parts[2] * a
        m = block.mlp(modulate(block.norm2(stream), parts[3], parts[4]))
        stream = stream + parts[5] * m
    assert torch.equal(model(x, t, y), unpatchify(model.final_layer(stream, c), model.config.patch))


@pytest.mark.parametrize("options", tiny.ROUTINGS, ids=tiny.name_of)
def test_fresh_model_writes_and_predicts_zero(options):
    config = SiTConfig(
        depth=2, width=16, heads=2, patch=2, in_channels=1, input_size=4, num_classes=10, **options
    )
    model = SiT(config)
    out = model(torch.randn(2, 1, 4, 4), torch.rand(2), torch.tensor([0, 1]))
    assert torch.equal(out, torch.zeros_like(out))
    last = model.t_embedder.mlp[2]
    assert (not last.weight.any()) == (options.get("query") == "static+t")


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(dp.UsageError, match="heads"):
        dp.build("SiT-S/2", heads=7)
    with pytest.raises(dp.UsageError, match="patch"):
        dp.build("SiT-S/8", input_size=12)
    with pytest.raises(dp.UsageError, match="setting"):
        dp.build("SiT-S/2", colour="red")
    with pytest.raises(dp.UsageError, match="routing"):
        dp.build("SiT-S/2", routing="teleport")
