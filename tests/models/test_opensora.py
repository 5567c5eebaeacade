"""Open-Sora's STDiT3: from a file in the official layout to a subject, against a transcription."""

import json
import math

import numpy as np
import pytest
import safetensors.torch
import torch

from dar_probe.diffusion import objectives
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models import loading
from dar_probe.models.opensora import FAMILY, captions
from dar_probe.models.options import CheckpointOptions
from tests.helpers import reference
from tests.models import check, transcript

# Patches count frames, rows and columns, as ``grid`` does of tokens.
FLOW = {"grid": (3, 2, 3), "channels": 4, "patch": (1, 2, 2), "width": 24, "depth": 2, "heads": 2,
        "hidden": 40, "tokens": 5, "features": 7, "sigma": True, "norm": True,
        "window": None}  # fmt: skip
PLAIN = {**FLOW, "grid": (1, 3, 2), "channels": 2, "patch": (2, 1, 1), "depth": 1, "sigma": False,
         "norm": False}  # fmt: skip
WINDOWS = {**FLOW, "grid": (2, 3, 4), "depth": 1, "window": (2, 3, -1)}
CONFIGS = [
    pytest.param(FLOW, id="1.2"),
    pytest.param(PLAIN, id="without norms, one patch of time"),
    pytest.param(WINDOWS, id="1.3"),
]
TIMES = [0.0, 437.0, 1000.0]
SIDE = 64  # of pictures whose tokens are one position apart, in pixels


