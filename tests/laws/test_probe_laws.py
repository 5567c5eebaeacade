"""Laws that hold for any depth, width, number of tokens, routing and batch (design, section 3)."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dar_probe.models import sit_family
from dar_probe.probe.grid import Grid, walk
from dar_probe.probe.measure import measure
from dar_probe.probe.recorder import untouched
from tests.helpers import tiny

LAWS = settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
models = st.builds(
    lambda depth, width, size, options, seed: tiny.model(
        depth=depth, width=width, size=size, seed=seed, **options
    ),
    depth=st.integers(1, 4),
    width=st.sampled_from([8, 16, 32]),
    size=st.sampled_from([2, 4, 6]),
    options=st.sampled_from(tiny.ROUTINGS),
    seed=st.integers(0, 100),
)


def grid(levels=(0.2, 0.7), samples=4, batch_size=64):
    return Grid(levels=levels, ids=tuple(range(samples)), batch_size=batch_size)


def run(model, where):
    _, problem = tiny.problem(model, samples=len(where.ids))
    return walk(sit_family.subject(model), where, problem.batch, problem.loss)


def set_eps(model, eps):
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = eps
    return model


@LAWS
@given(model=models)
def test_signed_gates_of_a_normed_reader_sum_to_zero(model):
    found = run(set_eps(model, 1e-12), grid())
    # A norm ignores the scale of what it reads; what remains is its eps. Measured: 2e-11.
    assert np.abs(np.nansum(found["gate"], -1)).max() < 1e-10 * np.nanmax(np.abs(found["gate"]))


@pytest.mark.parametrize("options", tiny.ROUTINGS, ids=tiny.name_of)
def test_what_conservation_leaves_is_proportional_to_eps(options):
    left = []
    for eps in (1e-4, 1e-6, 1e-8):
        gate = run(set_eps(tiny.model(depth=3, **options), eps), grid())["gate"]
        left.append(np.abs(np.nansum(gate, -1)).max() / eps)
    np.testing.assert_allclose(left[1:], left[:-1], rtol=0.02)


ERRORS = {"write_lost", "read_residual"}
RATIOS = {"gate_conservation", "query_share"}


def same(found, expected):
    for name, value in expected.items():
        if name in RATIOS:
            continue  # ratios of gates, which are compared: where all are rounding, they are too
        scale = np.nanmax(np.abs(value)) if np.isfinite(value).any() else 1.0
        atol = 1e-13 if name in ERRORS else 1e-10 * scale  # errors are what rounding leaves
        np.testing.assert_allclose(found[name], value, rtol=1e-7, atol=atol, err_msg=name)


@LAWS
@given(model=models, batch_size=st.integers(1, 8))
def test_batch_size_changes_nothing(model, batch_size):
    same(run(model, grid(batch_size=batch_size)), run(model, grid()))


@LAWS
@given(model=models, order=st.permutations(range(4)))
def test_permuted_samples_permute_rows(model, order):
    straight = run(model, grid())
    _, problem = tiny.problem(model, samples=4)
    permuted = walk(
        sit_family.subject(model),
        Grid(levels=(0.2, 0.7), ids=tuple(order), batch_size=64),
        problem.batch,
        problem.loss,
    )
    same(permuted, {name: value[:, list(order)] for name, value in straight.items()})


@LAWS
@given(model=models)
def test_routes_are_causal_non_negative_and_known(model):
    found = run(model, grid())
    route = found["route"]
    stream = model.stream
    for row in range(route.shape[2]):
        ids = list(stream.offered(row + 1))
        others = [i for i in range(route.shape[3]) if i not in ids]
        assert max(ids) <= row
        assert np.isnan(route[:, :, row, others]).all()
        assert (route[:, :, row, ids] >= 0).all()
        total = route[:, :, row, ids].sum(-1)
        np.testing.assert_allclose(total, row + 1 if stream.additive else 1, rtol=1e-12)
        assert (found["route_entropy"][:, :, row] <= np.log(len(ids)) + 1e-12).all()
    assert np.nanmax(found["read_residual"]) < 1e-13


@LAWS
@given(model=models)
def test_stream_gate_is_the_gradient_by_the_write_unless_queries_are_dynamic(model):
    share = run(model, grid())["query_share"]
    if model.config.routing == "residual":
        assert np.isnan(share).all()
    elif model.config.query != "dynamic":
        large = share[np.isfinite(share)]
        assert np.median(large) < 1e-6


def test_stream_gate_law_under_residuals():
    model = tiny.model(depth=3)
    data, problem = tiny.problem(model)
    levels = torch.full((4,), 0.4, dtype=torch.float64)
    writes = []
    handles = [
        writer.register_forward_hook(lambda m, a, out: writes.append(out))
        for writer in model.stream.writers
    ]
    (x, t, y), _ = problem.batch(data.ids, levels)
    loss = problem.loss(model(x.requires_grad_(), t, y), data.ids, levels)
    grads = torch.autograd.grad(loss.sum(), writes)
    for handle in handles:
        handle.remove()
    with untouched(model):
        gate = measure(sit_family.subject(model), problem.batch, problem.loss, data.ids, levels)[
            "gate"
        ]
    for i, (grad, write) in enumerate(zip(grads, writes, strict=True)):
        torch.testing.assert_close(
            gate.nansum(1)[:, i], (grad * write).sum((1, 2)).detach(), rtol=1e-9, atol=1e-13
        )


@pytest.mark.parametrize("factor", [2.0, 0.25])
def test_scaling_the_stream_scales_rms_and_leaves_the_rest(factor):
    """Scale the embedding and every write: RMS scales, cosines and gates stay (up to eps)."""
    model, scaled = tiny.model(depth=3), tiny.model(depth=3)
    with torch.no_grad():
        for tensor in (
            scaled.x_embedder.proj.weight,
            scaled.x_embedder.proj.bias,
            scaled.pos_embed,
        ):
            tensor.mul_(factor)
        for block in scaled.blocks:
            for linear in (block.attn.proj, block.mlp.fc2):
                linear.weight.mul_(factor)
                linear.bias.mul_(factor)
    a, b = run(model, grid()), run(scaled, grid())
    np.testing.assert_allclose(b["rms"], factor * a["rms"], rtol=1e-4)
    np.testing.assert_allclose(b["grad_rms"], a["grad_rms"] / factor, rtol=1e-4)
    for name in ("cosine", "rms_top1", "write_ratio", "loss"):
        np.testing.assert_allclose(b[name], a[name], rtol=1e-4, err_msg=name)
    largest = np.nanmax(np.abs(a["gate"]))
    np.testing.assert_allclose(b["gate"], a["gate"], rtol=1e-3, atol=1e-4 * largest)


def test_loss_reduction_does_not_see_the_batch():
    model = tiny.model()
    data, problem = tiny.problem(model, samples=1)
    once, level = data.ids, torch.tensor([0.5], dtype=torch.float64)
    with untouched(model):
        subject = sit_family.subject(model)
        one = measure(subject, problem.batch, problem.loss, once, level)
        two = measure(subject, problem.batch, problem.loss, once.repeat(2), level.repeat(2))
    same(
        {name: value.numpy() for name, value in two.items()},
        {name: torch.cat([value, value]).numpy() for name, value in one.items()},
    )
