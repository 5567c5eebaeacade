"""A whole valid analysis with planted values: what metrics and figures are tested on."""

import json
from typing import Any, Literal

import numpy as np
import xarray as xr

from dar_probe.results import schema, trajectory

Routing = Literal["residual", "dar"]

PLANTED = {
    "residual": {"inflation": 10.0, "decay": 12.0, "cosine": 0.975},
    "dar": {"inflation": 1.8, "decay": 1.7, "cosine": 0.72},
}


def dataset(
    *,
    blocks: int = 6,
    samples: int = 8,
    levels: int = 5,
    routing: Routing = "residual",
    chunk_size: int | None = None,
    seed: int = 0,
    inflation: float | None = None,
    decay: float | None = None,
    cosine: float | None = None,
    spread: float = 0.05,
    name: str = "synthetic.pt",
) -> xr.Dataset:
    """Build an analysis in which the three symptoms are planted.

    ``spread`` is the relative scatter over samples; at 0 the planted values are exact:
    ``rms`` grows geometrically from 1 at block 1 to ``inflation`` at block B; ``grad_rms`` is
    1 in the blocks 1..min(5, B/2) and ``1/decay`` in the deep half (k > B/2), geometric
    between; ``cosine`` is ``cosine`` in the deep half.
    """
    rng = np.random.default_rng(seed)
    plan = dict(PLANTED[routing])
    for key, value in {"inflation": inflation, "decay": decay, "cosine": cosine}.items():
        if value is not None:
            plan[key] = value
    sublayers = 2 * blocks
    noise = np.linspace(0.01, 0.99, levels) if levels > 1 else np.array([0.5])
    grid = (levels, samples)

    def scatter(*shape: int) -> np.ndarray:
        person = rng.normal(size=(1, samples, *(1 for _ in shape)))
        own = rng.normal(size=(*grid, *shape))
        return np.exp(spread * (0.7 * person + 0.7 * own))

    offered = offered_pairs(sublayers, chunk_size if routing == "dar" else None)
    route = _routes(offered, noise, samples, routing, spread, rng)
    gate = _gates(offered, route, noise, samples, rng)
    rms = _rms(blocks, plan["inflation"]) * scatter(blocks + 1)
    shape = _cosine(blocks, plan["cosine"], noise)[:, None, :]
    cos = 1 - np.clip((1 - shape) * scatter(blocks + 1), 0, 1.9)
    read = np.repeat(_rms(blocks, plan["inflation"])[:-1], 2)
    ratio = np.repeat(np.sqrt(np.clip(1 - shape[:, :, 1:] ** 2, 1e-12, None)) + 0.02, 2, axis=2)
    ratio = ratio * scatter(sublayers)
    variables: dict[str, np.ndarray] = {
        "rms": rms,
        "rms_top1": np.clip(0.05 + 0.1 * np.linspace(0, 1, blocks + 1) * scatter(blocks + 1), 0, 1),
        "grad_rms": 1e-3 * _grad(blocks, plan["decay"]) * scatter(blocks + 1),
        "cosine": cos,
        "cosine_centred": cos - 0.01 * (1 + cos) / 2,
        "write_rms": ratio * read,
        "write_ratio": ratio,
        "write_lost": 1e-7 * scatter(sublayers),
        "gate": gate,
        "route": route,
        "route_token_std": np.where(np.isfinite(route), 0.1 * np.abs(route), np.nan)
        if routing == "dar"
        else np.where(np.isfinite(route), 0.0, np.nan),
        "route_entropy": _entropy(route),
        "query_share": np.clip(0.1 * scatter(sublayers + 1), 0, 1)
        if routing == "dar"
        else np.full((*grid, sublayers + 1), np.nan),
        "gate_conservation": 1e-5 * scatter(sublayers + 1),
        "read_residual": 1e-7 * scatter(sublayers + 1),
        "loss": (0.3 + 0.7 * noise)[:, None] * scatter(),
        **_decoded(noise, samples, sublayers + 1, rng),
        "token_top1": np.clip(0.1 * scatter(blocks + 1), 0, 1),
        "token_norm_top1": np.clip(0.05 * scatter(blocks + 1), 0, 1),
    }
    assert set(variables) == set(schema.VARIABLES), "plant values for the variable here"
    data = {
        key: (schema.VARIABLES[key].all_dims, value.astype(np.float32))
        for key, value in variables.items()
    }
    ds = xr.Dataset(data, coords=_coords(blocks, samples, noise))
    ds.attrs["schema_version"] = schema.SCHEMA_VERSION
    text = _manifest(name=name, blocks=blocks, routing=routing, chunk_size=chunk_size, seed=seed)
    ds.attrs["manifest"] = json.dumps(text)
    return schema.validate(schema.with_facts(schema.describe(ds)))


