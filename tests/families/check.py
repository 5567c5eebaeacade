"""What the sites of any family should give: plain hooks and explicit gates, in float64.

``load`` goes the whole way from a file to a subject; ``observe`` and ``reference`` look at it with
hooks of their own and share no code with the probe, which ``probed`` runs; ``Stream`` is for
transcriptions of a forward pass that know neither model nor subject.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dar_probe import checkpoints
from dar_probe.checkpoints.header import Header
from dar_probe.probe.measure import measure
from dar_probe.probe.recorder import untouched


def random_state(shapes, *, seed=0):
    """Random weights (float32) of these names and shapes: every gate is open, no norm is plain."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        scale = 0.3 if len(shape) < 2 else 1 / shape[-1] ** 0.5
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        state[name] = offset + scale * torch.randn(shape, generator=generator)
    return state


def header(state):
    return Header(shown="'model.pt'", shapes={k: tuple(v.shape) for k, v in state.items()}, args={})


def load(family, state, folder, *, heads=None):
    """Save ``state``, read it and return (identified, subject); the model is in float64."""
    path = folder / "model.pt"
    torch.save(state, path)
    read = checkpoints.read(path).state
    assert family.matches(header(read))
    identified = family.identify(header(read), heads)
    with torch.device("meta"):
        model = family.build(identified)
    model.load_state_dict(read, assign=True)
    for module in model.modules():
        if hasattr(module, "make_tables"):
            module.make_tables()
    return identified, family.subject(model.double().eval(), identified)


