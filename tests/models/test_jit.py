"""JiT: from a file in the official layout to a subject, against a transcription in float64."""

import math

import pytest
import torch

from dar_probe.diffusion import objectives
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models.jit import FAMILY
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.options import CheckpointOptions
from tests.helpers import reference
from tests.models import check, transcript

SMALL = {"depth": 4, "width": 16, "heads": 2, "patch": 2, "grid": 3, "bottleneck": 5, "hidden": 21,
         "rows": 6, "context": 2}  # fmt: skip
CONFIGS = {"midway": (SMALL, 2), "from the first block": (SMALL, 0),
           "no context": ({**SMALL, "depth": 3, "context": 0}, None)}  # fmt: skip
TIMES = [0.02, 0.5, 0.99]


def official_shapes(*, depth, width, heads, patch, grid, bottleneck, hidden, rows, context):
    """Names and shapes of the official network, whose rotary tables are not stored."""
    d, size = width, width // heads
    shapes = {
        "pos_embed": (1, grid * grid, d),
        "x_embedder.proj1.weight": (bottleneck, 3, patch, patch),
        "x_embedder.proj2.weight": (d, bottleneck, 1, 1),
        "x_embedder.proj2.bias": (d,),
        "y_embedder.embedding_table.weight": (rows, d),
        "final_layer.norm_final.weight": (d,),
    }
    linears = {"t_embedder.mlp.0": (d, 256), "t_embedder.mlp.2": (d, d)}
    if context:
        shapes["in_context_posemb"] = (1, context, d)
    for k in range(depth):
        b = f"blocks.{k}."
        shapes |= {b + "norm1.weight": (d,), b + "norm2.weight": (d,)}
        shapes |= {b + "attn.q_norm.weight": (size,), b + "attn.k_norm.weight": (size,)}
        linears |= {b + "attn.qkv": (3 * d, d), b + "attn.proj": (d, d)}
        linears |= {b + "mlp.w12": (2 * hidden, d), b + "mlp.w3": (d, hidden)}
        linears[b + "adaLN_modulation.1"] = (6 * d, d)
    linears["final_layer.linear"] = (patch * patch * 3, d)
    linears["final_layer.adaLN_modulation.1"] = (2 * d, d)
    for name, (out, into) in linears.items():
        shapes |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    return shapes


def settings(start, **more):
    return {"class_num": 5, "noise_scale": 1.0, "t_eps": 0.05, "in_context_start": start, **more}


def transcription(p, x, t, y, *, config, start, gates):
    """The forward in plain formulas; the stream is the image's, other tokens go along ungated."""
    patch, heads, context = config["patch"], config["heads"], config["context"]
    weight = p["x_embedder.proj2.weight"][..., 0, 0]
    inner = torch.zeros(len(p["x_embedder.proj1.weight"]), dtype=x.dtype)
    squeezed = reference.embed_patches(x, p["x_embedder.proj1.weight"], inner, patch)
    tokens = squeezed @ weight.T + p["x_embedder.proj2.bias"] + p["pos_embed"]
    label = p["y_embedder.embedding_table.weight"][y]
    c = reference.silu(reference.embed_time(p, t) + label)
    stream = transcript.Stream(tokens, gates)
    others, places = tokens[:, :0], []
    for k in range(config["depth"]):
        b = f"blocks.{k}."
        if k == start:
            others = label[:, None] + p["in_context_posemb"]
            places = [None] * context
        parts = reference.linear(p, b + "adaLN_modulation.1", c)[:, None].chunk(6, -1)
        stream.block()
        for j in range(2):
            shift, scale, gate = parts[3 * j : 3 * j + 3]
            read = torch.cat([others, stream.read()], 1)
            u = rms(read, p[b + f"norm{j + 1}.weight"]) * (1 + scale) + shift
            v = gate * (mlp(p, b, u) if j else attention(p, b, u, heads, places))
            others = others + v[:, : len(places)]
            stream.write(v[:, len(places) :])
    stream.block()
    shift, scale = reference.linear(p, "final_layer.adaLN_modulation.1", c)[:, None].chunk(2, -1)
    u = rms(stream.read(), p["final_layer.norm_final.weight"]) * (1 + scale) + shift
    image = reference.assemble_patches(reference.linear(p, "final_layer.linear", u), patch)
    return image, stream


