"""FiT: from a file in the official layout to a subject, against a transcription in float64."""

import math

import pytest
import torch

from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models.fit import FAMILY
from dar_probe.models.generator import load_generator
from dar_probe.models.options import CheckpointOptions, SamplingOptions
from dar_probe.models.registry import family_of
from tests.helpers import reference
from tests.models import check, transcript

FIRST = {"width": 16, "depth": 2, "hidden": 40, "rows": 11, "features": 16, "rank": 0,
         "swiglu": True, "learn_sigma": True}  # fmt: skip
SECOND = {**FIRST, "rank": 5, "features": 12, "learn_sigma": False}
PLAIN = {**FIRST, "depth": 1, "swiglu": False}
CONFIGS = [
    pytest.param(FIRST, id="FiT"), pytest.param(SECOND, id="FiTv2"), pytest.param(PLAIN, id="mlp"),
]  # fmt: skip
HEADS, SIDE = 2, 16
TIMES = [0.0, 0.4, 437.0]


def official_shapes(*, width, depth, hidden, rows, features, rank, swiglu, learn_sigma):
    """Names and shapes of the official model; ``features`` are those of one patch."""
    d, shapes = width, {}

    def linear(name, out, into):
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    linear("x_embedder.proj", d, features)
    linear("t_embedder.mlp.0", d, 256)
    linear("t_embedder.mlp.2", d, d)
    shapes["y_embedder.embedding_table.weight"] = (rows, d)
    if rank:
        linear("global_adaLN_modulation.1", 6 * d, d)
    for k in range(depth):
        b = f"blocks.{k}."
        linear(b + "attn.qkv", 3 * d, d)
        linear(b + "attn.proj", d, d)
        for name in ("mlp.fc1_g", "mlp.fc1_x") if swiglu else ("mlp.fc1",):
            linear(b + name, hidden, d)
        linear(b + "mlp.fc2", d, hidden)
        linear(b + "adaLN_modulation.1", rank or 6 * d, d)
        if rank:
            linear(b + "adaLN_modulation.2", 6 * d, rank)
    linear("final_layer.linear", features * (2 if learn_sigma else 1), d)
    linear("final_layer.adaLN_modulation.1", 2 * d, d)
    return shapes


def official_state(config):
    """Random weights; large modulations would sharpen the attention, and cost digits."""
    state = check.random_state(official_shapes(**config))
    return {name: value * 0.4 if "adaLN" in name else value for name, value in state.items()}


def transcription(p, x, t, y, config, gates):
    """The forward pass in plain formulas; the features of a patch are channel, row, column."""
    width, features = config["width"], config["features"]
    places = [(2 * i, 2 * j) for i in range(SIDE) for j in range(SIDE)]
    patches = [x[:, :, i : i + 2, j : j + 2].reshape(len(x), features) for i, j in places]
    c = reference.embed_time(p, t) + p["y_embedder.embedding_table.weight"][y]
    embedded = reference.linear(p, "x_embedder.proj", torch.stack(patches, 1))
    stream = transcript.Stream(embedded, gates)
    for k in range(config["depth"]):
        b = f"blocks.{k}."
        stream.block()
        modulation = reference.linear(p, b + "adaLN_modulation.1", reference.silu(c))
        if config["rank"]:
            modulation = reference.linear(p, b + "adaLN_modulation.2", modulation)
            modulation += reference.linear(p, "global_adaLN_modulation.1", reference.silu(c))
        parts = [modulation[:, None, j * width : (j + 1) * width] for j in range(6)]
        h = reference.norm(stream.read()) * (1 + parts[1]) + parts[0]
        stream.write(parts[2] * attention(p, b + "attn.", h, normed=config["rank"] > 0))
        h = reference.norm(stream.read()) * (1 + parts[4]) + parts[3]
        if config["swiglu"]:
            gated = reference.silu(reference.linear(p, b + "mlp.fc1_g", h))
            h = gated * reference.linear(p, b + "mlp.fc1_x", h)
        else:
            h = reference.gelu(reference.linear(p, b + "mlp.fc1", h))
        stream.write(parts[5] * reference.linear(p, b + "mlp.fc2", h))
    stream.block()
    modulation = reference.linear(p, "final_layer.adaLN_modulation.1", reference.silu(c))
    h = reference.norm(stream.read()) * (1 + modulation[:, None, width:])
    h = reference.linear(p, "final_layer.linear", h + modulation[:, None, :width])
    image = torch.zeros_like(x)
    for token, (i, j) in enumerate(places):
        patch = h[:, token].reshape(len(x), -1, 2, 2)
        image[:, :, i : i + 2, j : j + 2] = patch[:, : x.shape[1]]
    return image, stream


