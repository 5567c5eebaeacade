"""Gates, routes and shards against an independent transcription, for any model (design, 3)."""

import copy

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from dar_probe.models import sit_family
from dar_probe.probe import statistics
from dar_probe.probe.grid import Grid
from dar_probe.probe.measure import measure
from dar_probe.probe.recorder import untouched
from tests.helpers import reference, tiny
from tests.laws.test_probe_laws import LAWS, models, set_eps

N = 3
LEVELS = torch.linspace(0.1, 0.9, N, dtype=torch.float64)


def calm(model):
    """Tame a random model, with weights that float32 holds.

    The wild ones amplify what rounding does to their forward up to 1e5 times, and the tolerances
    here would have to follow.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adaLN" in name or name.endswith("query.weight"):
                parameter.mul_(0.2)
    return model.float().double()


calm_models = models.map(calm)


def inputs(model, dtype=torch.float64):
    """The problem, its arguments and its target at LEVELS, the same numbers in every dtype."""
    data, problem = tiny.problem(model, samples=N, dtype=dtype)
    args, _ = problem.batch(data.ids, LEVELS)
    target = problem.objective.target(data.latents.double(), problem._noise.double(), LEVELS)
    return problem, args, target


def probe(model, dtype=torch.float64):
    problem, _, _ = inputs(model, dtype)
    model = copy.deepcopy(model).to(dtype)
    with untouched(model):
        return measure(
            sit_family.subject(model), problem.batch, problem.loss, torch.arange(N), LEVELS
        )


def options(model):
    config = model.config
    return {
        "heads": config.heads, "patch": config.patch, "routing": config.routing,
        "query": config.query, "chunk_size": config.chunk_size,
    }  # fmt: skip


def gated_loss(model, gates):
    """Loss (N,) of the transcription with explicit gates (N, R, S)."""
    _, (x, t, y), target = inputs(model)
    p = {k: v.detach() for k, v in model.state_dict().items()}
    out, _ = reference.forward(
        p, x.clone().requires_grad_(gates.requires_grad), t, y, gates=gates, **options(model)
    )
    return ((out - target) ** 2).reshape(N, -1).mean(1)


def ones(model):
    size = 2 * model.config.depth + 1
    return torch.ones(N, size, size, dtype=torch.float64)


def explicit(model):
    """Every gate's gradient through autograd (N, R, S), 0 where not offered; and the loss."""
    gates = ones(model).requires_grad_()
    loss = gated_loss(model, gates)
    return torch.autograd.grad(loss.sum(), gates)[0], loss.detach()


def scale(gates, loss):
    """The largest gate of every row (N, R), or a thousandth of the loss where that is more.

    A reader with one source, or whose router picks one, has gates that are zero up to the norm's
    eps: they are what rounding leaves.
    """
    return torch.maximum(gates.abs().nan_to_num().amax(-1), 1e-3 * loss[:, None])


# Tolerances follow the largest error of 150 examples; the median is a hundredth of it or less.
# Measured: 3e-12 in float64, 1.7e-3 in float32 (the forward's own rounding).
CLOSED_FORM = {torch.float64: 2e-11, torch.float32: 1e-2}


@LAWS
@given(model=calm_models, dtype=st.sampled_from(list(CLOSED_FORM)))
def test_the_closed_form_equals_explicit_gates(model, dtype):
    found = probe(model, dtype)
    assert found["gate"].dtype == dtype
    expected, loss = explicit(model)
    error = (found["gate"].double().nan_to_num() - expected).abs().amax(-1)
    assert float((error / scale(expected, loss)).max()) < CLOSED_FORM[dtype]


@LAWS
@given(model=calm_models, data=st.data())
def test_the_closed_form_equals_central_differences(model, data):
    found = probe(model)
    reader = data.draw(st.integers(2, 2 * model.config.depth + 1))
    source = data.draw(st.sampled_from(model.stream.offered(reader)))

    def at(value):
        gates = ones(model)
        gates[:, reader - 1, source] = value
        with torch.no_grad():
            return gated_loss(model, gates)

    h = 1e-4  # two differences, so that the error is of order h^4
    slope = (8 * (at(1 + h) - at(1 - h)) - (at(1 + 2 * h) - at(1 - 2 * h))) / (12 * h)
    error = (found["gate"][:, reader - 1, source] - slope).abs()
    error = error / scale(found["gate"], found["loss"])[:, reader - 1]
    # The loss has 16 digits and is divided by the step. Measured: 6e-9.
    assert float(error.max()) < 5e-8


