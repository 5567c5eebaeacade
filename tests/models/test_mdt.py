"""MDTv2: from a file in the official layout to a subject, against a transcription in float64."""

import math

import pytest
import torch

from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models.mdt import FAMILY
from tests.helpers import reference
from tests.models import check, transcript

SMALL = {"channels": 4, "side": 3, "patch": 2, "width": 24, "heads": 4, "half": 2, "decoder": 2,
         "hidden": 72, "rows": 11, "learn_sigma": True}  # fmt: skip
PLAIN = {**SMALL, "side": 2, "width": 32, "half": 1, "decoder": 1, "learn_sigma": False}
CONFIGS = [pytest.param(SMALL, id="small"), pytest.param(PLAIN, id="no-sigma")]
TIMES = [0.0, 437.0, 999.0]


def official_shapes(*, channels, side, patch, width, heads, half, decoder, hidden, rows,
                    learn_sigma):  # fmt: skip
    """Names and shapes of the official model; ``side`` counts patches."""
    d, tokens, shapes = width, side * side, {}

    def linear(name, out, into):
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    shapes |= {"pos_embed": (1, tokens, d), "decoder_pos_embed": (1, tokens, d)}
    shapes["mask_token"] = (1, 1, d)
    shapes |= {"x_embedder.proj.weight": (d, channels, patch, patch), "x_embedder.proj.bias": (d,)}
    linear("t_embedder.mlp.0", d, 256)
    linear("t_embedder.mlp.2", d, d)
    shapes["y_embedder.embedding_table.weight"] = (rows, d)
    for name in block_names(half, decoder) + ["sideblocks.0"]:
        linear(f"{name}.attn.qkv", 3 * d, d)
        linear(f"{name}.attn.proj", d, d)
        bias = f"{name}.attn.rel_pos_bias.relative_position"
        shapes[f"{bias}_bias_table"] = ((2 * side - 1) ** 2 + 3, heads)
        shapes[f"{bias}_index"] = (tokens, tokens)
        linear(f"{name}.mlp.fc1", hidden, d)
        linear(f"{name}.mlp.fc2", d, hidden)
        linear(f"{name}.adaLN_modulation.1", 6 * d, d)
        if name.startswith(("en_out", "de")):
            linear(f"{name}.skip_linear", d, 2 * d)
    linear("final_layer.linear", patch * patch * channels * (2 if learn_sigma else 1), d)
    linear("final_layer.adaLN_modulation.1", 2 * d, d)
    return shapes


def block_names(half, decoder):
    return [
        *(f"en_inblocks.{k}" for k in range(half)),
        *(f"en_outblocks.{k}" for k in range(half)),
        *(f"de_blocks.{k}" for k in range(decoder)),
    ]


def official_state(config):
    """Random weights; the index of relative positions is that of the grid, counted by hand."""
    state = check.random_state(official_shapes(**config))
    for name in state:
        if name.endswith("bias_table"):  # small numbers would hide a wrong bias
            state[name] *= 5
        if "adaLN" in name:  # large ones would sharpen the attention, and cost digits
            state[name] *= 0.2
        if name.endswith("position_index"):
            state[name] = index(config["side"])
    return state


def index(side):
    table = torch.zeros(side**2, side**2, dtype=torch.int64)
    for i in range(side**2):
        for j in range(side**2):
            rows, columns = i // side - j // side, i % side - j % side
            table[i, j] = (rows + side - 1) * (2 * side - 1) + columns + side - 1
    return table


