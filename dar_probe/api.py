"""The Python face: build a model, analyse a checkpoint, audit a module."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dar_probe import dataset, store, subjects
from dar_probe.analysis import Analysis
from dar_probe.devices import find_device, find_dtype
from dar_probe.errors import UsageError
from dar_probe.loading import Loaded, load
from dar_probe.models.sit import SiT, SiTConfig
from dar_probe.output import OutputFolder, check_target
from dar_probe.probe import samples as rows_of
from dar_probe.probe.denoising import Denoising, contradiction
from dar_probe.probe.levels import parse_levels
from dar_probe.probe.recorder import untouched
from dar_probe.probe.run import Batch, Grid, Loss, walk
from dar_probe.subjects import Subject, sit

OnCells = Callable[[int, int], None]
Levels = int | str | Sequence[float]
LARGE = 100_000_000  # parameters above which a CPU gets a smaller default grid


def build(name: str, **changes: Any) -> SiT:
    """Return a freshly initialised model, e.g. ``build("SiT-XL/2", routing="dar")``.

    Args:
        name: "SiT-XL/2" and the like; sizes S, B, L, XL, patches 2, 4, 8.
        changes: fields of ``SiTConfig``.

    Raises:
        UsageError: no such model, routing or option.
    """
    try:
        config = SiTConfig.preset(name, **changes)
    except TypeError as error:
        raise UsageError(f"unknown model setting: {error}") from error
    return SiT(config)


def analyze(
    path: str | Path,
    *,
    data: str | None = None,
    noise_levels: Levels | None = None,
    samples: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    objective: str | None = None,
    heads: int | None = None,
    weights: str = "auto",
    out: str | Path | None = None,
    resume: bool = False,
    fail_on: str | None = None,
    on_cells: OnCells | None = None,
) -> Analysis:
    """Analyse a checkpoint: how information travels across its depth at every noise level.

    Args:
        path: a checkpoint of the bundled trainer, SiT, DiT or REPA.
        data: "digits", "images:DIR" or "latents:FILE"; left out: the digits' held-out rows where
            they fit the model, else the model's own samples.
        noise_levels: a count (evenly from 0.01 to 0.99) or the levels, 0 = data, 1 = noise; 10,
            or 5 for large models on a CPU.
        samples: the first rows of the data; 64, or 8 for large models on a CPU.
        batch_size: cells of the grid in one forward; changes no number beyond rounding.
        seed: of the noise, and of drawn samples.
        device: "auto", "cpu", "cuda", ...
        dtype: "float32", "float64" or "bfloat16".
        objective: "sit", "repa" or "dit" where the file cannot tell.
        heads: attention heads where the file cannot tell.
        weights: "auto" prefers the averaged weights, "ema" or "model" insists.
        out: where to write the files of the analysis; finished parts are kept for ``resume``.
        resume: continue an analysis into ``out`` that was cut off.
        fail_on: judgement instead of the default, e.g. "inflation > 8 or redundancy > 0.97".
        on_cells: told (finished, all) cells of the grid.

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    if out is not None:
        check_target(Path(out))
    loaded = load(path, weights=weights, heads=heads, objective_name=objective)
    loaded.model.to(find_device(device), find_dtype(dtype))
    task = _plan(loaded, data, noise_levels, samples, batch_size, seed)
    if out is None:
        return task.measure(fail_on=fail_on, on_cells=on_cells)
    if resume and (finished := _finished(Path(out), task.key, fail_on)):
        return finished
    with OutputFolder(Path(out), key=task.key, resume=resume) as output:
        analysis = task.measure(shards=output, fail_on=fail_on, on_cells=on_cells)
        output.publish(analysis.write)
    return analysis


