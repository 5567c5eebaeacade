"""What every family has to prove, by plain hooks and autograd in float64.

``load`` goes the whole way from a file to a subject; ``observe`` and ``reference`` look at it with
hooks of their own and share no code with the probe, which ``probed`` runs.
"""

import argparse
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dar_probe.checkpoints.header import Header
from dar_probe.models import loading, registry
from dar_probe.models.options import CheckpointOptions
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
    return Header(shown="'model.pt'", shapes=shapes, args=args or {})


def identify(family, state, *, args=None, heads=None):
    """What the header says, and that a model of these sizes takes it, without its weights."""
    head = header(state, args)
    assert registry.family_of(head) is family
    identified = family.identify(head, heads)
    loading.blank(head, family, identified)
    return identified


def load(family, state, *, args=None, heads=None, shape=None):
    """Return (subject, identified) of a file of ``state`` by the way that every file takes.

    ``shape`` is that of one sample of the data, for models that take any size.
    """
    assert registry.family_of(header(state, args)) is family
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder) / "model.pt", state, args)
        options = CheckpointOptions(path=path, heads=heads, dtype="float64")
        loaded = loading.load_checkpoint(options, shape=shape)
    tensors = [*loaded.model.parameters(), *loaded.model.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    loaded.model.requires_grad_(False)
    return loaded.subject, loaded.identified


def save(path, state, args=None):
    """Write what official trainers do: weights, their average and the settings."""
    raw = {name: value + 1 for name, value in state.items()}
    content = {"model": raw, "ema": state, "args": argparse.Namespace(**(args or {}))}
    torch.save(content, path)
    return path


def problem(identified, *, samples=3, times=(0.1, 0.5, 0.9), seed=1):
    """Return random inputs (x, t, y) and a loss: output -> (N,)."""
    generator = torch.Generator().manual_seed(seed)
    x, target = torch.randn(2, samples, *identified.shape, generator=generator, dtype=torch.float64)
    t = torch.tensor(times, dtype=torch.float64)
    y = torch.arange(samples) % max(identified.num_classes, 1)
    return (x, t, y), lambda output: ((output - target) ** 2).reshape(samples, -1).mean(1)


def tokens(value, view):
    """The measured part (N, T, D) of a tensor."""
    if view.layout.features == 1:
        value = value.reshape(*value.shape[:2], -1).permute(0, 2, 1)
    return value if view.tokens is None else value[:, view.tokens]


def add(value, part, view):
    """``value`` with (N, T, D) added to its measured part."""
    whole = torch.zeros_like(tokens(value, type(view)(layout=view.layout)))
    whole[:, slice(None) if view.tokens is None else view.tokens] = 1
    whole = whole.masked_scatter(whole.bool(), part)
    return value + (
        whole.permute(0, 2, 1).reshape(value.shape) if view.layout.features == 1 else whole
    )


@dataclass
class Observed:
    """One forward: what every reader read, every source added, and a reader's branches wrote.

    Attributes:
        output: of the model.
        reads: the stream (N, T, D) at every reader.
        values: what every source added, as the difference of the stream after it and before.
        branches: per sublayer, outputs of its branches times their gates.
    """

    output: Tensor
    reads: list[Tensor]
    values: list[Tensor]
    branches: list[Tensor]

    def errors(self, subject):
        """Return the largest relative errors of sums over sources, and of writes by branches."""
        sums = (
            relative(sum(self.values[i] for i in ids), read)
            for ids, read in zip(subject.offered, self.reads, strict=True)
        )
        written = [v for v, s in zip(self.values, subject.sources, strict=True) if s.written]
        assert all(float(branch.abs().max()) > 0.01 for branch in self.branches)  # gates are open
        writes = (relative(v, b) for v, b in zip(written, self.branches, strict=True))
        return max(sums), max(writes)


@torch.no_grad()
def observe(subject, inputs):
    """Watch one forward with plain hooks; sites must fire once, in the order of the subject."""
    events, seen, outputs, handles, expected = [], {}, {}, [], []

    def see(event, site, when):
        def before(module, args):
            events.append(event)
            seen[event] = tokens(args[0], site.view).clone()

        def after(module, args, output):
            before(module, (output if site.item is None else output[site.item],))

        module = site.module
        handles.append(
            module.register_forward_pre_hook(before)
            if when == "input"
            else module.register_forward_hook(after)
        )

    def keep(module, args, output):
        outputs[module] = output

    rows = iter(range(len(subject.readers)))
    for i, source in enumerate(subject.sources):
        if source.before is not None:
            expected.append(("passage", i))
            see(expected[-1], source.before, source.before.when)
        elif source.written:
            expected.append(("reader", next(rows)))
    expected.append(("reader", next(rows)))
    assert next(rows, None) is None, "the head must be the only reader that writes nothing"
    for row, reader in enumerate(subject.readers):
        see(("reader", row), reader, "input")
        for branch in reader.branches:
            for module in filter(None, (branch.output, branch.gate)):
                handles.append(module.register_forward_hook(keep))
    output = subject.model(*inputs)
    for handle in handles:
        handle.remove()
    assert events == expected, "sites fired in another order than the subject names them"
    states = [seen[event] for event in expected]  # after source i; before source i + 1
    return Observed(
        output=output,
        reads=[seen["reader", row] for row in range(len(subject.readers))],
        values=[
            new if source.begins else new - states[i - 1]
            for i, (source, new) in enumerate(zip(subject.sources, states, strict=True))
        ],
        branches=[_written(reader, outputs) for reader in subject.readers[:-1]],
    )


def _written(reader, outputs):
    total = 0
    for branch in reader.branches:
        part = tokens(outputs[branch.output], reader.view)
        if branch.gate is not None:
            number, chunks = branch.chunk
            width = outputs[branch.gate].shape[-1] // chunks
            gate = outputs[branch.gate][..., number * width : (number + 1) * width]
            part = part * (gate if gate.ndim == 3 else gate[:, None])  # by token, or by sample
        total = total + part
    return total


def first_readers(subject):
    """The rows of the first reader of every block, and of the head."""
    rows = {}
    for row, reader in enumerate(subject.readers):
        rows.setdefault(reader.block, row)
    return list(rows.values())


def reference(subject, inputs, loss):
    """Return what the probe should, by explicit gates g[l, i] on detached sources and autograd.

    The gradient of a block's state is that of the very tensor that its first reader gets, which
    must therefore be the stream itself. Write sizes are those of branches times gates, where the
    subject names branches.
    """
    observed = observe(subject, inputs)
    samples, readers, states, handles = len(inputs[0]), subject.readers, {}, []
    shape = samples, len(readers), len(subject.sources)
    gates = torch.ones(shape, dtype=inputs[0].dtype, requires_grad=True)
    offered = torch.zeros(shape[1:], dtype=torch.bool)

    def gated(row, reader):
        def hook(module, args):
            states[row] = args[0]
            parts = ((gates[:, row, i, None, None] - 1) * observed.values[i] for i in ids)
            return (add(args[0], sum(parts), reader.view), *args[1:])

        ids = subject.offered[row]
        offered[row, list(ids)] = True
        handles.append(reader.module.register_forward_pre_hook(hook))

    for row, reader in enumerate(readers):
        gated(row, reader)
    losses = loss(subject.model(inputs[0].clone().requires_grad_(), *inputs[1:]))
    for handle in handles:
        handle.remove()
    rows = first_readers(subject)
    gate, *grads = torch.autograd.grad(losses.sum(), [gates, *(states[row] for row in rows)])
    views = [readers[row].view for row in rows]
    known = all(reader.branches for reader in readers[:-1])
    writes = [b.square().mean((1, 2)).sqrt() for b in observed.branches] if known else []
    return {
        **of_blocks(
            [tokens(states[row].detach(), view) for row, view in zip(rows, views, strict=True)],
            [tokens(grad, view) for grad, view in zip(grads, views, strict=True)],
            begun={source.block - 1 for source in subject.sources if source.fresh},
        ),
        "gate": gate.masked_fill(~offered, math.nan),
        "loss": losses.detach(),
        **({"write_rms": torch.stack(writes, 1)} if known else {}),
    }


def probed(subject, inputs, loss):
    """Return what the probe itself measures; ``reference`` is its judge."""
    samples = len(inputs[0])
    with untouched(subject.model):
        return measure(
            subject,
            lambda ids, levels: (inputs, {}),
            lambda output, ids, levels: loss(output),
            torch.arange(samples),
            torch.full((samples,), 0.5, dtype=torch.float64),
        )


def of_blocks(states, grads, begun=()):
    """Return rms, grad_rms and cosine (N, B+1) of z_0..z_B and their gradients (N, T, D) each.

    With the states ``begun`` another stream begins, which has no cosine with the one before.
    """
    cosines = [torch.full_like(states[0][:, 0, 0], torch.nan)]
    for k, (old, new) in enumerate(zip(states, states[1:], strict=False), 1):
        if old.shape != new.shape or k in begun:
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


def each(found, expected):
    """Largest relative difference of single numbers; NaN must be in the same places."""
    assert torch.equal(found.isnan(), expected.isnan())
    return float(((found - expected) / expected).abs().nan_to_num().max())


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
    several = [len(subject.offered[row]) > 1 for row in range(len(subject.readers))]
    rows = [row for row, r in enumerate(subject.readers) if r.normed and several[row]]
    gate = gate[:, rows].nan_to_num()
    return float((gate.sum(-1).abs() / gate.abs().amax(-1)).max())


def stream_slope_error(subject, inputs, loss, places, step=1e-4):
    """Compare dLoss/dz_k with central differences along a random direction.

    ``places`` are the modules whose first input is z_0..z_B: the whole stream, not one branch.
    """
    states, handles = {}, []
    for row in first_readers(subject):

        def keep(module, args, row=row):
            states[row] = args[0]

        handles.append(subject.readers[row].module.register_forward_pre_hook(keep))
    losses = loss(subject.model(inputs[0].clone().requires_grad_(), *inputs[1:]))
    for handle in handles:
        handle.remove()
    grads = torch.autograd.grad(losses.sum(), list(states.values()))
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


def sites_agree(subject, args, loss, *, law):
    """Hold the probe of a family to explicit gates, and its sites to sums of their sources.

    ``law`` is by how much of the largest gate those of a reader may miss zero.
    """
    sums, writes = observe(subject, args).errors(subject)
    assert sums < 1e-14
    assert writes < 1e-14
    expected, found = reference(subject, args, loss), probed(subject, args, loss)
    for name in ("loss", "rms", "grad_rms", "cosine", "write_rms"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-13, atol=0, equal_nan=True)
    assert gate_error(found["gate"], expected["gate"]) < 1e-13
    assert conservation(subject, expected["gate"]) < law
