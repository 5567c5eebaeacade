"""Every routing scheme: against a slow transcription, at its start, and under the probe."""

import pytest
import torch

from dar_probe.errors import UsageError
from dar_probe.models import sit_family
from dar_probe.models.sit import SiT, SiTConfig
from dar_probe.probe.measure import measure
from dar_probe.probe.recorder import untouched
from dar_probe.routing import Layout, make
from dar_probe.routing.schemes import known
from tests.helpers import schemes_reference as reference
from tests.helpers import tiny

BLOCKS, WIDTH = 5, 6
CASES = [
    ("residual", {}, {}),
    ("rezero", {}, {}),
    ("layerscale", {}, {}),
    ("deepnorm", {}, {}),
    ("siamesenorm", {}, {}),
    ("highway", {}, {}),
    ("uvit", {}, {}),
    ("hunyuan", {}, {}),
    ("densenet", {}, {}),
    ("denseformer", {}, {}),
    ("denseformer", {"dilation": 2}, {"dilation": 2}),
    ("denseformer", {"period": 2}, {"period": 2}),
    ("denseformer", {"dilation": 3, "period": 2}, {"dilation": 3, "period": 2}),
    ("hc-static", {"streams": 3}, {}),
    ("hc-dynamic", {"streams": 3}, {}),
    ("mhc", {"streams": 3}, {}),
    ("mhc-lite", {"streams": 3}, {}),
    ("attnres", {}, {}),
    ("attnres-block", {"chunk_size": 4}, {"size": 4}),  # the last block has two
    ("attnres-block", {"chunk_size": 5}, {"size": 5}),
    ("attnres-block", {"chunk_size": 1}, {"size": 1}),
    ("delta-attnres", {}, {}),
    ("sigmoid", {"query": "static", "chunk_size": 5}, {"size": 5}),
    ("time-mix", {"chunk_size": 2}, {"size": 2}),
    ("dar-uvit", {"query": "static+t", "chunk_size": 5}, {"size": 5}),
]
NO_ROUTES = {"deepnorm", "siamesenorm", "highway", "densenet", "dar-uvit"}
ODD_FUSIONS = {"uvit", "hunyuan"}  # what they add to the stream is no write


def shaken(stream, seed):
    """``stream`` in float64 with all its parameters moved at random."""
    generator = torch.Generator().manual_seed(seed)
    stream = stream.double()
    with torch.no_grad():
        for parameter in stream.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator).double()
    return stream


def problem(seed, count):
    generator = torch.Generator().manual_seed(seed)
    v_0, t_emb = (
        torch.randn(*s, generator=generator).double() for s in ((2, 3, WIDTH), (2, WIDTH))
    )
    maps = torch.randn(count + 1, WIDTH, WIDTH, generator=generator).double()
    return v_0, t_emb, lambda l, h: torch.tanh(h @ maps[l])


def run(stream, v_0, t_emb, branch):
    """Return all reads, all writes and the state of one forward."""
    state, reads, writes = stream.open(v_0, t_emb), [], [v_0]
    for l in range(1, len(stream.layout) + 2):
        reads.append(stream.read(state, l))
        if l <= len(stream.layout):
            writes.append(branch(l, reads[-1]))
            stream.write(state, l, writes[-1])
    return reads, writes, state


def ids(case):
    return "-".join([case[0], *map(str, case[1].values())])


