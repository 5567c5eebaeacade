"""DiT-DH: names, sizes, function and sites against plain formulas and plain autograd."""

import math

import pytest
import torch

from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models.rae import FAMILY
from tests.models import check

FLAGS = ("swiglu", "rmsnorm", "qk_norm", "narrow")
CASES = ["swiglu rmsnorm", "qk_norm", "swiglu rmsnorm qk_norm narrow"]  # the first as released
D, E, C, SIDE, ROWS, WAVES = 16, 24, 6, 4, 6, 5
HEADS, DEPTH, HIDDEN = (2, 3), (2, 2), (20, 28)  # of the encoder and the decoder
SHAPE = (C, SIDE, SIDE)


def official(case, depth=DEPTH, heads=HEADS, widths=(D, E)):
    """Names and shapes as in the authors' state dict; "narrow" makes one width of two."""
    swiglu, rmsnorm, qk_norm, narrow = (flag in case.split() for flag in FLAGS)
    d, e = widths[0], widths[0] if narrow else widths[1]
    shapes = {"pos_embed": (1, SIDE**2, d)}

    def layer(name, out, *into):
        shapes[name + ".weight"] = (out, *into)
        shapes[name + ".bias"] = (out,)

    layer("x_embedder.proj", e, C, 1, 1)
    layer("s_embedder.proj", d, C, 1, 1)
    if not narrow:
        layer("s_projector", e, d)
    shapes["t_embedder.W"] = (WAVES,)
    layer("t_embedder.mlp.0", d, 2 * WAVES)
    layer("t_embedder.mlp.2", d, d)
    shapes["y_embedder.embedding_table.weight"] = (ROWS, d)
    if rmsnorm:
        shapes["final_layer.norm_final.weight"] = (e,)
    layer("final_layer.linear", C, e)
    layer("final_layer.adaLN_modulation.1", 2 * e, e)
    for part, width, count in zip(("enc", "dec"), (d, e), of(heads, narrow), strict=True):
        for table in ("cos", "sin"):
            shapes[f"{part}_feat_rope.freqs_{table}"] = (SIDE**2, width // count)
    for k in range(sum(depth)):
        b, late = f"blocks.{k}.", int(k >= depth[0])
        width, size, hidden = (d, e)[late], (d, e)[late] // of(heads, narrow)[late], HIDDEN[late]
        if rmsnorm:
            shapes |= {b + "norm1.weight": (width,), b + "norm2.weight": (width,)}
        layer(b + "attn.qkv", 3 * width, width)
        for name in ("attn.q_norm", "attn.k_norm") if qk_norm else ():
            shapes[b + name + ".weight"] = (size,)
            if not rmsnorm:
                shapes[b + name + ".bias"] = (size,)
        layer(b + "attn.proj", width, width)
        layer(b + ("mlp.w12" if swiglu else "mlp.fc1"), hidden * (2 if swiglu else 1), width)
        layer(b + ("mlp.w3" if swiglu else "mlp.fc2"), width, hidden)
        layer(b + "adaLN_modulation.1", 6 * width, width)
    return shapes


def of(heads, narrow):
    return (heads[0], 2 * heads[0]) if narrow else heads


def file(case):
    """A state dict in the official layout; its rotary tables are those of its positions."""
    state = check.random_state(official(case))
    for part in ("enc", "dec"):
        angles = torch.zeros_like(state[f"{part}_feat_rope.freqs_cos"])
        half = angles.shape[1] // 2
        for token in range(len(angles)):
            for feature in range(2 * half):
                place = divmod(token, SIDE)[feature // half]
                pair = feature % half // 2
                angles[token, feature] = place * 10000 ** (-2 * pair / half)
        state[f"{part}_feat_rope.freqs_cos"] = angles.cos()
        state[f"{part}_feat_rope.freqs_sin"] = angles.sin()
    return state


def load(case):
    args = {"depth": list(DEPTH)} if "narrow" in case else None
    return check.load(FAMILY, file(case), args=args)


def reference(p, case, x, t, y):
    """The published forward in plain formulas: loops over heads, complex numbers for rotation."""
    swiglu, rmsnorm, qk_norm, narrow = (flag in case.split() for flag in FLAGS)

    def linear(name, v):
        weight = p[name + ".weight"]
        return v @ weight.reshape(len(weight), -1).T + p[name + ".bias"]

    def silu(v):
        return v / (1 + torch.exp(-v))

    def norm(v, name, eps=1e-6):
        if not rmsnorm:
            v = v - v.mean(-1, keepdim=True)
        v = v / torch.sqrt((v * v).mean(-1, keepdim=True) + eps)
        return v * p.get(name + ".weight", 1) + p.get(name + ".bias", 0)

    def block(k, h, c):
        b, part, count = (
            f"blocks.{k}.",
            *(("enc", HEADS[0]) if k < DEPTH[0] else ("dec", of(HEADS, narrow)[1])),
        )
        width = h.shape[-1]
        size = width // count
        turn = torch.complex(p[f"{part}_feat_rope.freqs_cos"], p[f"{part}_feat_rope.freqs_sin"])

        def rotated(v):
            turned = torch.complex(v[..., ::2], v[..., 1::2]) * turn[:, ::2]
            return torch.view_as_real(turned).reshape(v.shape)

        shift1, scale1, gate1, shift2, scale2, gate2 = linear(
            b + "adaLN_modulation.1", silu(c)
        ).split(width, dim=-1)
        qkv = linear(b + "attn.qkv", norm(h, b + "norm1") * (1 + scale1) + shift1)
        heads = []
        for head in range(count):
            q, key, v = (
                qkv[..., at * width + head * size : at * width + (head + 1) * size]
                for at in range(3)
            )
            if qk_norm:
                eps = 1e-6 if rmsnorm else 1e-5
                q, key = norm(q, b + "attn.q_norm", eps), norm(key, b + "attn.k_norm", eps)
            logits = rotated(q) @ rotated(key).transpose(1, 2) / math.sqrt(size)
            heads.append(torch.softmax(logits, -1) @ v)
        h = h + gate1 * linear(b + "attn.proj", torch.cat(heads, -1))
        u = norm(h, b + "norm2") * (1 + scale2) + shift2
        if swiglu:
            both = linear(b + "mlp.w12", u)
            half = both.shape[-1] // 2
            u = linear(b + "mlp.w3", silu(both[..., :half]) * both[..., half:])
        else:
            u = linear(b + "mlp.fc1", u)
            u = u / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
            u = linear(b + "mlp.fc2", u)
        return h + gate2 * u

    pixels = x.reshape(len(x), C, -1).transpose(1, 2)
    angles = 2 * math.pi * t[:, None] * p["t_embedder.W"]
    wave = torch.cat([torch.sin(angles), torch.cos(angles)], 1)
    time = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", wave)))[:, None]
    c = silu(time + p["y_embedder.embedding_table.weight"][y][:, None])
    s = linear("s_embedder.proj", pixels) + p["pos_embed"]
    for k in range(DEPTH[0]):
        s = block(k, s, c)
    s = silu(s + time)
    if not narrow:
        s = linear("s_projector", s)
    h = linear("x_embedder.proj", pixels)
    for k in range(DEPTH[0], sum(DEPTH)):
        h = block(k, h, s)
    shift, scale = linear("final_layer.adaLN_modulation.1", silu(s)).split(h.shape[-1], dim=-1)
    out = linear("final_layer.linear", norm(h, "final_layer.norm_final") * (1 + scale) + shift)
    return out.transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("case", CASES)
def test_names_and_sizes_are_the_official_ones(case):
    subject, identified = load(case)
    shapes = {name: tuple(v.shape) for name, v in subject.model.state_dict().items()}
    assert shapes == official(case)
    assert identified.shape == SHAPE
    assert identified.num_classes == ROWS - 1
    assert identified.objective == "rae"
    assert subject.facts["heads"] == HEADS[0]
    assert subject.facts["tokens"] == SIDE**2
    clock, latents, rows = identified.assumptions
    assert clock.startswith("read as DiT-DH of RAE: time runs t = s")
    assert "latents of a representation autoencoder (6 channels" in latents
    assert "dropped labels" in rows


def test_encoder_and_decoder_are_two_streams():
    subject, _ = load(CASES[0])
    assert [reader.name for reader in subject.readers[-5:]] == [
        "block 3 attention", "block 3 mlp", "block 4 attention", "block 4 mlp", "head",
    ]  # fmt: skip
    assert subject.sources[5].name == "decoder embedding"
    assert subject.offered[3:6] == ((0, 1, 2, 3), (5,), (5, 6))  # nothing of the encoder's
    assert "block 2 ends the encoder" in subject.assumptions[1]


@pytest.mark.parametrize("case", CASES)
def test_forward_is_the_published_one(case):
    subject, identified = load(case)
    inputs, _ = check.problem(identified)
    found, expected = subject.model(*inputs), reference(file(case), case, *inputs)
    assert check.relative(found, expected) < 4e-14  # measured: 5e-15


@pytest.mark.parametrize("case", CASES)
def test_reads_are_sums_of_sources_and_writes_are_branches_times_gates(case):
    subject, identified = load(case)
    inputs, _ = check.problem(identified)
    sums, writes = check.observe(subject, inputs).errors(subject)
    assert sums < 1e-14  # measured: 0
    assert writes < 1e-14  # measured: 1.5e-15


@pytest.mark.parametrize("case", CASES)
def test_probe_agrees_with_explicit_gates(case):
    subject, identified = load(case)
    inputs, loss = check.problem(identified)
    expected, found = check.reference(subject, inputs, loss), check.probed(subject, inputs, loss)
    # Measured: 3e-16, and 1.1e-14 for the gates.
    for name in ("loss", "rms", "grad_rms", "cosine", "write_rms"):
        torch.testing.assert_close(found[name], expected[name], rtol=3e-15, atol=0, equal_nan=True)
    unknown = found["cosine"].isnan().all(0).nonzero().flatten().tolist()
    assert unknown == [0, DEPTH[0]]  # the decoder's embedding is no next state of the encoder's
    assert check.gate_error(found["gate"], expected["gate"]) < 1e-13
    # By the eps of the norms.
    assert check.conservation(subject, expected["gate"]) < 1e-4  # measured: 1.3e-5


def test_states_carry_the_gradient_of_the_whole_stream():
    subject, identified = load(CASES[0])
    inputs, loss = check.problem(identified)
    places = [*subject.model.blocks, subject.model.final_layer]
    assert check.stream_slope_error(subject, inputs, loss, places) < 1e-8  # measured: 1e-9


def test_the_released_sizes_are_read_from_shapes_alone():
    for widths, depth, heads in (
        ((384, 2048), (12, 2), (6, 16)),
        ((1152, 2048), (28, 2), (16, 16)),
    ):
        shapes = official("swiglu rmsnorm", depth, heads, widths)
        state = {name: torch.empty(s, device="meta") for name, s in shapes.items()}
        sizes = check.identify(FAMILY, state).sizes
        assert (sizes["encoder"], sizes["depth"]) == (depth[0], sum(depth))
        assert (sizes["heads"], sizes["decoder_heads"]) == heads


def test_of_one_width_the_settings_tell_where_the_encoder_ends():
    state = file("swiglu narrow")
    with pytest.raises(
        CheckpointError, match="4 blocks are the encoder's: all of them are 16"
    ) as e:
        check.load(FAMILY, state)
    assert "'depth': [ENCODER, DECODER]" in e.value.hint
    for wrong in (4, [2, 3], [4, 0], [2], ["2", "2"], [True, 3], {"a": 1}):
        with pytest.raises(CheckpointError, match="4 blocks, and a depth of"):
            check.load(FAMILY, state, args={"depth": wrong})


@pytest.mark.parametrize(
    ("key", "shape", "match"),
    [
        ("blocks.1.mlp.w3.bias", None, r"'blocks.1.mlp.w3.bias' is missing"),
        ("blocks.3.attn.extra", (D,), r"'blocks.3.attn.extra' is unexpected"),
        ("blocks.2.attn.proj.weight", (D, D), r"'blocks.2.norm1.weight' has shape \(24,\)"),
        ("blocks.0.attn.proj.weight", (E, E), r"'blocks.0.attn.proj.weight' has shape \(24"),
        ("blocks.0.adaLN_modulation.1.weight", (4 * D, D), r"modulation.1.weight' has shape \(64"),
        ("s_projector.weight", (E, E), r"'s_projector.weight' has shape \(24, 24\)"),
        ("pos_embed", (1, 15, D), "no square grid"),
        ("enc_feat_rope.freqs_cos", (16, 6), r"'enc_feat_rope.freqs_cos' has shape \(16, 6\)"),
        ("dec_feat_rope.freqs_sin", (9, 8), r"'dec_feat_rope.freqs_sin' has shape \(9, 8\)"),
        ("dec_feat_rope.freqs_cos", (16, 20), r"'dec_feat_rope.freqs_cos' has shape \(16, 20\)"),
        ("x_embedder.proj.weight", (E, C, 2, 2), "a DiT-DH with patches of 2 x 2: only"),
        ("s_embedder.proj.weight", (D, C + 1, 1, 1), r"'s_embedder.proj.weight' has shape"),
    ],
)
def test_errors_name_the_culprit(key, shape, match):
    state = file("swiglu rmsnorm")
    if shape is None:
        del state[key]
    else:
        state[key] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=match):
        check.load(FAMILY, state)


def test_heads_that_the_tables_contradict():
    with pytest.raises(UsageError, match=r"--heads 4 contradicts 'model.pt': it has 2"):
        check.load(FAMILY, file("swiglu"), heads=4)