def transcription(p, x, t, y, config, gates):
    """The forward pass without masking, in plain formulas over a state dict."""
    half, width = config["half"], config["width"]
    image = reference.embed_patches(
        x, p["x_embedder.proj.weight"], p["x_embedder.proj.bias"], config["patch"]
    )
    c = reference.embed_time(p, t) + p["y_embedder.embedding_table.weight"][y]
    stream = transcript.Stream(image + p["pos_embed"], gates)
    embedding, skips = None, []
    for k, name in enumerate(block_names(half, config["decoder"])):
        if k == half:  # the last block of the first half: its own skip comes back at once
            skips.append(stream.state())
        if k == 2 * half:
            stream.fuse(stream.state() + p["decoder_pos_embed"])
        if k >= half:
            skip = skips.pop() if k < 2 * half else embedding
            both = torch.cat([stream.state(), skip], -1)
            stream.fuse(reference.linear(p, f"{name}.skip_linear", both))
        stream.block()
        if k == 0:
            embedding = stream.state()
        elif k < half:
            skips.append(stream.state())
        modulation = reference.linear(p, f"{name}.adaLN_modulation.1", reference.silu(c))
        parts = [modulation[:, None, j * width : (j + 1) * width] for j in range(6)]
        for branch, (shift, scale, gate) in ((attention, parts[:3]), (mlp, parts[3:])):
            h = reference.norm(stream.read()) * (1 + scale) + shift
            stream.write(gate * branch(p, name, h, config))
    stream.block()
    modulation = reference.linear(p, "final_layer.adaLN_modulation.1", reference.silu(c))
    shift, scale = modulation[:, None, :width], modulation[:, None, width:]
    h = reference.norm(stream.read()) * (1 + scale) + shift
    tokens = reference.linear(p, "final_layer.linear", h)
    return reference.assemble_patches(tokens, config["patch"])[:, : config["channels"]], stream


def attention(p, name, x, config):
    width, heads, side = config["width"], config["heads"], config["side"]
    table = p[f"{name}.attn.rel_pos_bias.relative_position_bias_table"]
    qkv = reference.linear(p, f"{name}.attn.qkv", x)
    size, out = width // heads, []
    for h in range(heads):
        q, k, v = (qkv[..., j * width + h * size : j * width + (h + 1) * size] for j in range(3))
        scores = q @ k.transpose(1, 2) / math.sqrt(size) + table[index(side), h]
        out.append(torch.softmax(scores, -1) @ v)
    return reference.linear(p, f"{name}.attn.proj", torch.cat(out, -1))


def mlp(p, name, x, config):
    hidden = reference.gelu(reference.linear(p, f"{name}.mlp.fc1", x))
    return reference.linear(p, f"{name}.mlp.fc2", hidden)


@pytest.fixture(params=CONFIGS)
def case(request):
    """(config, state, identified, subject, inputs, loss) of one saved file."""
    state = official_state(request.param)
    subject, identified = check.load(FAMILY, state)
    return request.param, state, identified, subject, *check.problem(identified, times=TIMES)


def test_the_sites(case):
    config, _, identified, subject, *_ = case
    half, blocks = config["half"], 2 * config["half"] + config["decoder"]
    assert [r.name for r in subject.readers][:3] == [
        "block 1 attention", "block 1 mlp", "block 2 attention"
    ]  # fmt: skip
    assert [r.block for r in subject.readers] == [
        *(k for k in range(1, blocks + 1) for _ in range(2)), blocks + 1
    ]  # fmt: skip
    skips = [(f"block {k} fusion", k) for k in range(half + 1, blocks + 1)]
    skips.insert(half, ("decoder position fusion", 2 * half + 1))
    assert [(s.name, s.block) for s in subject.sources if s.kind == "fusion"] == skips
    assert subject.facts == {
        "family": "mdt", "routing": "residual", "query": None, "chunk_size": None,
        "parameters": sum(
            math.prod(shape)
            for name, shape in official_shapes(**config).items()
            if not name.endswith("position_index")
        ),
        "depth": blocks, "width": config["width"], "heads": config["heads"],
        "tokens": config["side"] ** 2,
    }  # fmt: skip
    side = config["side"] * config["patch"]
    assert identified.shape == (config["channels"], side, side)
    assert (identified.num_classes, identified.objective) == (10, "dit")
    assert identified.assumptions == [
        "read as MDTv2: steps 0..999, linear betas, noise; --objective overrides",
        "the last of 11 rows in the label table is taken for the dropped labels",
    ]


def test_side_blocks_do_not_run(case):
    *_, subject, args, loss = case
    expected = subject.model(*args)
    with torch.no_grad():
        for name, parameter in subject.model.named_parameters():
            if name.startswith(("sideblocks", "mask_token")):
                parameter.fill_(math.nan)
    assert torch.equal(subject.model(*args), expected)


