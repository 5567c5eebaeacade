"""Every routing scheme once more, slowly and literally, in float64.

Shares no code with dar_probe. Each function takes the parameters ``p`` of a stream by name, the
embedding v_0 (N, T, D), the timestep embedding (N, D) and ``branch(l, h)``, which returns v_l; it
returns what every reader reads, h_1..h_(L+1), as lists over L = 2B sublayers.
"""

import itertools
import math

import torch


def rms_norm(x):
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6)


def layer_norm(x, weight=1.0, bias=0.0):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6) * weight + bias


def residual(p, v_0, t_emb, branch, blocks, scale=lambda l, v: v):
    x, reads = v_0, [v_0]
    for l in range(1, 2 * blocks + 1):
        x = x + scale(l, branch(l, x))
        reads.append(x)
    return reads


def rezero(p, v_0, t_emb, branch, blocks):
    return residual(p, v_0, t_emb, branch, blocks, lambda l, v: p["scale"][l - 1] * v)


def layerscale(p, v_0, t_emb, branch, blocks):
    return residual(p, v_0, t_emb, branch, blocks, lambda l, v: v @ torch.diag(p["scale"][l - 1]))


def deepnorm(p, v_0, t_emb, branch, blocks):
    x, reads = v_0, [v_0]
    for l in range(1, 2 * blocks + 1):
        x = layer_norm(math.sqrt(math.sqrt(2 * blocks)) * x + branch(l, x))
        reads.append(x)
    return reads


def siamesenorm(p, v_0, t_emb, branch, blocks):
    u, y, reads = v_0, v_0, []
    for l in range(1, 2 * blocks + 2):
        u = layer_norm(u, p[f"post.{l - 1}.weight"], p[f"post.{l - 1}.bias"])
        reads.append(u + layer_norm(y, p[f"pre.{l - 1}.weight"], p[f"pre.{l - 1}.bias"]))
        if l <= 2 * blocks:
            r = branch(l, reads[-1])
            index = (l - 1) // 2  # of the block, from 0
            u, y = u + r / math.sqrt(2 * (index + 1)), y + r
    return reads


def highway(p, v_0, t_emb, branch, blocks):
    x, reads = v_0, [v_0]
    for l in range(1, 2 * blocks + 1):
        logits = layer_norm(x) @ p[f"gates.{l - 1}.weight"].T + p[f"gates.{l - 1}.bias"]
        transform = 1 / (1 + torch.exp(-logits))
        x = transform * branch(l, x) + (1 - transform) * x
        reads.append(x)
    return reads


def uvit(p, v_0, t_emb, branch, blocks, *, norm=False):
    pairs = blocks // 2 - 1 if norm else blocks // 2
    x, kept, reads = v_0, [], []
    for block in range(1, blocks + 1):
        at = block - (blocks - pairs) - 1
        if at >= 0:
            both = torch.cat([x, kept.pop()], -1)
            if norm:
                name = f"fusions.{at}.norm"
                both = layer_norm(both, p[f"{name}.weight"], p[f"{name}.bias"])
            x = both @ p[f"fusions.{at}.linear.weight"].T + p[f"fusions.{at}.linear.bias"]
        for l in (2 * block - 1, 2 * block):
            reads.append(x)
            x = x + branch(l, x)
        if block <= pairs:
            kept.append(x)
    return [*reads, x]


def hunyuan(p, v_0, t_emb, branch, blocks):
    return uvit(p, v_0, t_emb, branch, blocks, norm=True)


def denseformer(p, v_0, t_emb, branch, blocks, *, dilation=1, period=1):
    x, outputs, reads = v_0, [v_0], []
    for block in range(1, blocks + 1):
        for l in (2 * block - 1, 2 * block):
            reads.append(x)
            x = x + branch(l, x)
        outputs.append(x)
        if block % period == 0:
            weights = p[f"averages.{block}"]
            seen = [j for j in range(block + 1) if (block - j) % dilation == 0]
            assert len(seen) == len(weights)
            x = sum(weights[n] * outputs[j] for n, j in enumerate(seen))
    return [*reads, x]


