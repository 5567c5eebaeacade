"""What every family has to prove, by plain hooks and autograd; only ``probed`` is the probe."""

import math

import torch

from dar_probe.checkpoints.header import Header
from dar_probe.probe.measure import measure
from dar_probe.probe.recorder import untouched


def random_state(shapes, *, seed=0):
    """Weights in the order of ``shapes``: every gate open, norms around 1, cosines scaled by 10."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if "adaLN" in name:
            value *= 0.5
        elif "norm" in name and name.endswith("weight"):
            value = 1 + 0.3 * value
        elif "logit_scale" in name:
            value = math.log(10) + 2 * value  # some beyond the cap of 100
        elif len(shape) > 1 and "embed" not in name:
            value /= math.sqrt(math.prod(shape[1:]))
        else:
            value *= 0.3
        state[name] = value
    return state


def header(state, args=None):
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return Header(shown="'file.pt'", shapes=shapes, args=args or {})


def load(family, state, *, args=None, heads=None):
    """Return (subject, identified) by the way that every checkpoint takes."""
    head = header(state, args)
    assert family.matches(head)
    identified = family.identify(head, heads)
    with torch.device("meta"):
        model = family.build(identified)
    model.load_state_dict(state, assign=True, strict=True)
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    model.eval().requires_grad_(False)
    return family.subject(model, identified), identified


def problem(identified, *, samples=3, times=(0.1, 0.5, 0.9), seed=1):
    """Return random inputs (x, t, y) and a loss: output -> (N,)."""
    generator = torch.Generator().manual_seed(seed)
    x, target = torch.randn(2, samples, *identified.shape, generator=generator, dtype=torch.float64)
    t = torch.tensor(times, dtype=torch.float64)
    y = torch.arange(samples) % identified.num_classes
    return (x, t, y), lambda output: ((output - target) ** 2).reshape(samples, -1).mean(1)


def tokens(value, view):
    """The measured part (N, T, D) of a tensor."""
    if view.channels_first:
        value = value.reshape(*value.shape[:2], -1).permute(0, 2, 1)
    return value if view.tokens is None else value[:, view.tokens]


def add(value, part, view):
    """``value`` with (N, T, D) added to its measured part."""
    whole = torch.zeros_like(tokens(value, type(view)(channels_first=view.channels_first)))
    whole[:, slice(None) if view.tokens is None else view.tokens] = 1
    whole = whole.masked_scatter(whole.bool(), part)
    return value + (whole.permute(0, 2, 1).reshape(value.shape) if view.channels_first else whole)


class Watch:
    """Hooks at every site during one forward; ``change`` may replace what a reader gets.

    reads: the stream at every reader, as it is; fired: readers in the order in which they fired;
    before: the stream (N, T, D) before the fusions that tell it; branch: sums of output x gate.
    """

    def __init__(self, subject, change=lambda index, value: value):
        self.subject, self.change = subject, change
        self.reads, self.before, self.outputs = {}, {}, {}
        self.fired, self.handles = [], []

    def __enter__(self):
        for index, reader in enumerate(self.subject.readers):
            self.handles.append(reader.module.register_forward_pre_hook(self._reader(index)))
            for branch in reader.branches:
                for module in filter(None, (branch.output, branch.gate)):
                    self.handles.append(module.register_forward_hook(self._output))
        for index, source in enumerate(self.subject.sources):
            if source.before is not None:
                self._passage(index, source.before)
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def _reader(self, index):
        def hook(module, args):
            self.fired.append(index)
            self.reads[index] = args[0]
            return (self.change(index, args[0]), *args[1:])

        return hook

    def _output(self, module, args, output):
        self.outputs[module] = output

    def _passage(self, index, passage):
        def keep(value):
            value = value if passage.item is None else value[passage.item]
            self.before[index] = tokens(value, passage.view)

        if passage.when == "input":
            hook = passage.module.register_forward_pre_hook(lambda _, args: keep(args[0]))
        else:
            hook = passage.module.register_forward_hook(lambda _, args, output: keep(output))
        self.handles.append(hook)

    def write(self, row):
        """What the sublayer of a reader writes (N, T, D) by its branches' outputs and gates."""
        total = 0
        for branch in self.subject.readers[row].branches:
            part = tokens(self.outputs[branch.output], self.subject.readers[row].view)
            if branch.gate is not None:
                number, chunks = branch.chunk
                gate = self.outputs[branch.gate]
                width = gate.shape[-1] // chunks
                part = part * gate[:, None, number * width : (number + 1) * width]
            total = total + part
        return total


def watched(subject, inputs):
    """Return (Watch, tokens of every read, sources by branches, sources by differences)."""
    with torch.no_grad(), Watch(subject) as watch:
        subject.model(*inputs)
    assert watch.fired == list(range(len(subject.readers)))
    reads = [tokens(watch.reads[i], r.view) for i, r in enumerate(subject.readers)]
    by_branch, by_difference = [], []
    row = 0  # of the reader that reads next
    for i, source in enumerate(subject.sources):
        if source.written:
            by_branch.append(watch.write(row))
            row += 1
            # What a fusion rewrites is not read again: it is seen before the fusion.
            by_difference.append(watch.before.get(i + 1, reads[row]) - reads[row - 1])
        else:
            new = reads[row] - (0 if source.begins else watch.before[i])
            by_branch.append(new)
            by_difference.append(new)
    assert row == len(reads) - 1
    return reads, by_branch, by_difference


