"""A routing stream in somebody else's block loop: states, gradients and gates by plain autograd."""

import numpy as np
import pytest
import torch
from torch import nn

import dar_probe as dp
from dar_probe.errors import ProbeError
from dar_probe.routing import Layout, make, schemes
from dar_probe.sites import routed

DEPTH, WIDTH, TOKENS = 4, 8, 5


class Loop(nn.Module):
    """Blocks of two linear sublayers each; the state is read by norms, or as it is."""

    def __init__(self, routing, normed=True, **options):
        super().__init__()
        torch.manual_seed(0)
        kind = nn.LayerNorm if normed else nn.Identity
        eps = {"eps": 1e-12} if normed else {}  # the law holds up to it
        self.norms = nn.ModuleList(kind(WIDTH, **eps) for _ in range(2 * DEPTH + 1))
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(2 * DEPTH)
        )
        self.stream = make(routing, WIDTH, Layout.transformer(DEPTH), **options)
        for parameter in self.parameters():
            if parameter.ndim:
                nn.init.normal_(parameter, std=0.5)
        self.double()

    def forward(self, x, t_emb=None):
        state = self.stream.open(x, t_emb)
        for l, (norm, branch) in enumerate(zip(self.norms, self.branches, strict=False), 1):
            self.stream.write(state, l, branch(norm(self.stream.read(state, l))))
        return self.norms[-1](self.stream.read(state, len(self.branches) + 1))


def clean(ids, *shape):
    draws = [torch.Generator().manual_seed(int(i)) for i in ids]
    return torch.stack([torch.randn(*shape, generator=d, dtype=torch.float64) for d in draws])


def batch(ids, level):
    time = clean(ids + 50, WIDTH) * (1 + level[:, None])
    return (clean(ids, TOKENS, WIDTH) + level[:, None, None], time), {}


def loss(output, ids, level):
    return (output - clean(ids + 90, TOKENS, WIDTH)).square().mean((1, 2))


def measured(model):
    return dp.audit(model, batch=batch, loss=loss, noise_levels=[0.3], samples=2).dataset


def by_hand(model):
    """Return reads (N, T, D), their gradients and writes of one batch, by hooks on the parts."""
    reads, writes = [], []

    def keep(module, args):
        args[0].retain_grad()
        reads.append(args[0])

    hooks = [norm.register_forward_pre_hook(keep) for norm in model.norms]
    hooks += [b.register_forward_hook(lambda m, a, out: writes.append(out)) for b in model.branches]
    ids, level = torch.arange(2), torch.full((2,), 0.3, dtype=torch.float64)
    (x, t_emb), _ = batch(ids, level)
    x.requires_grad_()
    loss(model(x, t_emb), ids, level).sum().backward()
    for hook in hooks:
        hook.remove()
    return reads, [read.grad for read in reads], [x, *writes]


@pytest.mark.parametrize("name", list(schemes.known()))
def test_states_and_gradients_are_those_of_the_norms_inputs(name):
    model = Loop(name)
    ds = measured(model)
    reads, grads, _ = by_hand(model)
    first = [*range(0, 2 * DEPTH, 2), 2 * DEPTH]  # of each block, and the head
    rms = torch.stack([reads[i].square().mean((1, 2)).sqrt() for i in first], 1)
    np.testing.assert_allclose(ds["rms"].values[0], rms.detach(), rtol=1e-9)
    if name in ("residual", "rezero", "layerscale", "deepnorm", "highway", "siamesenorm"):
        return  # the next read's gradient comes by the stream, too: not the norm's alone
    slope = torch.stack([grads[i].square().mean((1, 2)).sqrt() for i in first], 1)
    measured_slope = ds["grad_rms"].values[0]
    shared = np.isclose(measured_slope, slope, rtol=1e-6)
    assert shared[:, -1].all()  # what the head reads has no other way to the loss


ROUTED = [n for n, s in schemes.known().items() if s.routes and n not in ("uvit", "hunyuan")]


@pytest.mark.parametrize("name", ROUTED)
def test_gates_obey_the_law_and_reads_are_sums_of_sources(name):
    ds = measured(Loop(name))
    if name != "layerscale":  # its factors are vectors
        assert float(ds["read_residual"].max()) < 1e-9
    assert float(ds["gate_conservation"].max()) < 1e-6
    assert float(np.nanmax(np.abs(ds["gate"].values))) > 1e-3
    assert ds.sizes["reader"] == 2 * DEPTH + 1


