"""Latte: from a file in the official layout to a subject, against a transcription in float64."""

import math

import pytest
import torch

from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models.generator import load_generator
from dar_probe.models.latte import FAMILY
from dar_probe.models.options import CheckpointOptions
from tests.helpers import reference
from tests.models import check, transcript

SMALL = {"frames": 3, "channels": 4, "side": 2, "patch": 2, "width": 24, "blocks": 4, "hidden": 72,
         "rows": 11, "learn_sigma": True}  # fmt: skip
PLAIN = {**SMALL, "frames": 5, "channels": 2, "side": 3, "patch": 1, "blocks": 2, "rows": 0,
         "learn_sigma": False}  # fmt: skip
CONFIGS = [pytest.param(SMALL, id="labelled"), pytest.param(PLAIN, id="unconditional")]
HEADS = 4
TIMES = [0.0, 437.0, 999.0]


def official_shapes(*, frames, channels, side, patch, width, blocks, hidden, rows, learn_sigma):
    """Names and shapes of the official model; ``side`` counts patches."""
    d, shapes = width, {"pos_embed": (1, side * side, width), "temp_embed": (1, frames, width)}

    def linear(name, out, into):
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    shapes |= {"x_embedder.proj.weight": (d, channels, patch, patch), "x_embedder.proj.bias": (d,)}
    linear("t_embedder.mlp.0", d, 256)
    linear("t_embedder.mlp.2", d, d)
    if rows:
        shapes["y_embedder.embedding_table.weight"] = (rows, d)
    for k in range(blocks):
        linear(f"blocks.{k}.attn.qkv", 3 * d, d)
        linear(f"blocks.{k}.attn.proj", d, d)
        linear(f"blocks.{k}.mlp.fc1", hidden, d)
        linear(f"blocks.{k}.mlp.fc2", d, hidden)
        linear(f"blocks.{k}.adaLN_modulation.1", 6 * d, d)
    linear("final_layer.linear", patch * patch * channels * (2 if learn_sigma else 1), d)
    linear("final_layer.adaLN_modulation.1", 2 * d, d)
    return shapes


def official_state(config):
    """Random weights; large modulations would sharpen the attention, and cost digits."""
    state = check.random_state(official_shapes(**config))
    return {name: value * 0.2 if "adaLN" in name else value for name, value in state.items()}


