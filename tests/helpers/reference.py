"""A literal, slow transcription of the published forward passes, in float64.

Shares no code with dar_probe: plain formulas over a state dict, loops over heads and sources. Every
(reader, source) pair takes an explicit gate, so that autograd gives the gates' gradients.
"""

import math

import torch


def offered(reader, sublayers, chunk_size):
    """DAR, section 4.2: summaries of earlier chunks and the own chunk's outputs, reader from 1."""
    chunk = math.ceil(min(reader, sublayers) / chunk_size)
    summaries = [n * chunk_size for n in range(chunk)]
    inside = list(range((chunk - 1) * chunk_size + 1, reader))
    return sorted(set(summaries) | set(inside))


def forward(p, x, t, y, *, heads, patch, routing="residual", query="static", chunk_size=1,
            gates=None, replaced=None, qk_norm=False):  # fmt: skip
    """Return the output (N, C_out, h, w) and a dict of reads, writes and per-token weights.

    ``replaced`` gives readers (from 1) other weights (N, T, offered).
    """
    depth = 1 + max(int(k.split(".")[1]) for k in p if k.startswith("blocks."))
    n = x.shape[0]
    v = [embed_patches(x, p["x_embedder.proj.weight"], p["x_embedder.proj.bias"], patch)
         + p["pos_embed"]]  # fmt: skip
    t_emb = embed_time(p, t)
    c = t_emb + p["y_embedder.embedding_table.weight"][y]
    reads, weights = [], []

    def read(reader):
        ids = list(range(reader))
        if routing == "residual":
            w = torch.ones(n, v[0].shape[1], reader, dtype=x.dtype)
        else:
            ids = offered(reader, 2 * depth, chunk_size)
            w = route(p, reader, query, v, ids, t_emb)
        w = (replaced or {}).get(reader, w)
        h = 0
        for column, i in enumerate(ids):
            g = 1.0 if gates is None else gates[:, reader - 1, i][:, None, None]
            h = h + w[:, :, column][..., None] * g * v[i]
        reads.append(h)
        weights.append((ids, w))
        return h

    for k in range(depth):
        b = f"blocks.{k}."
        modulation = linear(p, b + "adaLN_modulation.1", silu(c))
        width = modulation.shape[1] // 6
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            modulation[:, j * width : (j + 1) * width][:, None] for j in range(6)
        )
        a = attention(p, b + "attn.", norm(read(2 * k + 1)) * (1 + scale1) + shift1, heads, qk_norm)
        v.append(gate1 * a)
        hidden = norm(read(2 * k + 2)) * (1 + scale2) + shift2
        hidden = linear(p, b + "mlp.fc2", gelu(linear(p, b + "mlp.fc1", hidden)))
        v.append(gate2 * hidden)
    modulation = linear(p, "final_layer.adaLN_modulation.1", silu(c))
    shift, scale = modulation[:, None, :width], modulation[:, None, width:]
    tokens = linear(p, "final_layer.linear", norm(read(2 * depth + 1)) * (1 + scale) + shift)
    return assemble_patches(tokens, patch), {"reads": reads, "writes": v, "weights": weights}


def route(p, reader, query, v, ids, t_emb):
    q = p[f"stream.readers.{reader - 1}.query.weight"]
    gain = p[f"stream.readers.{reader - 1}.norm.weight"]
    width = v[0].shape[-1]
    logits = []
    for i in ids:
        key = v[i] / torch.sqrt((v[i] ** 2).mean(-1, keepdim=True) + 1e-6) * gain
        if query == "dynamic":
            question = v[reader - 1] @ q.T
        elif query == "static+t":
            question = (q + t_emb)[:, None, :]
        else:
            question = q
        logits.append((question * key).sum(-1) / math.sqrt(width))
    return torch.softmax(torch.stack(logits, -1), -1)


def attention(p, name, x, heads, qk_norm):
    n, tokens, width = x.shape
    qkv = linear(p, name + "qkv", x)
    size = width // heads
    out = []
    for h in range(heads):
        q, k, v = (qkv[..., j * width + h * size : j * width + (h + 1) * size] for j in range(3))
        if qk_norm:
            q = norm(q, 1e-5) * p[name + "q_norm.weight"] + p[name + "q_norm.bias"]
            k = norm(k, 1e-5) * p[name + "k_norm.weight"] + p[name + "k_norm.bias"]
        scores = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(size), -1)
        out.append(scores @ v)
    return linear(p, name + "proj", torch.cat(out, -1))


def embed_patches(x, weight, bias, patch):
    n, _, height, width = x.shape
    tokens = []
    for i in range(0, height, patch):
        for j in range(0, width, patch):
            piece = x[:, :, i : i + patch, j : j + patch].reshape(n, -1)
            tokens.append(piece @ weight.reshape(weight.shape[0], -1).T + bias)
    return torch.stack(tokens, 1)


def assemble_patches(tokens, patch):
    n, count, features = tokens.shape
    side, channels = math.isqrt(count), features // patch**2
    image = torch.zeros(n, channels, side * patch, side * patch, dtype=tokens.dtype)
    for index in range(count):
        row, column = divmod(index, side)
        piece = tokens[:, index].reshape(n, patch, patch, channels).permute(0, 3, 1, 2)
        image[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = piece
    return image


def embed_time(p, t):
    frequencies = torch.tensor([10000 ** (-j / 128) for j in range(128)], dtype=t.dtype)
    angles = t[:, None] * frequencies[None]
    wave = torch.cat([torch.cos(angles), torch.sin(angles)], 1)
    return linear(p, "t_embedder.mlp.2", silu(linear(p, "t_embedder.mlp.0", wave)))


def linear(p, name, x):
    return x @ p[name + ".weight"].T + p[name + ".bias"]


def norm(x, eps=1e-6):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + eps)


def silu(x):
    return x / (1 + torch.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
