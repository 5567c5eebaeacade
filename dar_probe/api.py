"""The Python face: build a model, analyse a checkpoint, intervene in it, audit a module."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

import dar_probe.accessor  # noqa: F401  it registers ds.dar
from dar_probe.analysis import Analysis
from dar_probe.diffusion.evaluation import OnSamples, Quality
from dar_probe.errors import UsageError
from dar_probe.models import quality
from dar_probe.models.options import CheckpointOptions, SamplingOptions
from dar_probe.models.sit import SiT, SiTConfig
from dar_probe.probe import analyses
from dar_probe.probe.measure import Batch, Loss
from dar_probe.probe.options import (
    GridOptions,
    InterventionOptions,
    Levels,
    ModuleOptions,
    OutputOptions,
    sort,
)
from dar_probe.probe.plan import OnCells
from dar_probe.results.fail_rule import parse_rule
from dar_probe.training import audit as audits
from dar_probe.training.finetune import FinetuneOptions, OnStep


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
    path: str | Path | Sequence[str | Path],
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
    family: str | None = None,
    text: str | Path | None = None,
    engine: str = "hooks",
    out: str | Path | None = None,
    resume: bool = False,
    fail_on: str | None = None,
    figures: bool = True,
    on_cells: OnCells | None = None,
) -> Analysis:
    """Analyse a checkpoint: how information travels across its depth at every noise level.

    Under torchrun the ranks share the work, and each of them returns the whole analysis.

    Args:
        path: a checkpoint file of a known family, or a folder of diffusers; or several
            checkpoints of one training run, which give one trajectory over the training steps.
        data: "digits", "images:DIR" or "latents:FILE". Default: the digits' held-out rows where
            they fit the model, else samples that the model draws.
        noise_levels: a count (evenly from 0.01 to 0.99), or the levels themselves, 0 = data and
            1 = noise. Default: 10, or 5 for large models on a CPU.
        samples: how many, the first rows of the data. Default: 64, or 8 for large models on a CPU.
        batch_size: cells of the grid (pairs of sample and noise level) in one forward; halved
            where memory runs out. It changes no number beyond rounding. Default: by the size of
            the model.
        seed: random seed for noise and samples.
        device: "auto", "cpu", "cuda", ...
        dtype: "float32", "float64" or "bfloat16".
        objective: what the model was trained on, where the file cannot tell: "sit", "repa",
            "dit", "uvit", "vp", or "ddpm:SCHEDULE:PREDICTION" such as "ddpm:cosine:v".
        heads: number of attention heads, where the file cannot tell.
        weights: "auto" prefers the averaged weights; "ema" or "model" insists.
        family: name of the checkpoint's family, where the names of its weights mislead; or
            "package.module:FAMILY" for one of your own.
        text: a .safetensors or .npz file of conditions for a model of diffusers, named like its
            inputs. Default: conditions are drawn at random.
        engine: "hooks" or "nnsight"; both give the same numbers, bit for bit.
        out: folder for the files of the analysis. Default: none are written.
        resume: continue an analysis into ``out`` that was cut off.
        fail_on: a rule in place of the default judgement, e.g. "inflation > 8 or
            redundancy > 0.97".
        figures: also write the printed figures to ``out``; they take most of the writing.
        on_cells: called with (done, total) after each batch of cells of the grid.

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    checkpoints = [
        CheckpointOptions(
            path=one, weights=weights, family=family, objective=objective, heads=heads,
            device=device, dtype=dtype, text=text,
        )
        for one in paths
    ]  # fmt: skip
    grid = GridOptions(
        noise_levels=noise_levels, samples=samples, batch_size=batch_size, seed=seed, data=data
    )
    output = OutputOptions(out=out, resume=resume, figures=figures, fail_on=fail_on)
    return analyses.analyze(checkpoints, grid, output, engine=engine, on_cells=on_cells)


