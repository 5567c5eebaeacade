"""SiT-XL/2 in full size: one sample on a CPU, or the pace of a large walk on a GPU."""

import resource
import time

import common
import torch

from dar_probe.models.sit import SiTConfig
from dar_probe.probe.grid import Grid, walk

PROMISED_GIB = 12
SAMPLES, LEVELS = 4096, 20
CELLS, BATCHES = 16, 4


def main():
    options = common.start(common.parser(__doc__))
    name = "SiT-S/8" if options.small else "SiT-XL/2"
    if options.device.type == "cuda":
        on_gpu(name, options.device)
    else:
        on_cpu(name, options.device)
    common.finish(options.device)


def on_cpu(name, device):
    """Time one sample at one level, cold, as ``analyze`` would meet it."""
    began = time.perf_counter()
    work = common.workload(SiTConfig.preset(name), 1, device)
    built = time.perf_counter() - began
    before = rss_gib()
    began = time.perf_counter()
    measured(work, Grid(levels=(0.5,), ids=(0,), batch_size=1))
    seconds = time.perf_counter() - began
    common.table(
        ["model", "building s", "one sample, one level s", "peak RSS GiB", "promised", "model GiB"],
        [[name, f"{built:.1f}", f"{seconds:.2f}", f"{rss_gib():.2f}", PROMISED_GIB,
          f"{before:.2f}"]],
    )  # fmt: skip


def on_gpu(name, device):
    """Time a slice of a walk, batch by batch, and project the whole."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        work = common.workload(SiTConfig.preset(name), CELLS, device, dtype)
        ids = tuple(work.ids.tolist())
        measured(work, Grid(levels=(0.5,), ids=ids, batch_size=CELLS))  # warm
        torch.cuda.reset_peak_memory_stats(device)
        # The first batch of a walk also checks that samples are independent.
        levels = tuple(torch.linspace(0.01, 0.99, BATCHES + 1, dtype=torch.float64).tolist())
        times = measured(work, Grid(levels=levels, ids=ids, batch_size=CELLS))
        pace = CELLS * BATCHES / (times[-1] - times[0])
        rows.append([
            f"{name} {str(dtype).removeprefix('torch.')}", CELLS, f"{pace:.1f}",
            f"{SAMPLES * LEVELS / pace:.0f}",
            f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f}",
        ])  # fmt: skip
        del work
    common.table(
        ["model", "batch", "samples a second", f"s for {SAMPLES} x {LEVELS}", "peak GiB"], rows
    )


def measured(work, grid):
    """Walk the grid; return when each batch was finished."""
    times = []
    walk(
        work.subject, grid, work.batch, work.loss,
        on_cells=lambda *_: times.append(time.perf_counter()),
    )  # fmt: skip
    return times


def rss_gib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


if __name__ == "__main__":
    main()
