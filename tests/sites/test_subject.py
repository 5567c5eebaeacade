"""Which sources a reader is offered where the stream adds, and where it begins anew."""

import dataclasses

import pytest
import torch

from dar_probe.models import sit_family
from dar_probe.sites import subject
from dar_probe.sites.layout import Layout
from dar_probe.sites.subject import Source
from tests.helpers import tiny


def sources(kinds):
    """Return sources of the kinds; "new" is a fusion with which a new stream begins."""
    return [
        Source(name=f"{at}", kind="fusion" if kind == "new" else kind, block=1, fresh=kind == "new")
        for at, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("kinds", "offered"),
    [
        (["embedding", "mlp"], [(0,), (0, 1)]),
        (["embedding", "attention", "mlp"], [(0,), (0, 1), (0, 1, 2)]),
        (["embedding", "mlp", "fusion", "mlp"], [(0,), (0, 1, 2), (0, 1, 2, 3)]),
        (["embedding", "mlp", "new", "mlp"], [(0,), (2,), (2, 3)]),
        (["embedding", "mlp", "new", "mlp", "new", "mlp"], [(0,), (2,), (4,), (4, 5)]),
        (["embedding", "mlp", "new", "fusion", "mlp"], [(0,), (2, 3), (2, 3, 4)]),
        (["embedding", "mlp", "fusion"], [(0,), (0, 1, 2)]),
    ],
)
def test_a_reader_is_offered_what_entered_since_its_stream_began(kinds, offered):
    found = sources(kinds)
    assert subject.offered_by_addition(found) == tuple(offered)
    assert subject.last_source(found) == [ids[-1] for ids in offered]


def test_the_sites_of_the_bundled_model():
    model = tiny.model(depth=3, size=8)
    found = sit_family.subject(model)
    assert [reader.kind for reader in found.readers] == ["attention", "mlp"] * 3 + ["head"]
    assert [reader.block for reader in found.readers] == [1, 1, 2, 2, 3, 3, 4]
    for l, reader in enumerate(found.readers[:-1]):
        block = model.blocks[l // 2]
        assert reader.module is (block.norm1, block.norm2)[l % 2]
        assert reader.branches[0].output is (block.attn, block.mlp)[l % 2]
    assert found.facts["tokens"] == 16 and type(found.facts["tokens"]) is int


@pytest.mark.parametrize("across", [False, True])
def test_rows_of_a_sample_are_its_tokens(across):
    value = torch.arange(2 * 3 * 4 * 5).reshape(2 * 3, 4, 5)  # 2 samples of 3 rows of 4 tokens
    order = [(row, token) for row in range(3) for token in range(4)]
    order = [(row, token) for token in range(4) for row in range(3)] if across else order
    view = subject.View(layout=Layout(rows=3, across=across))
    expected = torch.stack([
        torch.stack([value[3 * sample + row, token] for row, token in order]) for sample in (0, 1)
    ])  # fmt: skip
    assert torch.equal(view.take(value), expected)
    assert torch.equal(view.put(torch.zeros_like(value), expected), value)
    part = dataclasses.replace(view, tokens=slice(2, 5))
    assert torch.equal(part.take(value), expected[:, 2:5])
    put = part.put(value, torch.zeros_like(expected[:, 2:5]))
    assert torch.equal(view.take(put)[:, 2:5], torch.zeros_like(expected[:, 2:5]))
    assert torch.equal(view.take(put)[:, 5:], expected[:, 5:])
