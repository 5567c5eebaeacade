"""U-ViT: from a file in the official layout to a subject, against a transcription in float64."""

import math

import pytest
import torch

from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models.uvit import FAMILY
from tests.helpers import reference
from tests.models import check, transcript

LATENT = {"channels": 4, "side": 4, "patch": 1, "width": 32, "blocks": 5, "hidden": 80, "rows": 11}
PIXEL = {"channels": 3, "side": 2, "patch": 2, "width": 24, "blocks": 7, "hidden": 96, "rows": 0,
         "qkv_bias": True, "time_mlp": True, "conv": True}  # fmt: skip
LABELLED = {**PIXEL, "rows": 10, "blocks": 3, "qkv_bias": False, "time_mlp": False}
CONFIGS = [pytest.param(c, id=n) for c, n in ((LATENT, "latent"), (PIXEL, "pixel"),
                                              (LABELLED, "labelled-pixel"))]  # fmt: skip
HEADS = 4
TIMES = [1.0, 437.0, 1000.0]


def official_shapes(*, channels, side, patch, width, blocks, hidden, rows, qkv_bias=False,
                    time_mlp=False, conv=False):  # fmt: skip
    """Names and shapes of the official model; ``side`` counts patches."""
    d, half = width, blocks // 2
    shapes = {"pos_embed": (1, side * side + (2 if rows else 1), d)}
    shapes["patch_embed.proj.weight"] = (d, channels, patch, patch)
    shapes["patch_embed.proj.bias"] = (d,)
    if rows:
        shapes["label_emb.weight"] = (rows, d)
    if time_mlp:
        shapes |= {"time_embed.0.weight": (4 * d, d), "time_embed.0.bias": (4 * d,)}
        shapes |= {"time_embed.2.weight": (d, 4 * d), "time_embed.2.bias": (d,)}
    names = [f"in_blocks.{k}" for k in range(half)] + ["mid_block"]
    for name in names + [f"out_blocks.{k}" for k in range(half)]:
        if name.startswith("out"):
            shapes[f"{name}.skip_linear.weight"] = (d, 2 * d)
            shapes[f"{name}.skip_linear.bias"] = (d,)
        for norm in ("norm1", "norm2"):
            shapes |= {f"{name}.{norm}.weight": (d,), f"{name}.{norm}.bias": (d,)}
        shapes[f"{name}.attn.qkv.weight"] = (3 * d, d)
        if qkv_bias:
            shapes[f"{name}.attn.qkv.bias"] = (3 * d,)
        shapes |= {f"{name}.attn.proj.weight": (d, d), f"{name}.attn.proj.bias": (d,)}
        shapes |= {f"{name}.mlp.fc1.weight": (hidden, d), f"{name}.mlp.fc1.bias": (hidden,)}
        shapes |= {f"{name}.mlp.fc2.weight": (d, hidden), f"{name}.mlp.fc2.bias": (d,)}
    out = patch * patch * channels
    shapes |= {"norm.weight": (d,), "norm.bias": (d,)}
    shapes |= {"decoder_pred.weight": (out, d), "decoder_pred.bias": (out,)}
    if conv:
        shapes["final_layer.weight"] = (channels, channels, 3, 3)
        shapes["final_layer.bias"] = (channels,)
    return shapes


