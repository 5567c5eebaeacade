"""Every number of the probe against an independent slow reference, in float64."""

import math

import numpy as np
import pytest
import torch

from dar_probe.models import sit_family
from dar_probe.probe.measure import measure
from dar_probe.probe.recorder import untouched
from tests.helpers import reference, tiny

CASES = [(depth, options) for depth in (1, 3) for options in tiny.ROUTINGS]
IDS = [f"depth{depth}-{tiny.name_of(options)}" for depth, options in CASES]


def probe(model, samples=3):
    data, problem = tiny.problem(model, samples=samples)
    levels = torch.linspace(0.1, 0.9, samples, dtype=torch.float64)
    with untouched(model):
        return measure(sit_family.subject(model), problem.batch, problem.loss, data.ids, levels)


def slow(model, options, samples=3):
    """Explicit gates through autograd: (gates' gradients, gradients of reads, parts, loss)."""
    data, problem = tiny.problem(model, samples=samples)
    levels = torch.linspace(0.1, 0.9, samples, dtype=torch.float64)
    (x, t, y), _ = problem.batch(data.ids, levels)
    size = 2 * model.config.depth + 1
    gates = torch.ones(samples, size, size, dtype=torch.float64, requires_grad=True)
    p = {k: v.detach() for k, v in model.state_dict().items()}
    out, parts = reference.forward(
        p, x.requires_grad_(), t, y, heads=2, patch=2, gates=gates, **options
    )
    target = problem.objective.target(data.latents.double(), problem._noise.double(), levels)
    loss = ((out - target) ** 2).reshape(samples, -1).mean(1)
    grad_gates, *grad_writes = torch.autograd.grad(loss.sum(), [gates, *parts["writes"]])
    return grad_gates, grad_writes, parts, loss


@pytest.mark.parametrize(("depth", "options"), CASES, ids=IDS)
def test_gates_equal_explicit_gates_through_autograd(depth, options):
    model = tiny.model(depth=depth, **options)
    found, (expected, _, parts, loss) = probe(model), slow(model, options)
    torch.testing.assert_close(found["loss"], loss, rtol=1e-12, atol=0)
    for row, (ids, _) in enumerate(parts["weights"]):
        absent = [i for i in range(2 * depth + 1) if i not in ids]
        assert found["gate"][:, row, absent].isnan().all()
        scale = float(expected[:, row].abs().max())
        # Measured: 3e-13 of the row's largest entry; 1e-14 of the loss for the first row, whose
        # one gate is zero by the conservation law.
        error = (found["gate"][:, row, ids] - expected[:, row, ids]).abs().max()
        assert float(error) < 3e-12 * scale + (
            1e-13 * float(loss.detach().max()) if row == 0 else 0
        )


@pytest.mark.parametrize("options", tiny.ROUTINGS, ids=tiny.name_of)
def test_gates_equal_central_differences(options):
    model = tiny.model(depth=2, **options)
    found = probe(model)["gate"]
    data, problem = tiny.problem(model, samples=3)
    levels = torch.linspace(0.1, 0.9, 3, dtype=torch.float64)
    (x, t, y), _ = problem.batch(data.ids, levels)
    target = problem.objective.target(data.latents.double(), problem._noise.double(), levels)
    p = {k: v.detach() for k, v in model.state_dict().items()}

    def loss(reader, source, value):
        gates = torch.ones(3, 5, 5, dtype=torch.float64)
        gates[:, reader, source] = value
        with torch.no_grad():
            out, _ = reference.forward(p, x, t, y, heads=2, patch=2, gates=gates, **options)
        return ((out - target) ** 2).reshape(3, -1).mean(1)

    step, size = 1e-5, loss(0, 0, 1.0).max()
    for reader, source in ((1, 0), (2, 2), (3, 2), (4, 4), (4, 0)):  # offered by every scheme
        slope = (loss(reader, source, 1 + step) - loss(reader, source, 1 - step)) / (2 * step)
        # The loss has 16 digits and is divided by the step. Measured: 1e-10 of the loss.
        assert float((found[:, reader, source] - slope).abs().max()) < 1e-9 * float(size)


