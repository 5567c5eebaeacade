"""How exact every variable is in half precision, against float64: the same weights and inputs.

Autocast on the model's forward, parameters and loss in float32, reductions in float32. Errors are
over the variable's own scale: the root mean square of its float64 values; for gates over the
row's largest gate.
"""

import copy
from dataclasses import replace

import common
import numpy as np
import torch
from torch import nn

from dar_probe.models import sit_family
from dar_probe.probe import bench
from dar_probe.probe.recorder import untouched

SCALE = 2.0**12  # of the loss: a power of two, so that dividing it out again is exact
BY_LOSS = ("gate", "grad_rms", "loss")  # variables that grow with the loss
BARS = ("write_lost", "read_residual", "gate_conservation")  # zero but for rounding
WAYS = {
    "float32": {},
    "bfloat16": {"autocast": torch.bfloat16},
    "float16": {"autocast": torch.float16},
    f"float16, loss x 2^{np.log2(SCALE):.0f}": {"autocast": torch.float16, "scale": SCALE},
}
ROUTINGS = [{}, {"routing": "dar", "query": "dynamic", "chunk_size": 4}]


class Autocast(nn.Module):
    """Runs a module's forward, and nothing else, in autocast."""

    def __init__(self, inner, device, dtype):
        super().__init__()
        self.inner, self.device, self.dtype = inner, device, dtype

    def forward(self, *args, **kwargs):
        with torch.autocast(self.device.type, self.dtype):
            return self.inner(*args, **kwargs)


def main():
    options = common.start(common.parser(__doc__))
    depth, width, tokens, cells = (2, 32, 16, 2) if options.small else (28, 384, 64, 8)
    for routing in ROUTINGS:
        config = common.config(depth, width, tokens, **routing)
        exact = in_float64(config, cells, options.device)
        work = common.workload(config, cells, options.device)
        found = {name: measured(work, **way) for name, way in WAYS.items()}
        print(f"{depth} blocks x {width}, {tokens} tokens, {routing or 'plain residuals'}\n")
        common.table(
            ["variable", *(f"{name}: median, worst" for name in WAYS)],
            [
                [name, *(errors(name, found[way][name], exact[name]) for way in WAYS)]
                for name in exact
                if name not in BARS and np.nan_to_num(exact[name]).any()
            ],
        )
        common.table(
            ["error bar", "float64", *WAYS],
            [[name, typical(exact[name]), *(typical(found[way][name]) for way in WAYS)]
             for name in BARS],
        )  # fmt: skip
        common.table(
            ["", *WAYS],
            [["gates that are exactly zero, % above float64",
              *(f"{zeros(found[way]['gate']) - zeros(exact['gate']):.2f}" for way in WAYS)]],
        )  # fmt: skip
    common.finish(options.device)


def in_float64(config, cells, device):
    """The reference: the float32 model and its float32 inputs, widened."""
    work = common.workload(config, cells, device)
    model = copy.deepcopy(work.subject.model).double()
    args, kwargs = work.batch(work.ids, work.levels)
    wide = tuple(a.double() if a.is_floating_point() else a for a in args)
    return measured(
        replace(work, subject=sit_family.subject(model), batch=lambda *_: (wide, kwargs))
    )


def measured(work, *, autocast=None, scale=1.0):
    """All variables of the batch, float64 arrays; the loss is scaled for the backward alone."""
    subject = work.subject
    if autocast is not None:
        subject = replace(subject, model=Autocast(subject.model, work.device, autocast))

    def loss(output, ids, levels):
        wide = torch.promote_types(output.dtype, torch.float32)
        return work.loss(output.to(wide), ids, levels) * scale

    with untouched(subject.model):
        arrays = bench.probe(replace(work, subject=subject, loss=loss))()
    return {
        name: value.astype(np.float64) / (scale if name in BY_LOSS else 1.0)
        for name, value in arrays.items()
    }


def errors(name, found, exact):
    """Median and worst error, as text."""
    if name == "gate":  # reader 1 has one source, whose gate is zero by the law of its norm
        found, exact = found[:, 1:], exact[:, 1:]
        scale = np.nanmax(np.abs(exact), axis=-1, keepdims=True)
    else:
        scale = np.sqrt(np.nanmean(exact**2))
    error = np.abs(found - exact) / scale
    if np.isnan(found).sum() != np.isnan(exact).sum():
        return f"{np.isnan(found).sum() - np.isnan(exact).sum()} lost"
    return f"{np.nanmedian(error):.1e}, {np.nanmax(error):.1e}"


def typical(values):
    return f"{np.nanmedian(values):.1e}" if np.isfinite(values).any() else "-"


def zeros(gate):
    return 100 * float((gate == 0).sum() / np.isfinite(gate).sum())


if __name__ == "__main__":
    main()