def trained(*, steps: int = 4, **settings: Any) -> xr.Dataset:
    """Return a trajectory in which the symptoms of ``dataset`` grow to their planted sizes."""
    plan = PLANTED[settings.get("routing", "residual")]
    pairs = []
    for at in range(1, steps + 1):
        share = at / steps
        planted = {
            "inflation": plan["inflation"] ** share,
            "decay": plan["decay"] ** share,
            "cosine": plan["cosine"] * share,
        }
        name = f"step-{100 * at:07d}.pt"
        pairs.append((100 * at, dataset(**{**planted, "seed": at, "name": name, **settings})))
    return trajectory.join(pairs)


def offered_pairs(sublayers: int, chunk_size: int | None) -> np.ndarray:
    """Which source (0..L) each reader (1..L+1) is offered: (L+1, L+1) bool.

    Without chunks every earlier source. With chunks of S: the embedding, the last output of
    every earlier chunk, and the earlier outputs of the reader's own chunk; the head reads as
    part of the last chunk.
    """
    reader = np.arange(1, sublayers + 2)[:, None]
    source = np.arange(sublayers + 1)[None, :]
    causal = source < reader
    if chunk_size is None:
        return causal
    chunk = (np.minimum(reader, sublayers) - 1) // chunk_size
    summary = (source % chunk_size == 0) & (source <= chunk * chunk_size)
    own = source > chunk * chunk_size
    return causal & (summary | own)


def _rms(blocks: int, inflation: float) -> np.ndarray:
    step = np.arange(blocks) / max(blocks - 1, 1)
    return np.concatenate([[0.8], inflation**step])