def official_shapes(*, channels, patch, width, depth, heads, hidden, tokens, features, sigma, norm,
                    window, grid=None):  # fmt: skip
    """Names and shapes of the official model; ``grid`` is in none of them."""
    d, size = width, width // heads
    shapes = {"rope.freqs": (size // (6 if window else 2),)}

    def linear(name, out, into):
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    for name in ("x_embedder", *(("x_embedder_cond", "x_embedder_cond_mask") if window else ())):
        shapes |= {f"{name}.proj.weight": (d, channels, *patch), f"{name}.proj.bias": (d,)}
    for name in ("t_embedder", "fps_embedder"):
        linear(f"{name}.mlp.0", d, 256)
        linear(f"{name}.mlp.2", d, d)
    linear("t_block.1", 6 * d, d)
    shapes["y_embedder.y_embedding"] = (tokens, features)
    linear("y_embedder.y_proj.fc1", d, features)
    linear("y_embedder.y_proj.fc2", d, d)
    for k in range(depth):
        for b in (f"spatial_blocks.{k}", f"temporal_blocks.{k}"):
            shapes[f"{b}.scale_shift_table"] = (6, d)
            linear(f"{b}.attn.qkv", 3 * d, d)
            if norm:
                shapes |= {f"{b}.attn.{n}_norm.weight": (size,) for n in "qk"}
            linear(f"{b}.attn.proj", d, d)
            linear(f"{b}.cross_attn.q_linear", d, d)
            linear(f"{b}.cross_attn.kv_linear", 2 * d, d)
            linear(f"{b}.cross_attn.proj", d, d)
            linear(f"{b}.mlp.fc1", hidden, d)
            linear(f"{b}.mlp.fc2", d, hidden)
    shapes["final_layer.scale_shift_table"] = (2, d)
    linear("final_layer.linear", math.prod(patch) * channels * (2 if sigma else 1), d)
    return shapes


def official_state(config):
    """Random weights, and the frequencies that every file has.

    Large modulations would sharpen the attention, and cost digits.
    """
    state = check.random_state(official_shapes(**config))
    state["t_block.1.weight"] *= 0.2
    state["y_embedder.y_embedding"] *= 3
    count = len(state["rope.freqs"])
    state["rope.freqs"] = 10000.0 ** -(torch.arange(count, dtype=torch.float64) / count)
    return state


def settings(config, **more):
    found = {"num_heads": config["heads"], "input_sq_size": SIDE, **more}
    if config["window"]:
        found |= {"kernel_size": list(config["window"]), "use_spatial_rope": True}
    return found


def shape_of(config):
    sizes = (n * p for n, p in zip(config["grid"], config["patch"], strict=True))
    return (config["channels"], *sizes)


def embed(p, name, t):
    """The sinusoid's MLP under another name than the time's."""
    own = {f"t_embedder.{k}": p[f"{name}.{k}"] for k in
           ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias")}  # fmt: skip
    return reference.embed_time(own, t)


def position(place, config):
    """The sin-cos code of one token: its column, then its row."""
    _, row, column = place
    _, rows, columns = config["grid"]
    side = 8 * math.sqrt(math.prod(shape_of(config)[2:])) / SIDE
    base, quarter = round(math.sqrt(rows * columns)), config["width"] // 4
    code = []
    for at, count in ((column, columns), (row, rows)):
        angles = [at / side * base / count * 10000 ** (-j / quarter) for j in range(quarter)]
        code += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return code


def turned(x, angles):
    """Features (N, 2j) and (N, 2j + 1) as points of a plane, turned by angle j."""
    out = x.clone()
    for j, angle in enumerate(angles):
        a, b = x[:, 2 * j], x[:, 2 * j + 1]
        out[:, 2 * j] = a * math.cos(angle) - b * math.sin(angle)
        out[:, 2 * j + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def self_attention(p, name, h, config, groups, angles):
    """Every token sees those of its group; ``angles`` has a list for each token, or is None."""
    heads, size = config["heads"], config["width"] // config["heads"]
    qkv, out = reference.linear(p, name + "qkv", h), torch.zeros_like(h)
    for k in range(heads):
        q, key, v = (qkv[..., (j * heads + k) * size :][..., :size] for j in range(3))
        if config["norm"]:
            q, key = (
                value / torch.sqrt((value**2).mean(-1, keepdim=True) + 1e-6)
                * p[f"{name}{n}_norm.weight"]
                for n, value in (("q", q), ("k", key))
            )  # fmt: skip
        if angles is not None:
            q, key = (
                torch.stack([turned(value[:, i], angles[i]) for i in range(len(angles))], 1)
                for value in (q, key)
            )
        for group in groups:
            scores = q[:, group] @ key[:, group].transpose(1, 2) / math.sqrt(size)
            out[:, group, k * size : (k + 1) * size] = scores.softmax(-1) @ v[:, group]
    return reference.linear(p, name + "proj", out)


def cross_attention(p, name, h, text, seen, config):
    """``seen`` counts the tokens of the text that each sample reads, the first ones."""
    heads, size = config["heads"], config["width"] // config["heads"]
    q, kv = reference.linear(p, name + "q_linear", h), reference.linear(p, name + "kv_linear", text)
    rows = []
    for n, count in enumerate(seen):
        parts = []
        for k in range(heads):
            of = slice(k * size, (k + 1) * size)
            key, v = kv[n, :count, of], kv[n, :count, config["width"] :][:, of]
            parts.append((q[n, :, of] @ key.T / math.sqrt(size)).softmax(-1) @ v)
        rows.append(torch.cat(parts, -1))
    return reference.linear(p, name + "proj", torch.stack(rows))


def mixing(p, config, *, temporal):
    """Return the groups of tokens that see each other, and every token's angles or None."""
    frames, rows, columns = config["grid"]
    places = [(f, i, j) for f in range(frames) for i in range(rows) for j in range(columns)]
    freqs = p["rope.freqs"].tolist()
    scale = 8 * math.sqrt(math.prod(shape_of(config)[2:])) / SIDE
    if config["window"]:
        high, wide, _ = config["window"]
        size = (frames, high, wide) if temporal else (1, rows, columns)
        inside = [tuple(a % s for a, s in zip(place, size, strict=True)) for place in places]
        angles = [[w * at for at in (f, i / scale, j / scale) for w in freqs] for f, i, j in inside]
    else:
        size = (frames, 1, 1) if temporal else (1, rows, columns)
        angles = [[w * f for w in freqs] for f, _, _ in places] if temporal else None
    homes = [tuple(a // s for a, s in zip(place, size, strict=True)) for place in places]
    groups = [[i for i, home in enumerate(homes) if home == one] for one in sorted(set(homes))]
    return groups, angles


def transcription(p, x, t, config, gates, text=None, seen=None):
    """The forward pass in plain formulas; tokens lie frame after frame, row after row."""
    grid, patch, width, n = config["grid"], config["patch"], config["width"], len(x)
    corners = [(f, i, j) for f in range(grid[0]) for i in range(grid[1]) for j in range(grid[2])]
    tokens = []
    for place in corners:
        cut = (slice(a * q, (a + 1) * q) for a, q in zip(place, patch, strict=True))
        piece = x[(slice(None), slice(None), *cut)].reshape(n, -1)
        token = piece @ p["x_embedder.proj.weight"].reshape(width, -1).T + p["x_embedder.proj.bias"]
        tokens.append(token + torch.tensor(position(place, config), dtype=x.dtype))
    rate = torch.full_like(t, 120 if x.shape[2] == 1 else 24)
    c = embed(p, "t_embedder", t) + embed(p, "fps_embedder", rate)
    shared = reference.linear(p, "t_block.1", reference.silu(c)).reshape(n, 6, width)
    if text is None:
        text, seen = p["y_embedder.y_embedding"].expand(n, -1, -1), [config["tokens"]] * n
    text = reference.gelu(reference.linear(p, "y_embedder.y_proj.fc1", text))
    text = reference.linear(p, "y_embedder.y_proj.fc2", text)
    stream = transcript.Stream(torch.stack(tokens, 1), gates)
    for k in range(config["depth"]):
        for temporal in (False, True):
            b = f"{'temporal' if temporal else 'spatial'}_blocks.{k}."
            m = (p[b + "scale_shift_table"] + shared)[:, :, None]  # (N, 6, 1, D)
            stream.block()
            h = reference.norm(stream.read()) * (1 + m[:, 1]) + m[:, 0]
            groups, angles = mixing(p, config, temporal=temporal)
            stream.write(m[:, 2] * self_attention(p, b + "attn.", h, config, groups, angles))
            stream.write(cross_attention(p, b + "cross_attn.", stream.read(), text, seen, config))
            h = reference.norm(stream.read()) * (1 + m[:, 4]) + m[:, 3]
            h = reference.gelu(reference.linear(p, b + "mlp.fc1", h))
            stream.write(m[:, 5] * reference.linear(p, b + "mlp.fc2", h))
    stream.block()
    shift, scale = (p["final_layer.scale_shift_table"] + c[:, None])[:, :, None].unbind(1)
    h = reference.norm(stream.read()) * (1 + scale) + shift
    h = reference.linear(p, "final_layer.linear", h)
    out = torch.zeros_like(x)
    for index, place in enumerate(corners):
        cut = (slice(a * q, (a + 1) * q) for a, q in zip(place, patch, strict=True))
        piece = h[:, index].reshape(n, *patch, -1).movedim(-1, 1)[:, : x.shape[1]]
        out[(slice(None), slice(None), *cut)] = piece
    return out, stream


@pytest.fixture(params=CONFIGS)
def case(request):
    """(config, state, identified, subject, inputs, loss) of one saved file."""
    config = request.param
    state = official_state(config)
    subject, identified = check.load(FAMILY, state, args=settings(config), shape=shape_of(config))
    return config, state, identified, subject, *check.problem(identified, times=TIMES)


def test_the_sites(case):
    config, state, identified, subject, *_ = case
    kinds, blocks = ("attention", "cross_attention", "mlp"), 2 * config["depth"]
    assert [(r.name, r.block, r.normed) for r in subject.readers] == [
        *(
            (f"block {k} {kind}", k, kind != "cross_attention")
            for k in range(1, blocks + 1)
            for kind in kinds
        ),
        ("head", blocks + 1, True),
    ]
    assert not [s for s in subject.sources if s.kind == "fusion"]
    no = ("rope.freqs", "y_embedder.y_embedding")  # they are no parameters
    idle = {name for name in state if name.startswith("x_embedder_cond")}
    assert set(identified.unused) == idle
    assert subject.facts == {
        "family": "opensora", "routing": "residual", "query": None, "chunk_size": None,
        "parameters": sum(v.numel() for k, v in state.items() if k not in {*no, *idle}),
        "depth": blocks, "width": config["width"], "heads": config["heads"],
        "tokens": math.prod(config["grid"]),
    }  # fmt: skip
    assert (identified.shape, identified.num_classes) == (shape_of(config), 0)


def test_everything_against_the_transcription(case):
    config, p, _, subject, (x, t, y), loss = case
    transcript.agrees(
        lambda gates: transcription(p, x, t, config, gates), subject, (x, t, y), loss, values=1e-12
    )


def test_the_probe_agrees_with_gates_through_autograd(case):
    *_, subject, args, loss = case
    check.sites_agree(subject, args, loss, law=1e-4)


def texts(config, rows=3):
    """Embedded text (rows, L, E) of a length of its own, and a mask of its first tokens."""
    generator = torch.Generator().manual_seed(4)
    text = torch.randn(rows, 4, config["features"], generator=generator, dtype=torch.float64)
    seen = [4, 1, 2][:rows]
    return text, seen, torch.tensor([[int(i < count) for i in range(4)] for count in seen])


def test_text_that_is_given(case):
    config, p, identified, subject, (x, t, y), _ = case
    text, seen, mask = texts(config)
    found = captions({"y": text[:, None], "mask": mask}, identified)
    output = subject.model(x, t, y, **found)
    gates = torch.ones(3, len(subject.readers), len(subject.sources), dtype=x.dtype)
    expected, _ = transcription(p, x, t, config, gates, text, seen)
    expected = expected.detach()
    assert check.relative(output, expected) < 1e-13
    null = subject.model(x, t, y)
    assert check.relative(null, expected) > 1e-3
    own = p["y_embedder.y_embedding"][None]
    torch.testing.assert_close(
        subject.model(x, t, y, **captions({"y": own.expand(3, -1, -1)}, identified)), null
    )


def test_the_file_of_text_reaches_the_model(tmp_path):
    path = check.save(tmp_path / "video.pt", official_state(FLOW), settings(FLOW))
    text, _, mask = texts(FLOW)
    np.savez(tmp_path / "text.npz", y=text.numpy(), mask=mask.numpy())
    options = {"path": path, "dtype": "float64"}
    shape = shape_of(FLOW)
    plain = loading.load_checkpoint(CheckpointOptions(**options), shape=shape)
    given = loading.load_checkpoint(
        CheckpointOptions(**options, text=tmp_path / "text.npz"), shape=shape
    )
    assert loading.NO_TEXT in plain.assumptions and loading.NO_TEXT not in given.assumptions
    assert plain.conditions != given.conditions  # samples that are drawn are kept apart
    x, ids = torch.zeros(2, *shape, dtype=torch.float64), torch.tensor([2, 0])
    _, found = given.call.inputs(x, torch.zeros(2), ids, ids)
    assert torch.equal(found["caption"], text[[2, 0]])
    assert torch.equal(found["mask"], mask[[2, 0]] > 0)
    assert plain.call.inputs(x, torch.zeros(2), ids, ids)[1] == {}
    drawn = [one.draw(1, seed=0)[0] for one in (plain, given)]
    assert drawn[0].shape == (1, *shape) and not torch.allclose(*drawn)
    np.savez(tmp_path / "one.npz", y=text[:2].numpy())
    short = loading.load_checkpoint(
        CheckpointOptions(**options, text=tmp_path / "one.npz"), shape=shape
    )
    with pytest.raises(UsageError, match="there are 2 rows of caption, sample 2 has none"):
        short.call.inputs(x, torch.zeros(2), ids, ids)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"caption": (3, 4, 7)}, "is y and mask, not 'caption'"),
        ({"y": (3, 4, 7), "fps": (3,)}, "is y and mask, not 'y', 'fps'"),
        ({"y": (3, 4, 8)}, r"y has shape \(3, 4, 8\), where \(rows, tokens, 7\) fits"),
        ({"y": (3, 4, 7), "mask": (3, 5)}, r"mask has shape \(3, 5\).* where \(3, 4\) fits"),
        ({"y": (3, 4, 7), "mask": (3, 4)}, "or a row without text"),
    ],
)
def test_text_that_does_not_fit(given, message):
    identified = check.identify(FAMILY, empty(official_shapes(**FLOW)), args=settings(FLOW))
    with pytest.raises(UsageError, match=message):
        captions({name: torch.zeros(shape) for name, shape in given.items()}, identified)


def empty(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_the_flow_goes_from_noise_to_data_while_its_time_goes_the_other_way():
    flow = objectives.get("open-sora")
    data, noise = torch.randn(2, 2, 4, 3, 2, 2, dtype=torch.float64)
    s = torch.tensor([0.25, 1.0], dtype=torch.float64)
    assert flow.model_time(s).tolist() == [250, 1000]
    assert torch.equal(flow.target(data, noise, s), data - noise)
    found = flow.split(flow.interpolate(data, noise, s), data - noise, s)
    torch.testing.assert_close(found, (data, noise))
    levels = flow.steps(10, (4, 15, 64, 64))  # 15 frames of 512 x 512 pixels
    half = math.sqrt(15) * 0.5 / (1 + (math.sqrt(15) - 1) * 0.5)
    assert float(levels[5]) == pytest.approx(half)


SAID = [
    "24 frames a second (120 for a single one, as in training) and 8 x 8 pixels a latent, which "
    "the model is told; all frames are noised alike",
    "read as Open-Sora 1.2 and 1.3: a flow whose time runs t = 1000 s, and whose velocity is "
    "data - noise; --objective overrides",
]


def test_the_largest_model_is_known_by_its_shapes():
    sizes = {"width": 1152, "depth": 28, "hidden": 4608, "heads": 16, "tokens": 300,
             "features": 4096}  # fmt: skip
    found = check.identify(FAMILY, empty(official_shapes(**FLOW | sizes)))
    assert (found.sizes["heads"], found.shape, found.objective) == (
        16,
        (4, 15, 32, 32),
        "open-sora",
    )
    assert found.assumptions == ["input_sq_size is 512, as in the release", *SAID]
    found = check.identify(FAMILY, empty(official_shapes(**FLOW | sizes | {"norm": False})))
    assert found.sizes["heads"] == 16
    sizes |= {"window": (8, 8, -1), "channels": 16}
    found = check.identify(FAMILY, empty(official_shapes(**FLOW | sizes)))
    assert (found.sizes["window"], found.shape) == ((0, 8, 8), (16, 15, 32, 32))
    assert found.assumptions == [
        "kernel_size is [8, 8, -1], as in the release",
        "use_spatial_rope is True, as in the release",
        "input_sq_size is 512, as in the release",
        "x_embedder_cond and its mask, which read given frames, are idle",
        *SAID,
    ]


def changed(name, shape):
    return lambda shapes: shapes.update({name: shape}) if shape else shapes.pop(name)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (changed("y_embedder.y_embedding", None), "'y_embedder.y_embedding' is missing"),
        (changed("rope.freqs", None), "'rope.freqs' is missing"),
        (changed("rope.freqs", (5,)), r"'rope.freqs' has shape \(5,\), which fits no known"),
        (changed("spatial_blocks.1.mlp.fc1.bias", None), "'spatial_blocks.1.mlp.fc1.bias' is miss"),
        (changed("temporal_blocks.1.attn.qkv.bias", (3,)), r"has shape \(3,\), where \(72,\) fits"),
        (changed("temporal_blocks.0.more", (3,)), "'temporal_blocks.1.more' is missing"),
        (changed("more", (3,)), "'more' is unexpected"),
        (changed("final_layer.linear.bias", (48,)), r"'final_layer.linear.bias' has shape \(48,\)"),
        (changed("x_embedder.proj.weight", (24, 4, 1, 2, 3)), "which fits no known model"),
        (changed("spatial_blocks.0.attn.q_norm.weight", (7,)), r"q_norm.weight' has shape \(7,\)"),
        (lambda shapes: [shapes.pop(name) for name in [*shapes] if "al_blocks.1." in name
                         and name.startswith("temporal")], "2 spatial blocks, and 1 temporal ones"),
    ],
)  # fmt: skip
def test_refused(edit, message):
    shapes = official_shapes(**FLOW)
    edit(shapes)
    with pytest.raises(CheckpointError, match=message) as error:
        check.identify(FAMILY, empty(shapes), args=settings(FLOW))
    assert error.value.hint


@pytest.mark.parametrize(
    ("config", "args", "message"),
    [
        (WINDOWS, {"kernel_size": [8, 0, -1]}, r"has the kernel_size .*\[8, 0, -1\]"),
        (WINDOWS, {"use_spatial_rope": "yes"}, "has the use_spatial_rope 'yes', which makes no"),
        (FLOW, {"input_sq_size": -3}, "has the input_sq_size '-3', which makes no sense"),
        (FLOW, {"kernel_size": [8, 8, -1]}, "a kernel_size, and 'rope.freqs' of whole heads"),
    ],
)
def test_settings_that_make_no_sense(config, args, message):
    with pytest.raises(CheckpointError, match=message):
        check.identify(FAMILY, empty(official_shapes(**config)), args={**settings(config), **args})


def test_heads_that_the_file_contradicts():
    with pytest.raises(UsageError, match="--heads 4 contradicts 'model.pt': it has 2"):
        check.identify(FAMILY, empty(official_shapes(**FLOW)), heads=4)


def test_a_folder_of_the_hub(tmp_path):
    """Its settings are those of a class that names itself as transformers' do."""
    state = {k: v.float().contiguous() for k, v in official_state(FLOW).items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    config = {"architectures": ["STDiT3"], "model_type": "STDiT3", "input_size": [None] * 3}
    (tmp_path / "config.json").write_text(json.dumps({**config, **settings(FLOW)}))
    options = CheckpointOptions(path=tmp_path)
    found = loading.load_checkpoint(options, shape=shape_of(FLOW)).identified
    assert (found.family, found.sizes["base_side"]) == ("opensora", SIDE)
    beside = "settings are those of config.json beside the file"
    assert found.assumptions == [beside, *SAID]
    other = loading.load_checkpoint(options, shape=(4, 1, 3, 2)).identified
    assert other.shape == (4, 15, 32, 32)  # 3 rows are no whole patches
    assert "samples of 4 x 15 x 32 x 32, as in the presets: the model takes any size" in (
        other.assumptions
    )
