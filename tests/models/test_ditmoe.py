"""DiT-MoE: names, sizes, function, gradients and sites against plain formulas in float64."""

import pytest
import torch

from dar_probe.errors import CheckpointError, UsageError
from dar_probe.models.ditmoe import FAMILY
from dar_probe.models.inspection import survey
from dar_probe.models.loading import load_checkpoint
from dar_probe.models.options import CheckpointOptions
from tests.helpers import reference
from tests.models import check

D, H, C, P, SIDE, ROWS, HIDDEN, DEPTH = 16, 2, 3, 2, 3, 6, 20, 2  # SIDE counts patches
PLAIN = {"experts": 4}
NORMED = {"experts": 5, "qk_norm": True, "per_token": 3}
CONFIGS = [pytest.param(c, id=n) for c, n in (
    (PLAIN, "plain"), (NORMED, "qk-norm"), ({"experts": 3, "shared": 0, "per_token": 1}, "one"),
    ({"experts": 1, "per_token": 1}, "dense"),
)]  # fmt: skip


def official_shapes(experts=4, qk_norm=False, shared=2 * D, per_token=2, depth=DEPTH, width=D):
    """Names and shapes of the official model; ``per_token`` leaves no trace in them."""
    shapes = {"pos_embed": (1, SIDE * SIDE, width), "x_embedder.proj.weight": (width, C, P, P)}
    shapes["x_embedder.proj.bias"] = (width,)

    def layer(name, out, into):
        shapes[name + ".weight"], shapes[name + ".bias"] = (out, into), (out,)

    def expert(name, hidden):
        shapes[f"{name}.gate_proj.weight"] = shapes[f"{name}.up_proj.weight"] = (hidden, width)
        shapes[f"{name}.down_proj.weight"] = (width, hidden)

    layer("t_embedder.mlp.0", width, 256)
    layer("t_embedder.mlp.2", width, width)
    shapes["y_embedder.embedding_table.weight"] = (ROWS, width)
    for b in (f"blocks.{k}" for k in range(depth)):
        layer(f"{b}.attn.{'Wqkv' if qk_norm else 'qkv'}", 3 * width, width)
        for name in ("q_norm", "k_norm") if qk_norm else ():
            shapes[f"{b}.attn.{name}.weight"] = shapes[f"{b}.attn.{name}.bias"] = (width // H,)
        layer(f"{b}.attn.{'out_proj' if qk_norm else 'proj'}", width, width)
        for j in range(experts):
            expert(f"{b}.moe.experts.{j}", HIDDEN)
        shapes[f"{b}.moe.gate.weight"] = (experts, width)
        if shared:
            expert(f"{b}.moe.shared_experts", shared)
        layer(f"{b}.adaLN_modulation.1", 6 * width, width)
    layer("final_layer.linear", 2 * P * P * C, width)
    layer("final_layer.adaLN_modulation.1", 2 * width, width)
    return shapes


def file(**config):
    return check.random_state(official_shapes(**config))


def args_of(config):
    return {"num_experts_per_tok": config["per_token"]} if "per_token" in config else {}


def attention(p, name, u):
    """With normalised queries, by turning the names into those of the plain layout."""
    if f"{name}.Wqkv.weight" not in p:
        return reference.attention(p, f"{name}.", u, H, False)
    renamed = {f"{name}.qkv.{k}": p[f"{name}.Wqkv.{k}"] for k in ("weight", "bias")}
    renamed |= {f"{name}.proj.{k}": p[f"{name}.out_proj.{k}"] for k in ("weight", "bias")}
    q, k, v = reference.linear(renamed, f"{name}.qkv", u).chunk(3, dim=-1)
    out = []
    for part in (slice(h * D // H, (h + 1) * D // H) for h in range(H)):
        query, key = (
            reference.norm(x[..., part]) * p[f"{name}.{n}.weight"] + p[f"{name}.{n}.bias"]
            for n, x in (("q_norm", q), ("k_norm", k))
        )
        scores = query @ key.transpose(1, 2) / (D // H) ** 0.5
        out.append(torch.softmax(scores, -1) @ v[..., part])
    return reference.linear(renamed, f"{name}.proj", torch.cat(out, -1))


def expert(p, name, u):
    gated = reference.silu(u @ p[f"{name}.gate_proj.weight"].T)
    return (gated * (u @ p[f"{name}.up_proj.weight"].T)) @ p[f"{name}.down_proj.weight"].T


def mixture(p, name, u, experts, per_token):
    """Token by token: experts in the order of their scores, each times its score."""
    rows = []
    for token in u.reshape(-1, D):
        scores = torch.softmax(p[f"{name}.gate.weight"] @ token, 0)
        best = sorted(range(experts), key=lambda j: -float(scores[j].detach()))[:per_token]
        rows.append(sum(scores[j] * expert(p, f"{name}.experts.{j}", token) for j in best))
    out = torch.stack(rows).reshape(u.shape)
    if f"{name}.shared_experts.up_proj.weight" in p:
        out = out + expert(p, f"{name}.shared_experts", u)
    return out


def transcription(p, x, t, y, *, experts, per_token=2, **_):
    """The forward pass in plain formulas over a state dict."""
    h = reference.embed_patches(x, p["x_embedder.proj.weight"], p["x_embedder.proj.bias"], P)
    h = h + p["pos_embed"]
    c = reference.silu(reference.embed_time(p, t) + p["y_embedder.embedding_table.weight"][y])

    def parts(name, count):
        return reference.linear(p, f"{name}.adaLN_modulation.1", c)[:, None].chunk(count, dim=-1)

    for b in (f"blocks.{k}" for k in range(DEPTH)):
        shift1, scale1, gate1, shift2, scale2, gate2 = parts(b, 6)
        u = reference.norm(h) * (1 + scale1) + shift1
        h = h + gate1 * attention(p, f"{b}.attn", u)
        u = reference.norm(h) * (1 + scale2) + shift2
        h = h + gate2 * mixture(p, f"{b}.moe", u, experts, per_token)
    shift, scale = parts("final_layer", 2)
    out = reference.linear(p, "final_layer.linear", reference.norm(h) * (1 + scale) + shift)
    return reference.assemble_patches(out, P)[:, :C]


@pytest.fixture(params=CONFIGS)
def case(request):
    """(config, state, identified, subject, inputs, loss) of one saved file."""
    config, state = request.param, file(**request.param)
    heads = None if config.get("qk_norm") else H
    subject, identified = check.load(FAMILY, state, args=args_of(config), heads=heads)
    return config, state, identified, subject, *check.problem(identified)


def test_the_sites(case):
    config, state, identified, subject, *_ = case
    assert [r.name for r in subject.readers] == [
        "block 1 attention", "block 1 mlp", "block 2 attention", "block 2 mlp", "head",
    ]  # fmt: skip
    assert subject.facts == {
        "family": "ditmoe", "routing": "residual", "query": None, "chunk_size": None,
        "parameters": sum(value.numel() for value in state.values()),
        "depth": DEPTH, "width": D, "heads": H, "tokens": SIDE * SIDE,
    }  # fmt: skip
    assert (identified.shape, identified.num_classes) == ((C, P * SIDE, P * SIDE), ROWS - 1)
    assert identified.sizes["per_token"] == config.get("per_token", 2)


def test_forward_and_gradient_are_those_of_the_formulas(case):
    config, state, _, subject, (x, t, y), loss = case
    x = x.requires_grad_()
    output, expected = subject.model(x, t, y), transcription(state, x, t, y, **config)
    assert check.relative(output.detach(), expected.detach()) < 2e-14  # measured: 2e-15
    found, true = (torch.autograd.grad(loss(out).sum(), x)[0] for out in (output, expected))
    assert check.relative(found, true) < 3e-14  # measured: 3e-15


def test_scores_are_among_what_the_gradient_goes_through(case):
    """Experts of one score alone, or chosen without autograd, would leave the router without."""
    config, state, _, subject, args, loss = case
    gate = subject.model.blocks[0].moe.gate.weight.requires_grad_()
    (found,) = torch.autograd.grad(loss(subject.model(*args)).sum(), gate)
    assert bool(found.any()) == (config["experts"] > 1)
    key = "blocks.0.moe.gate.weight"
    state = {**state, key: state[key].clone().requires_grad_()}
    (true,) = torch.autograd.grad(loss(transcription(state, *args, **config)).sum(), state[key])
    torch.testing.assert_close(found, true, rtol=1e-10, atol=1e-14)


def test_sites_are_sums_and_their_gates_those_of_factors(case):
    *_, subject, args, loss = case
    check.sites_agree(subject, args, loss, law=1e-5)


def test_states_carry_the_gradient_of_the_whole_stream(case):
    *_, subject, args, loss = case
    places = [*subject.model.blocks, subject.model.final_layer]
    assert check.stream_slope_error(subject, args, loss, places) < 1e-8


STEPS = ("read as a model of DiT's steps, as the released models without normalised queries are; "
         "--objective overrides")  # fmt: skip
FLOW = ("read as a rectified flow, t = s, as the released models with normalised queries are; "
        "--objective overrides")  # fmt: skip
TWO = ("every token goes through 2 of {} experts, as in the released models; num_experts_per_tok "
       "in the file's args overrides")  # fmt: skip
FIXED = "gates and gradients hold fixed which experts a token goes through"
DROPPED = "the last of 6 rows in the label table is taken for the dropped labels"


def test_what_no_file_tells_is_as_released():
    plain = check.identify(FAMILY, file(**PLAIN), heads=H)
    assert (plain.objective, plain.assumptions) == ("dit", [TWO.format(4), FIXED, DROPPED, STEPS])
    normed = check.identify(FAMILY, file(experts=5, qk_norm=True))
    assert (normed.objective, normed.assumptions) == ("repa", [TWO.format(5), FIXED, DROPPED, FLOW])
    dense = check.identify(FAMILY, file(experts=1), heads=H)
    assert dense.sizes["per_token"] == 1 and dense.assumptions == [DROPPED, STEPS]


@pytest.mark.parametrize("rf", [True, False])
def test_settings_of_the_trainer_leave_nothing_to_assume(rf, tmp_path):
    settings = {"rf": rf, "num_experts": 4, "num_experts_per_tok": 3, "num_classes": ROWS - 1}
    path = check.save(tmp_path / "0050000.pt", file(**PLAIN), {"model": "DiT-S/2", **settings})
    loaded = load_checkpoint(CheckpointOptions(path=path, heads=H))
    assert loaded.objective.name == ("repa" if rf else "dit")
    assert loaded.assumptions == [FIXED] and loaded.identified.sizes["per_token"] == 3


def test_flops_are_those_of_the_chosen_experts(tmp_path):
    flops = []
    for count in (1, 2):
        path = check.save(tmp_path / "x.pt", file(**PLAIN), {"num_experts_per_tok": count})
        flops.append(survey(CheckpointOptions(path=path, heads=H)).flops)
    one = DEPTH * SIDE**2 * 3 * 2 * D * HIDDEN  # three products, two operations for each element
    assert flops[1] - flops[0] == one


@pytest.mark.parametrize(
    ("width", "depth", "heads"),
    [(384, 12, 6), (768, 12, 12), (1024, 24, 16), (1152, 28, 16), (1408, 40, 16)],
)
def test_heads_of_the_presets(width, depth, heads):
    shapes = official_shapes(depth=depth, width=width, experts=2)
    found = check.identify(FAMILY, {k: torch.empty(s, device="meta") for k, s in shapes.items()})
    assert found.sizes["heads"] == heads
    assert f"heads from the preset table for width {width}, depth {depth}" in found.assumptions


def test_heads_that_nobody_knows_or_that_the_norms_tell():
    with pytest.raises(CheckpointError, match="no preset has width 16 and depth 2"):
        check.identify(FAMILY, file(**PLAIN))
    with pytest.raises(UsageError, match=r"--heads 4 contradicts 'model.pt': it has 2"):
        check.identify(FAMILY, file(**NORMED), heads=4)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("blocks.1.moe.experts.3.up_proj.weight", None, "experts.3.up_proj.weight' is missing"),
        ("blocks.0.moe.experts.2.up_proj.weight", None, "experts.2.up_proj.weight' is missing"),
        ("blocks.0.moe.experts.0.up_proj.weight", None, "experts.0.up_proj.weight' is missing"),
        ("blocks.0.moe.gate.weight", (2**19, D), r"'blocks.0.moe.gate.weight' has shape"),
        ("blocks.1.moe.shared_experts.up_proj.weight", (31, D), r"has shape \(31, 16\)"),
        ("blocks.0.moe.experts.4.up_proj.weight", (HIDDEN, D), "is missing"),
        ("blocks.0.mlp.fc1.weight", (HIDDEN, D), "'blocks.1.mlp.fc1.weight' is missing"),
    ],
)
def test_refused(key, shape, message):
    state = file(**PLAIN)
    if shape is None:
        del state[key]
    else:
        state[key] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=message):
        check.identify(FAMILY, state, heads=H)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": 8}, "name '8' experts, its blocks have 4"),
        ({"num_experts_per_tok": 5}, "name '5' experts a token, its blocks have 4"),
        ({"num_experts_per_tok": "two"}, "name 'two' experts a token"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(CheckpointError, match=message):
        check.identify(FAMILY, file(**PLAIN), args=settings, heads=H)


def test_released_files_are_flat(tmp_path):
    path = tmp_path / "dit_moe_xl_8E2A.pt"
    torch.save({k: v.half() for k, v in file(**NORMED).items()}, path)
    loaded = load_checkpoint(CheckpointOptions(path=path))
    assert (loaded.objective.name, loaded.identified.sizes["per_token"]) == ("repa", 2)
