"""Names and places of sites, in a stack that a family describes."""

from torch import nn

from dar_probe.sites.stack import Stack
from dar_probe.sites.subject import Source


def test_the_embedding_lies_before_the_first_block():
    assert Stack().sources == [Source(name="embedding", kind="embedding", block=0)]


def test_the_state_before_a_fusion_is_what_its_module_gets_or_returns():
    stack, module = Stack(), nn.Identity()
    stack.fusion(2, module)
    stack.fusion(3, module, after=True)
    before = [source.before for source in stack.sources[1:]]
    assert [passage.when for passage in before if passage] == ["input", "output"]
