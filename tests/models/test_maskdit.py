"""MaskDiT: from a file in the official layout to a subject, against plain formulas in float64."""

import argparse
import math

import pytest
import torch

from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models import registry, sit_family
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.maskdit import FAMILY
from dar_probe.models.options import CheckpointOptions
from tests.helpers import reference
from tests.models import check

FULL = {"decoder": 2, "mask_token": True}
CONFIGS = [
    pytest.param(FULL, id="masked"),
    pytest.param({"decoder": 1}, id="unmasked"),
    pytest.param({"decoder": 0}, id="no-decoder"),
    pytest.param({"decoder": 2, "classes": 0}, id="no-labels"),
]
D, E, HEADS, C, P, SIDE, CLASSES, DEPTH = 12, 32, 2, 3, 2, 4, 7, 2  # SIDE counts patches
TIMES = [math.log(sigma) / 4 for sigma in (0.01, 0.4, 20.0)]


def official_shapes(decoder=2, mask_token=False, depth=DEPTH, width=D, classes=CLASSES):
    """Names and shapes of the official network, without EDM's prefix."""
    last = E if decoder else width
    shapes = {}

    def layer(name, out, into):
        shapes[name + ".weight"], shapes[name + ".bias"] = (out, into), (out,)

    def block(name, d):
        layer(f"{name}.attn.qkv", 3 * d, d)
        layer(f"{name}.attn.proj", d, d)
        layer(f"{name}.mlp.fc1", 4 * d, d)
        layer(f"{name}.mlp.fc2", d, 4 * d)
        layer(f"{name}.adaLN_modulation.1", 6 * d, width)

    shapes["pos_embed"] = (1, SIDE * SIDE, width)
    if decoder:
        shapes["decoder_pos_embed"] = (1, SIDE * SIDE, E)
    if mask_token:
        shapes["mask_token"] = (1, 1, last)
    shapes["x_embedder.proj.weight"] = (width, C, P, P)
    shapes["x_embedder.proj.bias"] = (width,)
    layer("t_embedder.mlp.0", width, 256)
    layer("t_embedder.mlp.2", width, width)
    if classes:
        shapes["y_embedder.embedding_table.weight"] = (width, classes)
    for k in range(depth):
        block(f"blocks.{k}", width)
    if decoder:
        layer("decoder_layer.linear", E, width)
        layer("decoder_layer.adaLN_modulation.1", 2 * width, width)
    for k in range(decoder):
        block(f"decoder_blocks.{k}", E)
    layer("final_layer.linear", P * P * C, last)
    layer("final_layer.adaLN_modulation.1", 2 * last, width)
    return shapes


def file(**config):
    return check.random_state(official_shapes(**config))


def transcription(p, x, t, y, *, decoder):
    """The forward pass in plain formulas over a state dict."""
    h = reference.embed_patches(x, p["x_embedder.proj.weight"], p["x_embedder.proj.bias"], P)
    h = h + p["pos_embed"]
    c = reference.embed_time(p, t)
    if "y_embedder.embedding_table.weight" in p:
        table = p["y_embedder.embedding_table.weight"]
        c = c + torch.stack([table[:, int(label)] for label in y])
    c = reference.silu(c)

    def modulated(v, shift, scale):
        return reference.norm(v) * (1 + scale) + shift

    def block(name, v, heads):
        parts = reference.linear(p, f"{name}.adaLN_modulation.1", c)[:, None].chunk(6, dim=-1)
        u = modulated(v, *parts[:2])
        v = v + parts[2] * reference.attention(p, f"{name}.attn.", u, heads, False)
        u = reference.gelu(reference.linear(p, f"{name}.mlp.fc1", modulated(v, *parts[3:5])))
        return v + parts[5] * reference.linear(p, f"{name}.mlp.fc2", u)

    def head(name, v):
        parts = reference.linear(p, f"{name}.adaLN_modulation.1", c)[:, None].chunk(2, dim=-1)
        return reference.linear(p, f"{name}.linear", modulated(v, *parts))

    for k in range(DEPTH):
        h = block(f"blocks.{k}", h, HEADS)
    if decoder:
        h = head("decoder_layer", h) + p["decoder_pos_embed"]
        for k in range(decoder):
            h = block(f"decoder_blocks.{k}", h, 16)
    return reference.assemble_patches(head("final_layer", h), P)


@pytest.fixture(params=CONFIGS)
def case(request):
    """(config, state, identified, subject, inputs, loss) of one saved file."""
    state = file(**request.param)
    subject, identified = check.load(FAMILY, state, heads=HEADS)
    return request.param, state, identified, subject, *check.problem(identified, times=TIMES)


def test_the_sites(case):
    config, state, identified, subject, *_ = case
    blocks = DEPTH + config["decoder"]
    assert [r.name for r in subject.readers] == [
        *(f"block {k} {kind}" for k in range(1, blocks + 1) for kind in ("attention", "mlp")),
        "head",
    ]
    fusions = [(s.name, s.block, s.fresh) for s in subject.sources if s.kind == "fusion"]
    assert fusions == ([("decoder fusion", DEPTH + 1, True)] if config["decoder"] else [])
    assert subject.facts == {
        "family": "maskdit", "routing": "residual", "query": None, "chunk_size": None,
        "parameters": sum(value.numel() for value in state.values()),
        "depth": blocks, "width": D, "heads": HEADS, "tokens": SIDE * SIDE,
    }  # fmt: skip
    assert identified.shape == (C, P * SIDE, P * SIDE)
    classes = config.get("classes", CLASSES)
    assert (identified.num_classes, identified.objective) == (classes, "edm")
    said = "the decoder has 16 heads, as every decoder in the official code"
    clock = "read as MaskDiT: EDM, sigma_data 0.5; --objective overrides"
    assert identified.assumptions == ([said] if config["decoder"] else []) + [clock]


