"""A random Flux analysed with its weights in its files: memory, seconds, and Flux in full size.

Flux in full size, 24 GB on the disk:
python tests/bench/offload.py --blocks 19 --heads 24 --tokens 256 --folder FOLDER
"""

import gc
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import common
import numpy as np
import torch
from safetensors.torch import save_file

import dar_probe as dp
from dar_probe.models.blank import without_weights

FULL = 19  # double blocks of Flux; of single ones it has twice as many
HEAD = 128  # channels of a head, as in Flux
SHARD = 2**30  # bytes, of a tensor more at most
POOL = 2**24 + 43  # random numbers; weights repeat them, no row of a matrix another
HEADER = ["double + single blocks", "parameters", "GB of files", "peak anonymous GiB", "s",
          "GiB without"]  # fmt: skip
PERIOD = 0.02  # seconds between looks at the memory


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the folder goes
    made = common.parser(__doc__)
    made.add_argument("--blocks", type=int, nargs="+", default=[1, 2], help="double blocks")
    made.add_argument("--heads", type=int, default=1, help="of 128 channels; Flux has 24")
    made.add_argument("--tokens", type=int, default=16, help="of the image")
    made.add_argument("--dtype", default="float32", help="in which the model runs")
    made.add_argument("--folder", help="where the files go for a while")
    options = common.start(made, repeats=1)
    rows, found = [], {}
    for blocks in options.blocks:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            home, weights = write(Path(folder) / "flux", blocks, options.heads)
            x = np.random.default_rng(7).standard_normal((1, options.tokens, 64), dtype=np.float32)
            np.savez(Path(folder) / "x.npz", latents=x, labels=np.zeros(1, np.int64))
            peak, seconds = analysed(home, f"latents:{folder}/x.npz", options.dtype)
        size = torch.tensor([], dtype=getattr(torch, options.dtype)).element_size()
        found[blocks] = np.array([peak, seconds])
        if not options.small:
            print(f"{blocks} + {2 * blocks}: {peak / 2**30:.3f} GiB, {seconds:.1f} s",
                  file=sys.stderr, flush=True)  # fmt: skip
        rows.append([
            f"{blocks} + {2 * blocks}", weights // 2, f"{weights / 1e9:.3f}",
            f"{peak / 2**30:.3f}", f"{seconds:.1f}", f"{weights // 2 * size / 2**30:.3f}",
        ])  # fmt: skip
    if len(found) > 1 and FULL not in found:
        (few, at_few), (many, at_many) = min(found.items()), max(found.items())
        peak, seconds = at_many + (at_many - at_few) * (FULL - many) / (many - few)
        rows.append([
            f"projected: {FULL} + {2 * FULL}", "-", "-", f"{peak / 2**30:.3f}", f"{seconds:.1f}",
            "-",
        ])  # fmt: skip
    common.table(HEADER, rows)
    common.finish(options.device)


def write(home, blocks, heads):
    """Write a random Flux in bfloat16 shard by shard; return its folder and its bytes."""
    import json

    import diffusers

    settings = dict(
        patch_size=1, in_channels=64, num_layers=blocks, num_single_layers=2 * blocks,
        attention_head_dim=HEAD, num_attention_heads=heads, joint_attention_dim=4096,
        pooled_projection_dim=768, guidance_embeds=True, axes_dims_rope=(16, 56, 56),
    )  # fmt: skip
    with without_weights():
        model = diffusers.FluxTransformer2DModel(**settings)
    model.save_config(home)
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0))
    shards, shard, at = [], {}, 0
    for name, value in model.state_dict().items():
        count = value.numel()
        start = at % POOL
        at += count
        numbers = pool[torch.arange(start, start + count) % POOL] if count < POOL else (
            torch.cat([pool] * (count // POOL + 2))[start : start + count]
        )  # fmt: skip
        numbers = numbers.view(value.shape)
        matrix = value.ndim > 1
        numbers = numbers * (value[0].numel() ** -0.5 if matrix else 0.3)
        shard[name] = (numbers + float("norm_" in name and not matrix)).to(torch.bfloat16)
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD:
            shards.append(store(home, shard, len(shards)))
            shard = {}
    if shard:
        shards.append(store(home, shard, len(shards)))
    names = {name: file for file, held in shards for name in held}
    index = {"metadata": {"total_size": 2 * at}, "weight_map": names}
    (home / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return home, 2 * at


def store(home, shard, number):
    file = f"diffusion_pytorch_model-{number:05d}.safetensors"
    save_file(shard, home / file)
    return file, list(shard)


def analysed(home, data, dtype):
    """Return the peak of anonymous memory in bytes, over the whole process, and the seconds."""
    gc.collect()  # the model before this one, whose parts refer to each other
    with Watch() as watch:
        began = time.perf_counter()
        dp.analyze(
            home, data=data, noise_levels=[0.1, 0.9], samples=1, device="cpu", dtype=dtype,
            offload="disk",
        )  # fmt: skip
        return watch.peak, time.perf_counter() - began


class Watch:
    """Looks at this process's anonymous memory again and again.

    Pages of files that are mapped do not count: the kernel drops them when it needs room.
    """

    def __enter__(self):
        self.peak = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def look(self):
        while not self.over.wait(PERIOD):
            self.peak = max(self.peak, anonymous())


def anonymous():
    for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel does not tell RssAnon")


if __name__ == "__main__":
    main()