def densenet(p, v_0, t_emb, branch, blocks):
    width, v, reads = v_0.shape[-1], [v_0], []
    for l in range(1, 2 * blocks + 2):
        weight = p[f"fusions.{l - 1}.weight"]
        reads.append(sum(v[i] @ weight[:, i * width : (i + 1) * width].T for i in range(l)))
        if l <= 2 * blocks:
            v.append(branch(l, reads[-1]))
    return reads


def hyper(coefficients):
    """Of functions (p, l, streams) -> read (N, T, n), mix (N, T, n, n), write (N, T, n)."""

    def run(p, v_0, t_emb, branch, blocks):
        n = 3
        streams, reads = [v_0] * n, []
        for l in range(1, 2 * blocks + 1):
            read, mix, write = coefficients(p, l, streams)
            reads.append(sum(read[..., s, None] * streams[s] for s in range(n)))
            v = branch(l, reads[-1])
            streams = [
                sum(mix[..., to, of, None] * streams[of] for of in range(n))
                + write[..., to, None] * v
                for to in range(n)
            ]
        return [*reads, sum(streams)]

    return run


def _static(p, l, streams):
    shape = streams[0].shape[:2]
    read, mix, write = p["read_by"][l - 1], p["mix_by"][l - 1], p["write_by"][l - 1]
    return read.expand(*shape, -1), mix.expand(*shape, -1, -1), write.expand(*shape, -1)


def _dynamic(p, l, streams):
    """A_m and A_r share a scale; row s of A_r says where stream s goes."""
    n = len(streams)
    read, mix, write = (t.clone() for t in _static(p, l, streams))
    w = p["project"][l - 1]
    for s, stream in enumerate(streams):
        normed = rms_norm(stream)
        read[..., s] += p["scale_read_mix"][l - 1] * torch.tanh(normed @ w[:, 0])
        write[..., s] += p["scale_write"][l - 1] * torch.tanh(normed @ w[:, 1])
        for to in range(n):
            mix[..., to, s] += p["scale_read_mix"][l - 1] * torch.tanh(normed @ w[:, 2 + to])
    return read, mix, write


def _manifold(p, l, streams, square=None):
    n = len(streams)
    u = rms_norm(torch.cat(streams, -1)) @ p["project"][l - 1]
    a, b = p["scale"][l - 1], p["bias"][l - 1]
    read = 1 / (1 + torch.exp(-(a[0] * u[..., :n] + b[:n])))
    write = 2 / (1 + torch.exp(-(a[1] * u[..., n : 2 * n] + b[n : 2 * n])))
    return read, (square or sinkhorn)(a[2] * u[..., 2 * n :] + b[2 * n :], n), write


def sinkhorn(logits, n):
    rows = [[torch.exp(logits[..., i * n + j]) for j in range(n)] for i in range(n)]
    for _ in range(20):
        for j in range(n):
            total = sum(rows[i][j] for i in range(n))
            for i in range(n):
                rows[i][j] = rows[i][j] / total
        for i in range(n):
            total = sum(rows[i])
            rows[i] = [value / total for value in rows[i]]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def permuted(logits, n):
    shares = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
    found = torch.zeros(*logits.shape[:-1], n, n, dtype=logits.dtype)
    for which, permutation in enumerate(itertools.permutations(range(n))):
        for row, column in enumerate(permutation):
            found[..., row, column] += shares[..., which]
    return found


hc_static, hc_dynamic = hyper(_static), hyper(_dynamic)
mhc = hyper(_manifold)
mhc_lite = hyper(lambda p, l, streams: _manifold(p, l, streams, permuted))


