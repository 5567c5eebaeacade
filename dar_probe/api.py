"""The Python face: one function for each command, with flat keywords."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

import dar_probe.accessor  # noqa: F401  it registers ds.dar
from dar_probe.analysis import Analysis
from dar_probe.diffusion import generation
from dar_probe.diffusion.data import Data
from dar_probe.diffusion.evaluation import OnSamples, Quality
from dar_probe.errors import UsageError
from dar_probe.files.analysis_folder import OutputFolder, check_target
from dar_probe.files.text import quote
from dar_probe.models import quality
from dar_probe.models.generator import load_generator
from dar_probe.models.inspection import Survey, survey
from dar_probe.models.options import CheckpointOptions, SamplingOptions
from dar_probe.models.sit import SiT, SiTConfig
from dar_probe.probe import analyses
from dar_probe.probe import bench as pricing
from dar_probe.probe.bench import Price
from dar_probe.probe.estimate import Foreseen
from dar_probe.probe.measure import Batch, Loss
from dar_probe.probe.options import (
    GridOptions,
    InterventionOptions,
    Levels,
    ModuleOptions,
    OutputOptions,
)
from dar_probe.probe.placing import placed
from dar_probe.probe.plan import OnCells
from dar_probe.probe.self_test import Checkup, checkup
from dar_probe.results.fail_rule import parse_rule
from dar_probe.runtime.checks import check_counts
from dar_probe.runtime.device import find_device
from dar_probe.training import audit as audits
from dar_probe.training import loop
from dar_probe.training.finetune import FinetuneOptions, OnStep
from dar_probe.training.gathering import gather


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
        raise UsageError(f"unknown model setting: {error}") from None
    return SiT(config)


def analyze(
    model: str | Path | nn.Module | Sequence[str | Path],
    *,
    batch: Batch | None = None,
    loss: Loss | None = None,
    blocks: str | None = None,
    readers: str | None = None,
    layout: str | None = None,
    name: str | None = None,
    data: str | None = None,
    noise_levels: Levels | None = None,
    samples: int | None = None,
    batch_size: int | None = None,
    recompute: bool | None = None,
    stream: str = "image",
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    objective: str | None = None,
    heads: int | None = None,
    weights: str | None = None,
    family: str | None = None,
    text: str | Path | None = None,
    adapter: str | Path | None = None,
    shard: bool = False,
    offload: str | None = None,
    engine: str = "hooks",
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    fail_on: str | None = None,
    figures: bool = True,
    report: bool = True,
    formats: Sequence[str] | None = None,
    on_cells: OnCells | None = None,
) -> Analysis:
    """Analyse a model: how information travels across its depth at every noise level.

    Under torchrun the ranks share the work on checkpoints, and each of them returns the whole
    analysis. A module is analysed by the process that asks for it; one that is sharded over
    processes, by FSDP2 or tensor parallelism, must be asked for by all of them.

    Args:
        model: a checkpoint file of a known family, or a folder of diffusers; several checkpoints
            of one training run, which give one trajectory over the training steps; or a module.
        batch: of a module, as for ``audit``.
        loss: of a module, as for ``audit``.
        blocks: of a module, as for ``audit``.
        readers: of a module, as for ``audit``.
        layout: of a module, as for ``audit``.
        name: what figures and tables call the model. Default: the checkpoint's file and, where
            that tells nothing but a step, its run; of a module the name of its class.
        data: "digits", "images:DIR" or "latents:PATH". Default: the digits' held-out rows where
            they fit the model, else samples that the model draws.
        noise_levels: a count (evenly from 0.01 to 0.99), or the levels themselves, 0 = data and
            1 = noise. Default: 10, or 5 for large models on a CPU.
        samples: how many, the first rows of the data. Default: 64, or 8 for large models on a CPU.
        batch_size: cells of the grid (pairs of sample and noise level) in one forward; halved
            where memory runs out. It changes no number beyond rounding. Default: by the size of
            the model.
        recompute: keep no inner tensor of a block, and make them again in the backward: less
            memory for one more forward, the same numbers bit for bit. Default: once memory has run
            out, before a batch is halved.
        stream: of a joint model, such as SD3 and Flux, whose text is a stream of its own: "image",
            "text", or "all" for both in the same forwards; then the dataset has a dim ``stream``.
        seed: random seed for noise and samples.
        device: "auto", "cpu", "cuda", ... Default: "auto". A module stays where it is.
        dtype: "float32", "float64", "bfloat16" or "float16". Default: "float32". A module stays
            what it is.
        objective: what the model was trained on, where the file cannot tell: "sit", "repa",
            "rae", "dit", "uvit", "vp", "edm", "jit", "meanflow", or "ddpm:SCHEDULE:PREDICTION"
            such as "ddpm:cosine:v".
        heads: number of attention heads, where the file cannot tell.
        weights: "auto" prefers the averaged weights; "ema" or "model" insists. Default: "auto".
        family: name of the checkpoint's family, where the names of its weights mislead; or
            "package.module:FAMILY" for one of your own.
        text: a .safetensors or .npz file of conditions, named like the inputs of a model of
            diffusers, or y and mask of Open-Sora. Default: drawn at random; of Open-Sora no text.
        adapter: a LoRA adapter that is merged into the model in memory by peft: the folder or the
            .safetensors file that peft or diffusers saved. Default: none.
        shard: under torchrun, share the checkpoint's parameters out over the ranks by FSDP2, so
            that none holds the whole model: the same numbers, measured by all of them together.
        offload: where the weights of blocks stay until their block runs, forward and again in the
            backward: "disk", in the files of a folder of diffusers, so that a model larger than
            memory is analysed; or "cpu", in host memory while the model runs on a GPU, for
            checkpoints and modules. The same numbers bit for bit; it takes accelerate. Default:
            all weights lie where the model runs.
        engine: "hooks" or "nnsight"; both give the same numbers, bit for bit.
        out: folder for the files of the analysis. Default: none are written.
        resume: continue an analysis into ``out`` that was cut off.
        overwrite: replace the analysis of another checkpoint in ``out``.
        fail_on: a rule in place of the default judgement, e.g. "inflation > 8 or
            redundancy > 0.97".
        figures: also write the printed figures to ``out``; they take most of the writing.
        report: also write the page, report.html, to ``out``.
        formats: of the figures, some of "png", "pdf" and "svg". Default: PNG, and of the paper's
            figures PDF as well.
        on_cells: called with (done, total) after each batch of cells of the grid.

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    grid = GridOptions(
        noise_levels=noise_levels,
        samples=samples,
        batch_size=batch_size,
        recompute=recompute,
        stream=stream,
        seed=seed,
        data=data,
    )
    output = OutputOptions(
        out=out, resume=resume, overwrite=overwrite, figures=figures, report=report,
        formats=None if formats is None else tuple(formats), fail_on=fail_on,
    )  # fmt: skip
    of_module = {
        "batch": batch, "loss": loss, "blocks": blocks, "readers": readers, "layout": layout,
    }  # fmt: skip
    of_file = {
        "device": device, "dtype": dtype, "objective": objective, "heads": heads,
        "weights": weights, "family": family, "text": text, "adapter": adapter,
        "shard": shard or None,
    }  # fmt: skip
    if isinstance(model, nn.Module):
        options = replace(_module_options(of_module, of_file, name), offload=offload)
        return analyses.analyze_module(
            model, options, grid, output, engine=engine, on_cells=on_cells
        )
    paths = [model] if isinstance(model, str | Path) else _paths(model)
    checkpoints = [
        replace(_checkpoint(path, of_module, of_file, name), offload=offload) for path in paths
    ]
    return analyses.analyze(checkpoints, grid, output, engine=engine, on_cells=on_cells)


