"""One analysis that is about to be made: the model, the grid, the problem and its provenance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr

from dar_probe.checkpoints import memory_check
from dar_probe.checkpoints.naming import display_name
from dar_probe.diffusion.data import Data
from dar_probe.diffusion.noise_levels import parse_levels
from dar_probe.errors import UsageError
from dar_probe.files.analysis_folder import OutputFolder
from dar_probe.files.text import quote
from dar_probe.models import fsdp, registry
from dar_probe.models import offload as offloading
from dar_probe.models.diffusers.model import dtype_of
from dar_probe.models.loading import Loaded, load_checkpoint
from dar_probe.models.options import CheckpointOptions
from dar_probe.probe import ablation, nnsight_engine, recompute
from dar_probe.probe import samples as rows_of
from dar_probe.probe.denoising import Denoising, contradiction
from dar_probe.probe.derivative_check import wrong_derivative
from dar_probe.probe.estimate import Estimate, estimate
from dar_probe.probe.grid import walk
from dar_probe.probe.measure import SECOND, Batch, Engine, Loss, hooks
from dar_probe.probe.options import GridOptions
from dar_probe.probe.recompute import Careful
from dar_probe.probe.recorder import untouched
from dar_probe.probe.self_check import prove
from dar_probe.probe.sharding import Arrays, Grid, measure_shards
from dar_probe.probe.user_functions import forward_of
from dar_probe.results import assemble, streams
from dar_probe.results.schema import OWN_SAMPLES
from dar_probe.routing.stream import scheme_of
from dar_probe.runtime.checks import check_counts
from dar_probe.runtime.device import find_device, find_dtype
from dar_probe.runtime.ranks import ALONE, Ranks
from dar_probe.runtime.sharded import class_of
from dar_probe.sites.discover import Asked
from dar_probe.sites.freshness import freshness
from dar_probe.sites.layout import Inputs
from dar_probe.sites.listing import describe
from dar_probe.sites.subject import Subject

OnCells = Callable[[int, int], None]
ROWS = 64  # samples where no number was asked for
LARGE = 100_000_000  # parameters above which a CPU gets a smaller default grid
ENGINES: dict[str, Engine] = {"hooks": hooks, "nnsight": nnsight_engine.forward}


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that a walk needs, and what the dataset will say about it.

    Attributes:
        subject: the model and its sites.
        grid: samples and noise levels.
        batch, loss: as for ``api.audit``.
        timestep: (levels,) the model's own clock, NaN where it has none.
        log_snr: (levels,) NaN where unknown.
        manifest: provenance, see ``provenance``.
        engine: one of ``ENGINES``.
        interventions: what ``ablation.wanted`` returns; None: nothing is intervened with.
        offload: where the weights of blocks are between their calls, one of ``offload.KINDS``.
    """

    subject: Subject
    grid: Grid
    batch: Batch
    loss: Loss
    timestep: np.ndarray
    log_snr: np.ndarray
    manifest: dict[str, Any]
    engine: str = "hooks"
    interventions: dict[str, Any] | None = None
    offload: str | None = None

    @property
    def key(self) -> dict[str, Any]:
        """What the numbers depend on."""
        names = ("checkpoint", "model", "config", "seed", "device")
        found = {name: self.manifest[name] for name in names}
        found["model"] = {name: v for name, v in found["model"].items() if name != "name"}
        return found if self.interventions is None else {**found, "ablation": self.interventions}

    def measure(
        self,
        *,
        shards: OutputFolder | None = None,
        ranks: Ranks = ALONE,
        on_cells: OnCells | None = None,
    ) -> xr.Dataset:
        """Walk the grid, and once more for all interventions; return the dataset.

        Args:
            shards: where finished parts are kept.
            ranks: this process among others.
            on_cells: called with (done, total) after each batch of cells.
        """
        ds = self._walk(shards, ranks, on_cells)
        if self.interventions is None:
            return ds
        return self._intervene(ds, self.interventions, shards, ranks, on_cells)

    def _walk(
        self, shards: OutputFolder | None, ranks: Ranks, on_cells: OnCells | None
    ) -> xr.Dataset:
        tell = _Tell(self.grid.cells, on_cells)
        engine = ENGINES[self.engine]
        if self.manifest["checkpoint"] is None:  # the module is the user's own
            engine = forward_of(engine)
        careful = Careful(engine, self.subject, self._recomputing(ranks))
        arrays = walk(
            self.subject,
            self.grid,
            self.batch,
            self.loss,
            shards=shards,
            ranks=ranks,
            on_cells=tell,
            careful=careful,
        )
        manifest = {
            **self.manifest,
            "batch_size": tell.batch_size,
            "engine": self.engine,
            "recompute": careful.recomputes or self.offload is not None,
            "offload": self.offload,
        }
        first = self._assembled(self.subject, arrays, manifest)
        if (second := self.subject.second) is None:
            return first
        arrays = {
            name.removeprefix(SECOND): v for name, v in arrays.items() if name.startswith(SECOND)
        }
        own = {key: second.facts[key] for key in ("depth", "width", "tokens")}
        common = [text for text in manifest["assumptions"] if text not in self.subject.assumptions]
        manifest = {
            **manifest,
            "model": {**manifest["model"], **own},
            "sites": describe(second),
            "assumptions": [*common, *second.assumptions],
        }
        text = self._assembled(second, arrays, manifest)
        return streams.join({streams.IMAGE: first, streams.TEXT: text})

    def _assembled(self, subject: Subject, arrays: Arrays, manifest: dict[str, Any]) -> xr.Dataset:
        """Return the dataset of one stream."""
        found = assemble.assemble(
            arrays,
            assemble.Axes(
                readers=subject.readers,
                sources=subject.sources,
                levels=np.array(self.grid.levels),
                timestep=self.timestep,
                log_snr=self.log_snr,
                ids=np.array(self.grid.ids),
            ),
            manifest=manifest,
            torch=torch.__version__,
        )
        return assemble.without_gradients(found) if "blind" in subject.facts else found

    @property
    def recompute(self) -> bool | None:
        """As the grid says; hooks alone can, and blocks whose weights come and go do anyway."""
        return self.grid.recompute if self.engine == "hooks" and self.offload is None else False

    def estimate(self) -> Estimate:
        """Return what measuring this will take; interventions are one more forward each."""
        return estimate(self.subject, self.batch, self.grid)

    def fitting(self) -> "Task":
        """Return the task with recomputing, where a pass would not fit into memory without."""
        if self.recompute is not None:
            return self
        found = self.estimate()
        room = memory_check.available(next(self.subject.model.parameters()).device)
        if found.memory(recompute=False) <= room:
            return self
        try:
            recompute.parts(self.subject)
        except UsageError:
            return self
        return replace(self, grid=replace(self.grid, recompute=True))

    def _recomputing(self, ranks: Ranks) -> bool | None:
        """Return the same; in step no process can decide alone to do so once its memory is full."""
        return bool(self.recompute) if ranks.in_step else self.recompute

    def called(self, name: str | None) -> "Task":
        """Return the task of the same model under another name; None leaves it as it is."""
        if name is None:
            return self
        model = {**self.manifest["model"], "name": name}
        return replace(self, manifest={**self.manifest, "model": model})

    def again(self) -> "Task":
        """Return the task of the same model later in its training."""
        subject = self.subject
        if "fresh" not in subject.facts:
            return self
        fresh = {"fresh": freshness(subject.model)}
        model = {**self.manifest["model"], **fresh}
        return replace(
            self,
            subject=replace(subject, facts={**subject.facts, **fresh}),
            manifest={**self.manifest, "model": model},
        )

    def _intervene(
        self,
        ds: xr.Dataset,
        wanted: dict[str, Any],
        shards: OutputFolder | None,
        ranks: Ranks,
        on_cells: OnCells | None,
    ) -> xr.Dataset:
        """Return the dataset with the effects of real interventions; its gates choose some."""
        subject, grid, at = self.subject, self.grid, wanted["frozen_at"]
        changes = [ablation.single(subject, l - 1, i) for l, i in wanted["gates"]]
        seed = int(self.manifest["seed"] or 0)
        gate = streams.single(ds)["gate"].values
        for change in ablation.choose(
            subject, gate, kinds=wanted["kinds"], pairs=wanted["pairs"], seed=seed
        ):
            if change not in changes:
                changes.append(change)
        if not changes:
            raise UsageError("no intervention was asked for")
        all_ids, all_levels = grid.cell_ids(), grid.cell_levels()

        careful = Careful(ENGINES[self.engine], subject, self._recomputing(ranks))

        def work(cells: slice) -> Arrays:
            found = careful(
                lambda engine: ablation.measure(
                    subject, self.batch, self.loss, all_ids[cells], all_levels[cells], changes,
                    frozen_at=at, engine=engine,
                )
            )  # fmt: skip
            return {name: value.cpu().numpy() for name, value in found.items()}

        first = len(list(grid.chunks()))  # the walk's own shards come before
        tell = _Tell(grid.cells, on_cells)
        with untouched(subject.model):
            joined = measure_shards(
                grid, work, shards=shards, first=first, ranks=ranks, on_cells=tell
            )
        shape = (len(grid.levels), len(grid.ids), len(changes))
        return assemble.with_ablation(
            ds,
            names=[change.name for change in changes],
            kinds=[change.kind for change in changes],
            true=joined["gate_ablated"].reshape(shape),
            linear=joined["gate_linear"].reshape(shape),
            wanted=wanted,
            batch_size=tell.batch_size,
        )


