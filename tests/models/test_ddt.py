"""DDT: names, sizes, function and sites against plain formulas and plain autograd."""

import math

import pytest
import torch

import dar_probe as dp
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models import loading
from dar_probe.models.ddt import FAMILY
from dar_probe.models.inspection import survey
from dar_probe.models.options import CheckpointOptions
from tests.models import check

D, H, C, P, SIDE, HIDDEN, ROWS = 16, 2, 3, 2, 6, 20, 6
SHAPE = (C, SIDE, SIDE)
OPTIONS = {"num_encoder_blocks": 2, "patch_size": P}
CASES = {"most blocks in the encoder": (3, 2), "most blocks in the decoder": (4, 1)}


def official(depth=3, width=D, heads=H, features=C * P * P):
    """Names and shapes as in the authors' state dict."""
    shapes = {}

    def layer(name, out, into, bias=True):
        shapes[name + ".weight"] = (out, into)
        if bias:
            shapes[name + ".bias"] = (out,)

    layer("x_embedder.proj", width, features)
    layer("s_embedder.proj", width, features)
    layer("t_embedder.mlp.0", width, 256)
    layer("t_embedder.mlp.2", width, width)
    shapes["y_embedder.embedding_table.weight"] = (ROWS, width)
    layer("final_layer.linear", features, width)
    layer("final_layer.adaLN_modulation.0", 2 * width, width)
    for b in (f"blocks.{k}." for k in range(depth)):
        shapes |= {b + "norm1.weight": (width,), b + "norm2.weight": (width,)}
        layer(b + "attn.qkv", 3 * width, width, bias=False)
        shapes[b + "attn.q_norm.weight"] = shapes[b + "attn.k_norm.weight"] = (width // heads,)
        layer(b + "attn.proj", width, width)
        layer(b + "mlp.w1", HIDDEN, width, bias=False)
        layer(b + "mlp.w3", HIDDEN, width, bias=False)
        layer(b + "mlp.w2", width, HIDDEN, bias=False)
        layer(b + "adaLN_modulation.0", 6 * width, width)
    return shapes


def load(case):
    depth, encoder = CASES[case]
    args = {**OPTIONS, "num_encoder_blocks": encoder}
    return check.load(FAMILY, check.random_state(official(depth)), args=args, shape=SHAPE)


def reference(p, depth, encoder, x, t, y):
    """The published forward in plain formulas: loops over heads, complex numbers for rotation."""
    grid, size = x.shape[-1] // P, D // H

    def linear(name, v):
        return v @ p[name + ".weight"].T + p.get(name + ".bias", 0)

    def silu(v):
        return v / (1 + torch.exp(-v))

    def rms(v, name):
        return v / torch.sqrt((v * v).mean(-1, keepdim=True) + 1e-6) * p[name + ".weight"]

    turn = torch.empty(grid * grid, size // 2, dtype=torch.complex128)
    for token in range(grid * grid):
        row, column = divmod(token, grid)
        for pair in range(size // 2):
            place = 16 * (row if pair % 2 else column) / (grid - 1)
            angle = place * 10000 ** (-4 * (pair // 2) / size)
            turn[token, pair] = complex(math.cos(angle), math.sin(angle))

    def rotated(v):
        return torch.view_as_real(torch.complex(v[..., ::2], v[..., 1::2]) * turn).reshape(v.shape)

    def block(b, h, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(b + "adaLN_modulation.0", c).split(
            D, dim=-1
        )
        qkv = linear(b + "attn.qkv", rms(h, b + "norm1") * (1 + scale1) + shift1)
        heads = []
        for head in range(H):
            q, k, v = (
                qkv[..., part * D + head * size : part * D + (head + 1) * size] for part in range(3)
            )
            q, k = rotated(rms(q, b + "attn.q_norm")), rotated(rms(k, b + "attn.k_norm"))
            heads.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(size), -1) @ v)
        h = h + gate1 * linear(b + "attn.proj", torch.cat(heads, -1))
        u = rms(h, b + "norm2") * (1 + scale2) + shift2
        u = silu(linear(b + "mlp.w1", u)) * linear(b + "mlp.w3", u)
        return h + gate2 * linear(b + "mlp.w2", u)

    patches = [
        x[:, :, i * P : (i + 1) * P, j * P : (j + 1) * P].reshape(len(x), -1)
        for i in range(grid)
        for j in range(grid)
    ]
    patches = torch.stack(patches, 1)  # channels first, then rows and columns of the patch
    freqs = torch.tensor([10 ** (-j / 128) for j in range(128)], dtype=torch.float64)
    wave = torch.cat([torch.cos(t[:, None] * freqs), torch.sin(t[:, None] * freqs)], 1)
    time = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", wave)))[:, None]
    c = silu(time + p["y_embedder.embedding_table.weight"][y][:, None])
    s = linear("s_embedder.proj", patches)
    for k in range(encoder):
        s = block(f"blocks.{k}.", s, c)
    s = silu(s + time)
    h = linear("x_embedder.proj", patches)
    for k in range(encoder, depth):
        h = block(f"blocks.{k}.", h, s)
    h = h - h.mean(-1, keepdim=True)
    h = h / torch.sqrt((h * h).mean(-1, keepdim=True) + 1e-6)
    shift, scale = linear("final_layer.adaLN_modulation.0", s).split(D, dim=-1)
    out = linear("final_layer.linear", h * (1 + scale) + shift)
    image = torch.zeros_like(x)
    for token in range(grid * grid):
        i, j = divmod(token, grid)
        patch = out[:, token].reshape(len(x), -1, P, P)
        image[:, :, i * P : (i + 1) * P, j * P : (j + 1) * P] = patch
    return image


@pytest.mark.parametrize("case", CASES)
def test_names_and_sizes_are_the_official_ones(case):
    subject, identified = load(case)
    shapes = {name: tuple(v.shape) for name, v in subject.model.state_dict().items()}
    assert shapes == official(CASES[case][0])
    assert identified.shape == SHAPE
    assert identified.num_classes == ROWS - 1
    assert identified.objective == "sit"
    assert subject.facts["heads"] == H
    assert subject.facts["tokens"] == (SIDE // P) ** 2


def test_encoder_and_decoder_are_two_streams():
    subject, _ = load("most blocks in the encoder")
    assert [reader.name for reader in subject.readers] == [
        "block 1 attention", "block 1 mlp", "block 2 attention", "block 2 mlp",
        "block 3 attention", "block 3 mlp", "head",
    ]  # fmt: skip
    assert subject.sources[5].name == "decoder embedding"
    assert subject.offered[:4] == ((0,), (0, 1), (0, 1, 2), (0, 1, 2, 3))
    assert subject.offered[4:] == ((5,), (5, 6), (5, 6, 7))  # nothing of the encoder's
    begins, ends = subject.assumptions
    assert begins.startswith("a new stream begins before block 3: cosines and importances end")
    assert ends.startswith("block 2 ends the encoder: its last state modulates every branch of")


@pytest.mark.parametrize("case", CASES)
def test_forward_is_the_published_one(case):
    subject, identified = load(case)
    inputs, _ = check.problem(identified)
    depth, encoder = CASES[case]
    expected = reference(check.random_state(official(depth)), depth, encoder, *inputs)
    assert check.relative(subject.model(*inputs), expected) < 2e-14  # measured: 2.5e-15


@pytest.mark.parametrize("case", CASES)
def test_reads_are_sums_of_sources_and_writes_are_branches_times_gates(case):
    subject, identified = load(case)
    inputs, _ = check.problem(identified)
    sums, writes = check.observe(subject, inputs).errors(subject)
    assert sums < 1e-14  # measured: 0
    assert writes < 1e-13  # measured: 1.2e-14, where a write is small beside the stream


@pytest.mark.parametrize("case", CASES)
def test_probe_agrees_with_explicit_gates(case):
    subject, identified = load(case)
    inputs, loss = check.problem(identified)
    expected, found = check.reference(subject, inputs, loss), check.probed(subject, inputs, loss)
    # Measured: 1.2e-15, and 1.6e-13 for the gates.
    for name in ("loss", "rms", "grad_rms", "cosine", "write_rms"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-14, atol=0, equal_nan=True)
    encoder = CASES[case][1]
    unknown = found["cosine"].isnan().all(0).nonzero().flatten().tolist()
    assert unknown == [0, encoder]  # the decoder's embedding is no next state of the encoder's
    assert check.gate_error(found["gate"], expected["gate"]) < 1e-12
    # By the eps of the norms.
    assert check.conservation(subject, expected["gate"]) < 2e-5  # measured: 4e-6


def test_states_carry_the_gradient_of_the_whole_stream():
    subject, identified = load("most blocks in the encoder")
    inputs, loss = check.problem(identified)
    places = [*subject.model.blocks, subject.model.final_layer]
    assert check.stream_slope_error(subject, inputs, loss, places) < 1e-7  # measured: 1.2e-8


@pytest.mark.parametrize(
    ("width", "depth", "heads", "encoder"),
    [(768, 12, 12, 8), (1024, 24, 16, 20), (1152, 28, 16, 22)],
)
def test_presets_tell_where_the_encoder_ends(width, depth, heads, encoder):
    shapes = official(depth, width, heads, features=16)
    state = {name: torch.empty(s, device="meta") for name, s in shapes.items()}
    found = check.identify(FAMILY, state)
    assert found.shape == (4, 32, 32)
    assert (found.sizes["encoder"], found.sizes["heads"], found.sizes["patch"]) == (
        encoder, heads, 2,
    )  # fmt: skip
    split, patch, clock, rows = found.assumptions
    assert split.startswith(f"the first {encoder} of {depth} blocks are the encoder's")
    assert patch == "patches of 2 x 2 in latents of 4 channels, as in the presets"
    assert clock == "read as DDT: time runs t = 1 - s; --objective overrides"
    assert "dropped labels" in rows


def test_what_no_weight_tells_is_asked_for():
    state = check.random_state(official())
    with pytest.raises(
        CheckpointError, match="how many of its 3 blocks are the encoder's"
    ) as error:
        check.load(FAMILY, state, args={"patch_size": P})
    assert "num_encoder_blocks" in error.value.hint
    with pytest.raises(CheckpointError, match="does not tell its patch size: 12 numbers") as error:
        check.load(FAMILY, state, args={"num_encoder_blocks": 1})
    assert "patch_size" in error.value.hint
    for wrong in (0, 3, -1, True, "2", 1.5):
        with pytest.raises(CheckpointError, match="of its 3 blocks would be the encoder's"):
            check.load(FAMILY, state, args={**OPTIONS, "num_encoder_blocks": wrong})
    for wrong in (0, 5, 10**6, "2"):
        with pytest.raises(CheckpointError, match="12 numbers are no patch of side"):
            check.load(FAMILY, state, args={**OPTIONS, "patch_size": wrong})
    with pytest.raises(UsageError, match=r"--heads 4 contradicts 'model.pt': it has 2"):
        check.load(FAMILY, state, args=OPTIONS, heads=4)


def test_lightning_s_file_of_the_authors_trainer(tmp_path):
    average = check.random_state(official())
    state = {f"denoiser.{name}": value + 1 for name, value in average.items()}
    state |= {f"ema_denoiser.{name}": value for name, value in average.items()}
    state["diffusion_trainer.proj.0.0.weight"] = torch.zeros(D, D)
    path = tmp_path / "epoch=1-step=40.ckpt"
    content = {"epoch": 1, "global_step": 40, "pytorch-lightning_version": "2.4.0", "loops": {}}
    torch.save({**content, "state_dict": state, "config": OPTIONS, "optimizer_states": []}, path)
    loaded = loading.load_checkpoint(CheckpointOptions(path=path, dtype="float64"))
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, average[name])
    assert loaded.file["weights"] == "ema"
    assert "samples of 3 x 32 x 32, as in the presets: the model takes any size" in (
        loaded.assumptions
    )
    assert survey(CheckpointOptions(path=path)).shape == (C, 32, 32)


def test_samples_of_any_size_are_taken_and_others_refused(tmp_path):
    path = check.save(tmp_path / "model.pt", check.random_state(official()), OPTIONS)
    grid = {"noise_levels": [0.5], "samples": 1}
    for side in (4, 8):
        torch.manual_seed(0)
        data = tmp_path / f"{side}.safetensors"
        save(data, torch.randn(2, C, side, side))
        found = dp.analyze(path, data=f"latents:{data}", **grid)
        assert found.manifest["model"]["tokens"] == (side // P) ** 2
        assert not any("samples of" in said for said in found.manifest["assumptions"])
    for wrong in ((C, 5, 5), (C, 4, 6), (C + 1, 4, 4)):
        save(data, torch.randn(2, *wrong))
        with pytest.raises(UsageError, match="the model takes 3x32x32"):
            dp.analyze(path, data=f"latents:{data}", **grid)


def save(path, latents):
    import safetensors.torch

    labels = torch.zeros(len(latents), dtype=torch.int64)
    safetensors.torch.save_file({"latents": latents, "labels": labels}, path)


@pytest.mark.parametrize(
    ("key", "shape", "match"),
    [
        ("blocks.1.mlp.w2.weight", None, r"'blocks.1.mlp.w2.weight' is missing"),
        ("blocks.3.mlp.w2.weight", (D, HIDDEN), r"'blocks.3.norm1.weight' is missing"),
        ("blocks.1.attn.extra", (D,), r"'blocks.1.attn.extra' is unexpected"),
        ("s_embedder.proj.weight", (D, 4), r"'s_embedder.proj.weight' has shape \(16, 4\)"),
        ("blocks.0.attn.q_norm.weight", (6,), r"'blocks.0.attn.q_norm.weight' has shape \(6,\)"),
        ("blocks.0.attn.q_norm.weight", (12,), r"'blocks.0.attn.q_norm.weight' has shape \(12,\)"),
        ("x_embedder.proj.weight", (D, 4, 1, 1), r"'x_embedder.proj.weight' has shape"),
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


def test_rivals_are_the_same_weights_with_their_encoder_one_block_off():
    depth, args = 4, {**OPTIONS, "num_encoder_blocks": 3}
    state = check.random_state(official(depth))
    subject, identified = check.load(FAMILY, state, args=args, shape=SHAPE)
    inputs, _ = check.problem(identified)
    (name, rival), *more = FAMILY.rivals(subject.model, identified).items()
    assert name == "num_encoder_blocks 2" and not more  # of 4 the decoder would have no block
    assert check.relative(rival(*inputs), reference(state, depth, 2, *inputs)) < 2e-14
    assert check.relative(subject.model(*inputs), reference(state, depth, 3, *inputs)) < 2e-14
    assert rival.blocks is subject.model.blocks
