"""Which tokens of a state count, in the stream and for the output."""

import torch

from dar_probe.sites import stream_detection, tracing
from tests.test_audit import Stack


class MiddleOnly(Stack):
    """The output comes from the middle tokens; a norm behind the blocks is called for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = torch.nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        self.idle(x)
        return self.head(self.norm(x)[:, 1:4])


def test_measured_tokens_end_with_those_that_the_output_depends_on():
    torch.manual_seed(0)
    model = MiddleOnly()
    found = tracing.trace(model, (torch.randn(1, 5, 5),), {}, set(model.blocks))
    links = stream_detection.follow(found, live_only=True)
    assert links[-1].read is not None and links[-1].read.module is model.norm
    assert [link.tokens for link in links] == [slice(1, 4)] * len(links)
    assert len(links) == 2 * 4 + 1


def test_a_stretch_holds_a_live_token_only_within_its_ends():
    def holds(live: list[bool], start: int, count: int) -> bool:
        return stream_detection.Frame(torch.tensor(live), 0, len(live)).holds(start, count)

    assert holds([True, False, False], 0, 1)
    assert holds([True, False, False], -2, 3)
    assert not holds([True, False, False], -1, 1)  # ends before the first token
    assert not holds([False, False, True], 1, 1)
    assert holds([False, False, True], 1, 2)
