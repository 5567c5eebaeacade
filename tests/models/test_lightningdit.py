"""LightningDiT: names, sizes, function and sites against plain formulas and plain autograd."""

import math

import pytest
import torch

from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models import sit_family
from dar_probe.models.lightningdit import FAMILY
from dar_probe.models.loading import load_checkpoint as load_file
from dar_probe.models.options import CheckpointOptions
from dar_probe.models.registry import family_of
from tests.models import check

FLAGS = ("swiglu", "rmsnorm", "rope", "qk_norm", "wo_shift", "learn_sigma")
CASES = [
    "swiglu",
    "rmsnorm",
    "rope",
    "swiglu wo_shift",
    "wo_shift",
    "qk_norm wo_shift learn_sigma",
    "swiglu qk_norm learn_sigma",
    "rmsnorm qk_norm wo_shift",
    "swiglu rmsnorm rope",  # as released
    "swiglu rmsnorm rope qk_norm wo_shift learn_sigma",
]
D, H, C, P, SIDE, HIDDEN, ROWS = 16, 2, 3, 2, 6, 20, 6


def official(flags, depth=2, width=D, heads=H):
    """Names and shapes as in the authors' state dict."""
    swiglu, rmsnorm, rope, qk_norm, wo_shift, learn_sigma = (flag in flags for flag in FLAGS)
    d, size, tokens = width, width // heads, (SIDE // P) ** 2
    shapes = {
        "pos_embed": (1, tokens, d),
        "x_embedder.proj.weight": (d, C, P, P),
        "x_embedder.proj.bias": (d,),
        "t_embedder.mlp.0.weight": (d, 256),
        "t_embedder.mlp.0.bias": (d,),
        "t_embedder.mlp.2.weight": (d, d),
        "t_embedder.mlp.2.bias": (d,),
        "y_embedder.embedding_table.weight": (ROWS, d),
    }
    if rope:
        shapes |= {"feat_rope.freqs_cos": (tokens, size), "feat_rope.freqs_sin": (tokens, size)}
    for k in range(depth):
        b = f"blocks.{k}."
        if rmsnorm:
            shapes |= {b + "norm1.weight": (d,), b + "norm2.weight": (d,)}
        shapes |= {b + "attn.qkv.weight": (3 * d, d), b + "attn.qkv.bias": (3 * d,)}
        if qk_norm:
            shapes |= {b + "attn.q_norm.weight": (size,), b + "attn.k_norm.weight": (size,)}
        if qk_norm and not rmsnorm:
            shapes |= {b + "attn.q_norm.bias": (size,), b + "attn.k_norm.bias": (size,)}
        shapes |= {b + "attn.proj.weight": (d, d), b + "attn.proj.bias": (d,)}
        if swiglu:
            shapes |= {b + "mlp.w12.weight": (2 * HIDDEN, d), b + "mlp.w12.bias": (2 * HIDDEN,)}
            shapes |= {b + "mlp.w3.weight": (d, HIDDEN), b + "mlp.w3.bias": (d,)}
        else:
            shapes |= {b + "mlp.fc1.weight": (HIDDEN, d), b + "mlp.fc1.bias": (HIDDEN,)}
            shapes |= {b + "mlp.fc2.weight": (d, HIDDEN), b + "mlp.fc2.bias": (d,)}
        chunks = 4 if wo_shift else 6
        shapes[b + "adaLN_modulation.1.weight"] = (chunks * d, d)
        shapes[b + "adaLN_modulation.1.bias"] = (chunks * d,)
    if rmsnorm:
        shapes["final_layer.norm_final.weight"] = (d,)
    outputs = P * P * C * (2 if learn_sigma else 1)
    return shapes | {
        "final_layer.linear.weight": (outputs, d),
        "final_layer.linear.bias": (outputs,),
        "final_layer.adaLN_modulation.1.weight": (2 * d, d),
        "final_layer.adaLN_modulation.1.bias": (2 * d,),
    }