def test_no_scheme_is_forgotten():
    assert {name for name, _, _ in CASES} | {"dar"} == set(known())


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_reads_are_those_of_the_transcription(case):
    name, options, told = case
    stream = shaken(make(name, WIDTH, Layout.transformer(BLOCKS), **options), 1)
    v_0, t_emb, branch = problem(2, 2 * BLOCKS)
    found, _, _ = run(stream, v_0, t_emb, branch)
    p = dict(stream.named_parameters())
    wanted = getattr(reference, name.replace("-", "_"))(p, v_0, t_emb, branch, BLOCKS, **told)
    assert len(found) == len(wanted) == 2 * BLOCKS + 1
    for one, two in zip(found, wanted, strict=True):
        # Measured: 2e-15.
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_reads_are_the_sum_of_the_sources_by_their_routes(case):
    name, options, _ = case
    if name in NO_ROUTES | ODD_FUSIONS:
        pytest.skip("no scalar routes, or sources that are no writes")
    stream = shaken(make(name, WIDTH, Layout.transformer(BLOCKS), **options), 3)
    v_0, t_emb, branch = problem(4, 2 * BLOCKS)
    reads, writes, state = run(stream, v_0, t_emb, branch)
    if name == "layerscale":
        writes[1:] = [stream.scale[l] * v for l, v in enumerate(writes[1:])]
    routes = stream.routes(state)
    assert len(routes) == len(reads) == 2 * BLOCKS + 1
    for l, weights in enumerate(routes, 1):
        offered = stream.offered(l)
        assert weights.shape[-1] == len(offered)
        total = sum(weights[..., n, None] * writes[i] for n, i in enumerate(offered))
        torch.testing.assert_close(total, reads[l - 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [*CASES, ("dar", {"chunk_size": 2}, {})], ids=ids)
def test_a_stream_says_whether_its_routes_differ_between_samples_or_tokens(case):
    name, options, _ = case
    stream = shaken(make(name, WIDTH, Layout.transformer(BLOCKS), **options), 6)
    assert stream.scalar == (name not in NO_ROUTES | ODD_FUSIONS) or name in ODD_FUSIONS
    if not stream.scalar:
        return
    v_0, t_emb, branch = problem(7, 2 * BLOCKS)
    _, _, state = run(stream, v_0, t_emb, branch)
    with torch.no_grad():
        spans = [
            float((each - each.reshape(-1, each.shape[-1])[0]).abs().max())
            for each in stream.routes(state)
        ]
    assert (max(spans) > 1e-3) == stream.dynamic
    assert stream.dynamic or max(spans) == 0


# Extra parameters of an XL/2 (28 blocks of width 1152), from shared formulas of the papers.
COUNTS = [
    ("residual", {}, 0),
    ("rezero", {}, 56),
    ("layerscale", {}, 56 * 1152),
    ("deepnorm", {}, 0),
    ("siamesenorm", {}, 28 * 8 * 1152 + 4 * 1152),
    ("highway", {}, 56 * (1152**2 + 1152)),
    ("uvit", {}, 37_175_040),
    ("hunyuan", {}, 34_579_584),
    ("denseformer", {}, 434),
    ("hc-static", {"streams": 2}, 448),
    ("hc-static", {"streams": 4}, 1_344),
    ("hc-dynamic", {"streams": 2}, 258_608),
    ("hc-dynamic", {"streams": 4}, 388_528),
    ("mhc", {"streams": 2}, 1_032_808),
    ("mhc", {"streams": 4}, 6_194_664),
    ("attnres", {}, 131_328),
    ("attnres-block", {}, 131_328),
    ("delta-attnres", {}, 131_328),
    ("dar", {"query": "static"}, 131_328),
    ("dar", {"query": "dynamic"}, 75_644_928 + 65_664),
    ("sigmoid", {"query": "static+t"}, 131_328),
    ("dar-uvit", {"query": "static+t"}, 131_328 + 37_175_040),
]


@pytest.mark.parametrize("case", COUNTS, ids=ids)
def test_parameters_of_an_xl(case):
    name, options, count = case
    with torch.device("meta"):
        stream = make(name, 1152, Layout.transformer(28), **options)
    assert sum(p.numel() for p in stream.parameters()) == count


def build(name, **options):
    torch.manual_seed(0)
    config = SiTConfig(
        depth=4, width=16, heads=2, patch=2, in_channels=1, input_size=8, num_classes=10,
        learn_sigma=False, routing=name, **options,
    )  # fmt: skip
    return SiT(config).double()


def opened(model, seed=1):
    """Give the model's own weights, which are equal for all routings, values away from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator).double()
            if not name.startswith(("stream.", "pos_embed", "t_embedder.mlp.2")):
                parameter.copy_(noise)
    return model


def inputs():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, 1, 8, 8, generator=generator).double()
    return x, torch.tensor([0.1, 0.5, 0.9]).double(), torch.tensor([1, 2, 10])


EQUAL = [  # to rounding, or up to the eps of the norms where a read is a multiple of the sum
    ("densenet", {}, 1e-12),
    ("denseformer", {}, 1e-12),
    ("denseformer", {"dilation": 2}, 1e-12),
    ("hc-static", {}, 1e-3),
    ("hc-dynamic", {}, 1e-3),
    ("attnres", {}, 1e-3),
    ("attnres-block", {"chunk_size": 3}, 1e-3),
    ("delta-attnres", {}, 1e-3),
    ("dar", {"query": "static", "chunk_size": 1}, 1e-3),
    ("dar", {"query": "dynamic", "chunk_size": 1}, 1e-3),
    ("sigmoid", {"query": "dynamic", "chunk_size": 1}, 1e-3),
    ("time-mix", {"chunk_size": 1}, 1e-3),
]


@pytest.mark.parametrize("case", EQUAL, ids=ids)
def test_the_start_is_the_plain_model(case):
    """With all gates open, where a fresh model of any routing would return zero."""
    name, options, tolerance = case
    plain, other = opened(build("residual")), opened(build(name, **options))
    with torch.no_grad():
        wanted, found = plain(*inputs()), other(*inputs())
    error = float((found - wanted).abs().max() / wanted.abs().max())
    assert error < tolerance, error


@pytest.mark.parametrize(
    "name", ["dar", "uvit", "dar-uvit", "mhc", "siamesenorm", "deepnorm", "highway"]
)
def test_other_starts_are_not_the_plain_model(name):
    plain, other = opened(build("residual")), opened(build(name))
    with torch.no_grad():
        wanted, found = plain(*inputs()), other(*inputs())
    assert float((found - wanted).abs().max() / wanted.abs().max()) > 0.02


@pytest.mark.parametrize("name", sorted(known()))
def test_everything_learns_from_the_start(name):
    """A fresh model returns zero; a few steps reach every parameter that has a choice."""
    model = build(name, query="dynamic")
    x, t, y = inputs()
    with torch.no_grad():
        assert torch.equal(model(x, t, y), torch.zeros_like(x))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    reached = set()
    for _ in range(8):
        optimiser.zero_grad()
        (model(x, t, y) - x).square().sum().backward()
        for parameter_name, parameter in model.named_parameters():
            if parameter.grad is not None and bool(parameter.grad.any()):
                reached.add(parameter_name)
        optimiser.step()
    wanted = {n for n, p in model.named_parameters() if p.requires_grad}
    # The first reader has one source: its weight is one whatever its query.
    assert {n for n in wanted - reached if not n.startswith("stream.readers.0.")} == set()


@pytest.mark.parametrize("name", sorted(known()))
def test_the_probe_measures_every_scheme(name):
    model = tiny.model(depth=4, routing=name, chunk_size=2)
    data, task = tiny.problem(model, samples=3)
    levels = torch.full((3,), 0.4, dtype=torch.float64)
    with untouched(model):
        found = measure(sit_family.subject(model), task.batch, task.loss, data.ids, levels)
    assert bool(torch.isfinite(found["rms"]).all() & torch.isfinite(found["grad_rms"]).all())
    gates = found["gate"]
    if name in NO_ROUTES:
        assert bool(gates.isnan().all() & found["route"].isnan().all())
        return
    assert not bool(found["route"].isnan().all())
    assert float(found["gate_conservation"].nan_to_num().max()) < 2e-3  # the norms' eps
    if name not in ODD_FUSIONS:
        assert float(found["read_residual"].max()) < 1e-14


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("hc-static", {"streams": 0}, "0 streams"),
        ("mhc-lite", {"streams": 6}, "1 to 5"),
        ("denseformer", {"dilation": 0}, "at least 1"),
        ("attnres-block", {"chunk_size": 0}, "at least 1"),
        ("rezero", {"streams": 2}, "does not take"),
    ],
)
def test_options_that_do_not_fit(name, options, words):
    with pytest.raises(UsageError, match=words):
        make(name, 8, Layout.transformer(4), **options)


def test_long_skips_need_blocks():
    with pytest.raises(UsageError, match="too few"):
        make("hunyuan", 8, Layout.transformer(2))
