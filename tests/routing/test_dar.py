"""Streams: DAR against its formula, chunking, memory, and the protocol."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from dar_probe.errors import UsageError
from dar_probe.routing import Layout, Stream, make, register
from dar_probe.routing.stream import SCHEMES
from tests.helpers import reference, tiny

QUERIES = ("static", "static+t", "dynamic")


CHUNKS = [(n, size) for n in (2, 4, 8, 12, 56) for size in (1, 2, 4) if n % size == 0]


@pytest.mark.parametrize(("sublayers", "chunk_size"), CHUNKS)
def test_offered_sources(sublayers, chunk_size):
    stream = make("dar", 8, Layout.transformer(sublayers // 2), chunk_size=chunk_size)
    for reader in range(1, sublayers + 2):
        expected = reference.offered(reader, sublayers, chunk_size)
        assert list(stream.offered(reader)) == expected
        assert len(expected) <= chunk_size + sublayers // chunk_size - (reader <= sublayers)
    assert len(stream.offered(sublayers + 1)) == sublayers // chunk_size + chunk_size


def test_source_reads_of_xl():
    layout = Layout.transformer(28)
    reads = {
        size: sum(len(make("dar", 8, layout, chunk_size=size).offered(r)) for r in range(1, 58))
        for size in (1, 2, 4, 7, 8, 14, 28, 56)
    }
    assert reads == {1: 1653, 2: 870, 4: 522, 7: 435, 8: 435, 14: 522, 28: 870, 56: 1653}


@pytest.mark.parametrize("query", QUERIES)
def test_chunks_of_one_equal_one_chunk(query):
    each = tiny.model(depth=3, routing="dar", query=query, chunk_size=1)
    whole = tiny.model(depth=3, routing="dar", query=query, chunk_size=6)
    whole.load_state_dict(each.state_dict())
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    t, y = torch.rand(2, dtype=torch.float64), torch.tensor([3, 4])
    assert torch.equal(each(x, t, y), whole(x, t, y))


@pytest.mark.parametrize("query", QUERIES)
def test_zero_queries_average_uniformly(query):
    stream = make("dar", 8, Layout.transformer(2), query=query, chunk_size=1).double()
    state = stream.open(torch.randn(2, 3, 8).double(), torch.zeros(2, 8).double())
    for reader in range(1, 5):
        stream.read(state, reader)
        stream.write(state, reader, torch.randn(2, 3, 8).double())
    head = stream.read(state, 5)
    torch.testing.assert_close(
        head, torch.stack(state.sources.values).mean(0), rtol=1e-13, atol=1e-13
    )
    for row in stream.routes(state):
        torch.testing.assert_close(row, torch.full_like(row, 1 / row.shape[-1]))


@pytest.mark.parametrize("options", tiny.ROUTINGS[1:], ids=tiny.name_of)
def test_parameter_gradients_equal_those_of_the_transcription(options):
    model = tiny.model(depth=2, **options).train()
    model.pos_embed.requires_grad_(True)
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t, y = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), torch.tensor([0, 1, 2])
    model(x, t, y).square().sum().backward()
    p = {k: v.detach().clone().requires_grad_() for k, v in model.state_dict().items()}
    out, _ = reference.forward(p, x, t, y, heads=2, patch=2, **options)
    grads = torch.autograd.grad(out.square().sum(), list(p.values()), allow_unused=True)
    found = dict(model.named_parameters())
    for name, grad in zip(p, grads, strict=True):
        expected = torch.zeros_like(p[name]) if grad is None else grad
        # Measured: at most 2.2e-13 of the largest entry.
        scale = float(expected.abs().max()) or 1.0
        assert float((found[name].grad - expected).abs().max()) < 2e-12 * scale, name


def saved_bytes(model):
    """Bytes of distinct storages that autograd keeps for the backward."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = (storage.nbytes(), tensor)  # keep alive: no address reuse
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(torch.randn(4, 1, 16, 16), torch.rand(4), torch.zeros(4, dtype=torch.long))
    assert out.requires_grad
    return sum(size for size, _ in storages.values())


def test_dense_routing_keeps_no_stack_of_sources():
    sizes = {"depth": 12, "width": 32, "size": 16, "dtype": torch.float32}
    plain = saved_bytes(tiny.model(**sizes))
    dense = saved_bytes(tiny.model(**sizes, routing="dar", query="static", chunk_size=1))
    one_state = 4 * 64 * 32 * 4
    readers = 2 * 12 + 1
    stacks = one_state * sum(range(1, readers + 1))
    # Measured: 2.2 states a reader (read, source, weights, logits), 0.17 of what a fresh stack for
    # each reader would add.
    assert dense - plain < 0.25 * stacks


def test_chunks_must_divide():
    with pytest.raises(UsageError, match="divide"):
        make("dar", 8, Layout.transformer(3), chunk_size=4)
    with pytest.raises(UsageError, match="query"):
        make("dar", 8, Layout.transformer(2), query="psychic", chunk_size=4)
    with pytest.raises(UsageError, match="does not take"):
        make("residual", 8, Layout.transformer(2), chunk_size=4)


def test_a_scheme_is_one_class():
    @register("half", title="half", about="half of every earlier output")
    class Half(Stream):
        """Each write enters with weight one half."""

        def open(self, v_0, t_emb=None):
            return [v_0]

        def read(self, state, l):
            return self.readers[l - 1](state[0])

        def write(self, state, l, v_l):
            state[0] = state[0] + 0.5 * v_l

        def routes(self, state):
            return None

    try:
        stream = make("half", 4, Layout.transformer(1))
        state = stream.open(torch.ones(1, 1, 4))
        stream.write(state, 1, torch.ones(1, 1, 4))
        assert torch.equal(stream.read(state, 2), torch.full((1, 1, 4), 1.5))
    finally:
        del SCHEMES["half"]


def test_two_forwards_in_flight():
    model = tiny.model(routing="dar", query="dynamic", chunk_size=2)
    stream, c = model.stream, torch.randn(1, 16).double()
    v = [torch.randn(1, 4, 16).double() for _ in range(2)]
    alone = []
    for one in v:
        state = stream.open(one, c)
        for block in model.blocks:
            block(stream, state, c)
        alone.append(stream.read(state, 5))
    states = [stream.open(one, c) for one in v]
    for block in model.blocks:
        for state in states:
            block(stream, state, c)
    for state, expected in zip(states, alone, strict=True):
        assert torch.equal(stream.read(state, 5), expected)


@pytest.mark.parametrize("options", tiny.ROUTINGS, ids=tiny.name_of)
def test_checkpointed_branches_give_the_same_gradients(options):
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    t, y = torch.rand(2, dtype=torch.float64), torch.tensor([3, 4])
    grads = []
    for checkpointed in (False, True):
        model = tiny.model(**options)
        for branch in (b for block in model.blocks for b in (block.attn, block.mlp)):
            if checkpointed:
                branch.forward = partial(checkpoint, branch.forward, use_reentrant=False)
        model(x, t, y).square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("options", tiny.ROUTINGS, ids=tiny.name_of)
def test_a_block_that_runs_again_is_an_error_not_a_wrong_gradient(options):
    model = tiny.model(**options)
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    out = model(x, torch.rand(2, dtype=torch.float64), torch.tensor([3, 4]))
    with pytest.raises(UsageError, match="out of turn"):
        out.square().sum().backward()