def audit(
    module: nn.Module,
    *,
    batch: Batch,
    loss: Loss | None = None,
    noise_levels: Levels | None = None,
    samples: int = 8,
    batch_size: int = 8,
    fail_on: str | None = None,
    on_cells: OnCells | None = None,
) -> Analysis:
    """Audit any module with a pre-norm residual stack for PreNorm dilution.

    Args:
        module: afterwards bit for bit as it was.
        batch: batch(sample_ids (N,) int64, noise_level (N,) float64) -> (args, kwargs) for
            ``module``; a pure function of each (id, level).
        loss: loss(output, sample_ids, noise_level) -> (N,); left out: mean square of the output.
        noise_levels: 0 = data, 1 = noise; left out: the axis has length one and value 0.
        samples: sample ids are 0..samples - 1.
        batch_size: cells of the grid in one forward.
        fail_on: judgement instead of the default.
        on_cells: told (finished, all) cells of the grid.

    Raises:
        ProbeError: no pre-norm stack was found, or nothing could be measured.
        UsageError: an argument does not fit.
    """
    if samples < 1 or batch_size < 1:
        raise UsageError("samples and batch_size must be at least 1")
    levels = np.zeros(1) if noise_levels is None else parse_levels(noise_levels)
    with untouched(module):
        subject = subjects.find(module, *_first_inputs(module, batch, levels[:1]))
    grid = Grid(levels=tuple(levels.tolist()), ids=tuple(range(samples)), batch_size=batch_size)
    unknown = np.full(len(levels), np.nan)
    task = Task(
        subject=subject,
        grid=grid,
        batch=batch,
        loss=loss or mean_square,
        timestep=unknown,
        log_snr=unknown,
        manifest=_manifest(
            subject,
            grid,
            name=type(module).__name__,
            data={"name": "batch", "description": "inputs from the caller's batch function"},
            assumptions=[]
            if loss
            else ["no loss was given: the mean square of the output stands in"],
        ),
    )
    return task.measure(fail_on=fail_on, on_cells=on_cells)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that a walk needs, and what the dataset will say about it."""

    subject: Subject
    grid: Grid
    batch: Batch
    loss: Loss
    timestep: np.ndarray
    log_snr: np.ndarray
    manifest: dict[str, Any]

    @property
    def key(self) -> dict[str, Any]:
        """What the numbers depend on."""
        names = ("checkpoint", "model", "config", "seed", "device")
        return {name: self.manifest[name] for name in names}

    def measure(
        self,
        *,
        shards: OutputFolder | None = None,
        fail_on: str | None = None,
        on_cells: OnCells | None = None,
    ) -> Analysis:
        """Walk the grid and return the analysis."""
        cells = self.grid.cells
        arrays = walk(
            self.subject,
            self.grid,
            self.batch,
            self.loss,
            shards=shards,
            on_cells=on_cells and (lambda done: on_cells(done, cells)),
        )
        measured = dataset.assemble(
            arrays,
            self.subject,
            levels=np.array(self.grid.levels),
            ids=np.array(self.grid.ids),
            timestep=self.timestep,
            log_snr=self.log_snr,
            manifest=self.manifest,
        )
        return Analysis(measured, fail_on=fail_on)


def mean_square(output: Any, sample_ids: Tensor, noise_level: Tensor) -> Tensor:
    """Return the mean square (N,) of a module's output, or of its first tensor."""
    if not isinstance(output, Tensor):
        tensors = output.values() if isinstance(output, dict) else output
        output = next(value for value in tensors if isinstance(value, Tensor))
    return output.float().square().flatten(1).mean(1)  # type: ignore[no-any-return]