def inputs(identified, times, *, seed=1):
    """Return x (N, C, h, w), the given times (N,) and labels (N,), in float64."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.tensor(times, dtype=torch.float64)
    x = torch.randn(len(t), *identified.shape, generator=generator, dtype=torch.float64)
    return x, t, torch.arange(len(t)) % max(identified.num_classes, 1)


def mean_square(output):
    return output.square().flatten(1).mean(1)


@dataclass
class Observed:
    """One forward: what every reader read, every source added, and a reader's branches wrote.

    Branches are None where the subject names none.
    """

    output: Tensor
    reads: list[Tensor]
    values: list[Tensor]
    branches: list[Tensor | None]

    def sum_errors(self, offered):
        """Per reader, how far the sum of what is offered is from what it reads, relatively."""
        sums = [sum(self.values[i] for i in ids) for ids in offered]
        return [relative(total, read) for total, read in zip(sums, self.reads, strict=True)]

    def branch_errors(self, subject):
        """Per sublayer with known branches, branches x gate against what it added."""
        written = [v for v, s in zip(self.values, subject.sources, strict=True) if s.written]
        pairs = zip(self.branches, written, strict=False)  # the head writes nothing
        return [relative(b, v) for b, v in pairs if b is not None]


@torch.no_grad()
def observe(subject, args):
    """Watch one forward with plain hooks; sites must fire once, in the order of the subject."""
    events, seen, outputs = [], {}, {}

    def see(event, view, pick):
        def hook(module, hook_args, *output):
            events.append(event)
            seen[event] = view.take(pick(hook_args, *output)).clone()

        return hook

    def keep(module, hook_args, output):
        outputs[module] = output

    handles, expected, rows = [], [], iter(range(len(subject.readers)))
    for i, source in enumerate(subject.sources):
        if (passage := source.before) is not None:
            expected.append(("passage", i))
            if passage.when == "input":
                hook = see(expected[-1], passage.view, lambda a: a[0])
                handles.append(passage.module.register_forward_pre_hook(hook))
            else:
                item = passage.item
                hook = see(
                    expected[-1], passage.view, lambda a, o, k=item: o if k is None else o[k]
                )
                handles.append(passage.module.register_forward_hook(hook))
        elif source.written:
            expected.append(("reader", next(rows)))
    expected.append(("reader", next(rows)))
    assert next(rows, None) is None, "the head must be the only reader that writes nothing"
    for row, reader in enumerate(subject.readers):
        hook = see(("reader", row), reader.view, lambda a: a[0])
        handles.append(reader.module.register_forward_pre_hook(hook))
        for branch in reader.branches:
            handles.append(branch.output.register_forward_hook(keep))
            if branch.gate is not None:
                handles.append(branch.gate.register_forward_hook(keep))
    output = subject.model(*args)
    for handle in handles:
        handle.remove()
    assert events == expected, "sites fired in another order than the subject names them"

    def branches(reader):
        total = 0
        for branch in reader.branches:
            v = reader.view.take(outputs[branch.output])
            if branch.gate is not None:
                number, of = branch.chunk
                v = v * outputs[branch.gate].chunk(of, -1)[number][:, None]
            total = total + v
        return total if reader.branches else None

    return Observed(
        output=output,
        reads=[seen["reader", row] for row in range(len(subject.readers))],
        values=_values(subject.sources, expected, seen),
        branches=[branches(reader) for reader in subject.readers],
    )


def _values(sources, events, seen):
    """The stream after each source minus the stream before it; a new stream counts whole."""
    states = [seen[event] for event in events]  # before sources 1, 2, ..., and what the head reads
    values = []
    for i, (source, new) in enumerate(zip(sources, states, strict=True)):
        values.append(new if source.begins else new - states[i - 1])
    return values


def reference(subject, args, loss=mean_square):
    """Return rms, grad_rms, cosine (N, B+1) and gate (N, R, S) of the per-sample ``loss``.

    Gates are explicit: reader l gets its read plus the sum over i of (g[l,i] - 1) v_i, and autograd
    gives dLoss/dg at g = 1. The gradient of a block's state is that of the very tensor that its
    first reader gets, which must therefore be the stream itself.
    """
    values = observe(subject, args).values
    n, states = len(args[0]), {}
    gates = torch.ones(
        n, len(subject.readers), len(subject.sources), dtype=torch.float64, requires_grad=True
    )

    def gated(row, reader):
        def hook(module, hook_args):
            states[row] = hook_args[0]
            part = reader.view.take(hook_args[0])
            for i in subject.offered[row]:
                part = part + (gates[:, row, i] - 1)[:, None, None] * values[i]
            return (reader.view.put(hook_args[0], part), *hook_args[1:])

        return hook

    handles = [
        reader.module.register_forward_pre_hook(gated(row, reader))
        for row, reader in enumerate(subject.readers)
    ]
    output = subject.model(args[0].clone().requires_grad_(), *args[1:])
    for handle in handles:
        handle.remove()
    first = {}
    for row, reader in enumerate(subject.readers):
        first.setdefault(reader.block, row)
    blocks = [states[row] for row in first.values()]
    grad, *grads = torch.autograd.grad(loss(output).sum(), [gates, *blocks])
    views = [subject.readers[row].view for row in first.values()]
    offered = torch.zeros(grad.shape[1:], dtype=torch.bool)
    for row, ids in enumerate(subject.offered):
        offered[row, list(ids)] = True
    return {
        **of_blocks(
            [view.take(z.detach()) for view, z in zip(views, blocks, strict=True)],
            [view.take(g) for view, g in zip(views, grads, strict=True)],
        ),
        "gate": grad.where(offered, torch.nan),
    }


def probed(subject, args, loss=mean_square):
    """Return what the probe itself measures; ``reference`` is its judge."""
    n = len(args[0])
    with untouched(subject.model):
        return measure(
            subject,
            lambda ids, levels: (args, {}),
            lambda output, ids, levels: loss(output),
            torch.arange(n),
            torch.full((n,), 0.5, dtype=torch.float64),
        )


def of_blocks(states, grads):
    """Return rms, grad_rms and cosine (N, B+1) of z_0..z_B and their gradients (N, T, D) each."""
    cosines = [torch.full_like(states[0][:, 0, 0], torch.nan)]
    for old, new in zip(states, states[1:], strict=False):
        if old.shape != new.shape:  # another stage
            cosines.append(cosines[0])
            continue
        norms = torch.sqrt((old**2).sum(-1) * (new**2).sum(-1))
        cosines.append(((old * new).sum(-1) / norms).mean(1))
    return {
        "rms": torch.stack([torch.sqrt((z**2).mean((1, 2))) for z in states], 1),
        "grad_rms": torch.stack([torch.sqrt((g**2).mean((1, 2))) for g in grads], 1),
        "cosine": torch.stack(cosines, 1),
    }


def relative(found, expected):
    """Largest difference over the size of what is expected; NaN must be in the same places."""
    assert torch.equal(found.isnan(), expected.isnan())
    gap = (found - expected).abs().nan_to_num().max()
    return float(gap / expected.abs().nan_to_num().max())


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


def transcribed(forward, readers, sources, n, loss=mean_square):
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
    arrays = of_blocks([z.detach() for z in stream.states], grads)
    return {**arrays, "gate": gate.masked_fill(unused, torch.nan)}, output.detach(), stream