@pytest.mark.parametrize("query", ["static", "static+t", "dynamic"])
def test_gates_of_dar_by_plain_autograd(query):
    """A gate on a source as one reader reads it: its weight times gradient times source."""
    model = Loop("dar", query=query, chunk_size=1)
    ds = measured(model)
    reads, grads, writes = by_hand(model)
    state = {}
    hook = model.stream.opened.register_forward_hook(lambda m, a, out: state.update(it=out))
    ids, level = torch.arange(2), torch.full((2,), 0.3, dtype=torch.float64)
    model(*batch(ids, level)[0])
    hook.remove()
    for l, weights in enumerate(model.stream.routes(state["it"])):
        for i in range(l + 1):
            w = weights[..., i] if weights.ndim > 1 else weights[i]
            own = (grads[l] * writes[i]).sum(-1)  # (N, T)
            gate = (w * own).sum(1)
            found = ds["gate"].isel(noise_level=0, reader=l, source=i).values
            np.testing.assert_allclose(found, gate.detach(), rtol=1e-6, atol=1e-12)


def test_what_is_read_without_a_norm_has_no_law():
    ds = measured(Loop("dar", normed=False, query="static"))
    assert np.isnan(ds["gate_conservation"].values).all()
    assert float(ds["read_residual"].max()) < 1e-9


def test_it_is_ablated_for_real():
    model = Loop("dar", query="static", chunk_size=1)
    ablation = dp.ablate(
        model, batch=batch, loss=loss, noise_levels=[0.3], samples=2, kinds=["gate"], pairs=4
    )
    true = ablation.dataset["gate_ablated"].values
    assert np.isfinite(true).any() and np.nanmax(np.abs(true)) > 1e-6


class Functional(Loop):
    """No module takes what the sublayers read."""

    def forward(self, x, t_emb=None):
        state = self.stream.open(x, t_emb)
        for l, branch in enumerate(self.branches, 1):
            self.stream.write(state, l, branch(self.stream.read(state, l) * 2))
        return self.stream.read(state, len(self.branches) + 1) * 2


def test_what_no_module_takes_is_measured_but_not_ablated():
    model = Functional("dar", query="static", chunk_size=1)
    ds = measured(model)
    assert float(ds["read_residual"].max()) < 1e-9
    assert np.isnan(ds["gate_conservation"].values).all()
    with pytest.raises(ProbeError, match="no module takes what 'block 1 ") as caught:
        dp.ablate(
            model, batch=batch, loss=loss, noise_levels=[0.3], samples=2, kinds=["gate"], pairs=4
        )
    assert "nn.Identity()" in caught.value.hint


class Parallel(Loop):
    """Every state is taken by a norm, and by a linear layer beside it."""

    def __init__(self, routing, **options):
        super().__init__(routing, **options)
        self.beside = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in self.branches).double()

    def forward(self, x, t_emb=None):
        state = self.stream.open(x, t_emb)
        for l, branch in enumerate(self.branches, 1):
            h = self.stream.read(state, l)
            self.stream.write(state, l, branch(self.norms[l - 1](h)) + self.beside[l - 1](h))
        return self.norms[-1](self.stream.read(state, len(self.branches) + 1))


def test_no_branch_that_takes_a_state_is_missed():
    model = Parallel("dar", query="static", chunk_size=1)
    ds = measured(model)
    grads = []

    def keep(module, args, output):
        output[0].retain_grad()
        grads.append(output[0])

    hooks = [reader.register_forward_hook(keep) for reader in model.stream.readers]
    ids, level = torch.arange(2), torch.full((2,), 0.3, dtype=torch.float64)
    (x, t_emb), _ = batch(ids, level)
    loss(model(x.requires_grad_(), t_emb), ids, level).sum().backward()
    for hook in hooks:
        hook.remove()
    first = [*range(0, 2 * DEPTH, 2), 2 * DEPTH]
    slope = torch.stack([grads[i].grad.square().mean((1, 2)).sqrt() for i in first], 1)
    np.testing.assert_allclose(ds["grad_rms"].values[0], slope, rtol=1e-9)
    assert np.isnan(ds["gate_conservation"].values[..., :-1]).all()


def test_a_sublayer_that_never_reads_is_named():
    class Short(Loop):
        def forward(self, x, t_emb=None):
            state = self.stream.open(x, t_emb)
            return self.norms[0](self.stream.read(state, 1))

    with pytest.raises(ProbeError, match="'block 1 mlp' of the routing stream read 0 times"):
        measured(Short("residual"))


def test_names_of_blocks_do_not_make_writes_into_states():
    model = Loop("dar", query="static", chunk_size=1)
    with pytest.raises(ProbeError) as caught:
        dp.audit(model, batch=batch, loss=loss, noise_levels=[0.3], samples=2, blocks="branches.*")
    assert caught.value.hint


def test_the_bundled_model_has_the_same_sites():
    model = dp.build("SiT-S/2", routing="dar")
    names = [source.name for source in routed.sources_of(model.stream)]
    assert names[:3] == ["embedding", "block 1 attention", "block 1 mlp"]
    assert len(routed.streams_of(model)) == 1