class _Tell:
    """Passes progress on, and remembers the smallest batch."""

    def __init__(self, cells: int, on_cells: OnCells | None) -> None:
        self.cells = cells
        self.on_cells = on_cells
        self.batch_size = 0

    def __call__(self, done: int, batch_size: int) -> None:
        self.batch_size = batch_size
        if self.on_cells:
            self.on_cells(done, self.cells)


def check_engine(
    name: str,
    *,
    recompute: bool | None = None,
    stream: str = streams.IMAGE,
    sharded: bool = False,
    offload: str | None = None,
) -> None:
    """Refuse an engine that is none of ``ENGINES``, or cannot do what else is asked for.

    Raises:
        UsageError: naming those there are.
    """
    offloading.check(offload)
    if offload is not None and recompute is False:
        raise UsageError(
            f"with offload={offload!r} blocks are always run again in the backward: their weights "
            "would stay otherwise",
            hint="leave recompute out",
        )
    if sharded and offload is not None:
        raise UsageError(
            "a model is shared out over processes, or its weights are streamed, not both",
            hint="leave offload or shard out",
        )
    if stream not in streams.CHOICES:
        raise UsageError(
            f"there is no stream {quote(stream, 40)}", hint=f"one of {', '.join(streams.CHOICES)}"
        )
    asked = {
        "recompute": bool(recompute),
        f"stream {stream}": stream == streams.ALL,
        "offload": offload is not None,
    }
    wanted = next((what for what, true in asked.items() if true), None)
    if wanted and name != "hooks":
        raise UsageError(
            f"{wanted} is of hooks, and the engine is {name}", hint="leave the engine out"
        )
    if sharded and name != "hooks":
        raise UsageError(
            f"hooks alone measure a sharded model, and the engine is {name}",
            hint="leave the engine out",
        )
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}", hint=f"known: {', '.join(ENGINES)}")