def transcription(p, x, t, y, *, blocks, patch, rows, gates):
    """The forward pass in plain formulas over a state dict."""
    width, half = p["pos_embed"].shape[-1], blocks // 2
    frequencies = [math.exp(-math.log(10000) * j / (width // 2)) for j in range(width // 2)]
    angles = t[:, None] * torch.tensor(frequencies, dtype=t.dtype)
    time = torch.cat([torch.cos(angles), torch.sin(angles)], 1)
    if "time_embed.0.weight" in p:
        hidden = reference.silu(reference.linear(p, "time_embed.0", time))
        time = reference.linear(p, "time_embed.2", hidden)
    tokens = [p["label_emb.weight"][y][:, None]] if rows else []
    image = reference.embed_patches(
        x, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], patch
    )
    tokens += [time[:, None], image]
    stream, skips = transcript.Stream(torch.cat(tokens, 1) + p["pos_embed"], gates), []
    names = [f"in_blocks.{k}" for k in range(half)] + ["mid_block"]
    for k, name in enumerate(names + [f"out_blocks.{k}" for k in range(half)]):
        if k > half:
            both = torch.cat([stream.state(), skips.pop()], -1)
            stream.fuse(reference.linear(p, f"{name}.skip_linear", both))
        stream.block()
        if 1 <= k <= half:
            skips.append(stream.state())
        for norm, branch in (("norm1", attention), ("norm2", mlp)):
            stream.write(branch(p, name, normed(p, f"{name}.{norm}", stream.read())))
    stream.block()
    out = reference.linear(p, "decoder_pred", normed(p, "norm", stream.read()))
    image = reference.assemble_patches(out[:, 2 if rows else 1 :], patch)
    if "final_layer.weight" in p:
        image = convolve(image, p["final_layer.weight"], p["final_layer.bias"])
    return image, stream


def normed(p, name, x):
    return reference.norm(x, 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def attention(p, name, x):
    none = torch.zeros(3 * x.shape[-1], dtype=x.dtype)
    return reference.attention(
        {f"{name}.attn.qkv.bias": none, **p}, f"{name}.attn.", x, HEADS, False
    )


def mlp(p, name, x):
    x = reference.linear(p, f"{name}.mlp.fc1", x)
    return reference.linear(p, f"{name}.mlp.fc2", 0.5 * x * (1 + torch.erf(x / math.sqrt(2))))


def convolve(x, weight, bias):
    """3x3, zeros around the image."""
    height, width = x.shape[2:]
    padded = torch.zeros(*x.shape[:2], height + 2, width + 2, dtype=x.dtype)
    padded[:, :, 1:-1, 1:-1] = x
    out = bias[:, None, None]
    for i in range(3):
        for j in range(3):
            piece = padded[:, :, i : i + height, j : j + width]
            out = out + torch.einsum("oc,nchw->nohw", weight[:, :, i, j], piece)
    return out


@pytest.fixture(params=CONFIGS)
def case(request):
    """(config, state, identified, subject, inputs, loss) of one saved file."""
    state = check.random_state(official_shapes(**request.param))
    subject, identified = check.load(FAMILY, state, heads=HEADS)
    return request.param, state, identified, subject, *check.problem(identified, times=TIMES)


def test_the_sites(case):
    config, _, identified, subject, *_ = case
    blocks, half = config["blocks"], config["blocks"] // 2
    assert [r.name for r in subject.readers][:3] == [
        "block 1 attention", "block 1 mlp", "block 2 attention"
    ]  # fmt: skip
    assert [r.block for r in subject.readers] == [
        *(k for k in range(1, blocks + 1) for _ in range(2)), blocks + 1
    ]  # fmt: skip
    fusions = [(s.name, s.block) for s in subject.sources if s.kind == "fusion"]
    assert fusions == [(f"block {k} fusion", k) for k in range(half + 2, blocks + 1)]
    assert subject.facts == {
        "family": "uvit", "routing": "residual", "query": None, "chunk_size": None,
        "parameters": sum(math.prod(s) for s in official_shapes(**config).values()),
        "depth": blocks, "width": config["width"], "heads": HEADS,
        "tokens": config["side"] ** 2 + (2 if config["rows"] else 1),
    }  # fmt: skip
    side = config["side"] * config["patch"]
    assert identified.shape == (config["channels"], side, side)


def test_reads_are_sums_and_branches_are_writes(case):
    *_, subject, args, loss = case
    sums, writes = check.observe(subject, args).errors(subject)
    assert sums < 1e-14
    assert writes < 1e-14


def test_everything_against_the_transcription(case):
    config, p, _, subject, args, loss = case
    options = {name: config[name] for name in ("blocks", "patch", "rows")}
    transcript.agrees(
        lambda gates: transcription(p, *args, **options, gates=gates), subject, args, loss
    )


def test_gates_of_a_normed_reader_sum_to_zero(case):
    """Up to the norm's eps: one gate for all sources would scale what the norm ignores."""
    *_, subject, args, loss = case
    gate = check.reference(subject, args, loss)["gate"]
    # Measured: 3e-5, and 1e-3 where the stream is small and the gates of a reader are too.
    assert check.conservation(subject, gate) < 2e-3


def blank(config):
    return empty(official_shapes(**config))


def empty(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_what_a_file_tells():
    latent = check.identify(FAMILY, blank(LATENT), heads=HEADS)
    assert (latent.objective, latent.num_classes) == ("uvit", 10)
    assert latent.assumptions == [
        "a U-ViT with 4 channels: read as a model of latents, its time counts 1000 steps; "
        "--objective overrides",
        "the last of 11 rows in the label table is taken for the dropped labels",
    ]
    pixel = check.identify(FAMILY, blank(PIXEL), heads=HEADS)
    assert (pixel.objective, pixel.num_classes) == ("vp", 0)
    assert pixel.assumptions == [
        "a U-ViT with 3 channels: read as a model of images, its time is 999 t of a VP SDE; "
        "--objective overrides"
    ]
    labelled = check.identify(FAMILY, blank(LABELLED), heads=HEADS)
    assert (labelled.objective, labelled.num_classes) == ("vp", 10)


@pytest.mark.parametrize(
    ("width", "blocks", "heads"), [(512, 13, 8), (768, 17, 12), (1024, 21, 16), (1152, 29, 16)]
)
def test_heads_of_the_presets(width, blocks, heads):
    found = check.identify(FAMILY, blank({**LATENT, "width": width, "blocks": blocks}))
    assert found.sizes["heads"] == heads
    assert f"heads from the preset table for width {width}, depth {blocks}" in found.assumptions


def test_heads_that_nobody_knows():
    with pytest.raises(CheckpointError, match="no preset has width 32 and depth 5") as error:
        check.identify(FAMILY, blank(LATENT))
    assert error.value.hint == "give the number with --heads"
    with pytest.raises(UsageError, match="--heads 5 does not divide the width 32"):
        check.identify(FAMILY, blank(LATENT), heads=5)


def without(name):
    return lambda shapes: shapes.pop(name)


def reshaped(name, shape):
    return lambda shapes: shapes.update({name: shape})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (reshaped("context_embed.weight", (32, 768)), "a U-ViT that reads text, not supported yet"),
        (without("out_blocks.0.skip_linear.bias"), "'out_blocks.0.skip_linear.bias' is missing"),
        (without("mid_block.mlp.fc1.weight"), "'mid_block.mlp.fc1.weight' is missing"),
        (without("in_blocks.1.norm1.weight"), "'in_blocks.1.norm1.weight' is missing"),
        (reshaped("more", (3,)), "'more' is unexpected"),
        (reshaped("norm.weight", (31,)), r"'norm.weight' has shape \(31,\), where \(32,\) fits"),
        (reshaped("pos_embed", (1, 17, 32)), r"no square grid of tokens: 'pos_embed' has 2 \+ 15"),
        (reshaped("pos_embed", (1, 2, 32)), r"no square grid of tokens: 'pos_embed' has 2 \+ 0"),
        (reshaped("label_emb.weight", (1, 32)), "0 classes, and a label table of 1 rows"),
    ],
)  # fmt: skip
def test_refused(edit, message):
    shapes = dict(sorted(official_shapes(**LATENT).items()))
    edit(shapes)
    with pytest.raises(CheckpointError, match=message):
        check.identify(FAMILY, empty(shapes), heads=HEADS)
