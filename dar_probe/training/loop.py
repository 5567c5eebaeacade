"""The bundled trainer: one resumable loop, bit for bit the same however often it is killed."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dar_probe.adapt.warm_start import Original, objective_settings, original
from dar_probe.diffusion import data as datasets
from dar_probe.errors import CheckpointError, ProbeError, UsageError
from dar_probe.models.sit import SiT
from dar_probe.runtime.ranks import ALONE, Ranks, alive, joined
from dar_probe.runtime.version import __version__
from dar_probe.training import ema, monitoring, repa
from dar_probe.training import tensorboard as board
from dar_probe.training.config import TrainConfig
from dar_probe.training.run_folder import RunFolder

VALIDATION_LEVELS = tuple(np.linspace(0.05, 0.95, 10).round(2).tolist())
COLUMNS = ("step", "loss", "lr", "grad_norm", "val_loss", *(f"val_{s}" for s in VALIDATION_LEVELS))

# A run may get more steps than it was started with, and another diagnosis.
FREE = ("steps", "probe_every", "probe_samples", "probe_levels")


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
    tensorboard: bool = False,
    on_start: Callable[[dict[str, Any]], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Path:
    """Train a model and return the path of its last checkpoint.

    ``on_start`` is told what the run started from: nothing, or name, sha256, weights and
    ``distance``, the RMS difference of the outputs on held-out samples over their RMS.
    ``on_notice`` is called with a sentence for each thing that was done to the data.

    Writes out/metrics.csv and out/checkpoints/step-0000000.pt, each with ``model``, ``ema``,
    ``opt``, ``step`` and ``args`` as plain data; ``tensorboard`` adds scalars in out/tensorboard.
    Batch k is a function of (seed, k), so a run that was killed and resumed ends with the same bits
    as one that was not. ``probe_every`` adds out/trajectory.nc, the analyses of the average, and
    changes nothing else.

    Raises:
        UsageError: ``out`` holds another run, or anything while ``resume`` is off; or the package
            tensorboard is wanted and missing.
        ProbeError: the loss is not finite.
    """
    if tensorboard:
        board.check()
    with joined() as ranks, ExitStack() as open_files:
        run = Run(config, out, device=device, ranks=ranks)
        with run.folder.held() if ranks.leads else nullcontext():
            start = run.restore() if resume else run.start()
            if tensorboard and ranks.leads and start < config.steps:
                run.board = board.Board(run.folder.board, start)
                open_files.callback(run.board.close)
            if on_start:
                on_start(run.origin)
            for sentence in run.notices:
                if on_notice:
                    on_notice(sentence)
            probe = monitoring.begin(run, start)
            began = time.monotonic()
            for step in range(start + 1, config.steps + 1):
                loss = run.step(step)
                last = step == config.steps
                if ranks.leads:
                    run.record(step, validated=last or step % config.validate_every == 0)
                    probe(step)  # before the checkpoint: whoever continues from that has both
                    if last or step % config.checkpoint_every == 0:
                        run.save(step)
                if on_step:
                    seconds = time.monotonic() - began
                    on_step(Progress(step=step, steps=config.steps, loss=loss, seconds=seconds))
            ranks.gather(None)  # the last checkpoint is written when any process returns
    return run.folder.checkpoint(config.steps)


class Run:
    """The state of one training run: model, average, optimiser, data and folder.

    The leader alone has the folder and keeps the average.
    """

    def __init__(
        self, config: TrainConfig, out: Path, *, device: str, ranks: Ranks = ALONE
    ) -> None:
        self.config, self.ranks = config, ranks
        self.folder = RunFolder(out, (*COLUMNS, *(["repa_loss"] if config.repa_depth else [])))
        parts = ranks.world * config.accumulate
        if config.batch_size < parts:
            raise UsageError(
                f"a batch of {config.batch_size} cannot be shared by {ranks.world} processes "
                f"in {config.accumulate} parts each",
                hint="raise --batch-size, or start fewer processes",
            )
        self.device = torch.device(device)
        everything = datasets.load_data(config.data)
        self.notices = [*everything.changes, *everything.doubts]
        if not everything.labelled:
            self.notices.append(
                f"{config.data} has no labels: every sample is of one class, so that neither "
                "classes nor guidance mean anything"
            )
        channels, size, *other = everything.latents.shape[1:]
        if other != [size]:
            raise UsageError(f"{config.data} has samples that are not square, (C, H, H)")
        self.encoder: repa.Encoder | None = None
        projectors: tuple[int, ...] = ()
        if config.repa_depth:
            self.encoder = repa.encoder(config.repa_encoder, self.device)
            projectors = (repa.width(self.encoder, everything.latents[:1].to(self.device)),)
        self.model_config = config.model(
            projectors=projectors,
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
        self.probed = held_out.first(min(config.probe_samples, len(held_out)))
        self.objective = config.flow()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = SiT(self.model_config).to(self.device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.shared: nn.Module = self.model
        if ranks.world > 1:
            place = [self.device] if self.device.type == "cuda" else None
            self.shared = DistributedDataParallel(self.model, device_ids=place)
        self.predict: Callable[..., Tensor] = (
            torch.compile(self.shared) if config.compile else self.shared
        )
        self.optimiser = torch.optim.AdamW(
            _groups(self.model, config.routing_lr),
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.board: board.Board | None = None
        self.row: dict[str, float] = {}
        self.aligned = 0.0  # REPA's term of the last batch
        self.origin: dict[str, Any] = {}

    def start(self) -> int:
        """Begin in an empty folder."""
        if self.config.init_from:
            self._start_from(original(self.config.init_from))
        if self.ranks.leads:
            self.folder.begin()
        return 0

    def _start_from(self, found: Original) -> None:
        if found.objective != self.objective.name:
            theirs = objective_settings(found.objective)
            raise UsageError(
                f"{found.name!r} has the objective {found.objective}, "
                f"this run {self.objective.name}",
                hint=f"add {' '.join(f'--{name} {value}' for name, value in theirs.items())}",
            )
        found.give(self.model)
        self.average.load_state_dict(self.model.state_dict())
        self.origin = {
            "name": found.name,
            "sha256": found.sha256,
            "weights": found.weights,
            "distance": self._distance(found.model.to(self.device)),
        }

    @torch.no_grad()
    def _distance(self, other: nn.Module) -> float:
        """Return the RMS difference from ``other``'s outputs over their RMS, held out."""
        squares = torch.zeros(2, dtype=torch.float64)
        for x, noise, s, y in self._held_out_levels():
            inputs = self.objective.interpolate(x, noise, s), self.objective.model_time(s), y
            theirs = other(*inputs).double()
            difference = self.model(*inputs).double() - theirs
            squares += torch.stack([difference.square().sum(), theirs.square().sum()]).cpu()
        return float((squares[0] / squares[1]).sqrt())

    def restore(self) -> int:
        """Continue from the newest checkpoint, or begin where there is none."""
        step: int | None = self.ranks.from_leader(
            self.folder.newest() if self.ranks.leads else None
        )
        if step is None:
            return self.start()
        state = self.folder.load(step)
        self._check_settings(state["args"]["train"], step)
        try:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["ema"])
            self.optimiser.load_state_dict(state["opt"])
        except Exception as error:  # somebody has changed the file
            raise CheckpointError(
                f"{str(self.folder.checkpoint(step))!r} does not fit its own settings",
                hint="remove it to continue from the checkpoint before",
            ) from error
        self.origin = state["args"].get("init_from", {})
        if self.ranks.leads:
            self.folder.rewind(step)
        return step

    def _check_settings(self, stored: dict[str, Any], step: int) -> None:
        """Refuse a run with other settings; what changes no weights may be otherwise."""
        # A setting that an earlier version did not have is at its default.
        then, now = {**TrainConfig().to_dict(), **stored}, self.config.to_dict()
        other = [name for name in now if name not in FREE and then.get(name) != now[name]]
        if self.config.steps < step:
            other.append("steps")
        if other:
            name = other[0]
            raise UsageError(
                f"{str(self.folder.path)!r} holds a run with other settings: "
                f"{name} is {then.get(name)!r} there and {now[name]!r} here",
                hint="resume with the settings it was started with, or choose another --out",
            )

    def step(self, step: int) -> float:
        """Do optimiser step ``step`` and return the loss of its batch."""
        config = self.config
        lr = config.lr * min(1.0, step / max(1, config.warmup))
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group.get("factor", 1.0)
        self.optimiser.zero_grad(set_to_none=True)
        with alive():
            value = self._backward(step)
        if not np.isfinite(value + self.aligned):
            raise ProbeError(f"the loss is {value} at step {step}", hint="try a lower --lr")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or float("inf"))
        self.optimiser.step()
        if self.ranks.leads:
            ema.update(self.average, self.model, step=step, decay=config.ema)
        self.row = {"step": step, "loss": value, "lr": lr, "grad_norm": float(norm)}
        if self.encoder:
            self.row["repa_loss"] = self.aligned
        return value

    def _backward(self, step: int) -> float:
        """Add the gradient of the batch's mean loss, in parts; return that loss."""
        config, world = self.config, self.ranks.world
        value = torch.zeros(2, dtype=torch.float64)  # denoising, alignment
        parts = self.parts(step)
        for part in parts:
            with self._waits() if part is not parts[-1] else nullcontext():
                tokens = self.encoder(part[0]) if self.encoder else None
                with torch.autocast(
                    self.device.type, torch.bfloat16, enabled=config.autocast == "bf16"
                ):
                    losses, aligned = self._training_losses(tokens, *part)
                loss, extra = (each.sum() / config.batch_size for each in (losses, aligned))
                total = loss + config.repa_weight * extra if self.encoder else loss
                (total * world).backward()  # type: ignore[no-untyped-call]  # DDP takes the mean
            value += torch.stack([loss.detach(), extra.detach()]).cpu()
        if self.encoder:
            self.aligned = self.ranks.sum(float(value[1]))
        return self.ranks.sum(float(value[0]))

    def _training_losses(
        self, tokens: Tensor | None, x: Tensor, noise: Tensor, s: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss (N,) of every sample, and REPA's term (N,), zero without ``tokens``."""
        if tokens is None:
            losses = self.losses(self.predict, x, noise, s, y)
            return losses, torch.zeros_like(losses)
        found: list[Tensor] = []

        def predict(*inputs: Tensor) -> Tensor:
            both: Any = self.predict(*inputs, project_after=self.config.repa_depth)
            found.append(both[1])
            return both[0]  # type: ignore[no-any-return]

        losses = self.losses(predict, x, noise, s, y)
        return losses, repa.misalignment(found[0], tokens)

    def _waits(self) -> AbstractContextManager[None]:
        """Keep gradients in this process; they cross the network with a step's last part."""
        shared = self.shared
        return shared.no_sync() if isinstance(shared, DistributedDataParallel) else nullcontext()

    def parts(self, step: int) -> list[tuple[Tensor, ...]]:
        """Return this process's parts of step ``step``: data, noise, noise levels, labels each.

        Rows of the whole batch are dealt out in turn, so every part has some.
        """
        world, accumulate = self.ranks.world, self.config.accumulate
        x, noise, s, y = self.batch(step)
        return [
            tuple(t[at :: world * accumulate].to(self.device) for t in (x, noise, s, y))
            for at in range(self.ranks.rank, world * accumulate, world)
        ]

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return data, noise (N, C, h, w), noise levels (N,) and labels (N,) of step ``step``."""
        rng = np.random.default_rng([self.config.seed, step])
        size = self.config.batch_size
        rows = torch.from_numpy(rng.integers(0, len(self.data), size))
        x, y = self.data.latents[rows], self.data.labels[rows]
        noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
        s = self._levels(torch.from_numpy(rng.random(size, dtype=np.float32)))
        dropped = torch.from_numpy(rng.random(size) < self.config.label_dropout)
        return x, noise, s, torch.where(dropped, self.model_config.num_classes, y)

    def _levels(self, uniform: Tensor) -> Tensor:
        """Turn uniform numbers (N,) into noise levels: one draw for each, whatever their law."""
        s, config = uniform, self.config
        if config.time_sampling == "logit-normal":
            normal = torch.special.ndtri(uniform.double())
            s = torch.sigmoid(config.time_mean + config.time_std * normal).to(uniform.dtype)
        return self.objective.reached(s)

    def losses(
        self, predict: Callable[..., Tensor], x: Tensor, noise: Tensor, s: Tensor, y: Tensor
    ) -> Tensor:
        """Return the loss (N,) of every sample."""
        prediction = predict(
            self.objective.interpolate(x, noise, s), self.objective.model_time(s), y
        )
        return self.objective.loss(prediction, x, noise, s)

    def record(self, step: int, *, validated: bool) -> None:
        """Write the row of ``step``, with the average's validation loss where it is due."""
        row = {**self.row, **(self.validation() if validated else {})}
        self.folder.add(row)
        if self.board:
            self.board.add(row)

    @torch.no_grad()
    def validation(self) -> dict[str, float]:
        """Return the average's loss at ten levels, on held-out samples with fixed noise."""
        losses = [
            float(self.losses(self.average, *batch).mean()) for batch in self._held_out_levels()
        ]
        by_level = {f"val_{s}": loss for s, loss in zip(VALIDATION_LEVELS, losses, strict=True)}
        return {"val_loss": float(np.mean(losses)), **by_level}

    def _held_out_levels(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield all held-out samples at one validation level after the other, as ``batch`` does."""
        held = self.held_out
        x, y = held.latents.to(self.device), held.labels.to(self.device)
        noise = datasets.noise(held.ids, x.shape[1:], seed=self.config.seed).to(self.device)
        for level in VALIDATION_LEVELS:
            yield x, noise, torch.full((len(held),), level, device=self.device), y

    def save(self, step: int) -> None:
        """Write the checkpoint of ``step``, in the official layout."""
        if self.board:
            self.board.flush()
        state = {
            "model": self.model.state_dict(),
            "ema": self.average.state_dict(),
            "opt": self.optimiser.state_dict(),
            "step": step,
            "args": {
                **checkpoint_args(self.config, self.model_config.to_dict()),
                **({"init_from": self.origin} if self.origin else {}),
            },
        }
        self.folder.save(step, state)


def _groups(model: nn.Module, factor: float) -> list[dict[str, Any]]:
    """Return the optimiser's groups; the routing has one of its own where its rate differs."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if factor == 1:
        return [{"params": trained}]
    own = {id(p) for p in model.get_submodule("stream").parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if id(p) not in own]},
        {"params": [p for p in trained if id(p) in own], "factor": factor},
    ]
    return [group for group in groups if group["params"]]


def checkpoint_args(config: TrainConfig, model: dict[str, Any]) -> dict[str, Any]:
    """Return the ``args`` of a checkpoint: plain data that names format, model and training."""
    return {
        "format": "dar-probe",
        "version": __version__,
        **model,
        "projectors": list(model["projectors"]),
        "objective": config.flow().name,
        "data": config.data,
        "train": config.to_dict(),
    }
