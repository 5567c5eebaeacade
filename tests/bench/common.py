"""What the benchmark scripts share: arguments, models, tables. Run them one by one, by path."""

import argparse
import gc

import torch

from dar_probe.models.sit import SiTConfig
from dar_probe.probe import bench


def parser(doc):
    """The arguments that every script takes."""
    made = argparse.ArgumentParser(description=doc)
    made.add_argument("--small", action="store_true", help="seconds instead of minutes")
    made.add_argument("--threads", type=int, help="torch's threads on the CPU")
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    made.add_argument("--repeats", type=int, help="timed rounds")
    return made


def start(made, *, repeats=10):
    """Parse the command line; ``repeats`` is the default of a run in full size."""
    found = made.parse_args()
    if found.threads:
        torch.set_num_threads(found.threads)
    found.repeats = found.repeats or (2 if found.small else repeats)
    found.device = torch.device(found.device)
    return found


def config(depth, width, tokens, **changes):
    """A SiT with 4 channels and patch 2, heads as in SiT-S (64 channels each)."""
    return SiTConfig(
        depth=depth, width=width, heads=max(1, width // 64), patch=2, in_channels=4,
        input_size=2 * round(tokens**0.5), **changes,
    )  # fmt: skip


def workload(made, cells, device, dtype=torch.float32):
    """A batch of a random model, after giving back what the one before held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return bench.random_workload(made, cells=cells, device=device, dtype=dtype)


def table(header, rows):
    """Print a markdown table; numbers are written as they should be read."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("| " + " | ".join(cells) + " |", flush=True)
    print()


def ratio(timing):
    """A ratio with the quartiles of its rounds."""
    return f"{timing.ratio:.3f} ({timing.low:.3f}-{timing.high:.3f})"


def milliseconds(timing):
    return f"{timing.seconds * 1e3:.1f}"


def megabytes(count):
    return f"{count / 1e6:.1f}"


def finish(device):
    """Print the machine's name."""
    print("Machine: {name} ({device}), {threads} threads, torch {torch}".format(
        **bench.machine(device)
    ))  # fmt: skip
