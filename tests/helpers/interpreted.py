"""The Triton kernels against plain torch, in Triton's interpreter: test_kernels.py starts it."""

import pytest
import torch

from dar_probe.errors import UsageError
from dar_probe.routing import kernels, mixing
from tests.helpers import tiny

SIZES = [(2, 3, 20, 5), (1, 4, 64, 1), (3, 1, 5, 9)]  # N, T, D, n
TOLERANCE = {torch.float64: 6e-16, torch.float32: 5e-7, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Ask for the kernels, and list the ones that ran."""
    ran = []
    launch = kernels._launch

    def counting(kernel, *arguments, **more):
        ran.append(kernel.fn.__name__)
        launch(kernel, *arguments, **more)

    monkeypatch.setattr(kernels, "_launch", counting)
    monkeypatch.setenv("DAR_PROBE_KERNELS", "triton")
    torch.manual_seed(0)
    return ran


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
def test_products_and_mixture(size, dtype, counted):
    samples, tokens, width, n = size
    sources = [torch.randn(samples, tokens, width).to(dtype) for _ in range(n)]
    vector = torch.randn(samples, tokens, width).to(dtype)
    each = torch.stack(sources, -1).double()
    near = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * width}

    found = mixing.products(vector, sources)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), (vector.double()[..., None] * each).sum(2), **near)

    for shape in [(samples, tokens, n), (samples, 1, n), (1, 1, n)]:
        weights = torch.randn(shape).to(dtype)
        found = mixing.mixture(weights, sources)
        assert found.dtype == dtype
        expected = (weights.double()[:, :, None] * each).sum(-1)
        torch.testing.assert_close(found.double(), expected, **near)
    assert counted == ["_products", *["_mixture"] * 3]


@pytest.mark.parametrize(
    ("dtype", "sharp"), [*((dtype, 1.0) for dtype in TOLERANCE), (torch.float64, 1000.0)]
)
@pytest.mark.parametrize("size", SIZES)
def test_attention_and_its_gradients(size, dtype, sharp, counted):
    samples, tokens, width, n = size
    values = [torch.randn(samples, tokens, width).to(dtype) for _ in range(n)]
    query = (torch.randn(samples, tokens, width) * width**-0.5).to(dtype)
    factors = (sharp * torch.rand(samples, tokens, n)).to(dtype)
    grad = torch.randn(samples, tokens, width).to(dtype)

    def run(leaves, read):
        leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        h, weights = read(leaves[0], leaves[1], leaves[2:])
        h.backward(grad.to(h.dtype))
        return [h.detach(), weights.detach(), *(leaf.grad for leaf in leaves)]

    def ours(query, factors, values):
        sources = mixing.Sources(1)
        for value in values:
            sources.append(value)
        return sources.attend(query, factors, range(n), 1)

    def plain(query, factors, values):
        stacked = torch.stack(values, -1)
        weights = torch.softmax((query[..., None] * stacked).sum(2) * factors, -1)
        return (weights[:, :, None] * stacked).sum(-1), weights

    leaves = [query, factors, *values]
    found, expected = run(leaves, ours), run([leaf.double() for leaf in leaves], plain)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        scale = other.abs().max().item() + 1e-30
        error = (one.double() - other).abs().max().item() / scale
        assert error < TOLERANCE[dtype] * max(4, 2 * sharp), error
    assert counted == ["_attend", "_attend_backward", *["_mixture"] * n]


@pytest.mark.parametrize("query", ["static", "static+t", "dynamic"])
def test_model(query, counted, monkeypatch):
    model = tiny.model(depth=2, routing="dar", query=query, chunk_size=2)
    x, t, y = torch.randn(2, 1, 4, 4).double(), torch.rand(2).double(), torch.tensor([3, 4])

    def gradients():
        model.zero_grad()
        model(x, t, y).square().sum().backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        return [p.grad.clone() for p in trained]

    found = gradients()
    assert counted.count("_attend" if query == "dynamic" else "_mixture") >= 5
    assert ("_attend_backward" in counted) == (query == "dynamic")
    ran = len(counted)
    monkeypatch.setenv("DAR_PROBE_KERNELS", "torch")
    torch.testing.assert_close(found, gradients(), rtol=1e-11, atol=1e-11)
    assert len(counted) == ran


def test_what_does_not_fit_runs_without(counted):
    sources = [torch.randn(2, 3, 8), torch.randn(2, 3, 8).double()]
    mixing.mixture(torch.randn(2, 3, 2).double(), sources[1:] + sources[1:])
    assert counted == ["_mixture"]
    strided = torch.randn(2, 8, 3).mT
    shifted = torch.randn(49)[1:].view(2, 3, 8)  # no address that 16 divides
    for value in (strided, shifted):
        found = mixing.mixture(torch.ones(2, 3, 2), [sources[0], value])
        torch.testing.assert_close(found, sources[0] + value)
    assert not kernels.fit(sources)
    assert counted == ["_mixture"]


def test_unknown_kernels(monkeypatch):
    monkeypatch.setenv("DAR_PROBE_KERNELS", "cuda")
    with pytest.raises(UsageError, match="'cuda'"):
        mixing.mixture(torch.ones(1, 1, 1), [torch.ones(1, 1, 4)])