def file(case, **sizes):
    """A state dict in the official layout; its rotary tables are those of its positions."""
    shapes = official(case.split(), **sizes)
    state = check.random_state(shapes)
    if "feat_rope.freqs_cos" in shapes:
        angles = torch.zeros(shapes["feat_rope.freqs_cos"], dtype=torch.float64)
        half = angles.shape[1] // 2
        for token in range(len(angles)):
            for feature in range(2 * half):
                place = divmod(token, SIDE // P)[feature // half]
                pair = feature % half // 2
                angles[token, feature] = place * 10000 ** (-2 * pair / half)
        state |= {"feat_rope.freqs_cos": angles.cos(), "feat_rope.freqs_sin": angles.sin()}
    return state


def load(case, **sizes):
    told = "rope" in case or "qk_norm" in case
    return check.load(FAMILY, file(case, **sizes), heads=None if told else H)


def reference(p, flags, x, t, y):
    """The published forward in plain formulas: loops over heads, complex numbers for rotation."""
    swiglu, rmsnorm, rope, qk_norm, wo_shift, _ = (flag in flags for flag in FLAGS)
    grid = SIDE // P

    def linear(name, v):
        return v @ p[name + ".weight"].T + p[name + ".bias"]

    def silu(v):
        return v / (1 + torch.exp(-v))

    def norm(v, name, rms=rmsnorm, eps=1e-6):
        if not rms:
            v = v - v.mean(-1, keepdim=True)
        v = v / torch.sqrt((v * v).mean(-1, keepdim=True) + eps)
        return v * p.get(name + ".weight", 1) + p.get(name + ".bias", 0)

    def rotated(v):
        turn = torch.complex(p["feat_rope.freqs_cos"], p["feat_rope.freqs_sin"])[:, ::2]
        turned = torch.complex(v[..., ::2], v[..., 1::2]) * turn
        return torch.view_as_real(turned).reshape(v.shape)

    rows = []
    for i in range(grid):
        for j in range(grid):
            patch = x[:, :, i * P : (i + 1) * P, j * P : (j + 1) * P].reshape(len(x), -1)
            rows.append(patch @ p["x_embedder.proj.weight"].reshape(D, -1).T)
    h = torch.stack(rows, 1) + p["x_embedder.proj.bias"] + p["pos_embed"]
    freqs = torch.tensor([10000 ** (-j / 128) for j in range(128)], dtype=torch.float64)
    wave = torch.cat([torch.cos(t[:, None] * freqs), torch.sin(t[:, None] * freqs)], 1)
    c = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", wave)))
    c = silu(c + p["y_embedder.embedding_table.weight"][y])

    def parts(name):
        return linear(name, c)[:, None].split(D, dim=-1)

    for k in range(1 + max(int(key.split(".")[1]) for key in p if key.startswith("blocks."))):
        b = f"blocks.{k}."
        if wo_shift:
            (scale1, gate1, scale2, gate2), shift1, shift2 = parts(b + "adaLN_modulation.1"), 0, 0
        else:
            shift1, scale1, gate1, shift2, scale2, gate2 = parts(b + "adaLN_modulation.1")
        u = linear(b + "attn.qkv", norm(h, b + "norm1") * (1 + scale1) + shift1)
        heads = []
        for head in range(H):
            q, k_, v = (
                u[..., part * D + head * D // H : part * D + (head + 1) * D // H]
                for part in range(3)
            )
            if qk_norm:
                eps = 1e-6 if rmsnorm else 1e-5
                q = norm(q, b + "attn.q_norm", eps=eps)
                k_ = norm(k_, b + "attn.k_norm", eps=eps)
            if rope:
                q, k_ = rotated(q), rotated(k_)
            logits = q @ k_.transpose(1, 2) / math.sqrt(D // H)
            heads.append(torch.softmax(logits, -1) @ v)
        h = h + gate1 * linear(b + "attn.proj", torch.cat(heads, -1))
        u = norm(h, b + "norm2") * (1 + scale2) + shift2
        if swiglu:
            both = linear(b + "mlp.w12", u)
            u = linear(b + "mlp.w3", silu(both[..., :HIDDEN]) * both[..., HIDDEN:])
        else:
            u = linear(b + "mlp.fc1", u)
            u = u / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
            u = linear(b + "mlp.fc2", u)
        h = h + gate2 * u
    shift, scale = parts("final_layer.adaLN_modulation.1")
    out = linear("final_layer.linear", norm(h, "final_layer.norm_final") * (1 + scale) + shift)
    image = torch.zeros(len(x), out.shape[-1] // (P * P), SIDE, SIDE, dtype=x.dtype)
    for token in range(grid * grid):
        i, j = divmod(token, grid)
        patch = out[:, token].reshape(len(x), P, P, -1).permute(0, 3, 1, 2)
        image[:, :, i * P : (i + 1) * P, j * P : (j + 1) * P] = patch
    return image[:, :C]


@pytest.mark.parametrize("case", CASES)
def test_names_and_sizes_are_the_official_ones(case):
    subject, identified = load(case)
    shapes = {name: tuple(v.shape) for name, v in subject.model.state_dict().items()}
    assert shapes == official(case.split())
    assert identified.shape == (C, SIDE, SIDE)
    assert identified.num_classes == ROWS - 1
    assert identified.objective == "sit"
    assert subject.facts["heads"] == H
    assert subject.facts["tokens"] == (SIDE // P) ** 2
    assert [r.name for r in subject.readers] == [
        "block 1 attention", "block 1 mlp", "block 2 attention", "block 2 mlp", "head",
    ]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_forward_is_the_published_one(case):
    subject, identified = load(case)
    inputs, _ = check.problem(identified)
    expected = reference(file(case), case.split(), *inputs)
    error = check.relative(subject.model(*inputs), expected)
    assert error < 7e-14  # measured: 7e-15


@pytest.mark.parametrize("case", CASES)
def test_reads_are_sums_of_sources_and_writes_are_branches_times_gates(case):
    subject, identified = load(case)
    inputs, _ = check.problem(identified)
    assert subject.offered == tuple(tuple(range(row + 1)) for row in range(5))
    sums, writes = check.observe(subject, inputs).errors(subject)
    assert sums < 1e-14  # measured: 0
    assert writes < 1e-14  # measured: 5e-16


@pytest.mark.parametrize("case", CASES)
def test_probe_agrees_with_explicit_gates(case):
    subject, identified = load(case, depth=3)
    inputs, loss = check.problem(identified)
    expected, found = check.reference(subject, inputs, loss), check.probed(subject, inputs, loss)
    # Measured: 3e-16, and 1e-14 for the gates.
    for name in ("loss", "rms", "grad_rms", "cosine", "write_rms"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-13, atol=0, equal_nan=True)
    assert check.gate_error(found["gate"], expected["gate"]) < 1e-13
    # By the eps of the norms.
    assert check.conservation(subject, expected["gate"]) < 1e-5  # measured: 8e-7


@pytest.mark.parametrize("case", [CASES[0], CASES[-1]])
def test_states_carry_the_gradient_of_the_whole_stream(case):
    subject, identified = load(case)
    inputs, loss = check.problem(identified)
    model = subject.model
    places = [*model.blocks, model.final_layer]
    assert check.stream_slope_error(subject, inputs, loss, places) < 1e-8  # measured: 8e-10


def test_heads_come_from_the_file_then_the_user_then_the_presets():
    state = file("swiglu")
    with pytest.raises(CheckpointError, match="does not tell its heads") as error:
        check.load(FAMILY, state)
    assert "--heads" in error.value.hint
    with pytest.raises(UsageError, match="--heads 3 does not divide the width 16"):
        check.load(FAMILY, state, heads=3)
    for case in ("rope", "rmsnorm qk_norm"):
        with pytest.raises(UsageError, match=r"--heads 4 contradicts 'model.pt': it has 2"):
            check.load(FAMILY, file(case), heads=4)
    preset = {k: torch.empty(s, device="meta") for k, s in official(["swiglu"], 12, 768).items()}
    found = check.identify(FAMILY, preset)
    assert found.sizes["heads"] == 12
    assert "heads from the preset table for width 768, depth 12" in found.assumptions


@pytest.mark.parametrize("flags", [[], ["learn_sigma"], ["qk_norm"]])
def test_without_its_own_options_it_is_a_file_of_sit(flags):
    head = check.header(check.random_state(official(flags)))
    assert family_of(head) is sit_family.FAMILY
    assert not FAMILY.matches(head)


def config(**transport):
    """Settings as the authors' trainer stores them, in sections."""
    return {
        "ckpt_path": None,
        "data": {
            "image_size": 256,
            "num_classes": ROWS - 1,
            "latent_norm": True,
            "latent_multiplier": 1.0,
        },
        "model": {"model_type": "LightningDiT-XL/1", "use_swiglu": True},
        "transport": {"path_type": "Linear", "prediction": "velocity", **transport},
    }


@pytest.mark.parametrize("flags", ["swiglu", ""])
def test_settings_in_sections_leave_nothing_to_assume(flags, tmp_path):
    path = tmp_path / "0080000.pt"
    torch.save({"ema": file(flags), "config": config()}, path)
    loaded = load_file(CheckpointOptions(path=path, heads=H))
    assert loaded.identified.family == ("lightningdit" if flags else "sit")
    assert loaded.identified.num_classes == ROWS - 1
    assert loaded.objective.name == "sit"
    assert loaded.assumptions == []
    torch.save({"ema": file(flags), "config": config(path_type="GVP")}, path)
    (assumed,) = load_file(CheckpointOptions(path=path, heads=H)).assumptions
    assert "path_type 'GVP' and prediction 'velocity': the objective is sit:gvp" in assumed
    torch.save({"ema": file(flags), "config": config(prediction="v")}, path)
    loaded = load_file(CheckpointOptions(path=path, heads=H))
    (assumed,) = loaded.assumptions
    assert "prediction 'v'" in assumed and "read as REPA" in assumed and "t = s" in assumed
    assert loaded.objective.name == "repa"
    scaled = config() | {"data": {"num_classes": ROWS - 1, "latent_norm": True}}
    torch.save({"ema": file(flags), "config": scaled}, path)
    said = load_file(CheckpointOptions(path=path, heads=H)).assumptions
    scale = "it was trained with latent_norm 'True' and latent_multiplier '0.18215'"
    assert [one.partition(":")[0] for one in said] == ([scale] if flags else [])
    wrong = config() | {"data": {"num_classes": 9}}
    torch.save({"ema": file(flags), "config": wrong}, path)
    with pytest.raises(CheckpointError, match="9 classes, and a label table of 6 rows"):
        load_file(CheckpointOptions(path=path, heads=H))


def test_odd_names_and_settings_of_a_plain_file_are_no_internal_error(tmp_path):
    odd = {key.replace("table.weight", "table.weight\n"): v for key, v in file("").items()}
    torch.save(odd, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match="'y_embedder.embedding_table.weight' is missing"):
        load_file(CheckpointOptions(path=tmp_path / "odd.pt", heads=H))
    torch.save({"model": file(""), "args": {"jax": ["cpu"]}}, tmp_path / "jax.pt")
    loaded = load_file(CheckpointOptions(path=tmp_path / "jax.pt", heads=H))
    assert loaded.objective.name == "sit"


@pytest.mark.parametrize(
    ("key", "shape", "match"),
    [
        ("blocks.1.mlp.w3.bias", None, r"'blocks.1.mlp.w3.bias' is missing"),
        ("blocks.3.mlp.w3.bias", (D,), r"'blocks.2.norm1.weight' is missing"),
        ("blocks.1.attn.extra", (D,), r"'blocks.1.attn.extra' is unexpected"),
        ("blocks.1.norm2.weight", (D + 1,), r"'blocks.1.norm2.weight' has shape \(17,\)"),
        ("blocks.0.adaLN_modulation.1.weight", (5 * D, D), r"modulation.1.weight' has shape"),
        ("final_layer.linear.bias", (5,), r"'final_layer.linear.bias' has shape \(5,\)"),
        ("pos_embed", (1, 8, D), "no square grid"),
        ("feat_rope.freqs_cos", (9, 6), r"'feat_rope.freqs_cos' has shape \(9, 6\)"),
        ("feat_rope.freqs_sin", (9, 4), r"'feat_rope.freqs_sin' has shape \(9, 4\)"),
    ],
)
def test_errors_name_the_culprit(key, shape, match):
    state = file("swiglu rmsnorm rope")
    if shape is None:
        del state[key]
    else:
        state[key] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=match):
        check.load(FAMILY, state)