def test_reads_are_sums_and_branches_are_writes(case):
    *_, subject, args, loss = case
    sums, writes = check.observe(subject, args).errors(subject)
    assert sums < 1e-14
    assert writes < 1e-14


def test_positions_of_the_decoder_are_a_source(case):
    _, p, _, subject, args, _ = case
    row = [source.name for source in subject.sources].index("decoder position fusion")
    added = check.observe(subject, args).values[row]
    assert check.relative(added, p["decoder_pos_embed"].expand_as(added)) < 1e-13


def test_everything_against_the_transcription(case):
    config, p, _, subject, args, loss = case
    transcript.agrees(
        lambda gates: transcription(p, *args, config, gates), subject, args, loss, values=3e-13
    )  # measured: 1.2e-13


def test_gates_of_a_normed_reader_sum_to_zero(case):
    """Up to the norm's eps: one gate for all sources would scale what the norm ignores."""
    *_, subject, args, loss = case
    gate = check.reference(subject, args, loss)["gate"]
    assert check.conservation(subject, gate) < 1e-5  # measured: 3e-6


def test_heads_are_in_the_file():
    state = official_state(SMALL)
    assert check.identify(FAMILY, state, heads=4).sizes["heads"] == 4
    with pytest.raises(UsageError, match="--heads 3 contradicts 'model.pt': it has 4"):
        check.identify(FAMILY, state, heads=3)


@pytest.mark.parametrize("damage", ["values", "type"])
def test_an_index_that_is_not_the_grid_s(damage):
    state = official_state(SMALL)
    name = "de_blocks.1.attn.rel_pos_bias.relative_position_index"
    state[name] = index(3).T.contiguous() if damage == "values" else index(3).to(torch.uint8)
    with pytest.raises(CheckpointError, match="'relative_position_index' that is not of a square"):
        check.load(FAMILY, state)


def test_the_first_mdt():
    """It has one list of blocks, side blocks and no skips."""
    shapes = {}
    for name, shape in official_shapes(**SMALL).items():
        if name.startswith("en_inblocks"):
            shapes[name.replace("en_in", "")] = shape
        elif not name.startswith(("en_out", "de_blocks")):
            shapes[name] = shape
    with pytest.raises(CheckpointError, match="looks like the first MDT, not supported yet"):
        check.identify(FAMILY, empty(shapes))


def empty(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def without(name):
    return lambda shapes: shapes.pop(name)


def reshaped(name, shape):
    return lambda shapes: shapes.update({name: shape})


TABLE = "en_inblocks.0.attn.rel_pos_bias.relative_position_bias_table"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("de_blocks.0.skip_linear.bias"), "'de_blocks.0.skip_linear.bias' is missing"),
        (without("decoder_pos_embed"), "'decoder_pos_embed' is missing"),
        (without("sideblocks.0.attn.qkv.bias"), "'sideblocks.0.attn.qkv.bias' is missing"),
        (without("en_outblocks.1.attn.qkv.bias"), "'en_outblocks.1.attn.qkv.bias' is missing"),
        (reshaped("more", (3,)), "'more' is unexpected"),
        (reshaped("pos_embed", (1, 8, 24)), "no square grid of tokens: 'pos_embed' has 8 of them"),
        (
            reshaped("final_layer.linear.bias", (48,)),
            r"'final_layer.linear.bias' has shape \(48,\)",
        ),
        (reshaped(TABLE, (27, 4)), r"has shape \(27, 4\), where \(28, 4\) fits the rest"),
        (reshaped("y_embedder.embedding_table.weight", (1, 24)), "0 classes, and a label table of"),
    ],
)
def test_refused(edit, message):
    shapes = official_shapes(**SMALL)
    edit(shapes)
    with pytest.raises(CheckpointError, match=message):
        check.identify(FAMILY, empty(shapes))


def test_heads_that_do_not_divide_the_width():
    shapes = official_shapes(**{**SMALL, "heads": 5})
    with pytest.raises(CheckpointError, match="bias_table' has shape .28, 5., which fits no known"):
        check.identify(FAMILY, empty(shapes))
