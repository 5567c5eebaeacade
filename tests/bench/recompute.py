"""What memory is saved, and what time it costs, where inner tensors of blocks are made again."""

import statistics
import time
from functools import partial

import common

from dar_probe.probe import bench, recompute
from dar_probe.probe.measure import hooks, measure
from dar_probe.probe.recorder import untouched

HEADER = ["model", "batch", "MB", "MB recomputed", "ratio", "time"]


def models(small):
    """Yield (depth, width, tokens, batch size)."""
    if small:
        yield from [(2, 64, 16, 2), (4, 64, 16, 2)]
        return
    yield from [(6, 384, 256, 8), (12, 384, 256, 8), (24, 384, 256, 8), (12, 384, 1024, 2)]


def main():
    options = common.start(common.parser(__doc__), repeats=5)
    rows = []
    for depth, width, tokens, cells in models(options.small):
        work = common.workload(common.config(depth, width, tokens), cells, options.device)
        run = partial(measure, work.subject, work.batch, work.loss, work.ids, work.levels)
        engines = hooks, recompute.recomputed(hooks, work.subject)
        with untouched(work.subject.model):
            peaks = [bench.peak_bytes(partial(run, engine=e), options.device) for e in engines]
            ratios = [
                again / kept
                for kept, again in (
                    [seconds(partial(run, engine=engine)) for engine in engines]
                    for _ in range(options.repeats)
                )
            ]
        rows.append([
            f"{depth} x {width}, {tokens} tokens", cells, *map(common.megabytes, peaks),
            f"{peaks[1] / peaks[0]:.3f}", f"{statistics.median(ratios):.3f}",
        ])  # fmt: skip
        del work, run, engines
    common.table(HEADER, rows)
    common.finish(options.device)


def seconds(run):
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
