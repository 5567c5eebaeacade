"""U-DiT: names, sizes, function and sites against plain formulas and plain autograd."""

import math

import pytest
import torch

from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models.udit import FAMILY
from tests.models import check

LEVELS = ["encoder_level_1", "encoder_level_2", "latent", "decoder_level_2", "decoder_level_1"]
TIMES = [1, 2, 4, 2, 2]
C, D, H, ROWS, SIDE = 2, 8, 2, 6, 16
OPTIONS = {"down_factor": 2, "posemb_type": "rope2d", "down_shortcut": 1, "image_size": 8 * SIDE}
CASES = {
    "as released": {},
    "no positions, no shortcut": {"posemb_type": None, "down_shortcut": 0},
    "no down-sampling, kernel of 3": {"down_factor": 1, "kernel": 3, "depths": [1, 2, 1, 1, 1]},
    "no learned variance": {"learn_sigma": False, "depths": [2, 1, 2, 1, 2]},
}


def official(depths=(1, 1, 1, 1, 1), width=D, heads=H, kernel=5, learn_sigma=True, ratio=2):
    """Names and shapes as in the authors' state dict."""
    shapes = {"x_embedder.proj.weight": (width, C, 3, 3), "x_embedder.proj.bias": (width,)}

    def layer(name, out, *rest):
        shapes[name + ".weight"] = (out, *rest)
        shapes[name + ".bias"] = (out,)

    for k, times in ((1, 1), (2, 2), (3, 4)):
        layer(f"t_embedder_{k}.mlp.0", times * width, 256)
        layer(f"t_embedder_{k}.mlp.2", times * width, times * width)
        shapes[f"y_embedder_{k}.embedding_table.weight"] = (ROWS, times * width)
    for level, times, depth in zip(LEVELS, TIMES, depths, strict=True):
        d, hidden = times * width, times * width * ratio
        for b in (f"{level}.{k}." for k in range(depth)):
            for j in "12":
                shapes[f"{b}attn{j}.logit_scale"] = (heads, 1, 1)
                layer(f"{b}attn{j}.to_qkv", 3 * d, d)
                layer(f"{b}attn{j}.to_out", d, d, 1, 1)
                layer(f"{b}attn{j}.downsampler.layer", d, 1, kernel, kernel)
                layer(f"{b}mlp{j}.project_in.0", hidden // 2, d, 1, 1)
                layer(f"{b}mlp{j}.project_in.1", hidden, hidden // 2, 1, 1)
                layer(f"{b}mlp{j}.dwconv.0", hidden, 1, 5, 5)
                layer(f"{b}mlp{j}.dwconv.1", hidden, 1, 3, 3)
                layer(f"{b}mlp{j}.dwconv.2", hidden, 1, 1, 1)
                layer(f"{b}mlp{j}.project_out.0", hidden // 2, hidden, 1, 1)
                layer(f"{b}mlp{j}.project_out.1", d, hidden // 2, 1, 1)
                layer(f"{b}adaLN_modulation{j}.1", 6 * d, d)
    shapes["down1_2.body.0.weight"] = (width // 2, width, 3, 3)
    shapes["down2_3.body.0.weight"] = (width, 2 * width, 3, 3)
    shapes["up3_2.body.0.weight"] = (8 * width, 4 * width, 3, 3)
    shapes["up2_1.body.0.weight"] = (4 * width, 2 * width, 3, 3)
    layer("reduce_chan_level2", 2 * width, 4 * width, 1, 1)
    layer("reduce_chan_level1", 2 * width, 2 * width, 1, 1)
    layer("output", 2 * width, 2 * width, 3, 3)
    layer("final_layer.out_proj", C * (2 if learn_sigma else 1), 2 * width, 3, 3)
    layer("final_layer.adaLN_modulation.1", 4 * width, 2 * width)
    return shapes


def split(case):
    """Return what the case says of the shapes, and of the settings."""
    given = CASES[case]
    shapes = {k: v for k, v in given.items() if k not in OPTIONS}
    return shapes, {**OPTIONS, **{k: v for k, v in given.items() if k in OPTIONS}}


def load(case):
    shapes, args = split(case)
    return check.load(FAMILY, check.random_state(official(**shapes)), args=args)


def problem(identified):
    return check.problem(identified, times=(3.0, 500.0, 999.0))


def reference(p, depths, options, x, t, y):
    """The published forward in plain formulas: loops over grids and heads, complex rotation."""

    def conv(name, v, groups=1):
        """Sum shifted copies of the padded map, one for each pixel of the kernel."""
        weight, size = p[name + ".weight"], p[name + ".weight"].shape[-1]
        h, w = v.shape[2:]
        padded = torch.zeros(*v.shape[:2], h + size - 1, w + size - 1, dtype=v.dtype)
        padded[:, :, size // 2 : size // 2 + h, size // 2 : size // 2 + w] = v
        total = 0
        for i in range(size):
            for j in range(size):
                part = padded[:, :, i : i + h, j : j + w]
                if groups == 1:
                    total = total + torch.einsum("oc,nchw->nohw", weight[:, :, i, j], part)
                else:
                    total = total + weight[:, 0, i, j][:, None, None] * part
        return total + p[name + ".bias"][:, None, None] if name + ".bias" in p else total

    def linear(name, v):
        return v @ p[name + ".weight"].T + p[name + ".bias"]

    def silu(v):
        return v / (1 + torch.exp(-v))

    def norm(v):
        v = v - v.mean(1, keepdim=True)
        return v / torch.sqrt((v * v).mean(1, keepdim=True) + 1e-6)

    def rotated(v, side):
        size = v.shape[-1]
        turn = torch.empty(v.shape[1], size // 2, dtype=torch.complex128)
        for token in range(v.shape[1]):
            row, column = divmod(token, side)
            for pair in range(size // 2):
                angle = (row if pair % 2 else column) * 10000 ** (-4 * (pair // 2) / size)
                turn[token, pair] = complex(math.cos(angle), math.sin(angle))
        return torch.view_as_real(torch.complex(v[..., ::2], v[..., 1::2]) * turn).reshape(v.shape)

    def attention(name, v):
        s, d = options["down_factor"], v.shape[1]
        near = conv(name + ".downsampler.layer", v, groups=d)
        v = near + v if options["down_shortcut"] else near
        out = torch.empty_like(v)
        side = v.shape[-1] // s
        scale = p[name + ".logit_scale"].flatten().exp().clamp(max=math.exp(4.6052))
        for i in range(s):
            for j in range(s):
                grid = v[:, :, i::s, j::s].flatten(2).permute(0, 2, 1)  # (N, T, D)
                qkv = linear(name + ".to_qkv", grid)
                heads = []
                for head in range(H):
                    q, k, u = (
                        qkv[..., part * d + head * d // H : part * d + (head + 1) * d // H]
                        for part in range(3)
                    )
                    if options["posemb_type"] == "rope2d":
                        q, k = rotated(q, side), rotated(k, side)
                    q, k = (z / z.square().sum(-1, keepdim=True).sqrt() for z in (q, k))
                    heads.append(torch.softmax(scale[head] * q @ k.transpose(1, 2), -1) @ u)
                found = torch.cat(heads, -1).permute(0, 2, 1)
                out[:, :, i::s, j::s] = found.reshape(*found.shape[:2], side, side)
        return conv(name + ".to_out", out)

    def feed_forward(name, v):
        u = conv(name + ".project_in.1", conv(name + ".project_in.0", v))
        u = u / 2 * (1 + torch.erf(u / math.sqrt(2)))
        u = u + sum(conv(f"{name}.dwconv.{j}", u, groups=u.shape[1]) for j in range(3))
        return conv(name + ".project_out.1", conv(name + ".project_out.0", u))

    def parts(name, c):
        return linear(name, silu(c))[:, :, None, None].split(c.shape[1], dim=1)

    def level(index, v, c):
        for b in (f"{LEVELS[index]}.{k}." for k in range(depths[index])):
            for j in "12":
                shift1, scale1, gate1, shift2, scale2, gate2 = parts(f"{b}adaLN_modulation{j}.1", c)
                v = v + gate1 * attention(f"{b}attn{j}", norm(v) * (1 + scale1) + shift1)
                v = v + gate2 * feed_forward(f"{b}mlp{j}", norm(v) * (1 + scale2) + shift2)
        return v

    def down(name, v):
        v = conv(name + ".body.0", v)
        quarters = [v[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return torch.stack(quarters, 2).flatten(1, 2)

    def up(name, v):
        v = conv(name + ".body.0", v)
        out = torch.empty(len(v), v.shape[1] // 4, 2 * v.shape[2], 2 * v.shape[3], dtype=v.dtype)
        for i in (0, 1):
            for j in (0, 1):
                out[:, :, i::2, j::2] = v[:, 2 * i + j :: 4]
        return out

    freqs = torch.tensor([10000 ** (-j / 128) for j in range(128)], dtype=torch.float64)
    wave = torch.cat([torch.cos(t[:, None] * freqs), torch.sin(t[:, None] * freqs)], 1)
    c1, c2, c3 = (
        linear(f"t_embedder_{k}.mlp.2", silu(linear(f"t_embedder_{k}.mlp.0", wave)))
        + p[f"y_embedder_{k}.embedding_table.weight"][y]
        for k in (1, 2, 3)
    )
    first = level(0, conv("x_embedder.proj", x), c1)
    second = level(1, down("down1_2", first), c2)
    v = level(2, down("down2_3", second), c3)
    v = level(3, conv("reduce_chan_level2", torch.cat([up("up3_2", v), second], 1)), c2)
    v = level(4, conv("reduce_chan_level1", torch.cat([up("up2_1", v), first], 1)), c2)
    shift, scale = parts("final_layer.adaLN_modulation.1", c2)
    v = norm(conv("output", v)) * (1 + scale) + shift
    return conv("final_layer.out_proj", v)[:, :C]


@pytest.mark.parametrize("case", CASES)
def test_names_and_sizes_are_the_official_ones(case):
    subject, identified = load(case)
    given, _ = split(case)
    shapes = {name: tuple(v.shape) for name, v in subject.model.state_dict().items()}
    assert shapes == official(**given)
    assert identified.shape == (C, SIDE, SIDE)
    assert identified.num_classes == ROWS - 1
    assert identified.objective == "dit"
    assert subject.facts["depth"] == sum(given.get("depths", [1] * 5))
    assert subject.facts["heads"] == H


def test_sites_are_four_sublayers_a_block_and_a_new_stream_at_each_level():
    subject, _ = load("no learned variance")
    names = [f"block {k} {n}" for k in range(1, 9) for n in
             ("attention 1", "mlp 1", "attention 2", "mlp 2")]  # fmt: skip
    assert [reader.name for reader in subject.readers] == [*names, "head"]
    begins = [i for i, source in enumerate(subject.sources) if source.begins]
    assert [(i, subject.sources[i].name) for i in begins] == [
        (0, "embedding"), (9, "block 3 fusion"), (14, "block 4 fusion"), (23, "block 6 fusion"),
        (28, "block 7 fusion"),
    ]  # fmt: skip
    assert subject.offered[0] == (0,)
    assert subject.offered[8] == (9,)  # block 3 attention 1: what came before is of another shape
    assert subject.offered[-1] == tuple(range(28, 37))
    assert [reader.normed for reader in subject.readers] == [True] * 32 + [False]
    assert subject.block_readers == [0, 4, 8, 12, 16, 20, 24, 28, 32]


@pytest.mark.parametrize("case", CASES)
def test_forward_is_the_published_one(case):
    subject, identified = load(case)
    inputs, _ = problem(identified)
    given, options = split(case)
    state = check.random_state(official(**given))
    expected = reference(state, given.get("depths", [1] * 5), options, *inputs)
    error = check.relative(subject.model(*inputs), expected)
    assert error < 1e-11  # measured: 7e-13, where cosines are scaled by 100


@pytest.mark.parametrize("case", CASES)
def test_reads_are_sums_of_sources_and_writes_are_branches_times_gates(case):
    subject, identified = load(case)
    inputs, _ = problem(identified)
    sums, writes = check.observe(subject, inputs).errors(subject)
    assert sums < 1e-14  # measured: 0
    assert writes < 1e-14  # measured: 9e-16


@pytest.mark.parametrize("case", CASES)
def test_probe_agrees_with_explicit_gates(case):
    subject, identified = load(case)
    inputs, loss = problem(identified)
    expected, found = check.reference(subject, inputs, loss), check.probed(subject, inputs, loss)
    # Measured: 3e-15, and 1e-14 for the gates.
    for name in ("loss", "rms", "grad_rms", "cosine", "write_rms"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-13, atol=0, equal_nan=True)
    assert check.gate_error(found["gate"], expected["gate"]) < 1e-13
    # By the eps of the norms.
    assert check.conservation(subject, expected["gate"]) < 3e-5  # measured: 3e-6


@pytest.mark.parametrize("case", ["as released", "no learned variance"])
def test_states_carry_the_gradient_of_the_whole_stream(case):
    subject, identified = load(case)
    inputs, loss = problem(identified)
    model = subject.model
    places = [block for level in LEVELS for block in model.get_submodule(level)]
    error = check.stream_slope_error(subject, inputs, loss, [*places, model.output])
    assert error < 3e-7  # measured: 3e-8


def test_cosine_is_unknown_where_the_shape_changes():
    subject, identified = load("no learned variance")
    inputs, loss = problem(identified)
    found = check.reference(subject, inputs, loss)
    unknown = [True, False, True, True, False, True, True, False, False]
    assert found["cosine"].isnan().all(0).tolist() == unknown
    assert not found["rms"].isnan().any()
    assert bool((found["grad_rms"] > 0).all())


@pytest.mark.parametrize(("width", "heads"), [(96, 4), (192, 8), (384, 16)])
def test_presets_tell_what_the_shapes_do_not(width, heads):
    shapes = official([2, 5, 8, 5, 2], width, heads)
    state = {name: torch.empty(s, device="meta") for name, s in shapes.items()}
    identified = check.identify(FAMILY, state)
    assert identified.shape == (C, 32, 32)
    options = ("heads", "down_factor", "posemb_type", "down_shortcut")
    assert [identified.sizes[name] for name in options] == [heads, 2, "rope2d", 1]
    assert identified.assumptions == [
        f"down-sampling and positions from the preset of width {width}",
        "latents of 32 x 32, as for images of 256 pixels",
        "read as U-DiT: steps 0..999, linear betas, noise; --objective overrides",
        "the last of 6 rows in the label table is taken for the dropped labels",
    ]


def test_other_sizes_need_their_settings():
    state = check.random_state(official())
    with pytest.raises(CheckpointError, match="does not tell how it down-samples") as error:
        check.load(FAMILY, state)
    assert "down_factor, posemb_type, down_shortcut" in error.value.hint
    with pytest.raises(CheckpointError, match="contradicts itself: its settings of the attention"):
        check.load(FAMILY, state, args={**OPTIONS, "posemb_type": "learned"})
    with pytest.raises(CheckpointError, match="images of '80' pixels do not fit"):
        check.load(FAMILY, state, args={**OPTIONS, "image_size": 80})
    with pytest.raises(CheckpointError, match="9 classes, and a label table of 6 rows"):
        check.load(FAMILY, state, args={**OPTIONS, "num_classes": 9})
    with pytest.raises(UsageError, match=r"--heads 4 contradicts 'model.pt': it has 2"):
        check.load(FAMILY, state, args=OPTIONS, heads=4)


@pytest.mark.parametrize(
    ("key", "shape", "match"),
    [
        ("latent.0.mlp2.dwconv.1.bias", None, r"'latent.0.mlp2.dwconv.1.bias' is missing"),
        ("latent.2.mlp2.dwconv.1.bias", (64,), r"'latent.1.attn1.logit_scale' is missing"),
        ("latent.0.extra", (3,), r"'latent.0.extra' is unexpected"),
        ("down2_3.body.0.weight", (D, D, 3, 3), r"'down2_3.body.0.weight' has shape"),
        ("final_layer.out_proj.bias", (3,), r"'final_layer.out_proj.bias' has shape \(3,\)"),
        ("encoder_level_1.0.attn1.logit_scale", (3, 1, 1), r"logit_scale' has shape \(3, 1, 1\)"),
    ],
)
def test_errors_name_the_culprit(key, shape, match):
    state = check.random_state(official())
    if shape is None:
        del state[key]
    else:
        state[key] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=match):
        check.load(FAMILY, state, args=OPTIONS)