@LAWS
@given(model=calm_models)
def test_what_conservation_leaves_is_proportional_to_the_norms_eps(model):
    left = []
    for eps in (1e-7, 1e-8):
        found = probe(set_eps(model, eps))
        left.append(found["gate"].nansum(-1) / eps)
    a, b = (value / scale(found["gate"], found["loss"]) for value in left)
    # What is left is of order eps^2, and rounding over eps. Measured: 3e-4.
    assert float(((a - b).abs().amax(-1) / b.abs().amax(-1)).max()) < 3e-3


def whole_effects(model):
    """<dL/dv_i, v_i> (N, S) by autograd through the model's own writers, no probe."""
    problem, (x, t, y), _ = inputs(model)
    writes = []
    handles = [
        writer.register_forward_hook(lambda m, a, out: writes.append(out))
        for writer in model.stream.writers
    ]
    loss = problem.loss(model(x.clone().requires_grad_(), t, y), torch.arange(N), LEVELS)
    for handle in handles:
        handle.remove()
    grads = torch.autograd.grad(loss.sum(), writes)
    return torch.stack(
        [(g * v).sum((1, 2)).detach() for g, v in zip(grads, writes, strict=True)], 1
    )


@LAWS
@given(model=calm_models)
def test_stream_gates_and_query_shares(model):
    if model.config.routing == "dar":
        model.stream.eps = 1e-12  # keys are blind to a source's length, but for this
    found, whole = probe(model), whole_effects(model)
    stream = found["gate"].nansum(1)
    share = found["query_share"]
    through = (whole - stream).abs()
    if model.config.routing == "dar" and model.config.query == "dynamic":
        through_query = share * (through + stream.abs())
        error = (through_query - through).abs() / whole.abs().amax(-1, keepdim=True)
        assert float(error.max()) < 5e-14  # Measured: 6e-15.
    else:
        # All that reaches the loss goes through values: the law of the stream gate.
        # Measured: 1.1e-9, the eps of the keys over the energy of a small source.
        assert float((through / whole.abs().amax(-1, keepdim=True)).max()) < 5e-9
        if model.config.routing == "residual":
            assert share.isnan().all()
        else:
            weighted = share * stream.abs() / stream.abs().amax(-1, keepdim=True)
            assert float(weighted.nan_to_num().max()) < 5e-9  # Measured: 1.1e-9.


@LAWS
@given(model=calm_models)
def test_a_uniform_router_gives_every_source_the_same(model):
    assume(model.config.routing == "dar")
    with torch.no_grad():
        for reader in model.stream.readers:
            reader.query.weight.zero_()
        if model.config.query == "static+t":
            for parameter in model.t_embedder.mlp[2].parameters():
                parameter.zero_()
    found = probe(model)
    counts = found["route"][0].isfinite().sum(-1).double()
    even = (1 / counts)[None, :, None].expand_as(found["route"])
    known = found["route"].isfinite()
    # Measured: 6e-17, 0 and 7e-16.
    assert float((found["route"] - even)[known].abs().max()) < 3e-16
    assert float(found["route_token_std"][known].max()) < 3e-16
    assert float((found["route_entropy"] - counts.log()).abs().max()) < 5e-15


# Measured: 3.4e-14 in float64, 5e-5 in float32.
SPLIT = {torch.float64: 2e-13, torch.float32: 3e-4}

# What is measured as a difference of nearly equal numbers, or a ratio of two such.
ERROR_BARS = ("write_lost", "read_residual", "gate_conservation", "query_share")


def largest_difference(found, expected):
    """Largest error of any variable over its largest value."""
    errors = {}
    for name, value in expected.items():
        if name not in ERROR_BARS and bool(value.isfinite().any()):
            assert torch.equal(found[name].isnan(), value.isnan()), name
            scale = value.nan_to_num().abs().max()
            errors[name] = float((found[name] - value).nan_to_num().abs().max() / scale)
    return max(errors.values())