def attend(p, name, sources, *, scale=1.0, squash=None, more=None):
    """A softmax over sources (or ``squash``) by the query and the gain under ``name``."""
    query, gain = p[f"{name}.query.weight"], p[f"{name}.norm.weight"]
    if more is not None:
        query = (query + more)[:, None]
    logits = torch.stack([(query * (rms_norm(v) * gain)).sum(-1) * scale for v in sources], -1)
    exponentials = torch.exp(logits)
    weights = squash(logits) if squash else exponentials / exponentials.sum(-1, keepdim=True)
    return sum(weights[..., i, None] * v for i, v in enumerate(sources))


def attnres(p, v_0, t_emb, branch, blocks):
    v, reads = [v_0], []
    for l in range(1, 2 * blocks + 2):
        reads.append(attend(p, f"readers.{l - 1}", v))
        if l <= 2 * blocks:
            v.append(branch(l, reads[-1]))
    return reads


def attnres_block(p, v_0, t_emb, branch, blocks, *, size):
    v, reads, count = [v_0], [], 2 * blocks
    for l in range(1, count + 2):
        whole = (l - 1) // size if l <= count else math.ceil(count / size)
        sums = [sum(v[1 + n * size : 1 + min((n + 1) * size, count)]) for n in range(whole)]
        partial = v[1 + whole * size : l] if l <= count else []
        if partial:
            sums.append(sum(partial))
        reads.append(attend(p, f"readers.{l - 1}", [v_0, *sums]))
        if l <= count:
            v.append(branch(l, reads[-1]))
    return reads


def delta_attnres(p, v_0, t_emb, branch, blocks):
    v, reads = [v_0], []
    for l in range(1, 2 * blocks + 2):
        null = torch.zeros_like(v_0)
        reads.append(sum(v) + attend(p, f"aggregators.{l - 1}", [null, *v]))
        if l <= 2 * blocks:
            v.append(branch(l, reads[-1]))
    return reads


def _chunked(l, count, size):
    """DAR, section 4.2: summaries of earlier chunks, then the own chunk's outputs."""
    chunk = math.ceil(min(l, count) / size)
    return [*(n * size for n in range(chunk)), *range((chunk - 1) * size + 1, l)]


def sigmoid(p, v_0, t_emb, branch, blocks, *, size):
    v, reads = [v_0], []
    for l in range(1, 2 * blocks + 2):
        offered = [v[i] for i in _chunked(l, 2 * blocks, size)]
        reads.append(
            attend(
                p, f"readers.{l - 1}", offered, scale=v_0.shape[-1] ** -0.5,
                squash=lambda logits: 1 / (1 + torch.exp(-logits)),
            )
        )  # fmt: skip
        if l <= 2 * blocks:
            v.append(branch(l, reads[-1]))
    return reads


def dar_uvit(p, v_0, t_emb, branch, blocks, *, size):
    v, reads, states, pairs = [v_0], [], {}, blocks // 2
    for l in range(1, 2 * blocks + 2):
        offered = [v[i] for i in _chunked(l, 2 * blocks, size)]
        h = attend(p, f"readers.{l - 1}", offered, scale=v_0.shape[-1] ** -0.5, more=t_emb)
        block = (l + 1) // 2
        if l % 2:
            states[block - 1] = h
        fused, at = h, block - (blocks - pairs) - 1
        if l % 2 and l <= 2 * blocks and at >= 0:
            both = torch.cat([h, states[blocks + 1 - block]], -1)
            name = f"fusions.{at}.linear"
            fused = both @ p[f"{name}.weight"].T + p[f"{name}.bias"]
        reads.append(fused)
        if l <= 2 * blocks:
            v.append(branch(l, reads[-1]))
    return reads


def time_mix(p, v_0, t_emb, branch, blocks, *, size):
    v, reads = [v_0], []
    for l in range(1, 2 * blocks + 2):
        name = f"readers.{l - 1}.logits"
        logits = t_emb @ p[f"{name}.weight"].T + p[f"{name}.bias"]
        weights = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
        offered = [v[i] for i in _chunked(l, 2 * blocks, size)]
        reads.append(sum(weights[:, i, None, None] * u for i, u in enumerate(offered)))
        if l <= 2 * blocks:
            v.append(branch(l, reads[-1]))
    return reads
