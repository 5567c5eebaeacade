"""How the price grows with depth, tokens and width, and where narrow models cross a line."""

import common

from dar_probe.probe import bench

LINE = 1.15
HEADER = [
    "model", "batch", "floor ms", "probe / floor (quartiles)", f"below {LINE}", "memory / floor",
]  # fmt: skip


def models(small):
    """Yield (depth, width, tokens, batch size)."""
    if small:
        yield from [(2, 64, 16, 2), (4, 64, 16, 2), (2, 64, 64, 1), (2, 16, 16, 2)]
        return
    yield from [(14, 384, 64, 8), (28, 384, 64, 8), (56, 384, 64, 4), (112, 384, 64, 2)]
    yield from [(28, 384, 256, 2), (28, 384, 1024, 1)]
    yield from [(28, width, 64, 8) for width in (32, 64, 128, 256)]


def main():
    options = common.start(common.parser(__doc__))
    rows = []
    for depth, width, tokens, cells in models(options.small):
        work = common.workload(common.config(depth, width, tokens), cells, options.device)
        price = bench.bench(work, repeats=options.repeats)
        rows.append([
            f"{depth} x {width}, {tokens} tokens", cells, common.milliseconds(price.floor),
            common.ratio(price.probe), "yes" if price.probe.ratio < LINE else "no",
            f"{price.memory_ratio:.3f}",
        ])  # fmt: skip
        del work
    common.table(HEADER, rows)
    common.finish(options.device)


if __name__ == "__main__":
    main()