def ablate(
    path: str | Path,
    *,
    kinds: Iterable[str] | None = None,
    pairs: int = 32,
    gates: Iterable[tuple[int, int]] = (),
    frozen_at: float | None = None,
    noise_levels: Levels = 5,
    samples: int = 16,
    engine: str = "hooks",
    out: str | Path | None = None,
    resume: bool = False,
    figures: bool = True,
    on_cells: OnCells | None = None,
    **settings: Any,
) -> Analysis:
    """Analyse a checkpoint, and beside it set chosen gates to zero for real.

    Every intervention is one more forward of the whole grid. The dataset has ``gate_ablated``,
    ``gate_linear``, ``linearisation_error`` and ``rank_correlation`` on top of ``analyze``'s.

    Args:
        path: a checkpoint.
        kinds: some of "gate" (single sources for one reader), "source" (one source for all
            readers), "block" (whole blocks skipped), "uniform" and "frozen" (a router's weights
            replaced). Default: all that the model has.
        pairs: how many single gates, half of them the largest, half drawn at random.
        gates: (reader from 1, source from 0) pairs on top of them.
        frozen_at: noise level whose weights frozen routers take; the nearest one of the grid.
            Default: the middle one.
        noise_levels: as for ``analyze``.
        samples: as for ``analyze``.
        engine: as for ``analyze``.
        out: as for ``analyze``.
        resume: as for ``analyze``.
        figures: as for ``analyze``.
        on_cells: called with (done, total) after each batch of cells, first of the analysis and
            then of the interventions.
        settings: data, batch_size, seed, device, dtype, objective, heads, weights, family and
            text of ``analyze``.

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    checkpoint, grid = sort(path, {"noise_levels": noise_levels, "samples": samples, **settings})
    wanted = InterventionOptions(
        kinds=None if kinds is None else tuple(kinds),
        pairs=pairs,
        gates=tuple(gates),
        frozen_at=frozen_at,
    )
    output = OutputOptions(out=out, resume=resume, figures=figures)
    return analyses.ablate(checkpoint, grid, wanted, output, engine=engine, on_cells=on_cells)


def evaluate(
    path: str | Path,
    *,
    data: str = "digits",
    space: str = "digits",
    samples: int = 1000,
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "auto",
    on_samples: OnSamples | None = None,
    **settings: Any,
) -> Quality:
    """Draw samples from a checkpoint, once per seed, and measure how far they are from real ones.

    Args:
        path: a checkpoint, or a .npz of images as ``dar-probe sample`` and the ADM suite's writers
            make them.
        data: the real samples: "digits", "images:DIR" or "latents:FILE"; their training rows are
            the reference.
        space: of the features: "digits", or a local folder of an image model of transformers.
        samples: drawn per seed; Fréchet distances compare only between equal numbers.
        seeds: random seeds of the samples; intervals are over them.
        device: where the model and the features run.
        on_samples: called with (drawn, all) samples.
        settings: solver, steps, guidance, batch_size and vae of
            ``dar_probe.models.options.SamplingOptions``; dtype, weights, objective, heads and
            family of ``analyze``.

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    drawing = {field.name for field in fields(SamplingOptions)}
    checkpoint = {name: value for name, value in settings.items() if name not in drawing}
    return quality.evaluate(
        CheckpointOptions(path=path, device=device, **checkpoint),
        SamplingOptions(**{name: settings[name] for name in settings if name in drawing}),
        quality.QualityOptions(data=data, space=space, samples=samples, seeds=seeds),
        on_samples=on_samples,
    )


def audit(
    module: nn.Module,
    *,
    batch: Batch | None = None,
    loss: Loss | None = None,
    noise_levels: Levels | None = None,
    samples: int = 8,
    batch_size: int = 8,
    blocks: str | None = None,
    readers: str | None = None,
    train_steps: int = 0,
    lr: float = 1e-3,
    seed: int = 0,
    fail_on: str | None = None,
    on_cells: OnCells | None = None,
    on_step: OnStep | None = None,
) -> Analysis:
    """Audit any module with a pre-norm residual stack for PreNorm dilution.

    With ``train_steps`` a copy of the module is trained on ``batch`` and ``loss``, with samples
    that the audit does not use, and the analysis is that of the copy; its ``before`` is the
    analysis of the module as it came.

    Args:
        module: any torch module. torch.compile, DataParallel and DistributedDataParallel are taken
            off. It is left bit for bit as it was.
        batch: batch(sample_ids (N,) int64, noise_level (N,) float64) -> (args, kwargs) for
            ``module``; a pure function of each (id, level). Default: random inputs by the config
            of a class of transformers or diffusers.
        loss: loss(output, sample_ids, noise_level) -> (N,). Default: a causal language model's own
            next-token loss, a diffusers transformer's denoising loss; else the mean square of the
            output, less a random target where the output ends in a norm.
        noise_levels: 0 = data, 1 = noise. Default: the axis has length one and value 0.
        samples: how many; their ids are 0 to samples - 1.
        batch_size: cells of the grid (pairs of sample and noise level) in one forward, halved
            where memory runs out; also the samples in one step of training.
        blocks: patterns of the names of blocks, e.g. "encoder.layers.*". Default: they are found.
        readers: patterns of the names of the modules that read the stream. Default: they are found.
        train_steps: train a copy for so many steps of AdamW, and judge the copy; see
            ``dar_probe.training.finetune``.
        lr: learning rate of the training; wide models want less than the default.
        seed: random seed of the training.
        fail_on: a rule in place of the default judgement.
        on_cells: called with (done, total) after each batch of cells of the grid.
        on_step: called with (step, steps, loss) after each step of the training.

    Raises:
        ProbeError: no pre-norm stack was found, or nothing could be measured.
        UsageError: an argument does not fit.
    """
    training = None
    if train_steps:
        training = FinetuneOptions(steps=train_steps, lr=lr, batch_size=batch_size, seed=seed)
    return audits.audit(
        module,
        ModuleOptions(batch=batch, loss=loss, blocks=blocks, readers=readers),
        GridOptions(noise_levels=noise_levels, samples=samples, batch_size=batch_size),
        training,
        rule=None if fail_on is None else parse_rule(fail_on),
        on_cells=on_cells,
        on_step=on_step,
    )
