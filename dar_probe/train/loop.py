"""The bundled trainer: one resumable loop, bit for bit the same however often it is killed."""

import copy
import csv
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dar_probe import __version__, files, objective
from dar_probe.errors import CheckpointError, ProbeError, UsageError
from dar_probe.models.sit import SiT
from dar_probe.train import data as datasets
from dar_probe.train import ema
from dar_probe.train.config import TrainConfig

VALIDATION_LEVELS = tuple(np.linspace(0.05, 0.95, 10).round(2).tolist())
COLUMNS = ("step", "loss", "lr", "grad_norm", "val_loss", *(f"val_{s}" for s in VALIDATION_LEVELS))


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a caller is told after every step."""

    step: int
    steps: int
    loss: float
    seconds: float


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    on_step: Callable[[Progress], None] | None = None,
) -> Path:
    """Train a model and return the path of its last checkpoint.

    Writes out/metrics.csv and out/checkpoints/step-0000000.pt, each with ``model``, ``ema``,
    ``opt``, ``step`` and ``args`` as plain data. Batch k is a function of (seed, k), so a run
    that was killed and resumed ends with the same bits as one that was not.

    Raises:
        UsageError: ``out`` holds another run, or anything while ``resume`` is off.
        ProbeError: the loss is not finite.
    """
    run = Run(config, out, device=device)
    start = run.restore() if resume else run.start()
    began = time.monotonic()
    for step in range(start + 1, config.steps + 1):
        loss = run.step(step)
        last = step == config.steps
        if last or step % config.validate_every == 0:
            run.validate(step)
        if last or step % config.checkpoint_every == 0:
            run.save(step)
        if on_step:
            seconds = time.monotonic() - began
            on_step(Progress(step=step, steps=config.steps, loss=loss, seconds=seconds))
    return run.checkpoint_path(config.steps)


class Run:
    """The state of one training run: model, average, optimiser, data and files."""

    def __init__(self, config: TrainConfig, out: Path, *, device: str) -> None:
        self.config, self.out = config, out
        self.device = torch.device(device)
        everything = datasets.load(config.data)
        channels, size, *other = everything.latents.shape[1:]
        if other != [size]:
            raise UsageError(f"{config.data} has samples that are not square, (C, H, H)")
        self.model_config = config.model(
            in_channels=channels,
            input_size=size,
            num_classes=int(everything.labels.max()) + 1,
        )
        self.data = everything.split("train")
        held_out = everything.split("held-out")
        if not len(self.data) or not len(held_out):
            raise UsageError(
                f"{config.data} is too small to train on", hint="a seventh of the rows is held out"
            )
        self.held_out = held_out.first(min(config.validation_samples, len(held_out)))
        self.objective = objective.get(config.objective)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = SiT(self.model_config).to(self.device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.predict: Callable[..., Tensor] = (
            torch.compile(self.model) if config.compile else self.model
        )
        self.optimiser = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.row: dict[str, float] = {}

    def start(self) -> int:
        """Begin in an empty or missing folder."""
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UsageError(
                f"{str(self.out)!r} is not empty",
                hint="add --resume to continue it, or choose another --out",
            )
        try:
            (self.out / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{str(self.out)!r} cannot be written: {error.strerror}",
                hint="choose another folder with --out",
            ) from error
        with self.metrics.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(COLUMNS)
        return 0

    def restore(self) -> int:
        """Continue from the newest checkpoint, or begin where there is none."""
        for partial in (self.out / "checkpoints").glob(".*.tmp"):
            partial.unlink()  # a run was killed while it wrote
        found = sorted((self.out / "checkpoints").glob("step-" + "[0-9]" * 7 + ".pt"))
        if not found:
            self._clear()
            return self.start()
        try:
            state = torch.load(found[-1], map_location="cpu", weights_only=True)
            self._check_settings(state["args"]["train"], state["step"])
        except UsageError:
            raise
        except Exception as error:  # torch has no common error for damaged files
            raise CheckpointError(
                f"{str(found[-1])!r} cannot be read",
                hint="remove it to continue from the checkpoint before",
            ) from error
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["opt"])
        step: int = state["step"]
        if not self.metrics.is_file():
            raise CheckpointError(f"{str(self.metrics)!r} is missing, the run cannot be continued")
        self._truncate_metrics(step)
        return step

    def _check_settings(self, stored: dict[str, Any], step: int) -> None:
        """Refuse a run with other settings; more steps than it was started with are welcome."""
        then, now = stored, self.config.to_dict()
        other = [name for name in now if name != "steps" and then.get(name) != now[name]]
        if self.config.steps < step:
            other.append("steps")
        if other:
            name = other[0]
            raise UsageError(
                f"{str(self.out)!r} holds a run with other settings: {name} is {then.get(name)!r} "
                f"there and {now[name]!r} here",
                hint="resume with the settings it was started with, or choose another --out",
            )

    def _clear(self) -> None:
        """Remove what a run that was killed before its first checkpoint left."""
        entries = {path.name for path in self.out.iterdir()} if self.out.is_dir() else set()
        if entries and entries <= {"checkpoints", "metrics.csv"}:
            self.metrics.unlink(missing_ok=True)
            (self.out / "checkpoints").rmdir()

    def step(self, step: int) -> float:
        """Do optimiser step ``step`` and return its loss."""
        config = self.config
        lr = config.lr * min(1.0, step / max(1, config.warmup))
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        x, noise, s, y = self.batch(step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.autocast == "bf16"):
            losses = self.losses(self.predict, x, noise, s, y)
        loss = losses.mean()
        value = float(loss.detach())
        if not np.isfinite(value):
            raise ProbeError(f"the loss is {value} at step {step}", hint="try a lower --lr")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or float("inf"))
        self.optimiser.step()
        ema.update(self.average, self.model, step=step, decay=config.ema)
        self.row = {"step": step, "loss": value, "lr": lr, "grad_norm": float(norm)}
        if step % config.validate_every and step != config.steps:
            self._write_row()
        return value

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return data, noise (N, C, h, w), noise levels (N,) and labels (N,) of step ``step``."""
        rng = np.random.default_rng([self.config.seed, step])
        size = self.config.batch_size
        rows = torch.from_numpy(rng.integers(0, len(self.data), size))
        x, y = self.data.latents[rows], self.data.labels[rows]
        noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
        s = torch.from_numpy(rng.random(size, dtype=np.float32))
        dropped = torch.from_numpy(rng.random(size) < self.config.label_dropout)
        y = torch.where(dropped, self.model_config.num_classes, y)
        return (
            x.to(self.device),
            noise.to(self.device),
            s.to(self.device),
            y.to(self.device),
        )

    def losses(
        self, predict: Callable[..., Tensor], x: Tensor, noise: Tensor, s: Tensor, y: Tensor
    ) -> Tensor:
        """Return the loss (N,) of every sample."""
        prediction = predict(
            self.objective.interpolate(x, noise, s), self.objective.model_time(s), y
        )
        return objective.per_sample_loss(prediction.float(), self.objective.target(x, noise, s))

    @torch.no_grad()
    def validate(self, step: int) -> None:
        """Add the average's loss at ten levels, on held-out samples with fixed noise."""
        held = self.held_out
        x, y = held.latents.to(self.device), held.labels.to(self.device)
        noise = datasets.noise(held.ids, x.shape[1:], seed=self.config.seed).to(self.device)
        for level in VALIDATION_LEVELS:
            s = torch.full((len(held),), level, device=self.device)
            loss = self.losses(self.average, x, noise, s, y)
            self.row[f"val_{level}"] = float(loss.mean())
        self.row["val_loss"] = float(np.mean([self.row[f"val_{s}"] for s in VALIDATION_LEVELS]))
        self._write_row()

    def save(self, step: int) -> None:
        """Write the checkpoint of ``step`` atomically, in the official layout."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.average.state_dict(),
            "opt": self.optimiser.state_dict(),
            "step": step,
            "args": self.args(),
        }
        files.write_atomically(self.checkpoint_path(step), lambda path: torch.save(state, path))

    def checkpoint_path(self, step: int) -> Path:
        """Return out/checkpoints/step-0000000.pt."""
        return self.out / "checkpoints" / f"step-{step:07d}.pt"

    def args(self) -> dict[str, Any]:
        """Return all settings as plain data."""
        return checkpoint_args(self.config, self.model_config.to_dict())

    @property
    def metrics(self) -> Path:
        """The table of losses."""
        return self.out / "metrics.csv"

    def _write_row(self) -> None:
        with self.metrics.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([self.row.get(name, "") for name in COLUMNS])

    def _truncate_metrics(self, step: int) -> None:
        with self.metrics.open(newline="", encoding="utf-8") as file:
            header, *rows = [*csv.reader(file)] or [list(COLUMNS)]
        # A killed run may have written rows, the last one perhaps half, after its checkpoint.
        kept = [r for r in rows if len(r) == len(header) and r[0].isdecimal() and int(r[0]) <= step]

        def write(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([header, *kept])
                file.flush()
                os.fsync(file.fileno())

        files.write_atomically(self.metrics, write)


def checkpoint_args(config: TrainConfig, model: dict[str, Any]) -> dict[str, Any]:
    """Return the ``args`` of a checkpoint: plain data that names format, model and training."""
    return {
        "format": "dar-probe",
        "version": __version__,
        **model,
        "projectors": list(model["projectors"]),
        "objective": config.objective,
        "data": config.data,
        "train": config.to_dict(),
    }