def ablate(
    model: str | Path | nn.Module,
    *,
    kinds: Iterable[str] | None = None,
    pairs: int = 32,
    gates: Iterable[tuple[int, int]] = (),
    frozen_at: float | None = None,
    noise_levels: Levels = 5,
    samples: int = 16,
    offload: str | None = None,
    engine: str = "hooks",
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    figures: bool = True,
    report: bool = True,
    formats: Sequence[str] | None = None,
    on_cells: OnCells | None = None,
    **settings: Any,
) -> Analysis:
    """Analyse a checkpoint or a module, and beside it set chosen gates to zero for real.

    Every intervention is one more forward of the whole grid. The dataset has ``gate_ablated``,
    ``gate_linear``, ``linearisation_error`` and ``rank_correlation`` on top of ``analyze``'s.

    Args:
        model: a checkpoint or a module.
        kinds: some of "gate" (single sources for one reader), "source" (one source for all
            readers), "block" (whole blocks skipped), "uniform" and "frozen" (a router's weights
            replaced). Default: all that the model has.
        pairs: how many single gates, half of them the largest, half drawn at random.
        gates: (reader from 1, source from 0) pairs on top of them.
        frozen_at: noise level whose weights frozen routers take; the nearest one of the grid.
            Default: the middle one.
        noise_levels: as for ``analyze``.
        samples: as for ``analyze``.
        offload: as for ``analyze``.
        engine: as for ``analyze``.
        out: as for ``analyze``.
        resume: as for ``analyze``.
        overwrite: as for ``analyze``.
        figures: as for ``analyze``.
        report: as for ``analyze``.
        formats: as for ``analyze``.
        on_cells: called with (done, total) after each batch of cells, first of the analysis and
            then of the interventions.
        settings: name, batch_size, recompute, stream, and of a checkpoint data, seed, device,
            dtype, objective, heads, weights, family, text, adapter and shard of ``analyze``; of a
            module
            batch, loss, blocks, readers and layout of ``audit``.

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    wanted = InterventionOptions(
        kinds=None if kinds is None else (kinds,) if isinstance(kinds, str) else tuple(kinds),
        pairs=pairs,
        gates=tuple(gates),
        frozen_at=frozen_at,
    )
    output = OutputOptions(
        out=out, resume=resume, overwrite=overwrite, figures=figures, report=report,
        formats=None if formats is None else tuple(formats),
    )  # fmt: skip
    settings = {"noise_levels": noise_levels, "samples": samples, **settings}
    of_module = {key: settings.pop(key, None) for key in OF_MODULES}
    name = settings.pop("name", None)
    of_grid = {key: settings.pop(key) for key in OF_GRIDS if key in settings}
    _refuse_unknown("ablate", settings, (*OF_FILES, "shard"))
    grid = GridOptions(**of_grid)
    if isinstance(model, nn.Module):
        options = replace(_module_options(of_module, settings, name), offload=offload)
        return analyses.analyze_module(
            model, options, grid, output, wanted, engine=engine, on_cells=on_cells
        )
    checkpoint = replace(_checkpoint(model, of_module, settings, name), offload=offload)
    return analyses.ablate(checkpoint, grid, wanted, output, engine=engine, on_cells=on_cells)


def train(
    out: str | Path,
    *,
    config: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    tensorboard: bool = False,
    on_step: Callable[[loop.Progress], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
    **settings: Any,
) -> Path:
    """Train a model on the digits, images or latents, and return its last checkpoint.

    Args:
        out: folder of the run: metrics.csv and checkpoints/step-0000000.pt.
        config: a TOML file of settings; keywords win over it.
        resume: continue a run that was cut off.
        device: "auto", "cpu", "cuda", ...
        tensorboard: also write scalars to out/tensorboard.
        on_step: called with the progress (step, steps, loss) after each step.
        on_notice: called with a sentence for each thing that was done to the data.
        settings: fields of ``dar_probe.training.config.TrainConfig``, such as routing, depth,
            width, steps, batch_size, lr, seed and data.

    Example:
        >>> dp.train("runs/dar", routing="dar", query="static+t", steps=2000)

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    wanted = gather(settings, config)
    place = str(find_device(device))
    return loop.train(
        wanted, Path(out), resume=resume, device=place, tensorboard=tensorboard,
        on_step=on_step, on_notice=on_notice,
    )  # fmt: skip