def of_checkpoint(
    checkpoint: CheckpointOptions,
    grid: GridOptions,
    *,
    engine: str = "hooks",
    ranks: Ranks = ALONE,
) -> Task:
    """Load a checkpoint and return what ``api.analyze``, given the same options, measures.

    Args:
        checkpoint: the file, and what it may not tell.
        grid: samples and noise levels.
        engine: as for ``api.analyze``.
        ranks: the processes over which the model is shared out, where that is asked for.

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    # All that can be told without the file comes first: reading a large one takes a while.
    check_engine(
        engine, recompute=grid.recompute, stream=grid.stream, sharded=checkpoint.shard,
        offload=checkpoint.offload,
    )  # fmt: skip
    if checkpoint.shard and not ranks.in_step:
        raise UsageError("shard is for analyze and ablate, under torchrun", hint="leave it out")
    check_counts(samples=grid.samples, batch_size=grid.batch_size)
    levels = None if grid.noise_levels is None else parse_levels(grid.noise_levels)
    place = find_device(checkpoint.device)
    if checkpoint.offload == "cpu":
        offloading.check_cpu(place)
    find_dtype(checkpoint.dtype)
    data = rows_of.read(grid.data, grid.samples or ROWS)
    shape = tuple(data.latents.shape[1:]) if isinstance(data, Data) else None
    if checkpoint.shard:
        over = fsdp.mesh(place, ranks)
        with ranks.in_turn():  # each reads all of the file: together they would not fit
            loaded = load_checkpoint(checkpoint, shape=shape, seed=grid.seed)
            fsdp.share_out(loaded.model, over)
    else:
        loaded = load_checkpoint(checkpoint, shape=shape, seed=grid.seed)
        _bring(loaded, place, streamed=checkpoint.offload is not None)
    loaded = replace(
        loaded, name=checkpoint.name or display_name(checkpoint.path, checkpoint.adapter)
    )
    large = sum(p.numel() for p in loaded.model.parameters()) > LARGE
    small = place.type == "cpu" and large
    rows, assumed = rows_of.choose(
        loaded, data, asked=grid.samples, default=8 if small else ROWS, seed=grid.seed,
        ranks=ranks,
    )  # fmt: skip
    task = of_rows(
        loaded,
        rows,
        parse_levels(5 if small else 10) if levels is None else levels,
        grid,
        engine=engine,
        assumed=assumed,
        doubted=rows.name != OWN_SAMPLES,
    )
    again = replace(task.grid, recompute=grid.recompute)
    task = replace(task, grid=again, offload=checkpoint.offload)
    return task.fitting() if large and not checkpoint.shard else task


def _bring(loaded: Loaded, place: torch.device, *, streamed: bool) -> None:
    """Bring a model to its device, or of its blocks, where they are streamed, one at a time.

    Raises:
        ProbeError: there is no room.
    """
    model = loaded.model
    if streamed:
        memory_check.require(offloading.needed(model), place)
        own = dict(model.named_parameters(remove_duplicate=False))
        offloading.stream(model, own if loaded.weights is None else loaded.weights, place)
        return
    if place.type == "cuda":
        memory_check.require(sum(p.numel() * p.element_size() for p in model.parameters()), place)
    model.to(place)


def of_rows(
    loaded: Loaded,
    rows: Data,
    levels: np.ndarray,
    grid: GridOptions,
    *,
    engine: str = "hooks",
    assumed: Sequence[str] = (),
    doubted: bool = False,
) -> Task:
    """Return the task of a model on samples that are given.

    Args:
        loaded: the model, on its device, and what is known of it.
        rows: the samples.
        levels: wanted noise levels, rising.
        grid: batch size, random seed of the noise, and which stream.
        engine: as for ``api.analyze``.
        assumed: one sentence for each thing that was assumed about the samples.
        doubted: compare the objective with others, and warn in the manifest where one fits better.

    Raises:
        CheckpointError, ProbeError: the sites are not where they were named.
    """
    model, objective = loaded.model, loaded.objective
    seed, stream = grid.seed, grid.stream
    reached = torch.unique(objective.reached(torch.from_numpy(levels)))
    problem = Denoising(
        objective, rows, seed=seed, device=offloading.device_of(model), dtype=dtype_of(model),
        call=loaded.call,
    )  # fmt: skip
    with untouched(model):
        level = reached[len(reached) // 2].reshape(1)
        one = problem.batch(rows.ids[:1], level)
        subject = loaded.subject
        found: tuple[str, ...] = ()
        if subject is None:
            two = partial(problem.batch, rows.ids[:2], level.repeat(2))
            subject = _discover(loaded, one, two, second=stream != streams.IMAGE)
            subject = of_stream(subject, stream)
            found = subject.assumptions
        elif stream != streams.IMAGE:
            raise UsageError(
                f"of a {loaded.identified.family} one stream is known, that of the image",
                hint="leave --stream out",
            )
        found += prove(subject, *one, shown=quote(loaded.file["name"]))
        warnings: list[str] = []
        if loaded.subject is None:
            subject, warnings = with_derivatives_checked(
                subject, problem.batch, problem.loss, rows.ids[:1].tolist(), float(level)
            )
    cells = Grid(
        levels=tuple(reached.tolist()),
        ids=tuple(rows.ids.tolist()),
        batch_size=_batch_size(grid.batch_size, subject.facts),
    )
    warning = None
    if doubted:
        with untouched(model):
            warning = contradiction(model, problem, rows, seed=seed, rivals=loaded.rivals)
    task = Task(
        subject=subject,
        grid=cells,
        batch=problem.batch,
        loss=problem.loss,
        timestep=objective.model_time(reached).numpy().astype(np.float64),
        log_snr=objective.log_snr(reached).numpy(),
        engine=engine,
        manifest=provenance(
            subject,
            cells,
            data={"name": rows.name, "description": rows.description},
            checkpoint=loaded.file,
            config={
                "data_sha256": rows_of.digest(rows),
                "objective": objective.name,
                "conditions": loaded.conditions,
                **({} if stream == streams.IMAGE else {"stream": stream}),
            },
            seed=seed,
            assumptions=[*loaded.assumptions, *assumed, *found],
            warnings=[*rows.doubts, *warnings, *([warning] if warning else [])],
        ),
    )
    return task.called(loaded.name)


def of_stream(subject: Subject, stream: str) -> Subject:
    """Return a subject of what ``GridOptions.stream`` names; of two streams it has ``second``."""
    if subject.second is None:
        return subject
    own = {key: subject.second.facts[key] for key in ("depth", "width", "tokens")}
    second = replace(subject.second, family=subject.family, facts={**subject.facts, **own})
    if stream == streams.TEXT:
        return replace(second, direct=subject.direct)
    ahead = subject.second.facts["ahead"]
    return replace(subject, second=replace(second, facts={**second.facts, "ahead": ahead}))


def _discover(
    loaded: Loaded, inputs: Inputs, two: Callable[[], Inputs], *, second: bool = False
) -> Subject:
    """Find the sites of a model that no family's file describes, on the tokens of its samples."""
    asked = Asked(two=two, second=second)
    found = registry.find(loaded.model, *inputs, live_only=True, asked=asked)
    heads = loaded.identified.sizes.get("num_attention_heads")
    facts = {
        **found.facts,
        "family": loaded.identified.family,
        "heads": heads,
        "fresh": freshness(loaded.model, offloading.stored(loaded.model)),
    }
    return replace(found, family=loaded.identified.family, facts=facts)


