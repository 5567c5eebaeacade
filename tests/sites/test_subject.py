"""Which sources a reader is offered where the stream adds, and where it begins anew."""

import pytest

from dar_probe.models import sit_family
from dar_probe.sites import subject
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