def size(x):
    return float(x.abs().max())


def sums_and_writes(subject, inputs):
    """Return the largest relative errors of sums over sources, and of writes by their branches."""
    reads, by_branch, by_difference = watched(subject, inputs)
    sums = max(
        size(sum(by_branch[i] for i in ids) - read) / size(read)
        for ids, read in zip(subject.offered, reads, strict=True)
    )
    written = [i for i, source in enumerate(subject.sources) if source.written]
    assert all(size(by_branch[i]) > 0.01 for i in written)  # every gate is open
    writes = max(size(by_branch[i] - by_difference[i]) / size(by_branch[i]) for i in written)
    return sums, writes


def slow(subject, inputs, loss):
    """Explicit gates g[l, i] on detached sources, and everything else, by autograd alone."""
    _, by_branch, sources = watched(subject, inputs)
    samples, readers = len(inputs[0]), subject.readers
    gates = torch.ones(samples, len(readers), len(sources), dtype=torch.float64, requires_grad=True)

    def change(row, value):
        part = sum((gates[:, row, i, None, None] - 1) * sources[i] for i in subject.offered[row])
        return add(value, part, readers[row].view)

    x = inputs[0].clone().requires_grad_()
    with Watch(subject, change) as watch:
        losses = loss(subject.model(x, *inputs[1:]))
    states = [watch.reads[row] for row in subject.block_readers]
    gate, *grads = torch.autograd.grad(losses.sum(), [gates, *states])
    gate = gate.masked_fill(~subject.offered_mask, math.nan)
    views = [readers[row].view for row in subject.block_readers]
    z = [tokens(state.detach(), view) for state, view in zip(states, views, strict=True)]
    g = [tokens(grad, view) for grad, view in zip(grads, views, strict=True)]
    cosine = [torch.full((samples,), math.nan, dtype=torch.float64)]
    for a, b in zip(z[:-1], z[1:], strict=True):
        if a.shape == b.shape:
            cos = (a * b).sum(-1) / (a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt())
            cosine.append(cos.mean(1))
        else:
            cosine.append(cosine[0])
    writes = [v for v, source in zip(by_branch, subject.sources, strict=True) if source.written]
    return {
        "loss": losses.detach(),
        "gate": gate,
        "write_rms": torch.stack([v.square().mean((1, 2)).sqrt() for v in writes], 1),
        "rms": torch.stack([v.square().mean((1, 2)).sqrt() for v in z], 1),
        "grad_rms": torch.stack([v.square().mean((1, 2)).sqrt() for v in g], 1),
        "cosine": torch.stack(cosine, 1),
    }


def probed(subject, inputs, loss):
    """Return what the probe measures of the same."""
    with untouched(subject.model):
        return measure(
            subject,
            lambda ids, levels: (inputs, {}),
            lambda output, ids, levels: loss(output),
            torch.arange(len(inputs[0])),
            torch.full((len(inputs[0]),), 0.5, dtype=torch.float64),
        )


def gate_error(found, expected):
    """Return the largest difference over the largest gate of its reader; NaN in the same places.

    A reader of one source behind a norm has a gate of zero: the whole sets the scale there.
    """
    assert torch.equal(found.isnan(), expected.isnan())
    found, expected = found.nan_to_num(), expected.nan_to_num()
    alone = (expected != 0).sum(-1).amax(0) < 2
    scale = expected.abs().amax((0, 2))
    scale = torch.where(alone, scale.max(), scale)
    return float(((found - expected).abs().amax((0, 2)) / scale).max())


def conservation(subject, gate):
    """Return the largest |sum of gates| over the largest gate, of normed readers of several."""
    rows = [
        row
        for row, reader in enumerate(subject.readers)
        if reader.normed and len(subject.offered[row]) > 1
    ]
    gate = gate[:, rows].nan_to_num()
    return float((gate.sum(-1).abs() / gate.abs().amax(-1)).max())


def stream_slope_error(subject, inputs, loss, places, step=1e-4):
    """Compare dLoss/dz_k with central differences along a random direction.

    ``places`` are the modules whose first input is z_0..z_B: the whole stream, not one branch.
    """
    rows = subject.block_readers
    x = inputs[0].clone().requires_grad_()
    with Watch(subject) as watch:
        losses = loss(subject.model(x, *inputs[1:]))
    grads = torch.autograd.grad(losses.sum(), [watch.reads[row] for row in rows])
    generator = torch.Generator().manual_seed(2)
    worst = 0.0
    for place, grad in zip(places, grads, strict=True):
        along = torch.randn(grad.shape, generator=generator, dtype=torch.float64)
        along /= along.norm()
        ends = []
        for sign in (1, -1):
            shift = sign * step * along
            hook = place.register_forward_pre_hook(
                lambda _, args, shift=shift: (args[0] + shift, *args[1:])
            )
            with torch.no_grad():
                ends.append(float(loss(subject.model(*inputs)).sum()))
            hook.remove()
        slope = (ends[0] - ends[1]) / (2 * step)
        worst = max(worst, abs(slope - float((grad * along).sum())) / float(grad.norm()))
    return worst
