"""What the complete diagnosis costs: against the bare pass, a training pass, and in memory."""

import common
import torch

from dar_probe.models.sit import SiTConfig
from dar_probe.probe import bench

STEP, MEMORY = 0.78, 1.02  # promised; the first for models that are not narrow
HEADER = [
    "model", "batch", "floor ms", "probe / floor (quartiles)", "limit", "probe / step", "limit",
    "memory / floor", "limit", "floor MB",
]  # fmt: skip


def models(small, device):
    """Yield (name, config, batch size, dtype, limit of probe / floor or None)."""
    depth, wide, narrow, cells = (2, 64, 16, 2) if small else (28, 384, 64, 8)
    tokens = 16 if small else 64
    on_cpu = device.type == "cpu"

    def sit(name, width, tokens, limit, **changes):
        made = common.config(depth, width, tokens, **changes)
        return f"{depth} x {width}, {tokens} tokens{name}", made, cells, torch.float32, limit

    yield sit("", wide, tokens, 1.08 if on_cpu else None)
    yield sit(", narrow", narrow, tokens, 1.25 if on_cpu else None)
    yield sit(", narrow, short", narrow, 4 if small else 16, 1.25 if on_cpu else None)
    for query in ("static+t", "dynamic"):
        yield sit(
            f", DAR {query} S=4", wide, tokens, 1.08 if on_cpu else None,
            routing="dar", query=query, chunk_size=4,
        )  # fmt: skip
    if not on_cpu:
        name = "SiT-S/8" if small else "SiT-XL/2"
        for dtype in (torch.float32, torch.bfloat16):
            short = str(dtype).removeprefix("torch.")
            yield f"{name} {short}", SiTConfig.preset(name), 16, dtype, 1.05


def main():
    options = common.start(common.parser(__doc__))
    rows = []
    for name, config, cells, dtype, limit in models(options.small, options.device):
        work = common.workload(config, cells, options.device, dtype)
        price = bench.bench(work, repeats=options.repeats, with_step=True)
        rows.append([
            name, cells, common.milliseconds(price.floor), common.ratio(price.probe),
            limit or "-", f"{price.step_ratio:.3f}", "-" if "narrow" in name else STEP,
            f"{price.memory_ratio:.3f}", MEMORY, common.megabytes(price.floor.peak_bytes),
        ])  # fmt: skip
        del work
    common.table(HEADER, rows)
    common.finish(options.device)


if __name__ == "__main__":
    main()