def sample(
    path: str | Path,
    *,
    samples: int = 100,
    classes: Sequence[int] = (),
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    on_samples: Callable[[int], None] | None = None,
    **settings: Any,
) -> Data:
    """Draw samples from a checkpoint; sample i is a function of the seed, i and its label.

    Args:
        path: a checkpoint that takes class labels.
        samples: how many.
        classes: labels, taken in turn. Default: all that the model knows.
        seed: random seed.
        device: "auto", "cpu", "cuda", ...
        out: folder for samples.npz and samples.png. Default: none are written.
        on_samples: called with the number of samples drawn so far.
        settings: solver, steps, guidance, batch_size and vae of
            ``dar_probe.models.options.SamplingOptions``; dtype, weights, objective, heads and
            family of ``analyze``.

    Returns:
        The samples: ``latents`` (N, C, h, w) and ``labels`` (N,).

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    check_counts(samples=samples)
    if out is not None:
        check_target(Path(out), "sheet")
    made = load_generator(*_drawing("sample", path, device, settings))
    drawn = made.draw(made.labels(samples, classes), seed=seed, on_samples=on_samples)
    if out is not None:
        with OutputFolder(Path(out), kind="sheet") as folder:
            folder.publish(lambda fresh: generation.save(drawn, fresh))
    return drawn


def inspect(path: str | Path, **settings: Any) -> Survey:
    """Return what a checkpoint is, without reading its weights.

    Args:
        path: a checkpoint.
        settings: heads, family, weights and objective of ``analyze``.

    Raises:
        CheckpointError, UsageError: see ``dar_probe.errors``.
    """
    _refuse_unknown("inspect", settings, OF_FILES)
    return survey(CheckpointOptions(path=path, **settings))


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
        data: the real samples: "digits", "images:DIR" or "latents:PATH"; their training rows are
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
    return quality.evaluate(
        *_drawing("evaluate", path, device, settings),
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
    recompute: bool | None = None,
    stream: str = "image",
    blocks: str | None = None,
    readers: str | None = None,
    layout: str | None = None,
    train_steps: int = 0,
    lr: float = 1e-3,
    seed: int = 0,
    fail_on: str | None = None,
    name: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    on_cells: OnCells | None = None,
    on_step: OnStep | None = None,
) -> Analysis:
    """Judge any module with a pre-norm residual stack for PreNorm dilution.

    ``analyze`` measures the same; this one trains a copy first, where that is asked for.

    With ``train_steps`` a copy of the module is trained on ``batch`` and ``loss``, with samples
    that the audit does not use, and the analysis is that of the copy; its ``before`` is the
    analysis of the module as it came.

    Args:
        module: any torch module. torch.compile, DataParallel and DistributedDataParallel are taken
            off. One that is sharded by FSDP2 or tensor parallelism is audited by all its processes,
            each with the same arguments. It is left bit for bit as it was.
        batch: batch(sample_ids (N,) int64, noise_level (N,)) -> (args, kwargs) for ``module``; a
            pure function of each (id, level). Levels have the type of the module's weights and lie
            beside them. Default: random inputs by the config of a class of transformers or
            diffusers.
        loss: loss(output, sample_ids, noise_level) -> (N,). Default: a causal language model's own
            next-token loss, a diffusers transformer's denoising loss; else the mean square of the
            output, less a random target where the output ends in a norm.
        noise_levels: 0 = data, 1 = noise. Default: the axis has length one and value 0.
        samples: how many; their ids are 0 to samples - 1.
        batch_size: cells of the grid (pairs of sample and noise level) in one forward, halved
            where memory runs out; also the samples in one step of training.
        recompute: as for ``analyze``.
        stream: as for ``analyze``.
        blocks: patterns of the names of blocks, e.g. "encoder.layers.*". Default: they are found.
        readers: patterns of the names of the modules that read the stream. Default: they are found.
        layout: the axes of the states between blocks: N samples, D features, all others tokens,
            such as "T N D", "N D H W" or "(N T) D". Default: samples are found by a forward of two,
            features by what the norms read, else on the last axis.
        train_steps: train a copy for so many steps of AdamW, and judge the copy; see
            ``dar_probe.training.finetune``.
        lr: learning rate of the training; wide models want less than the default.
        seed: random seed of the training.
        fail_on: a rule in place of the default judgement.
        name: what figures and tables call the module. Default: the name of its class.
        device: such as "cuda": a copy of the module is measured there; inputs and outputs are
            moved for ``batch`` and ``loss``. Default: where the module is.
        dtype: such as "bf16", in the same way. Default: the module's own.
        on_cells: called with (done, total) after each batch of cells of the grid.
        on_step: called with (step, steps, loss) after each step of the training.

    Raises:
        ProbeError: no pre-norm stack was found, or nothing could be measured.
        UsageError: an argument does not fit.
    """
    training = None
    if train_steps:
        training = FinetuneOptions(steps=train_steps, lr=lr, batch_size=batch_size, seed=seed)
    options = ModuleOptions(
        batch=batch, loss=loss, blocks=blocks, readers=readers, layout=layout, name=name
    )
    if device is not None or dtype is not None:
        module, options = placed(module, options, device=device, dtype=dtype, copied=True)
    return audits.audit(
        module,
        options,
        GridOptions(
            noise_levels=noise_levels,
            samples=samples,
            batch_size=batch_size,
            recompute=recompute,
            stream=stream,
        ),  # fmt: skip
        training,
        rule=None if fail_on is None else parse_rule(fail_on),
        on_cells=on_cells,
        on_step=on_step,
    )


def estimate(model: str | Path, *, engine: str = "hooks", **settings: Any) -> Foreseen:
    """Say what ``analyze`` will need, from one measured block.

    The model is loaded for it; with ``offload="disk"`` one block at a time.

    Args:
        model: a checkpoint.
        engine: as for ``analyze``.
        settings: of ``analyze``: what of the checkpoint and of its grid is asked for.

    Returns:
        Cells, seconds, and bytes of memory and disk, beside what the machine has; ``sentence`` says
        whether it fits.

    Example:
        >>> dp.estimate("fixtures/digits-residual.pt", samples=64).sentence

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    of_grid = {key: settings.pop(key) for key in OF_GRIDS if key in settings}
    _refuse_unknown("estimate", settings, (*OF_FILES, "offload"))
    return analyses.estimate(
        CheckpointOptions(path=model, **settings), GridOptions(**of_grid), engine=engine
    )


