"""Training steps of DAR against the residual step: time and peak memory, side by side.

28 blocks, width 256, 64 tokens; "naive" is the textbook form of DAR, which stacks its sources and
normalises their keys again for every reader; "triton" takes the fused kernels, on a GPU alone.
"""

import os

import common
import torch

from dar_probe.probe import bench
from dar_probe.routing.dar import DAR
from dar_probe.routing.stream import register


@register(
    "naive",
    title="naive DAR",
    about="what DAR reads",
    options=("query", "chunk_size", "zero_time"),
)
class Naive(DAR):
    """DAR as its formula reads, differentiated by autograd alone."""

    def open(self, v_0, t_emb=None):
        return [v_0], t_emb

    def read(self, state, l):
        values, t_emb = state
        reader = self.readers[l - 1]
        sources = torch.stack([values[i] for i in self.offered(l)], 2)  # (N, T, n, D)
        scale = torch.rsqrt(sources.square().mean(-1, keepdim=True) + self.eps)
        keys = sources * scale * reader.norm.weight
        if self.query == "dynamic":
            query = reader.query(values[l - 1])[:, :, None]
        else:
            query = reader.query.weight.expand(len(sources), 1, 1, -1)
            if self.query == "static+t":
                query = query + t_emb[:, None, None]
        weights = torch.softmax((keys * query).sum(-1) / self.width**0.5, -1)
        return (sources * weights[..., None]).sum(2)

    def write(self, state, l, v_l):
        state[0].append(v_l)


def dar(query, size, routing="dar"):
    return {"routing": routing, "query": query, "chunk_size": size}


CASES = {
    "residual": {},
    "static S=4": dar("static", 4),
    "static+t S=4": dar("static+t", 4),
    "dynamic S=4": dar("dynamic", 4),
    "static dense": dar("static", 1),
    "static+t dense": dar("static+t", 1),
    "dynamic dense": dar("dynamic", 1),
    "AttnRes": {"routing": "attnres"},
    "naive static S=4": dar("static", 4, "naive"),
    "naive static dense": dar("static", 1, "naive"),
    "naive dynamic dense": dar("dynamic", 1, "naive"),
}


def fused(step):
    def run():
        os.environ["DAR_PROBE_KERNELS"] = "triton"
        try:
            step()
        finally:
            del os.environ["DAR_PROBE_KERNELS"]

    return run


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=8, help="samples in a batch")
    parser.add_argument("--case", choices=CASES, action="append", help="beside the residual step")
    arguments = common.start(parser, repeats=7)
    depth, width, tokens = (2, 16, 16) if arguments.small else (28, 256, 64)
    names = ["residual", *(n for n in arguments.case or CASES if n != "residual")]
    steps = {}
    for name in names:
        config = common.config(depth, width, tokens, **CASES[name])
        steps[name] = bench.step(common.workload(config, arguments.cells, arguments.device))
        on_gpu = torch.device(arguments.device).type == "cuda"
        if on_gpu and CASES[name].get("routing") in ("dar", "attnres"):
            steps[f"triton {name}"] = fused(steps[name])
    found = bench.compare(steps, repeats=arguments.repeats, device=arguments.device)
    base = found["residual"].peak_bytes
    common.table(
        ["routing", "ms", "time / residual", "peak MB", "memory / residual"],
        [
            [name, common.milliseconds(timing), common.ratio(timing),
             common.megabytes(timing.peak_bytes), f"{timing.peak_bytes / base:.2f}"]
            for name, timing in found.items()
        ],
    )  # fmt: skip
    common.finish(arguments.device)


if __name__ == "__main__":
    main()
