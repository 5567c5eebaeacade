"""Other honest ways to the same numbers, on the same batch: what each costs.

All of them give rms, cosine and grad_rms of every block and the gate of every (reader, source);
that they agree with the probe is checked before anything is timed.
"""

import copy
import tracemalloc
from contextlib import ExitStack
from dataclasses import replace

import common
import numpy as np
import torch
from torch import Tensor

from dar_probe.probe import bench
from dar_probe.probe.recorder import untouched
from dar_probe.routing.stream import Stream
from dar_probe.sites.autograd_entry import with_grad

TOLERANCE = 1e-3
NAMES = ("rms", "cosine", "grad_rms", "gate")
HEADER = [
    "way", "ms", "time / floor (quartiles)", "memory / floor", "tensor MB", "numpy MB",
    "largest deviation",
]  # fmt: skip


def main():
    made = common.parser(__doc__)
    made.add_argument("--depth", type=int, default=28, help="28 and 12 are the published ones")
    options = common.start(made)
    depth, width, tokens, cells = (2, 64, 16, 2) if options.small else (options.depth, 384, 64, 8)
    work = common.workload(common.config(depth, width, tokens), cells, options.device)
    with ExitStack() as stack:
        stack.enter_context(untouched(work.subject.model))
        ways = {
            "floor": bench.floor(work),
            "our probe": bench.probe(work),
            "explicit gates through autograd": explicit_gates(work, stack),
            "cache of every module, by hooks": cache_everything(work),
            "one pass per noise level": level_by_level(work),
            "nnsight, reduced in numpy": with_nnsight(work, stack),
        }
        expected = ways["our probe"]()
        deviations = {
            name: deviation(way(), expected) for name, way in ways.items() if name != "floor"
        }
        for name, found in deviations.items():
            assert found < TOLERANCE, f"{name}: {found:.2g} off"
        timings = bench.compare(ways, repeats=options.repeats, device=options.device)
        outside = {name: python_bytes(way) for name, way in ways.items()}
    base = timings["floor"].peak_bytes
    print(f"{depth} blocks x {width}, {tokens} tokens, batch of {cells}, float32\n")
    common.table(HEADER, [
        [name, common.milliseconds(t), common.ratio(t), f"{t.peak_bytes / base:.2f}",
         common.megabytes(t.peak_bytes), common.megabytes(outside[name]),
         f"{deviations.get(name, 0):.1e}"]
        for name, t in timings.items()
    ])  # fmt: skip
    print("Peaks: of tensor bytes, and beside them of what Python and numpy allocate. Our probe")
    print("gives every variable of the dataset, the other ways the four that are compared.\n")
    common.finish(options.device)


def python_bytes(way):
    """Peak of what Python and numpy allocate: numpy tells tracemalloc."""
    tracemalloc.start()
    way()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def deviation(found, expected):
    """Largest error over the largest value of its kind; of gates, over the row's largest."""
    worst = 0.0
    for name in NAMES:
        a, b = (np.nan_to_num(np.asarray(side[name])) for side in (found, expected))
        if name == "gate":  # reader 1 has one source, whose gate is zero by the law of its norm
            a, b = a[:, 1:], b[:, 1:]
        scale = np.abs(b).max(-1, keepdims=True) if name == "gate" else np.abs(b).max()
        worst = max(worst, float((np.abs(a - b) / scale).max()))
    return worst


def reduce(reads, streams, blocks, stack):
    """The four variables from h_l and the whole stream's gradient there, torch or numpy."""
    # The branch of reader l alone: what reaches h_l, less what reaches the next read.
    grads = [*(a - b for a, b in zip(streams, streams[1:], strict=False)), streams[-1]]
    writes = [reads[0], *(b - a for a, b in zip(reads, reads[1:], strict=False))]
    g, v = (stack(list(x), 1) for x in (grads, writes))
    n, readers = g.shape[:2]
    gate = g.reshape(n, readers, -1) @ v.reshape(n, readers, -1).swapaxes(1, 2)
    return {**per_block([reads[k] for k in blocks], [streams[k] for k in blocks]), "gate": gate}


def per_block(states, grads):
    """Rms, cosine and grad_rms, block by block, lists of (N,) each."""
    first = states[0]
    cosine = [(first * 0).sum(axis=(1, 2))]
    for a, b in zip(states, states[1:], strict=False):
        size = (a * a).sum(axis=-1) ** 0.5 * (b * b).sum(axis=-1) ** 0.5
        cosine.append(((a * b).sum(axis=-1) / size).mean(axis=-1))
    return {
        "rms": [(z * z).mean(axis=(1, 2)) ** 0.5 for z in states],
        "grad_rms": [(g * g).mean(axis=(1, 2)) ** 0.5 for g in grads],
        "cosine": cosine,
    }


