"""Whether a long walk needs more memory than a short one: 200 batches of a small model."""

import gc
from pathlib import Path

import common
import torch

from dar_probe.probe import bench
from dar_probe.probe.recorder import untouched

ROUTINGS = [{}, {"routing": "dar", "query": "dynamic"}]


def main():
    options = common.start(common.parser(__doc__))
    batches, early, depth, width = (20, 5, 4, 32) if options.small else (200, 10, 28, 64)
    rows = []
    for routing in ROUTINGS:
        work = common.workload(common.config(depth, width, 16, **routing), 8, options.device)
        seen = {}
        with untouched(work.subject.model):
            run, kept = bench.probe(work), []
            for number in range(1, batches + 1):
                kept.append(run()["loss"])
                if number in (early, batches):
                    gc.collect()
                    seen[number] = held(options.device)
        for what in seen[early]:
            a, b = seen[early][what], seen[batches][what]
            name = routing.get("query", "residual")
            rows.append([name, what, f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}"])
        del work
    common.table(
        ["routing", "MB", f"after batch {early}", f"after batch {batches}", "growth"], rows
    )
    common.finish(options.device)


def held(device):
    """Memory of this process now, in MB."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    found = {"resident": int(line.split()[1]) * 1024 / 1e6}
    if device.type == "cuda":
        found["CUDA allocated"] = torch.cuda.memory_allocated(device) / 1e6
        found["CUDA reserved"] = torch.cuda.memory_reserved(device) / 1e6
    return found


if __name__ == "__main__":
    main()
