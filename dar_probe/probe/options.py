"""What a user asks of a measurement: its grid, a module's inputs, interventions, its files.

Needs no torch, so that the command line can make these before anything heavy is imported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dar_probe.models.options import CheckpointOptions

if TYPE_CHECKING:
    from dar_probe.probe.measure import Batch, Loss

Levels = float | str | Sequence[float]


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """Which samples are measured, at which noise levels.

    Attributes:
        noise_levels: a count (evenly from 0.01 to 0.99), or the levels themselves, 0 = data and
            1 = noise. None: 10, or 5 for large models on a CPU; for a module without a clock of
            its own the one level 0.
        samples: how many, the first rows of the data. None: 64, or 8 for large models on a CPU
            and for modules.
        batch_size: cells of the grid (pairs of sample and level) in one forward; halved where
            memory runs out. None: by the size of the model; 8 for modules.
        seed: random seed for noise and for samples that the model draws.
        data: "digits", "images:DIR" or "latents:PATH". None: the digits where they fit the model,
            else the model's own samples. A module has its data from its batch function.
        recompute: keep no inner tensor of a block, but make it again in the backward: less memory
            for one more forward, the same numbers. None: once memory has run out.
        stream: of a joint model, whose text is a stream of its own: "image" (the one that the
            output comes from), "text", or "all" for both in the same forwards.
    """

    noise_levels: Levels | None = None
    samples: int | None = None
    batch_size: int | None = None
    seed: int = 0
    data: str | None = None
    recompute: bool | None = None
    stream: str = "image"


@dataclass(frozen=True, kw_only=True)
class ModuleOptions:
    """How a module that nobody described is run, and where its stream is read.

    Attributes:
        batch: (sample ids (N,), noise level (N,)) -> (args, kwargs), a pure function of each pair.
            None: from the module's config, where its library is known.
        loss: (output, sample ids, noise level) -> (N,). None: the module's own, or a stand-in.
        blocks: patterns of the names of blocks, e.g. "encoder.layers.*". None: they are found.
        readers: patterns of the names of what reads the stream. None: they are found.
        layout: the axes of the states between blocks, e.g. "T N D". None: they are found.
        name: what figures and tables call the module. None: the name of its class.
        offload: "cpu": the module stays in host memory and runs on a GPU, where the weights of
            each block come as it runs. None: it runs where it is.
    """

    batch: "Batch | None" = None
    loss: "Loss | None" = None
    blocks: str | None = None
    readers: str | None = None
    layout: str | None = None
    name: str | None = None
    offload: str | None = None

    @property
    def asked(self) -> tuple[str | bool | None, ...]:
        """What is asked for, as plain data."""
        own = self.batch is not None, self.loss is not None
        return (*own, self.blocks, self.readers, self.layout, self.name)


@dataclass(frozen=True, kw_only=True)
class InterventionOptions:
    """Which gates are set to zero for real.

    Attributes:
        kinds: some of ``dar_probe.probe.ablation.KINDS``. None: all that the model has.
        pairs: how many single gates, half of them the largest, half drawn at random.
        gates: (reader from 1, source from 0) pairs on top of them.
        frozen_at: the noise level (the nearest one of the grid) whose weights frozen routers
            take. None: the middle one.
    """

    kinds: tuple[str, ...] | None = None
    pairs: int = 32
    gates: tuple[tuple[int, int], ...] = ()
    frozen_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where the files of an analysis go, and how it is judged.

    Attributes:
        out: the folder. None: nothing is written.
        resume: continue an analysis into ``out`` that was cut off.
        figures: also write the printed figures, ``figures/*.png`` and ``*.pdf``.
        report: also write the page, report.html.
        formats: of the figures, some of "png", "pdf" and "svg"; None: PNG, and PDF of some.
        fail_on: a rule in place of the default judgement, e.g. "inflation > 8".
        overwrite: replace what ``out`` holds, also the analysis of another checkpoint.
    """

    out: str | Path | None = None
    resume: bool = False
    figures: bool = True
    report: bool = True
    formats: tuple[str, ...] | None = None
    fail_on: str | None = None
    overwrite: bool = False


def sort(path: str | Path, settings: Mapping[str, Any]) -> tuple[CheckpointOptions, GridOptions]:
    """Return the objects that flat keywords belong to.

    Raises:
        TypeError: a keyword belongs to neither.
    """
    names = {field.name for field in fields(CheckpointOptions)} - {"path"}
    own = {name: value for name, value in settings.items() if name in names}
    rest = {name: value for name, value in settings.items() if name not in names}
    return CheckpointOptions(path=path, **own), GridOptions(**rest)