def with_derivatives_checked(
    subject: Subject, batch: Batch, loss: Loss, ids: Sequence[int], level: float
) -> tuple[Subject, list[str]]:
    """Hold the gradients of a subject against the loss itself; the model must be ``untouched``.

    Returns:
        The subject, with the fact "blind" where its gradients, along either stream, are not those
        of the loss, and a warning that says why.
    """
    second = subject.second and replace(subject.second, direct=subject.direct)
    reason = subject.facts.get("blind") or wrong_derivative(subject, batch, loss, ids, level)
    if not reason and second is not None:
        reason = wrong_derivative(second, batch, loss, ids, level)
    if not reason:
        return subject, []
    blind = {"blind": reason}
    if subject.second is not None:
        both = replace(subject.second, facts={**subject.second.facts, **blind})
        subject = replace(subject, second=both)
    subject = replace(subject, facts={**subject.facts, **blind})
    return subject, [
        f"gradients of this model are not those of its loss: {reason}. States, cosines and the "
        "loss are right; gradients, gates and importance are left out."
    ]


def provenance(
    subject: Subject,
    grid: Grid,
    *,
    data: dict[str, str],
    assumptions: list[str],
    checkpoint: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    seed: int | None = None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the manifest of a task, see ``schema.MANIFEST``.

    The model is called as its checkpoint is; without one, as its class is.
    """
    name = checkpoint["name"] if checkpoint else class_of(subject.model).__name__
    dtype = str(dtype_of(subject.model)).removeprefix("torch.")
    return {
        "checkpoint": checkpoint,
        "model": {"name": name, "dtype": dtype, **_described(subject.facts)},
        "sites": describe(subject),
        "data": data,
        "config": {
            "data": data["name"],
            "noise_levels": list(grid.levels),
            "samples": len(grid.ids),
            "batch_size": grid.batch_size,
            **(config or {}),
        },
        "seed": seed,
        "device": str(offloading.device_of(subject.model)),
        "dtype": dtype,
        "assumptions": assumptions,
        "warnings": list(warnings),
    }


def _described(facts: dict[str, Any]) -> dict[str, Any]:
    """Add what pages call the routing, and what it does: they cannot ask the scheme itself."""
    scheme = scheme_of(str(facts.get("routing")))
    if scheme is None:  # none, or a family's own
        return facts
    return {"routing_title": scheme.title, "routing_about": scheme.about, **facts}


def _batch_size(wanted: int | None, facts: dict[str, Any]) -> int:
    if wanted is not None:
        return wanted
    # About 8 MB per state of the stream: large enough to be efficient, small enough for a laptop.
    return int(np.clip(2**21 // (facts["tokens"] * facts["width"]), 1, 64))