def rms(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def mlp(p, b, x):
    a, gated = reference.linear(p, b + "mlp.w12", x).chunk(2, -1)
    return reference.linear(p, b + "mlp.w3", reference.silu(a) * gated)


def attention(p, b, x, heads, places):
    """Softmax attention; a pair of features of a token at (row, column) is a complex number."""
    width, size = x.shape[-1], x.shape[-1] // heads
    grid = math.isqrt(x.shape[1] - len(places))
    places = [*places, *(divmod(token, grid) for token in range(grid * grid))]
    angles = torch.zeros(len(places), size // 2, dtype=x.dtype)
    for token, place in enumerate(places):
        for pair in range(size // 2 if place else 0):
            half, order = divmod(pair, size // 4)
            angles[token, pair] = place[half] * 10000 ** (-2 * order / (size // 2))

    def turned(v, name):
        v = rms(v, p[b + f"attn.{name}_norm.weight"])
        pairs = torch.complex(v[..., ::2], v[..., 1::2]) * torch.exp(1j * angles)
        return torch.view_as_real(pairs).flatten(-2)

    qkv, out = reference.linear(p, b + "attn.qkv", x), []
    for h in range(heads):
        q, k, v = (qkv[..., j * width + h * size : j * width + (h + 1) * size] for j in range(3))
        scores = turned(q, "q") @ turned(k, "k").transpose(1, 2) / math.sqrt(size)
        out.append(torch.softmax(scores, -1) @ v)
    return reference.linear(p, b + "attn.proj", torch.cat(out, -1))


@pytest.fixture(params=CONFIGS)
def case(request):
    """(config, start, state, identified, subject, inputs, loss) of one saved file."""
    config, start = CONFIGS[request.param]
    state = check.random_state(official_shapes(**config))
    subject, identified = check.load(FAMILY, state, args=settings(start))
    return config, start, state, identified, subject, *check.problem(identified, times=TIMES)


def test_the_sites(case):
    config, start, _, identified, subject, *_ = case
    blocks, context = config["depth"], config["context"]
    assert [r.block for r in subject.readers] == [
        *(k for k in range(1, blocks + 1) for _ in range(2)), blocks + 1
    ]  # fmt: skip
    joined = [r.block for r in subject.readers if r.view.tokens == slice(context, None)]
    assert joined == [k for k in range(1, blocks + 1) for _ in range(2) if start is not None
                      and k > start]  # fmt: skip
    assert subject.facts["tokens"] == config["grid"] ** 2
    assert subject.facts["heads"] == config["heads"]
    assert identified.shape == (3, 6, 6) and identified.num_classes == 5
    assert identified.objective == "jit"
    assert not [s for s in subject.sources if s.kind == "fusion"]


def test_reads_are_sums_and_branches_are_writes(case):
    *_, subject, args, loss = case
    sums, writes = check.observe(subject, args).errors(subject)
    assert sums < 1e-14
    assert writes < 1e-14


def test_everything_against_the_transcription(case):
    config, start, p, _, subject, args, loss = case
    expected, output, stream = transcript.transcribed(
        lambda gates: transcription(p, *args, config=config, start=start, gates=gates),
        len(subject.readers), len(subject.sources), len(TIMES), loss,
    )  # fmt: skip
    seen = check.observe(subject, args)
    assert check.relative(seen.output, output) < 1e-13
    for found, read in zip(seen.reads, stream.reads, strict=True):
        assert check.relative(found, read.detach()) < 1e-13
    for found, value in zip(seen.values, stream.sources, strict=True):
        assert check.relative(found, value.detach()) < 1e-13
    for found in (check.reference(subject, args, loss), check.probed(subject, args, loss)):
        for name, value in expected.items():
            assert check.relative(found[name], value) < 1e-13, name


def test_gates_of_a_normed_reader_sum_to_zero(case):
    *_, subject, args, loss = case
    gate = check.reference(subject, args, loss)["gate"]
    assert check.conservation(subject, gate) < 1e-5  # by the eps of the norms


def blank(config=SMALL, **changes):
    shapes = official_shapes(**{**config, **changes})
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


PRESET = {"hidden": 8, "bottleneck": 4, "rows": 1001, "context": 32}


@pytest.mark.parametrize(
    ("width", "depth", "heads", "start"), [(768, 12, 12, 4), (1024, 24, 16, 8), (1280, 32, 16, 10)]
)
@pytest.mark.parametrize(("patch", "noise"), [(16, "jit"), (32, "jit:2")])
def test_a_file_without_settings(width, depth, heads, start, patch, noise):
    sizes = {"width": width, "depth": depth, "heads": heads, "patch": patch, "grid": 16}
    found = check.identify(FAMILY, blank(**sizes, **PRESET))
    assert (found.sizes["start"], found.sizes["heads"]) == (start, heads)
    assert (found.objective, found.num_classes) == (noise, 1000)
    assert found.assumptions == [
        f"in-context tokens from block {start + 1} on, by the preset for width {width}, depth "
        f"{depth}",
        f"the 32 in-context tokens of blocks {start + 1} to {depth} are neither measured "
        "nor ablated, the image's alone are",
        f"nothing tells the noise scale: {patch // 16} for images of {16 * patch} pixels; "
        "--objective jit:SCALE overrides",
        "nothing tells the least 1 - t by which the loss divides: 0.05; --objective "
        "jit:SCALE:LEAST overrides",
    ]


def test_settings_name_the_noise_and_the_least_divisor():
    found = check.identify(FAMILY, blank(), args=settings(2, noise_scale=0.5, t_eps=0.01))
    assert found.objective == "jit:0.5:0.01"
    assert objectives.get(found.objective) == objectives.jit(0.5, 0.01)
    small = check.identify(FAMILY, blank(), args=settings(2, noise_scale=None))
    assert small.objective == "jit"
    assert "nothing tells the noise scale: 1 for images of 6 pixels" in small.assumptions[-1]


def test_a_start_that_nobody_knows_is_asked_for():
    with pytest.raises(CheckpointError, match="before which block its 2 in-context") as caught:
        check.identify(FAMILY, blank())
    assert "'in_context_start': 4" in caught.value.hint
    assert check.identify(FAMILY, blank(context=0)).sizes["start"] == 4  # nothing to be known


def test_the_first_average_of_the_official_file_is_read(tmp_path):
    state = {f"net.{k}": v for k, v in check.random_state(official_shapes(**SMALL)).items()}
    kept = {
        name: {k: v + i for k, v in state.items()}
        for i, name in enumerate(("model_ema1", "model", "model_ema2"))
    }
    torch.save({**kept, "epoch": 7, "args": settings(2)}, tmp_path / "checkpoint-last.pth")
    loaded = load_checkpoint(
        CheckpointOptions(path=tmp_path / "checkpoint-last.pth", dtype="float64")
    )
    assert torch.equal(loaded.model.pos_embed, state["net.pos_embed"])
    assert loaded.file["weights"] == "ema"
    assert loaded.assumptions[0] == (
        "the average 'model_ema1.net' of the file; beside it lie 'model.net' (raw) and "
        "'model_ema2.net' (average)"
    )


@pytest.mark.parametrize(
    ("name", "shape", "args", "message"),
    [
        ("blocks.2.mlp.w3.bias", None, {}, "'blocks.2.mlp.w3.bias' is missing"),
        ("more", (3,), {}, "'more' is unexpected"),
        ("blocks.0.attn.q_norm.weight", (6,), {}, r"q_norm.weight' has shape \(6,\)"),
        ("blocks.0.attn.q_norm.weight", (12,), {}, r"q_norm.weight' has shape \(12,\)"),
        ("in_context_posemb", (1, 2, 15), {}, r"posemb' has shape \(1, 2, 15\), where"),
        ("pos_embed", (1, 8, 16), {}, "no square grid of tokens"),
        ("pos_embed", (1, 9, 16), {"in_context_start": 4}, "in_context_start is '4' of 4 blocks"),
        ("pos_embed", (1, 9, 16), {"in_context_start": -1}, "in_context_start is '-1'"),
        ("pos_embed", (1, 9, 16), {"in_context_start": "2"}, "in_context_start is '2'"),
        ("pos_embed", (1, 9, 16), {"class_num": 6}, "6 classes, and a label table of 6 rows"),
        ("pos_embed", (1, 9, 16), {"noise_scale": "big"}, "noise_scale is 'big'"),
        ("pos_embed", (1, 9, 16), {"noise_scale": float("nan")}, "noise_scale is 'nan'"),
        ("pos_embed", (1, 9, 16), {"noise_scale": 10**400}, "noise_scale is '1000"),
        ("pos_embed", (1, 9, 16), {"t_eps": 0}, "its t_eps '0'"),
        ("y_embedder.embedding_table.weight", (1, 16), {"class_num": None}, "0 classes"),
    ],
)
def test_refused(name, shape, args, message):
    state = blank()
    if shape is None:
        del state[name]
    else:
        state[name] = torch.empty(shape, device="meta")
    with pytest.raises(CheckpointError, match=message):
        check.identify(FAMILY, state, args=settings(2, **args))


def test_heads_are_those_of_the_file():
    with pytest.raises(UsageError, match="--heads 4 contradicts 'model.pt': it has 2"):
        check.identify(FAMILY, blank(), args=settings(2), heads=4)
