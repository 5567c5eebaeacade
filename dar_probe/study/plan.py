"""What is trained at which scale: the schemes, and the questions that the paper leaves open."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dar_probe.errors import UsageError
from dar_probe.routing import schemes
from dar_probe.training.config import TrainConfig, from_dict

REFERENCE = "residual"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the study.

    Attributes:
        name: of its files and of ``--only``.
        label: what pictures call it.
        group: schemes, chunks, ablations, repa or deep.
        settings: of ``TrainConfig``, over the scale's.
        seeds: how often it is trained.
    """

    name: str
    label: str
    group: str = "schemes"
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: int = 1


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A size of the whole study.

    Attributes:
        settings: of ``TrainConfig``, which every run shares.
        entries: what is trained; the first is ``REFERENCE``.
        checkpoints: at how many equal distances samples are judged.
        samples, solver, solver_steps: how they are drawn; only the digits have a judge here.
        rounds: timed training steps of each run beside the residual model's.
    """

    name: str
    settings: dict[str, Any]
    entries: tuple[Entry, ...]
    checkpoints: int = 4
    samples: int = 500
    solver: str = "heun"
    solver_steps: int = 8
    rounds: int = 9


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One training run of a study, and the residual run of its size that it is held against."""

    scale: Scale
    entry: Entry
    seed: int
    config: TrainConfig
    reference: TrainConfig

    @property
    def name(self) -> str:
        """Of its file and of its folder."""
        return f"{self.entry.name}-seed{self.seed}"


def runs(scale: Scale, *, only: Sequence[str] = (), data: str | None = None) -> list[PlannedRun]:
    """Return the runs of a scale, first seeds first, so that a study that is cut off has them all.

    Args:
        scale: one of ``SCALES``.
        only: names of entries; left out, all.
        data: in place of the scale's.

    Raises:
        UsageError: no entry has one of the names, or the scale needs data.
    """
    known = [entry.name for entry in scale.entries]
    if wrong := [name for name in only if name not in known]:
        raise UsageError(
            f"{scale.name} has no run called {wrong[0]!r}", hint=f"known: {', '.join(known)}"
        )
    shared = {**scale.settings, **({} if data is None else {"data": data})}
    if "data" not in shared:
        raise UsageError(f"--scale {scale.name} needs data", hint="add --data latents:PATH")
    found = []
    for seed in range(max(entry.seeds for entry in scale.entries)):
        for entry in scale.entries:
            if seed >= entry.seeds or (only and entry.name not in only):
                continue
            config = from_dict({**shared, **entry.settings, "seed": seed})
            twin = from_dict({**shared, "depth": config.depth, "seed": seed})
            found.append(
                PlannedRun(scale=scale, entry=entry, seed=seed, config=config, reference=twin)
            )
    return found


def _dar(query: str, chunk_size: int = 4, **other: Any) -> dict[str, Any]:
    return {"routing": "dar", "query": query, "chunk_size": chunk_size, **other}


def _seeds(entries: Iterable[Entry], seeds: int) -> tuple[Entry, ...]:
    return tuple(replace(entry, seeds=seeds) for entry in entries)


def _of_scheme(name: str) -> Entry:
    return Entry(name=name, label=schemes.known()[name].label, settings={"routing": name})


MAIN = (
    _of_scheme(REFERENCE),
    Entry(name="dar-static+t", label="DAR static+t", settings=_dar("static+t")),
    Entry(name="dar-dynamic", label="DAR dynamic", settings=_dar("dynamic")),
    Entry(name="dar-static", label="DAR static", settings=_dar("static")),
    *map(_of_scheme, ("attnres", "denseformer", "hc-dynamic")),
)
OTHERS = tuple(  # once each, with their own default options
    _of_scheme(name)
    for name in schemes.known()
    if name != "dar" and name not in {entry.name for entry in MAIN}
)
CHUNKS = tuple(
    Entry(
        name=f"dar-static+t-S{size}",
        label=f"DAR static+t, S={size}",
        group="chunks",
        settings=_dar("static+t", size),
    )
    for size in (1, 2, 6, 12)
)
ABLATIONS = (
    Entry(
        name="residual-wide",
        label="residual, wider",  # as many parameters as dynamic DAR has
        group="ablations",
        settings={"width": 68, "heads": 2},
    ),
    Entry(
        name="dar-static+t-time",
        label="DAR static+t, t-embedder not zeroed",
        group="ablations",
        settings=_dar("static+t", zero_time=False),
    ),
    Entry(
        name="dar-static+t-lr10",
        label="DAR static+t, queries learn 10x faster",
        group="ablations",
        settings=_dar("static+t", routing_lr=10.0),
    ),
    Entry(
        name="dar-static+t-lr0.1",
        label="DAR static+t, queries learn 10x slower",
        group="ablations",
        settings=_dar("static+t", routing_lr=0.1),
    ),
    Entry(name="residual-repa", label="residual + REPA", group="repa", settings={"repa_depth": 4}),
    Entry(
        name="dar-static+t-repa",
        label="DAR static+t + REPA",
        group="repa",
        settings=_dar("static+t", repa_depth=4),
    ),
)
DEEP = (
    Entry(name="residual-28", label="residual", group="deep", settings={"depth": 28}),
    Entry(
        name="dar-static+t-28",
        label="DAR static+t",
        group="deep",
        settings=_dar("static+t", depth=28),
    ),
    Entry(
        name="dar-dynamic-28",
        label="DAR dynamic",
        group="deep",
        settings=_dar("dynamic", depth=28),
    ),
)
SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            name="smoke",
            settings={
                "data": "digits", "depth": 2, "width": 16, "steps": 24, "batch_size": 16,
                "warmup": 4, "validate_every": 6, "validation_samples": 16, "probe_samples": 4,
                "probe_levels": 3,
            },
            entries=(*_seeds(MAIN[:3], 2), *MAIN[3:], *CHUNKS[:2]),
            checkpoints=2, samples=16, solver="euler", solver_steps=4, rounds=2,
        ),
        Scale(
            name="digits",
            settings={
                "data": "digits", "depth": 12, "width": 64, "steps": 2000, "batch_size": 32,
                "warmup": 100, "validate_every": 100, "validation_samples": 128,
                "probe_samples": 32, "probe_levels": 5,
            },
            entries=(*_seeds(MAIN, 3), *OTHERS, *CHUNKS, *ABLATIONS, *DEEP),
        ),
        Scale(
            name="imagenet",
            settings={
                "depth": 28, "width": 1152, "heads": 16, "learn_sigma": False, "steps": 400_000,
                "batch_size": 256, "lr": 1e-4, "warmup": 1, "autocast": "bf16",
                "validate_every": 5000, "validation_samples": 256, "probe_samples": 32,
                "probe_levels": 5,
            },
            entries=(*MAIN, _of_scheme("rezero")),
            samples=0,
        ),
    )
}  # fmt: skip


def scale_of(name: str) -> Scale:
    """Return the scale called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in SCALES:
        raise UsageError(f"unknown scale {name!r}", hint=f"known: {', '.join(SCALES)}")
    return SCALES[name]