def bench(
    model: str | Path,
    *,
    batch_size: int | None = None,
    repeats: int = 10,
    device: str = "auto",
    dtype: str = "float32",
    **settings: Any,
) -> Price:
    """Time the diagnosis against the bare forward and backward of the same batch.

    Args:
        model: a checkpoint, or a name such as "SiT-B/2" for a random model of that size.
        batch_size: cells of the batch. Default: as ``analyze`` would have it, 8 of a name.
        repeats: rounds; each times both passes.
        device: "auto", "cpu", "cuda", ...
        dtype: of the model, such as "bf16".
        settings: heads, family, weights, objective and text of ``analyze``.

    Returns:
        Seconds and peak memory of both, and their ratios: ``found.probe.ratio`` is the median.

    Example:
        >>> dp.bench("fixtures/digits-residual.pt", repeats=3)

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    _refuse_unknown("bench", settings, OF_FILES)
    if not isinstance(model, str | Path):
        raise UsageError(
            f"bench takes a checkpoint or a name, not an object of type {type(model).__name__}",
            hint='e.g. dp.bench("SiT-B/2"); of a module of your own, time dp.audit(module)',
        )
    if re.fullmatch(r"(SiT|DiT)-\w+/\d+", str(model)) and not Path(model).exists():
        if settings:
            raise UsageError(
                f"{next(iter(settings))} belongs to checkpoints, and {model} is a random model"
            )
        work = pricing.of_preset(str(model), batch_size=batch_size or 8, device=device, dtype=dtype)
    else:
        wanted = CheckpointOptions(path=model, device=device, dtype=dtype, **settings)
        work = pricing.of_checkpoint(wanted, batch_size=batch_size)
    return pricing.bench(work, repeats=repeats)


def doctor(device: str = "auto") -> Checkup:
    """Return versions, devices, memory and disk, and what came of a short self-test.

    Args:
        device: where the self-test runs: "auto", "cpu", "cuda", ...

    Example:
        >>> dp.doctor().passed

    Raises:
        UsageError: there is no such device.
    """
    return checkup(device)


OWN = ("path", "name", "shard", "offload")  # of analyze and ablate, by keywords of their own
OF_FILES = tuple(f.name for f in fields(CheckpointOptions) if f.name not in OWN)
OF_MODULES = tuple(f.name for f in fields(ModuleOptions) if f.name not in OWN)
OF_GRIDS = tuple(f.name for f in fields(GridOptions))
OF_DRAWING = tuple(f.name for f in fields(SamplingOptions))


def _paths(models: Any) -> list[str | Path]:
    """Return several checkpoints.

    Raises:
        UsageError: it is neither paths nor a module.
    """
    found = list(models) if isinstance(models, Iterable) else [models]
    for one in found:
        if not isinstance(one, str | Path):
            raise UsageError(
                f"cannot analyse an object of type {type(one).__name__}",
                hint="give a checkpoint's path, several of one run, or a torch module",
            )
    return found


def _module_options(
    of_module: dict[str, Any], of_file: dict[str, Any], name: str | None
) -> ModuleOptions:
    if foreign := [key for key, value in of_file.items() if value is not None]:
        raise UsageError(
            f"{foreign[0]} belongs to checkpoints, and this is a module",
            hint="a module is measured as it is: move or convert it first, e.g. module.to('cuda')",
        )
    return ModuleOptions(**of_module, name=name)


def _checkpoint(
    path: str | Path, of_module: dict[str, Any], of_file: dict[str, Any], name: str | None
) -> CheckpointOptions:
    if foreign := [key for key, value in of_module.items() if value is not None]:
        raise UsageError(
            f"{foreign[0]} belongs to modules, and {quote(path)} is a checkpoint",
            hint="samples of a checkpoint come from data, its sites from its family",
        )
    given = {key: value for key, value in of_file.items() if value is not None}
    return CheckpointOptions(path=path, name=name, **given)


def _drawing(
    function: str, path: str | Path, device: str, settings: dict[str, Any]
) -> tuple[CheckpointOptions, SamplingOptions]:
    """Sort the settings of a function that draws samples."""
    _refuse_unknown(function, settings, (*OF_FILES, *OF_DRAWING))
    drawing = {key: settings[key] for key in OF_DRAWING if key in settings}
    own = {key: settings[key] for key in OF_FILES if key in settings}
    return CheckpointOptions(path=path, device=device, **own), SamplingOptions(**drawing)


def _refuse_unknown(function: str, settings: dict[str, Any], known: Sequence[str]) -> None:
    """Refuse keywords that a function does not know, as Python does, naming the nearest.

    Raises:
        TypeError: there is one.
    """
    for key in settings:
        if key not in known:
            near = get_close_matches(key, known, 1)
            more = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known))}"
            raise TypeError(f"{function}() got an unexpected keyword argument {key!r}; {more}")
