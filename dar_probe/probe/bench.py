"""What the diagnosis costs: probe against the bare pass of the same batch, in time and memory."""

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dar_probe.diffusion import objectives
from dar_probe.diffusion.data import Data
from dar_probe.diffusion.noise_levels import parse_levels
from dar_probe.errors import UsageError
from dar_probe.models import sit_family
from dar_probe.models.options import CheckpointOptions
from dar_probe.models.sit import SiT, SiTConfig
from dar_probe.probe import plan as tasks
from dar_probe.probe.denoising import Denoising
from dar_probe.probe.measure import Batch, Loss, measure
from dar_probe.probe.options import GridOptions
from dar_probe.probe.recorder import untouched
from dar_probe.runtime.checks import check_counts
from dar_probe.runtime.device import find_device, find_dtype
from dar_probe.runtime.torch_private import memory_events
from dar_probe.sites.autograd_entry import entering, entrance, with_grad
from dar_probe.sites.subject import Subject

WARM_UPS = 2
LEVELS = 64  # noise levels among which a checkpoint's batch is spread
MATRICES, VECTORS = 0.02, 0.2  # standard deviation of what starts at zero, once it is opened


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one of several functions costs.

    Attributes:
        seconds: median of one call.
        ratio: median of its seconds over those of the first function in the same round.
        low, high: quartiles of these ratios.
        peak_bytes: see ``peak_bytes``.
    """

    seconds: float
    ratio: float
    low: float
    high: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One mixed batch of a subject: N cells, each a sample at a noise level.

    Attributes:
        subject: a model whose first input is floating point, and its sites.
        batch, loss: as for ``dar_probe.api.audit``.
        ids: (N,) int64.
        levels: (N,) float64.
    """

    subject: Subject
    batch: Batch
    loss: Loss
    ids: Tensor
    levels: Tensor

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.subject.model.parameters()).device


@dataclass(frozen=True, kw_only=True, repr=False)
class Price:
    """The price of one batch of ``cells`` cells; ``step`` only where it was asked for."""

    cells: int
    floor: Timing
    probe: Timing
    step: Timing | None = None

    def __repr__(self) -> str:
        """Return the ratio with its quartiles, and the seconds of the batch."""
        one = self.probe
        return (
            f"<the diagnosis costs {one.ratio:.2f} of the bare pass (half of the rounds: "
            f"{one.low:.2f} to {one.high:.2f}), {one.seconds:.3g} s for a batch of {self.cells}>"
        )

    @property
    def memory_ratio(self) -> float:
        """Peak memory of the probe over that of the floor."""
        return self.probe.peak_bytes / self.floor.peak_bytes

    @property
    def step_ratio(self) -> float:
        """Seconds of the probe over those of an ordinary training pass."""
        assert self.step is not None
        return self.probe.ratio / self.step.ratio

    @property
    def samples_per_second(self) -> float:
        """Cells that the probe measures in a second."""
        return self.cells / self.probe.seconds


def bench(work: Workload, *, repeats: int = 10, with_step: bool = False) -> Price:
    """Time floor and probe of one batch, and the ordinary training pass if wanted.

    The model is afterwards as it was. Making the inputs is part of neither time.

    Raises:
        ProbeError: the batch cannot be measured.
        UsageError: ``repeats`` is below 1.
    """
    functions: dict[str, Callable[[], object]] = {}
    if with_step:
        functions["step"] = step(work)  # before the parameters are frozen
    with untouched(work.subject.model):
        functions = {"floor": floor(work), "probe": probe(work), **functions}
        timings = compare(functions, repeats=repeats, device=work.device)
    return Price(cells=len(work.ids), **timings)


def floor(work: Workload) -> Callable[[], object]:
    """Return the bare pass: forward, and backward to the input alone, without hooks.

    Where only the first block can be reached, the backward ends at what it reads. To be called
    under ``untouched``, like ``probe``.
    """
    args, kwargs = entering(*work.batch(work.ids, work.levels))
    block = work.subject.entrance

    def run_from_block() -> object:
        assert block is not None
        leaves: list[Tensor] = []

        def keep(module: nn.Module, read: tuple[Any, ...], named: dict[str, Any]) -> None:
            found = (*read, *named.values())
            leaves.extend(v for v in found if isinstance(v, Tensor) and v.requires_grad)

        with entrance(block):
            handle = block.register_forward_pre_hook(keep, with_kwargs=True)
            try:
                output = work.subject.model(*args, **kwargs)
            finally:
                handle.remove()
        losses = work.loss(output, work.ids, work.levels)
        return torch.autograd.grad(losses.sum(), leaves, allow_unused=True)

    def run() -> object:
        x = with_grad(args[0])
        output = work.subject.model(x, *args[1:], **kwargs)
        losses = work.loss(output, work.ids, work.levels)
        return torch.autograd.grad(losses.sum(), [x])

    return run if block is None else run_from_block


def probe(work: Workload) -> Callable[[], dict[str, np.ndarray]]:
    """Return the complete diagnosis of the batch: every variable, as arrays on the CPU."""
    inputs = work.batch(work.ids, work.levels)

    def run() -> dict[str, np.ndarray]:
        tensors = measure(work.subject, lambda *_: inputs, work.loss, work.ids, work.levels)
        return {name: value.cpu().numpy() for name, value in tensors.items()}

    return run