def arrays(found, lower):
    """Lists over blocks as (N, B+1), and gates with NaN where the source comes too late."""
    made = {
        name: np.stack([np.asarray(x.cpu() if isinstance(x, Tensor) else x) for x in value], 1)
        for name, value in found.items() if name != "gate"
    }  # fmt: skip
    gate = found["gate"]
    gate = gate.cpu().numpy() if isinstance(gate, Tensor) else gate
    return {**made, "gate": np.where(lower, gate, np.nan)}


def explicit_gates(work, stack):
    """Every reader reads sum_i gate[n,l,i] v_i over the stacked sources; autograd does the rest."""
    model = copy.deepcopy(work.subject.model)
    stack.enter_context(untouched(model))
    model.stream = stream = Gated(model.config.width, model.stream.layout)
    args, _ = work.batch(work.ids, work.levels)
    blocks, lower = work.subject.block_readers, offered(work)

    def run():
        losses = work.loss(model(*args), work.ids, work.levels)
        gate, reads = stream.gate, stream.reads
        stream.gate = stream.reads = None
        gates, *grads = torch.autograd.grad(losses.sum(), [gate, *reads])
        with torch.no_grad():
            total = list(grads)  # the whole stream's gradient: all later readers together
            for k in reversed(range(len(total) - 1)):
                total[k] = total[k] + total[k + 1]
            found = per_block([reads[k] for k in blocks], [total[k] for k in blocks])
            return arrays({**found, "gate": gates}, lower)

    return run


class Gated(Stream):
    """Plain residuals with an explicit gate for every pair; keeps one forward for its caller."""

    additive = True

    def open(self, v_0, t_emb=None):
        pairs = (len(v_0), len(self.layout) + 1, len(self.layout) + 1)
        self.gate = torch.ones(pairs, device=v_0.device, dtype=v_0.dtype, requires_grad=True)
        self.reads = []
        return [v_0]

    def read(self, state, l):
        h = torch.einsum("ni,nitd->ntd", self.gate[:, l - 1, :l], torch.stack(state, 1))
        self.reads.append(h)
        return h

    def write(self, state, l, v_l):
        state.append(v_l)


def cache_everything(work):
    """Two dicts by name, activation and gradient of every module; statistics afterwards."""
    model, blocks, lower = work.subject.model, work.subject.block_readers, offered(work)
    inputs, kwargs = work.batch(work.ids, work.levels)
    sites = [f"stream.readers.{k}" for k in range(len(work.subject.readers))]

    def run():
        cache, grads, handles = {}, {}, []

        def keep(name):
            def hook(module, args, output):
                if isinstance(output, Tensor):
                    cache[name] = output.detach()
                    if output.requires_grad:
                        output.register_hook(lambda grad: grads.__setitem__(name, grad))

            return hook

        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(keep(name)))
        x = with_grad(inputs[0])
        losses = work.loss(model(x, *inputs[1:], **kwargs), work.ids, work.levels)
        torch.autograd.grad(losses.sum(), [x])
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            found = reduce(
                [cache[s] for s in sites], [grads[s] for s in sites], blocks, torch.stack
            )
            return arrays(found, lower)

    return run


def level_by_level(work):
    """Our probe, one noise level after the other instead of all in one batch."""
    rows = [slice(k, k + 1) for k in range(len(work.ids))]
    probes = [bench.probe(replace(work, ids=work.ids[k], levels=work.levels[k])) for k in rows]

    def run():
        parts = [probe() for probe in probes]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return run


def with_nnsight(work, stack):
    """Save input, output and their gradients of every reader's norm; numpy for the rest."""
    # Here and last: the import changes the whole process (and the wrapping its model, for good).
    from nnsight import NNsight

    model = copy.deepcopy(work.subject.model)
    stack.enter_context(untouched(model))
    depth, blocks, lower = model.config.depth, work.subject.block_readers, offered(work)
    envoy = NNsight(model)
    norms = [getattr(envoy.blocks[k], name) for k in range(depth) for name in ("norm1", "norm2")]
    norms.append(envoy.final_layer.norm_final)
    args, _ = work.batch(work.ids, work.levels)

    def run():
        saved = {"reads": [], "outputs": [], "read_grads": [], "output_grads": []}
        trace(envoy, norms, (with_grad(args[0]), *args[1:]), work, saved)
        kept = {name: [x.detach().cpu().numpy() for x in values] for name, values in saved.items()}
        streams = kept["read_grads"][::-1]
        return arrays(reduce(kept["reads"], streams, blocks, np.stack), lower)

    return run


def trace(envoy, norms, args, work, saved):
    with envoy.trace(*args):
        for norm in norms:
            saved["reads"].append(norm.input)
            saved["outputs"].append(norm.output)
        losses = work.loss(envoy.output, work.ids, work.levels)
        with losses.sum().backward():
            for read, output in zip(
                reversed(saved["reads"]), reversed(saved["outputs"]), strict=True
            ):
                saved["output_grads"].append(output.grad)
                saved["read_grads"].append(read.grad)


def offered(work):
    """(R, S) bool: the source comes before the reader."""
    return np.tri(len(work.subject.readers), dtype=bool)


if __name__ == "__main__":
    main()