def _grad(blocks: int, decay: float) -> np.ndarray:
    early = max(min(5, blocks // 2), 1)
    deep = max(blocks // 2 + 1, 2)
    position = np.clip((np.arange(blocks + 1) - early) / (deep - early), 0, 1)
    return np.asarray(decay**-position)


def _cosine(blocks: int, deep: float, noise: np.ndarray) -> np.ndarray:
    """Give (levels, B+1); NaN at block 0; the level tilt vanishes on average."""
    k = np.arange(blocks + 1)
    early = 1 - 2.5 * (1 - deep)
    rise = np.clip(k / (blocks // 2 + 1), 0, 1)
    base = early + (deep - early) * rise
    tilt = 0.2 * (noise - noise.mean())
    values = 1 - (1 - base[None, :]) * (1 + tilt[:, None])
    values[:, 0] = np.nan
    return np.asarray(np.clip(values, -1, 1))


def _routes(
    offered: np.ndarray,
    noise: np.ndarray,
    samples: int,
    routing: Routing,
    spread: float,
    rng: np.random.Generator,
) -> np.ndarray:
    shape = (len(noise), samples, *offered.shape)
    if routing == "residual":
        return np.broadcast_to(np.where(offered, 1.0, np.nan), shape).copy()
    preference = 1.5 * rng.normal(size=offered.shape)
    drift = 1.5 * rng.normal(size=offered.shape)
    logits = preference + (noise[:, None, None, None] - 0.5) * drift
    logits = logits + spread * rng.normal(size=shape)
    weights = np.where(offered, np.exp(logits), 0.0)
    weights = weights / weights.sum(-1, keepdims=True)
    return np.where(offered, weights, np.nan)


def _gates(
    offered: np.ndarray,
    route: np.ndarray,
    noise: np.ndarray,
    samples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    shape = (len(noise), samples, *offered.shape)
    size = np.exp(0.8 * rng.normal(size=offered.shape))
    drift = np.exp((noise[:, None, None, None] - 0.5) * rng.normal(size=offered.shape))
    raw = 0.01 * size * drift * rng.normal(size=shape) * np.nan_to_num(route)
    count = offered.sum(-1)[:, None]
    centred = raw - raw.sum(-1, keepdims=True) / count  # a normed reader ignores scale
    return np.where(offered, centred, np.nan)


def _decoded(
    noise: np.ndarray, samples: int, readers: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Decode the noise level with an error that falls with depth; unknown where it must be."""
    error = 0.15 * np.exp(-4 * np.arange(readers) / readers)
    level = noise[:, None, None]
    found = level + error * rng.normal(size=(len(noise), samples, readers))
    if min(len(noise), samples) < 2:
        found[:] = np.nan
    missed = np.sum((found - level) ** 2, axis=(0, 1))
    total = samples * np.sum((noise - noise.mean()) ** 2)
    with np.errstate(invalid="ignore"):
        return {"decoded_level": found, "decodability": 1 - missed / total}


def _entropy(route: np.ndarray) -> np.ndarray:
    size = np.abs(np.nan_to_num(route))
    share = size / size.sum(-1, keepdims=True)
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)), -1)
    return np.asarray(np.maximum(entropy, 0.0))


def _coords(blocks: int, samples: int, noise: np.ndarray) -> dict[str, Any]:
    sublayers = 2 * blocks
    kinds = ["attention", "mlp"] * blocks
    block_of = np.repeat(np.arange(1, blocks + 1), 2)
    names = [f"block {k} {kind}" for k, kind in zip(block_of, kinds, strict=True)]
    return {
        "noise_level": noise,
        "sample": np.arange(samples),
        "block": np.arange(blocks + 1),
        "sublayer": np.arange(1, sublayers + 1),
        "reader": np.arange(1, sublayers + 2),
        "source": np.arange(sublayers + 1),
        "timestep": ("noise_level", 1 - noise),
        "log_snr": ("noise_level", 2 * np.log((1 - noise) / noise)),
        "reader_name": ("reader", np.array([*names, "head"])),
        "reader_kind": ("reader", np.array([*kinds, "head"])),
        "reader_block": ("reader", np.array([*block_of, blocks + 1])),
        "source_name": ("source", np.array(["embedding", *names])),
        "source_kind": ("source", np.array(["embedding", *kinds])),
        "source_block": ("source", np.array([0, *block_of])),
    }


def _manifest(
    *, name: str, blocks: int, routing: Routing, chunk_size: int | None, seed: int
) -> dict[str, Any]:
    return {
        "versions": {"dar_probe": "0.1.0", "torch": "2.13.0", "numpy": "2.4.0"},
        "created": "2026-01-01T00:00:00+00:00",
        "checkpoint": {"name": name, "sha256": "0" * 64, "bytes": 123456, "weights": "ema"},
        "model": {
            "name": "SiT-synthetic",
            "family": "sit",
            "routing": routing,
            "query": "dynamic" if routing == "dar" else None,
            "chunk_size": chunk_size if routing == "dar" else None,
            "parameters": 1234567,
            "depth": blocks,
            "width": 64,
            "heads": 2,
            "tokens": 16,
            "dtype": "float32",
        },
        "data": {"name": "digits", "description": "synthetic numbers, no image was ever seen"},
        "config": {"noise_levels": 5, "samples": 8},
        "seed": seed,
        "device": "cpu",
        "dtype": "float32",
        "assumptions": ["time runs from noise (t = 0) to data (t = 1), as in SiT"],
        "warnings": [],
    }