def transcription(p, x, t, y, config, gates):
    """The forward pass in plain formulas; token f T + s of the stream is place s in frame f."""
    frames, tokens, width = config["frames"], config["side"] ** 2, config["width"]
    weight, bias = p["x_embedder.proj.weight"], p["x_embedder.proj.bias"]
    pictures = [
        reference.embed_patches(x[:, f], weight, bias, config["patch"]) + p["pos_embed"]
        for f in range(frames)
    ]
    c = reference.embed_time(p, t)
    if config["rows"]:
        c = c + p["y_embedder.embedding_table.weight"][y]
    stream = transcript.Stream(torch.cat(pictures, 1), gates)
    # Tokens that see each other: in one frame in even blocks, in one place in odd ones.
    groups = [
        [[f * tokens + s for s in range(tokens)] for f in range(frames)],
        [[f * tokens + s for f in range(frames)] for s in range(tokens)],
    ]
    for k in range(config["blocks"]):
        b = f"blocks.{k}."
        if k == 1:
            late = [p["temp_embed"][:, token // tokens] for token in range(frames * tokens)]
            stream.fuse(stream.state() + torch.stack(late, 1))
        stream.block()
        modulation = reference.linear(p, b + "adaLN_modulation.1", reference.silu(c))
        parts = [modulation[:, None, j * width : (j + 1) * width] for j in range(6)]
        h = reference.norm(stream.read()) * (1 + parts[1]) + parts[0]
        out = torch.zeros_like(h)
        for group in groups[k % 2]:
            out[:, group] = reference.attention(p, b + "attn.", h[:, group], HEADS, False)
        stream.write(parts[2] * out)
        h = reference.norm(stream.read()) * (1 + parts[4]) + parts[3]
        h = reference.gelu(reference.linear(p, b + "mlp.fc1", h))
        stream.write(parts[5] * reference.linear(p, b + "mlp.fc2", h))
    stream.block()
    modulation = reference.linear(p, "final_layer.adaLN_modulation.1", reference.silu(c))
    h = reference.norm(stream.read()) * (1 + modulation[:, None, width:])
    h = reference.linear(p, "final_layer.linear", h + modulation[:, None, :width])
    pictures = [
        reference.assemble_patches(h[:, f * tokens : (f + 1) * tokens], config["patch"])
        for f in range(frames)
    ]
    return torch.stack(pictures, 1)[:, :, : config["channels"]], stream


@pytest.fixture(params=CONFIGS)
def case(request):
    """(config, state, identified, subject, inputs, loss) of one saved file."""
    state = official_state(request.param)
    subject, identified = check.load(FAMILY, state, heads=HEADS)
    return request.param, state, identified, subject, *check.problem(identified, times=TIMES)


def test_the_sites(case):
    config, _, identified, subject, *_ = case
    blocks, side = config["blocks"], config["side"] * config["patch"]
    assert [(r.name, r.block) for r in subject.readers] == [
        *((f"block {k} {kind}", k) for k in range(1, blocks + 1) for kind in ("attention", "mlp")),
        ("head", blocks + 1),
    ]
    fusions = [(s.name, s.block) for s in subject.sources if s.kind == "fusion"]
    assert fusions == [("temporal position fusion", 2)]
    assert subject.facts == {
        "family": "latte", "routing": "residual", "query": None, "chunk_size": None,
        "parameters": sum(math.prod(s) for s in official_shapes(**config).values()),
        "depth": blocks, "width": config["width"], "heads": HEADS,
        "tokens": config["frames"] * config["side"] ** 2,
    }  # fmt: skip
    assert identified.shape == (config["frames"], config["channels"], side, side)
    assert (identified.num_classes, identified.objective) == (10 if config["rows"] else 0, "dit")


def test_reads_are_sums_and_branches_are_writes(case):
    *_, subject, args, _ = case
    sums, writes = check.observe(subject, args).errors(subject)
    assert sums < 1e-14
    assert writes < 1e-14


def test_everything_against_the_transcription(case):
    config, p, _, subject, args, loss = case
    transcript.agrees(
        lambda gates: transcription(p, *args, config, gates), subject, args, loss, values=3e-13
    )  # measured: 1.2e-13


def test_gates_of_a_normed_reader_sum_to_zero(case):
    """Up to the norm's eps: one gate for all sources would scale what the norm ignores."""
    *_, subject, args, loss = case
    gate = check.reference(subject, args, loss)["gate"]
    assert check.conservation(subject, gate) < 1e-4


def empty(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_what_a_file_does_not_tell():
    heads = "heads from the preset table for width 384, depth 12"
    sizes = {"width": 384, "blocks": 12, "frames": 4, "rows": 0}
    found = check.identify(FAMILY, empty(official_shapes(**SMALL | sizes)))
    assert found.sizes["heads"] == 6
    assert found.assumptions == [
        heads,
        "of 4 frames and 4 channels, frames come first",
        "read as Latte: steps 0..999, linear betas, noise; --objective overrides",
    ]
    with pytest.raises(CheckpointError, match="no preset has width 24 and depth 4"):
        check.identify(FAMILY, empty(official_shapes(**SMALL)))


def changed(name, shape):
    return lambda shapes: shapes.update({name: shape}) if shape else shapes.pop(name)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (changed("text_embedding_projection.1.weight", (24, 77 * 768)), "a Latte that reads text"),
        (changed("blocks.3.mlp.fc1.bias", None), "'blocks.3.mlp.fc1.bias' is missing"),
        (changed("pos_embed", None), "'pos_embed' is missing"),
        (changed("blocks.0.attn.more", (3,)), "'blocks.1.attn.more' is missing"),
        (changed("more", (3,)), "'more' is unexpected"),
        (changed("temp_embed", (1, 3, 23)), r"'temp_embed' has shape \(1, 3, 23\), where \(1, 3, "),
        (changed("temp_embed", (3, 24)), r"'temp_embed' has shape \(3, 24\), which fits no known"),
        (changed("pos_embed", (1, 3, 24)), "no square grid of tokens: 'pos_embed' has 3 of them"),
        (changed("final_layer.linear.bias", (48,)), r"'final_layer.linear.bias' has shape \(48,\)"),
        (changed("y_embedder.embedding_table.weight", (1, 24)), "0 classes, and a label table of"),
    ],
)  # fmt: skip
def test_refused(edit, message):
    shapes = official_shapes(**SMALL)
    edit(shapes)
    with pytest.raises(CheckpointError, match=message):
        check.identify(FAMILY, empty(shapes), heads=HEADS)


def test_blocks_that_are_no_pairs():
    with pytest.raises(CheckpointError, match="3 blocks are no pairs of a spatial and a temporal"):
        check.identify(FAMILY, empty(official_shapes(**SMALL | {"blocks": 3})), heads=HEADS)


def test_videos_are_no_images_to_draw(tmp_path):
    path = check.save(tmp_path / "video.pt", official_state(SMALL))
    with pytest.raises(UsageError, match="samples of 3x4x4x4, which are no images"):
        load_generator(CheckpointOptions(path=path, heads=HEADS))