@pytest.mark.parametrize("options", tiny.ROUTINGS, ids=tiny.name_of)
def test_states_writes_and_routes_equal_their_definitions(options):
    depth = 3
    model = tiny.model(depth=depth, **options)
    found, (_, grad_writes, parts, _) = probe(model), slow(model, options)
    reads = [h.detach().numpy() for h in parts["reads"]]
    writes = [v.detach().numpy() for v in parts["writes"]]
    blocks = [*range(0, 2 * depth, 2), 2 * depth]
    for k, row in enumerate(blocks):
        z = reads[row]
        close(found["rms"][:, k], np.sqrt((z**2).mean((1, 2))))
        energy = (z**2).sum(1)
        close(found["rms_top1"][:, k], energy.max(1) / energy.sum(1))  # 1 % of 16: one channel
        tokens = (z**2).sum(2)
        close(found["token_top1"][:, k], tokens.max(1) / tokens.sum(1))
        close(found["token_norm_top1"][:, k], (tokens.max(1) ** 0.5) / (tokens**0.5).sum(1))
        if k:
            close(found["cosine"][:, k], token_cosine(reads[blocks[k - 1]], z))
            earlier = reads[blocks[k - 1]]
            centred = (earlier - earlier.mean(1, keepdims=True), z - z.mean(1, keepdims=True))
            close(found["cosine_centred"][:, k], token_cosine(*centred))
    assert found["cosine"][:, 0].isnan().all()
    for l in range(1, 2 * depth + 1):
        size = np.sqrt((writes[l] ** 2).mean((1, 2)))
        close(found["write_rms"][:, l - 1], size)
        close(found["write_ratio"][:, l - 1], size / np.sqrt((reads[l - 1] ** 2).mean((1, 2))))
    for row, (ids, weights) in enumerate(parts["weights"]):
        w = weights.detach().numpy()
        close(found["route"][:, row, ids], w.mean(1))
        close(found["route_token_std"][:, row, ids], w.std(1), atol=1e-15)
        share = w / w.sum(-1, keepdims=True)
        close(found["route_entropy"][:, row], -(share * np.log(share)).sum(-1).mean(1), atol=1e-14)
    stream_gate = found["gate"].nansum(1)
    for i in range(2 * depth + 1):
        whole = (grad_writes[i] * parts["writes"][i]).sum((1, 2)).detach()
        through = (whole - stream_gate[:, i]).abs()
        if options["routing"] == "dar":
            expected = (through / (through + stream_gate[:, i].abs())).numpy()
            if options["query"] == "dynamic":
                # A share of one, and a difference of nearly equal numbers.
                close(found["query_share"][:, i], expected, rtol=1e-7, atol=1e-12)
            else:
                # The norm of the keys makes them blind to a source's length: nothing but eps.
                assert float(found["query_share"][:, i].max()) < 1e-3


def test_gradient_of_the_whole_stream_under_residuals():
    model = tiny.model(depth=2)
    found, (_, grad_writes, _, _) = probe(model), slow(model, {"routing": "residual"})
    # dL/dz_k is the gradient of everything added before: that of the last write into z_k.
    for k, write in enumerate((0, 2, 4)):
        expected = grad_writes[write].square().mean((1, 2)).sqrt()
        close(found["grad_rms"][:, k], expected.numpy())


def test_planted_errors_show_in_the_error_bars():
    model = tiny.model(depth=2, routing="dar", query="static", chunk_size=2)
    clean = probe(model)
    reader = model.stream.readers[3]
    handle = reader.register_forward_hook(lambda m, a, out: (out[0] * 1.01, out[1]))
    planted = probe(model)
    handle.remove()
    assert float(clean["read_residual"].max()) < 1e-14
    close(planted["read_residual"][:, 3], np.full(3, 0.01 / 1.01), rtol=1e-9)
    assert float(planted["read_residual"][:, :3].max()) < 1e-14


def test_bf16_loses_a_planted_share_of_a_write():
    from dar_probe.probe.statistics import Rounding

    generator = torch.Generator().manual_seed(0)
    stream = (1576 * torch.randn(4, 64, 256, generator=generator)).bfloat16()
    write = (20 * torch.randn(4, 64, 256, generator=generator)).bfloat16()
    rounding = Rounding()
    rounding.start(stream, stream)
    rounding.add(stream, stream + write, write)
    rms, lost, error = rounding.result()
    close(rms, write.double().square().mean((1, 2)).sqrt()[:, None], rtol=4e-7)  # measured: 4e-8
    # The stream's RMS is 79 times the write's; bf16 keeps 8 bits.
    close(lost, np.full((4, 1), 0.13), rtol=0.1)  # measured: 0.013
    exact = stream.double() + write.double() - (stream + write).double()
    close(error[1], exact.norm(dim=-1), rtol=8e-7)  # measured: 8e-8


