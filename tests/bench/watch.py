"""What the diagnosis during training costs: in steps, and as a share of a run by its cadence.

Processor time, not wall time: it tells little of a GPU, and is the same on a busy machine.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import common
import numpy as np

from dar_probe.probe.monitor import EVERY, Watch
from dar_probe.training.config import TrainConfig
from dar_probe.training.loop import Run
from dar_probe.training.monitoring import plan

LIMIT = 1.0  # per cent of a run, promised at the cadence of the docs
CADENCES = (100, 250, EVERY)
HEADER = [
    "model", "batch", "step s", "diagnosis s", "diagnosis / step (quartiles)",
    *(f"% every {cadence}" for cadence in CADENCES), "limit",
]  # fmt: skip


def models(small):
    """Yield the settings of runs: those of ``dar-probe train`` alone, and with a router."""
    sizes = {"depth": 2, "width": 16, "batch_size": 8} if small else {}
    for routing in ("residual", "dar"):
        yield TrainConfig(**sizes, routing=routing)


def spent(work, *arguments):
    """Seconds of processor time that a call takes."""
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


def rounds(config, folder, repeats, device):
    """Train with a diagnosis after every other step; return start, steps and diagnoses (n,)."""
    run = Run(config, folder, device=str(device))
    begun = time.process_time()
    watch = Watch(plan(run), folder / "trajectory.nc")
    watch.measure(0)
    begun = time.process_time() - begun
    run.step(1)  # the first one of all is slower
    found = []
    for step in range(2, 2 * repeats + 2, 2):
        alone = spent(run.step, step)
        found.append((alone, spent(run.step, step + 1), spent(watch.measure, step + 1)))
    steps = [(before + after) / 2 for before, after, _ in found]
    return begun, np.array(steps), np.array([cost for *_, cost in found])


def main():
    options = common.start(common.parser(__doc__), repeats=12)
    rows = []
    for config in models(options.small):
        with TemporaryDirectory() as folder:
            begun, steps, costs = rounds(config, Path(folder), options.repeats, options.device)
        low, middle, high = np.quantile(costs / steps, (0.25, 0.5, 0.75))
        step = np.median(steps)
        # The start counts once in a run, which is measured before its first step too.
        shares = [100 * (begun / step / config.steps + middle / cadence) for cadence in CADENCES]
        rows.append([
            f"{config.depth} x {config.width}, {config.routing}", config.batch_size,
            f"{step:.3f}", f"{np.median(costs):.3f}", f"{middle:.2f} ({low:.2f}-{high:.2f})",
            *(f"{share:.2f}" for share in shares), LIMIT,
        ])  # fmt: skip
    common.table(HEADER, rows)
    common.finish(options.device)


if __name__ == "__main__":
    main()
