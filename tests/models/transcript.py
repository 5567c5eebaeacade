"""For transcriptions of a forward pass, which know neither model nor subject."""

import torch

from tests.models import check


class Stream:
    """A residual stream written out: sources are kept, and a reader gets their gated sum.

    For transcriptions: ``read`` for each branch and the head, ``write`` what a branch adds,
    ``fuse`` what the stream becomes, ``block`` before z_k is first read or kept as a skip.
    """

    def __init__(self, embedding, gates=None):
        self.sources, self.reads, self.states, self.nudges = [embedding], [], [], []
        self.offered = []  # how many sources each reader had
        self._gates = gates

    def state(self):
        return sum(self.sources)

    def block(self):
        """Mark the present state as z_k, with a nudge of zero that goes wherever it goes."""
        nudge = torch.zeros_like(self.sources[-1], requires_grad=True)
        self.nudges.append(nudge)
        self.sources[-1] = self.sources[-1] + nudge
        self.states.append(self.state())

    def read(self):
        row = len(self.reads)
        self.reads.append(self.state())
        self.offered.append(len(self.sources))
        if self._gates is None:
            return self.reads[-1]
        return sum(self._gates[:, row, i][:, None, None] * v for i, v in enumerate(self.sources))

    def write(self, value):
        self.sources.append(value)

    def fuse(self, new):
        self.sources.append(new - self.state())


def transcribed(forward, readers, sources, n, loss):
    """Return the arrays of ``reference`` for ``forward(gates) -> (output, Stream)``, and both."""
    gates = torch.ones(n, readers, sources, dtype=torch.float64, requires_grad=True)
    output, stream = forward(gates)
    assert (len(stream.reads), len(stream.sources)) == (readers, sources)
    gate, *grads = torch.autograd.grad(
        loss(output).sum(), [gates, *stream.nudges], materialize_grads=True
    )
    unused = torch.ones(readers, sources, dtype=torch.bool)
    for row, count in enumerate(stream.offered):
        unused[row, :count] = False
    arrays = check.of_blocks([z.detach() for z in stream.states], grads)
    return {**arrays, "gate": gate.masked_fill(unused, torch.nan)}, output.detach(), stream


def agrees(forward, subject, args, loss, *, values=1e-13):
    """Hold what hooks, autograd and the probe see of a model to ``forward(gates)``.

    ``values`` is the tolerance of what sources add, which is known as a difference.
    """
    expected, output, stream = transcribed(
        forward, len(subject.readers), len(subject.sources), len(args[0]), loss
    )
    seen = check.observe(subject, args)
    assert check.relative(seen.output, output) < 1e-13
    for found, read in zip(seen.reads, stream.reads, strict=True):
        assert check.relative(found, read.detach()) < 1e-13
    for found, value in zip(seen.values, stream.sources, strict=True):
        assert check.relative(found, value.detach()) < values
    for found in (check.reference(subject, args, loss), check.probed(subject, args, loss)):
        for name, value in expected.items():
            assert check.relative(found[name], value) < 1e-13, name