def test_rounding_gaps_of_several_writes_add_up():
    """Eight writes of a quarter of a unit: each is lost whole, and together they are two units."""
    from dar_probe.probe.statistics import Rounding

    shape = (2, 3, 16)
    stream = torch.full(shape, 256.0).bfloat16()  # neighbours of 256 lie 2 and 1 away
    write = torch.full(shape, 0.25).bfloat16()
    rounding = Rounding()
    rounding.start(stream, stream)
    for step in range(1, 9):
        after = stream + write
        assert torch.equal(after, stream)
        rounding.add(stream, after, write)
        _, lost, error = rounding.result()
        close(lost, np.ones((2, step)))
        # |h_l - (v_0 + ... + v_(l-1))|: l - 1 gaps of a quarter in 16 features.
        close(error, np.broadcast_to(np.arange(step + 1)[:, None, None], (step + 1, 2, 3)))


def test_rounding_counts_what_the_first_reader_gets_beside_the_embedding():
    from dar_probe.probe.statistics import Rounding

    generator = torch.Generator().manual_seed(0)
    embedding, write = torch.randn(2, 2, 3, 16, generator=generator, dtype=torch.float64)
    read = embedding + 0.5
    rounding = Rounding()
    rounding.start(read, embedding)
    rounding.add(read, read + write + 0.25, write)
    _, _, error = rounding.result()
    close(error[0], np.full((2, 3), 0.5 * 4))
    close(error[1], np.full((2, 3), 0.75 * 4))


def test_one_state_alone_has_a_size_and_no_neighbour():
    """A stage of a U-shaped model may hold one state: sizes are known, cosines are not."""
    from dar_probe.probe.statistics import block_statistics, token_norms

    generator = torch.Generator().manual_seed(0)
    state, grad = torch.randn(2, 3, 4, 16, generator=generator, dtype=torch.float64)
    found = block_statistics([state], token_norms(state)[None], [grad])
    close(found["rms"], state.square().mean((1, 2)).sqrt()[:, None])
    close(found["grad_rms"], grad.square().mean((1, 2)).sqrt()[:, None])
    for name in ("cosine", "cosine_centred"):
        assert found[name].shape == (3, 1) and found[name].isnan().all()


@pytest.mark.parametrize(("width", "count"), [(99, 1), (100, 1), (101, 2), (250, 3), (1152, 12)])
def test_the_top_share_is_that_of_one_channel_in_a_hundred(width, count):
    from dar_probe.probe.statistics import block_statistics, token_norms

    generator = torch.Generator().manual_seed(width)
    states = [torch.randn(2, 5, width, generator=generator, dtype=torch.float64) for _ in range(2)]
    norms = torch.stack([token_norms(state) for state in states])
    found = block_statistics(states, norms, states)["rms_top1"]
    for k, state in enumerate(states):
        energy = np.sort((state.numpy() ** 2).sum(1), axis=-1)
        close(found[:, k], energy[:, -count:].sum(-1) / energy.sum(-1))


@pytest.mark.parametrize(("samples", "count"), [(1, 5), (5, 5), (5, 1), (5, 2), (5, 3)])
@pytest.mark.parametrize("room", [1, 300, 2**18], ids=["one", "two", "all"])
def test_gates_do_not_depend_on_how_samples_are_cut_into_parts(room, samples, count, monkeypatch):
    """Five samples at once, two by two with one left over, or one by one."""
    from dar_probe.probe import gates

    monkeypatch.setattr(gates, "ON_CPU", room)
    generator = torch.Generator().manual_seed(0)
    shape = (samples, 3, 10)

    def draw(many):
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(many)]

    grads, states = draw(count), draw(count)
    if room == 300 and samples == count == 5:
        assert len(list(gates._parts(states))) == 3
    found = gates.additive(grads, states, last=range(count))
    sources = [states[0], *(b - a for a, b in zip(states, states[1:], strict=False))]
    for l in range(count):
        for i in range(l + 1):
            close(found[:, l, i], (grads[l] * sources[i]).sum((1, 2)), rtol=1e-10, atol=1e-12)

    weights = torch.rand(*shape[:2], count, count, generator=generator, dtype=torch.float64)
    reads = draw(count)
    found, error = gates.routed(grads, reads, sources, weights)
    for l in range(count):
        parts = [weights[:, :, l, i, None] * v for i, v in enumerate(sources)]
        close(error[l], (sum(parts) - reads[l]).norm(dim=-1))
        for i, part in enumerate(parts):
            close(found[:, l, i], (grads[l] * part).sum((1, 2)), rtol=1e-10, atol=1e-12)


def token_cosine(a, b):
    rows = []
    for sample in range(a.shape[0]):
        values = [
            float(p @ q) / math.sqrt(float(p @ p) * float(q @ q))
            for p, q in zip(a[sample], b[sample], strict=True)
        ]
        rows.append(sum(values) / len(values))
    return np.array(rows)


def close(found, expected, rtol=1e-11, atol=0.0):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=rtol, atol=atol)