def step(work: Workload) -> Callable[[], object]:
    """Return an ordinary training pass: forward, and backward to every trained parameter."""
    trained = [p for p in work.subject.model.parameters() if p.requires_grad]
    args, kwargs = work.batch(work.ids, work.levels)

    def run() -> object:
        frozen = [p for p in trained if not p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            output = work.subject.model(*args, **kwargs)
            losses = work.loss(output, work.ids, work.levels)
            return torch.autograd.grad(losses.sum(), trained, allow_unused=True)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)

    return run


def compare(
    functions: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, Timing]:
    """Time functions in interleaved rounds, then measure the peak memory of each.

    Every second round runs in reverse order, so that what one function leaves behind (caches,
    clock rates) meets all the others alike.

    Raises:
        UsageError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise UsageError(f"{repeats} repeats; it takes at least 1")
    names = list(functions)
    for function in functions.values():
        for _ in range(WARM_UPS):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(repeats):
        for name in reversed(names) if round_ % 2 else names:
            seconds[name].append(_seconds(functions[name], device))
    first = seconds[names[0]]
    found = {}
    for name in names:
        ratios = [own / base for own, base in zip(seconds[name], first, strict=True)]
        low, middle, high = _quartiles(ratios)
        found[name] = Timing(
            seconds=statistics.median(seconds[name]),
            ratio=middle,
            low=low,
            high=high,
            peak_bytes=peak_bytes(functions[name], device),
        )
    return found


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Return the high water of tensor bytes while ``function`` runs, over what was there before.

    Weights and inputs that exist already do not count; numpy's own memory does not either.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with (
        _silent_kineto(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        function()
    return max(0, *accumulate(memory_events(profiler), initial=0))


@contextmanager
def _silent_kineto() -> Iterator[None]:
    """Keep the profiler's library from announcing itself on stderr at its first use."""
    asked = "KINETO_LOG_LEVEL" in os.environ
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    try:
        yield
    finally:
        if not asked:
            del os.environ["KINETO_LOG_LEVEL"]


def of_checkpoint(checkpoint: CheckpointOptions, *, batch_size: int | None = None) -> Workload:
    """Return a batch of a checkpoint, as large as ``analyze`` would make it by default.

    Where the model's own samples are needed, one is drawn and probed at N noise levels: which
    samples they are changes no price, and drawing N would cost more than all the timing.

    Raises:
        CheckpointError, ProbeError, UsageError: as ``analyze``.
    """
    grid = GridOptions(noise_levels=LEVELS, samples=1, batch_size=batch_size)
    task = tasks.of_checkpoint(checkpoint, grid)
    n, levels = task.grid.batch_size, torch.tensor(task.grid.levels, dtype=torch.float64)
    return Workload(
        subject=task.subject, batch=task.batch, loss=task.loss,
        ids=torch.tensor(task.grid.ids).expand(n), levels=levels[torch.arange(n) % len(levels)],
    )  # fmt: skip


def of_preset(
    name: str, *, batch_size: int = 8, device: str = "auto", dtype: str = "float32"
) -> Workload:
    """Return a batch of random samples for a random model such as "SiT-B/2".

    Raises:
        UsageError: no preset has this name, or another argument does not fit.
    """
    config = SiTConfig.preset(name)
    return random_workload(
        config,
        cells=batch_size,
        objective_name=name.partition("-")[0].lower(),
        device=find_device(device),
        dtype=find_dtype(dtype),
    )


def random_workload(
    config: SiTConfig,
    *,
    cells: int,
    objective_name: str = "sit",
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Workload:
    """Return ``cells`` random samples, each at its own noise level, for a random model.

    Raises:
        UsageError: the config makes no model, or there is less than one cell.
    """
    check_counts(batch_size=cells)
    device = torch.device(device)
    model = random_model(config, seed=seed).to(device, dtype)
    subject = sit_family.subject(model)
    spread = torch.from_numpy(parse_levels(min(cells, LEVELS)))
    levels = objectives.get(objective_name).reached(spread[torch.arange(cells) % len(spread)])
    generator = torch.Generator().manual_seed(seed)
    shape = (cells, config.in_channels, config.input_size, config.input_size)
    data = Data(
        name="random",
        description="normal noise",
        latents=torch.randn(shape, generator=generator),
        labels=torch.arange(cells) % config.num_classes,
        ids=torch.arange(cells),
    )
    problem = Denoising(objectives.get(objective_name), data, seed=seed, device=device, dtype=dtype)
    return Workload(
        subject=subject, batch=problem.batch, loss=problem.loss, ids=data.ids,
        levels=levels,
    )  # fmt: skip


def random_model(config: SiTConfig, *, seed: int = 0) -> SiT:
    """Return an untrained model with every gate open: where a fresh one is zero, it has noise.

    A fresh SiT writes exactly zero everywhere: nothing would be left to measure.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SiT(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=MATRICES if parameter.ndim > 1 else VECTORS)
    return model.eval()


def machine(device: torch.device) -> dict[str, str | int]:
    """Return what numbers depend on: the name of CPU or GPU, torch's threads, its version."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    return {
        "device": str(device),
        "name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _cpu() -> str:
    with suppress(OSError):  # elsewhere than on Linux
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