def attention(p, name, x, normed):
    """Pairs of features are complex numbers: the first half turns by row, the other by column."""
    width, size = x.shape[-1], x.shape[-1] // HEADS
    turns = torch.zeros(SIDE * SIDE, size // 2, dtype=torch.complex128)
    for token in range(SIDE * SIDE):
        for pair in range(size // 2):
            place = divmod(token, SIDE)[pair // (size // 4)]
            angle = place / 10000 ** (pair % (size // 4) / (size // 4))
            turns[token, pair] = complex(math.cos(angle), math.sin(angle))
    qkv, heads = reference.linear(p, name + "qkv", x), []
    for h in range(HEADS):
        q, k, v = (qkv[..., j * width + h * size : j * width + (h + 1) * size] for j in range(3))
        q, k = (reference.norm(q), reference.norm(k)) if normed else (q, k)
        q, k = (
            torch.view_as_real(torch.view_as_complex(u.reshape(*u.shape[:2], -1, 2)) * turns)
            for u in (q, k)
        )
        scores = q.flatten(2) @ k.flatten(2).transpose(1, 2) / math.sqrt(size)
        heads.append(torch.softmax(scores, -1) @ v)
    return reference.linear(p, name + "proj", torch.cat(heads, -1))


@pytest.fixture(params=CONFIGS)
def case(request):
    """(config, state, identified, subject, inputs, loss) of one saved file."""
    state = official_state(request.param)
    subject, identified = check.load(FAMILY, state, heads=HEADS)
    return request.param, state, identified, subject, *check.problem(identified, times=TIMES)


def test_the_sites(case):
    config, _, identified, subject, *_ = case
    depth = config["depth"]
    assert [(r.name, r.block) for r in subject.readers] == [
        *((f"block {k} {kind}", k) for k in range(1, depth + 1) for kind in ("attention", "mlp")),
        ("head", depth + 1),
    ]
    assert subject.facts == {
        "family": "fit", "routing": "residual", "query": None, "chunk_size": None,
        "parameters": sum(math.prod(s) for s in official_shapes(**config).values()),
        "depth": depth, "width": config["width"], "heads": HEADS, "tokens": SIDE**2,
    }  # fmt: skip
    assert identified.shape == (config["features"] // 4, 2 * SIDE, 2 * SIDE)
    assert (identified.num_classes, identified.objective) == (
        10,
        "sit" if config["rank"] else "dit",
    )


def test_reads_are_sums_and_branches_are_writes(case):
    *_, subject, args, _ = case
    sums, writes = check.observe(subject, args).errors(subject)
    assert sums < 1e-14
    assert writes < 1e-14


def test_everything_against_the_transcription(case):
    config, p, _, subject, args, loss = case
    transcript.agrees(lambda gates: transcription(p, *args, config, gates), subject, args, loss)


def empty(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_what_the_first_one_does_not_tell():
    sizes = {"width": 1152, "depth": 28, "hidden": 4608, "rows": 1001}
    found = check.identify(FAMILY, empty(official_shapes(**FIRST | sizes)))
    assert (found.sizes["heads"], found.shape) == (16, (4, 32, 32))
    assert [line.split(":")[0] for line in found.assumptions] == [
        "heads from the preset table for width 1152, depth 28",
        "latents of 32 x 32 in patches of 2 x 2, without padding",
        "queries and keys are not normalised, as in the first FiT, and rotated by positions on "
        "that grid",
        "the last of 1001 rows in the label table is taken for the dropped labels",
        "learned variances",
    ]
    (variances,) = found.assumptions[-1:]
    assert "noise at steps 0..999" in variances and "published code caps them at 1" in variances


def test_what_the_second_one_does_not_tell():
    for width, depth, heads in ((1152, 36, 16), (2304, 40, 24)):
        shapes = official_shapes(**SECOND | {"width": width, "depth": depth})
        assert check.identify(FAMILY, empty(shapes)).sizes["heads"] == heads
    found = check.identify(FAMILY, empty(official_shapes(**SECOND)), heads=HEADS)
    assert found.assumptions[1].startswith("queries and keys are normalised, as in FiTv2")
    assert found.assumptions[-1].startswith("no learned variances: read as FiTv2, a flow")


def test_settings_tell_patch_and_path():
    args = {"patch_size": 1, "path_type": "GVP", "prediction": "velocity"}
    found = check.identify(FAMILY, empty(official_shapes(**SECOND)), args=args, heads=HEADS)
    assert found.shape == (12, 16, 16)
    assert found.objective == "sit:gvp:velocity"


def test_a_matrix_of_patches_makes_no_other_family_of_it():
    """Norms with weights are LightningDiT's, with a convolution of patches."""
    shapes = official_shapes(**FIRST) | {"blocks.0.norm1.weight": (16,)}
    head = check.header(empty(shapes))
    assert family_of(head) is FAMILY
    head.shapes["x_embedder.proj.weight"] = (16, 4, 2, 2)
    assert family_of(head) is not FAMILY


def changed(name, shape):
    return lambda shapes: shapes.update({name: shape}) if shape else shapes.pop(name)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (changed("blocks.1.mlp.fc2.bias", None), "'blocks.1.mlp.fc2.bias' is missing"),
        (changed("blocks.0.norm1.weight", (16,)), "'blocks.1.norm1.weight' is missing"),
        (changed("global_adaLN_modulation.1.weight", None), "'global_adaLN_modulation.1.bias' is"),
        (changed("more", (3,)), "'more' is unexpected"),
        (changed("final_layer.linear.bias", (36,)), r"'final_layer.linear.bias' has shape \(36,\)"),
        (changed("x_embedder.proj.weight", (16, 15)), "has patches of 15 numbers, which are no 2"),
        (changed("blocks.0.adaLN_modulation.2.weight", (96, 4)), r"weight' has shape \(96, 4\)"),
    ],
)  # fmt: skip
def test_refused(edit, message):
    shapes = official_shapes(**SECOND)
    edit(shapes)
    with pytest.raises(CheckpointError, match=message):
        check.identify(FAMILY, empty(shapes), heads=HEADS)


def test_heads_that_rotations_do_not_split():
    with pytest.raises(UsageError, match="8 heads of 'model.pt' would have 2 features each"):
        check.identify(FAMILY, empty(official_shapes(**FIRST)), heads=8)
    with pytest.raises(CheckpointError, match="no preset has width 16 and depth 2"):
        check.identify(FAMILY, empty(official_shapes(**FIRST)))


def test_dropped_labels_are_there_to_guide_by(tmp_path):
    path = check.save(tmp_path / "fit.pt", official_state(SECOND))
    found = load_generator(CheckpointOptions(path=path, heads=HEADS), SamplingOptions(guidance=2))
    assert found.sampler.null_class == 10
    args = {"num_classes": 11, "class_dropout_prob": 0}
    path = check.save(tmp_path / "all.pt", official_state(SECOND), args)
    with pytest.raises(UsageError, match="guidance needs a model that was trained with dropped"):
        load_generator(CheckpointOptions(path=path, heads=HEADS), SamplingOptions(guidance=2))