def test_forward_is_the_published_one(case):
    config, state, _, subject, args, _ = case
    expected = transcription(state, *args, decoder=config["decoder"])
    assert check.relative(subject.model(*args), expected) < 2e-14  # measured: 2e-15


def test_dropped_labels_are_as_none(case):
    config, state, _, subject, (x, t, y), _ = case
    blind = {key: value for key, value in state.items() if "y_embedder" not in key}
    expected = transcription(blind, x, t, y, decoder=config["decoder"])
    found = subject.model(x, t, torch.full_like(y, CLASSES))
    assert check.relative(found, expected) < 2e-14  # measured: 2e-15


def test_sites_are_sums_and_their_gates_those_of_factors(case):
    *_, subject, args, loss = case
    check.sites_agree(subject, args, loss, law=1e-4)


def test_states_carry_the_gradient_of_the_whole_stream(case):
    config, _, _, subject, args, loss = case
    model = subject.model
    decoder = [*model.decoder_blocks] if config["decoder"] else []
    places = [*model.blocks, *decoder, model.final_layer]
    assert check.stream_slope_error(subject, args, loss, places) < 1e-8


def test_a_file_of_the_trainer_is_read(tmp_path):
    """With EDM's prefix, and decoder blocks that are no later blocks of REPA's."""
    state = {f"model.{key}": value.float() for key, value in file(**FULL).items()}
    raw = {f"_orig_mod.module.{key}": value + 1 for key, value in state.items()}
    args = argparse.Namespace(config="configs/train/imagenet256-latent.yaml", cfg_scale=None)
    path = tmp_path / "0050000.pt"
    torch.save({"model": raw, "ema": state, "opt": {}, "args": args}, path)
    loaded = load_checkpoint(CheckpointOptions(path=path, heads=HEADS))
    assert (loaded.file["weights"], loaded.objective.name) == ("ema", "edm")
    for key, value in loaded.model.state_dict().items():
        assert torch.equal(value, state[f"model.{key}"])
    drawn, _ = loaded.draw(2, seed=0)
    assert drawn.shape == (2, C, P * SIDE, P * SIDE) and bool(drawn.isfinite().all())


@pytest.mark.parametrize(
    ("width", "depth", "heads"),
    [(384, 12, 6), (768, 12, 12), (1024, 24, 16), (1152, 28, 16), (1280, 32, 16)],
)
def test_heads_of_the_presets(width, depth, heads):
    shapes = official_shapes(**FULL, depth=depth, width=width)
    found = check.identify(FAMILY, {k: torch.empty(s, device="meta") for k, s in shapes.items()})
    assert found.sizes["heads"] == heads
    assert f"heads from the preset table for width {width}, depth {depth}" in found.assumptions


def test_heads_that_nobody_knows():
    with pytest.raises(CheckpointError, match="no preset has width 12 and depth 2"):
        check.identify(FAMILY, file(**FULL))
    with pytest.raises(UsageError, match="--heads 5 does not divide the width 12"):
        check.identify(FAMILY, file(**FULL), heads=5)


def test_a_label_table_of_rows_is_dit_s():
    state = file(decoder=0)
    state["y_embedder.embedding_table.weight"] = torch.zeros(CLASSES, D)
    assert registry.family_of(check.header(state)) is sit_family.FAMILY


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("cls_token", (1, 1, D), "a MaskDiT with a class token or features, not supported yet"),
        ("feat_embedder.weight", (D, 5), "'feat_embedder.weight'"),
        ("decoder_blocks.1.mlp.fc1.bias", None, "'decoder_blocks.1.mlp.fc1.bias' is missing"),
        ("blocks.1.attn.proj.bias", None, "'blocks.1.attn.proj.bias' is missing"),
        ("decoder_pos_embed", (1, 15, E), r"'decoder_pos_embed' has shape \(1, 15, 32\)"),
        ("decoder_pos_embed", (1, 16, 24), "heads of its decoder, and 16, as in the official"),
        ("decoder_layer.linear.weight", (24, D), r"has shape \(24, 12\), where \(32, 12\) fits"),
        ("decoder_layer.linear.bias", None, "'decoder_layer.linear.bias' is missing"),
        ("y_embedder.embedding_table.weight", (9, 7), r"where \(12, 7\) fits the rest"),
        ("final_layer.linear.bias", (2 * P * P * C,), r"'final_layer.linear.bias' has shape"),
        ("mask_token", (1, 1, D), r"'mask_token' has shape \(1, 1, 12\)"),
        ("more", (3,), "'more' is unexpected"),
    ],
)
def test_refused(key, shape, message):
    state = file(**FULL)
    if shape is None:
        del state[key]
    else:
        state[key] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=message):
        check.identify(FAMILY, state, heads=HEADS)