def _first_inputs(
    module: nn.Module, batch: Batch, level: np.ndarray
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs of sample 0, on which the module is known to run."""
    if next(module.parameters(), None) is None:
        raise UsageError("the module has no parameters")
    made = batch(torch.zeros(1, dtype=torch.int64), torch.from_numpy(level))
    kinds = tuple(map(type, made)) if isinstance(made, tuple) else ()
    if kinds != (tuple, dict):
        raise UsageError(
            f"the batch function returned a {type(made).__name__}, expected (args, kwargs)",
            hint="return (x,), {} for a module that is called as module(x)",
        )
    try:
        with torch.no_grad():
            module(*made[0], **made[1])
    except Exception as error:  # somebody else's code fails in any way it likes
        raise UsageError(
            f"the module does not run on its inputs: {type(error).__name__}: {error}",
            hint="check the batch function or --input",
        ) from error
    return made


def _plan(
    loaded: Loaded,
    data: str | None,
    noise_levels: Levels | None,
    samples: int | None,
    batch_size: int | None,
    seed: int,
) -> Task:
    model, objective = loaded.model, loaded.objective
    parameter = next(model.parameters())
    subject = sit.subject(model, family=loaded.identified.family)
    small = parameter.device.type == "cpu" and subject.facts["parameters"] > LARGE
    rows, assumed = rows_of.choose(
        loaded, data, asked=samples, default=8 if small else 64, seed=seed
    )
    default = 5 if small else 10
    wanted = parse_levels(default if noise_levels is None else noise_levels)
    reached = torch.from_numpy(wanted)
    reached = torch.unique(objective.reached(reached))
    problem = Denoising(objective, rows, seed=seed, device=parameter.device, dtype=parameter.dtype)
    grid = Grid(
        levels=tuple(reached.tolist()),
        ids=tuple(rows.ids.tolist()),
        batch_size=_batch_size(batch_size, subject.facts),
    )
    warning = None
    if rows.name != rows_of.OWN:
        with untouched(model):
            warning = contradiction(model, problem, rows, seed=seed)
    file = loaded.checkpoint
    return Task(
        subject=subject,
        grid=grid,
        batch=problem.batch,
        loss=problem.loss,
        timestep=objective.model_time(reached).numpy().astype(np.float64),
        log_snr=objective.log_snr(reached).numpy(),
        manifest=_manifest(
            subject,
            grid,
            name=file.path.name,
            data={"name": rows.name, "description": rows.description},
            checkpoint={
                "name": file.path.name,
                "sha256": file.sha256,
                "bytes": file.bytes,
                "weights": file.weights,
            },
            config={"data_sha256": rows_of.digest(rows), "objective": objective.name},
            seed=seed,
            assumptions=[*loaded.assumptions, *assumed],
            warnings=[warning] if warning else [],
        ),
    )


def _manifest(
    subject: Subject,
    grid: Grid,
    *,
    name: str,
    data: dict[str, str],
    assumptions: list[str],
    checkpoint: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    seed: int | None = None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    parameter = next(subject.model.parameters())
    dtype = str(parameter.dtype).removeprefix("torch.")
    return {
        "checkpoint": checkpoint,
        "model": {"name": name, "dtype": dtype, **subject.facts},
        "data": data,
        "config": {
            "data": data["name"],
            "noise_levels": list(grid.levels),
            "samples": len(grid.ids),
            "batch_size": grid.batch_size,
            **(config or {}),
        },
        "seed": seed,
        "device": str(parameter.device),
        "dtype": dtype,
        "assumptions": assumptions,
        "warnings": list(warnings),
    }


def _finished(out: Path, key: dict[str, Any], fail_on: str | None) -> Analysis | None:
    path = out / "analysis.nc"
    if not path.is_file():
        return None
    analysis = Analysis(store.read(path), fail_on=fail_on)
    same = all(analysis.manifest.get(name) == value for name, value in key.items())
    return analysis if same else None


def _batch_size(wanted: int | None, facts: dict[str, Any]) -> int:
    if wanted is not None:
        if wanted < 1:
            raise UsageError(f"batch size {wanted}; it takes at least 1")
        return wanted
    # About 8 MB per state of the stream: large enough to be efficient, small enough for a laptop.
    return int(np.clip(2**21 // (facts["tokens"] * facts["width"]), 1, 64))