def cells(model, dtype, ids, levels):
    """Measure the cells (id, level) of one batch."""
    _, problem = tiny.problem(model, samples=6, dtype=dtype)
    with untouched(model):
        return measure(sit_family.subject(model), problem.batch, problem.loss, ids, levels)


def join(parts):
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@LAWS
@given(
    model=calm_models,
    dtype=st.sampled_from([torch.float64, torch.float32]),
    batch_size=st.integers(1, 7),
    ranks=st.integers(1, 3),
)
def test_neither_ranks_nor_the_split_of_the_grid_change_a_row(model, dtype, batch_size, ranks):
    model = model.to(dtype)
    grid = Grid(levels=(0.2, 0.7), ids=tuple(range(4)), batch_size=batch_size)
    ids = torch.arange(4).repeat(2)
    levels = torch.tensor([0.2, 0.7], dtype=torch.float64).repeat_interleave(4)
    chunks = list(grid.chunks())
    alone = {i: cells(model, dtype, ids[rows], levels[rows]) for i, rows in chunks}
    shared = {}
    for rank in reversed(range(ranks)):  # the last rank runs first
        for i, rows in chunks[rank::ranks]:
            shared[i] = cells(model, dtype, ids[rows], levels[rows])
    straight = join([alone[i] for i in sorted(alone)])
    by_ranks = join([shared[i] for i in sorted(shared)])
    for name, value in straight.items():
        assert torch.equal(value.nan_to_num(7), by_ranks[name].nan_to_num(7)), name
    at_once = cells(model, dtype, ids, levels)
    assert largest_difference(straight, at_once) < SPLIT[dtype]


@LAWS
@given(model=calm_models, others=st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_a_sample_does_not_see_the_others(model, others):
    """Other samples, more of them, or itself again: sample 2 keeps its row."""
    ids = torch.tensor([2, *others, 2])
    levels = torch.linspace(0.1, 0.9, len(ids), dtype=torch.float64)
    levels[-1] = levels[0]
    alone = cells(model, torch.float64, ids[:1], levels[:1])
    found = cells(model, torch.float64, ids, levels)
    for row in (slice(0, 1), slice(-1, None)):
        error = largest_difference({k: v[row] for k, v in found.items()}, alone)
        assert error < 1e-12  # Measured: 1e-13.


def test_the_cosine_is_per_token_and_not_flattened():
    """A long token must not hide that a short one has turned."""
    before = torch.tensor([[[1.0, 0.0], [10.0, 0.0]]], dtype=torch.float64)
    after = torch.tensor([[[0.0, 1.0], [10.0, 0.0]]], dtype=torch.float64)
    states = [before, after]
    norms = torch.stack([statistics.token_norms(z) for z in states])
    cosine = statistics.block_statistics(states, norms, states)["cosine"][0, 1]
    flat = torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0)
    assert float(cosine) == 0.5 and float(flat) > 0.99


@LAWS
@given(model=calm_models, factor=st.floats(0.1, 10))
def test_scaling_the_stream_scales_states_and_nothing_else(model, factor):
    """All writes by one factor: rms scales, its gradient inversely; the rest stays."""
    set_eps(model, 1e-14)
    if model.config.routing == "dar":
        model.stream.eps = 1e-14
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for part in (scaled.x_embedder.proj.weight, scaled.x_embedder.proj.bias, scaled.pos_embed):
            part.mul_(factor)
        for block in scaled.blocks:
            for linear in (block.attn.proj, block.mlp.fc2):
                linear.weight.mul_(factor)
                linear.bias.mul_(factor)
        if model.config.routing == "dar" and model.config.query == "dynamic":
            for reader in scaled.stream.readers:
                reader.query.weight.div_(factor)  # queries are linear in what is written
    expected, found = probe(model), probe(scaled)
    expected["rms"] = expected["rms"] * factor
    expected["write_rms"] = expected["write_rms"] * factor
    expected["pooled"] = expected["pooled"] * factor
    expected["grad_rms"] = expected["grad_rms"] / factor
    assert largest_difference(found, expected) < 3e-10  # Measured: 5e-11.
