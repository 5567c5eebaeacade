"""The Python face: build a model, analyse a checkpoint, intervene in it, audit a module."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import xarray as xr
from torch import nn

import dar_probe.accessor  # noqa: F401  it registers ds.dar
from dar_probe.analysis import Analysis
from dar_probe.diffusion import evaluation
from dar_probe.errors import UsageError
from dar_probe.files.analysis_folder import OutputFolder, check_target
from dar_probe.models.generator import load_generator
from dar_probe.models.sit import SiT, SiTConfig
from dar_probe.probe import ablation, module_plan
from dar_probe.probe import plan as task
from dar_probe.probe.measure import Batch, Loss
from dar_probe.probe.plan import Levels, OnCells, Task
from dar_probe.probe.recorder import same_randomness
from dar_probe.probe.runner import made, made_over_steps
from dar_probe.runtime.device import find_device
from dar_probe.runtime.ranks import Ranks, joined
from dar_probe.training.finetune import OnStep, check, train_copy


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
    on_cells: OnCells | None = None,
) -> Analysis:
    """Analyse a checkpoint: how information travels across its depth at every noise level.

    Under torchrun the ranks share the work, and each of them returns the whole analysis.

    Args:
        path: a checkpoint of a family that is known, or a folder of diffusers; or several
            checkpoints of one training run, which give one trajectory over the training steps.
        data: "digits", "images:DIR" or "latents:FILE"; left out: the digits' held-out rows where
            they fit the model, else the model's own samples.
        noise_levels: a count (evenly from 0.01 to 0.99) or the levels, 0 = data, 1 = noise; 10,
            or 5 for large models on a CPU.
        samples: the first rows of the data; 64, or 8 for large models on a CPU.
        batch_size: cells of the grid in one forward, halved where memory runs out; changes no
            number beyond rounding.
        seed: of the noise, and of drawn samples.
        device: "auto", "cpu", "cuda", ...
        dtype: "float32", "float64" or "bfloat16".
        objective: where the file cannot tell: "sit", "repa", "dit", "uvit", "vp", or
            "ddpm:SCHEDULE:PREDICTION" such as "ddpm:cosine:v".
        heads: attention heads where the file cannot tell.
        weights: "auto" prefers the averaged weights, "ema" or "model" insists.
        family: of the checkpoint, where its names mislead; or "package.module:FAMILY".
        text: a .safetensors or .npz file of conditions for a model of diffusers, named like its
            inputs; left out, they are drawn at random.
        engine: "hooks", or "nnsight": the same numbers, bit for bit, by the other way.
        out: where to write the files of the analysis; finished parts are kept for ``resume``.
        resume: continue an analysis into ``out`` that was cut off.
        fail_on: judgement instead of the default, e.g. "inflation > 8 or redundancy > 0.97".
        on_cells: told (finished, all) cells of the grid.

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    settings: dict[str, Any] = {
        "data": data, "noise_levels": noise_levels, "samples": samples, "batch_size": batch_size,
        "seed": seed, "device": device, "dtype": dtype, "objective": objective, "heads": heads,
        "weights": weights, "family": family, "text": text, "engine": engine,
    }  # fmt: skip
    paths = [path] if isinstance(path, str | Path) else list(path)
    if not paths:
        raise UsageError("there is no checkpoint to analyse")
    with joined() as ranks:

        def plan(one: str | Path) -> Task:
            return _plan(ranks, out, one, **settings)

        if len(paths) > 1:
            return made_over_steps(
                paths, plan, out, resume=resume, fail_on=fail_on, ranks=ranks, on_cells=on_cells
            )
        planned = plan(paths[0])

        def measure(shards: OutputFolder | None) -> xr.Dataset:
            return planned.measure(shards=shards, ranks=ranks, on_cells=on_cells)

        return made(measure, planned.key, out, resume=resume, fail_on=fail_on, ranks=ranks)


def ablate(
    path: str | Path,
    *,
    kinds: Iterable[str] | None = None,
    pairs: int = 32,
    gates: Iterable[tuple[int, int]] = (),
    frozen_at: float | None = None,
    noise_levels: Levels = 5,
    samples: int = 16,
    out: str | Path | None = None,
    resume: bool = False,
    on_cells: OnCells | None = None,
    **settings: Any,
) -> Analysis:
    """Analyse a checkpoint, and set chosen gates to zero for real beside it.

    Every intervention is one more forward of the whole grid. The dataset has ``gate_ablated``,
    ``gate_linear``, ``linearisation_error`` and ``rank_correlation`` on top of ``analyze``'s.

    Args:
        path: a checkpoint.
        kinds: some of "gate" (single sources for one reader), "source" (one source for all
            readers), "block" (whole blocks skipped), "uniform" and "frozen" (a router's weights
            replaced); left out: all that the model has.
        pairs: how many single gates, half of them the largest, half drawn.
        gates: (reader from 1, source from 0) pairs on top of them.
        frozen_at: noise level whose weights frozen routers take, the nearest one of the grid; left
            out, the middle one.
        noise_levels: as for ``analyze``.
        samples: as for ``analyze``.
        out: as for ``analyze``.
        resume: as for ``analyze``.
        on_cells: told (finished, all) cells, of the analysis and then of the interventions.
        settings: data, batch_size, seed, device, dtype, objective, heads, weights, family,
            text and engine of ``analyze``.

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    if frozen_at is not None and not 0 <= frozen_at <= 1:
        raise UsageError(f"there is no noise level {frozen_at}", hint="0 is data, 1 is noise")
    if pairs < 0:
        raise UsageError(f"{pairs} pairs were asked for; it takes at least 0")
    with joined() as ranks:
        grid = {"noise_levels": noise_levels, "samples": samples}
        planned = _plan(ranks, out, path, **grid, **settings)
        levels, subject = planned.grid.levels, planned.subject
        usual = [
            kind
            for kind in (ablation.KINDS if subject.routes is not None else ablation.KINDS[:3])
            if kind != "block" or ablation.can_skip(subject)
        ]
        wished = levels[len(levels) // 2] if frozen_at is None else frozen_at
        chosen, single = list(usual if kinds is None else kinds), [list(gate) for gate in gates]
        # Before anything is measured: afterwards a refusal would be late, and leave shards.
        ablation.check_kinds(subject, chosen)
        for reader, source in single:
            ablation.single(subject, reader - 1, source)
        if not single and not pairs and set(chosen) <= {"gate"}:
            raise UsageError(
                "no intervention was asked for", hint="raise --pairs, or name a --gate"
            )
        wanted = {
            "kinds": chosen,
            "pairs": pairs,
            "gates": single,
            "frozen_at": min(levels, key=lambda level: abs(level - wished)),
        }

        def measure(shards: OutputFolder | None) -> xr.Dataset:
            ds = planned.measure(shards=shards, ranks=ranks, on_cells=on_cells)
            return planned.ablate(ds, wanted, shards=shards, ranks=ranks, on_cells=on_cells)

        key = {**planned.key, "ablation": wanted}
        return made(measure, key, out, resume=resume, fail_on=None, ranks=ranks)


def evaluate(
    path: str | Path,
    *,
    data: str = "digits",
    space: str = "digits",
    samples: int = 1000,
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "auto",
    on_samples: evaluation.OnSamples | None = None,
    **settings: Any,
) -> evaluation.Quality:
    """Draw samples from a checkpoint, once per seed, and measure how far they are from real ones.

    Args:
        path: a checkpoint, or a .npz of images as ``dar-probe sample`` and the ADM suite's writers
            make them.
        data: the real ones: "digits", "images:DIR" or "latents:FILE"; their training rows are the
            reference.
        space: of the features: "digits", or a local folder of an image model of transformers.
        samples: drawn per seed; Fréchet distances compare only between equal numbers.
        seeds: of the samples; intervals are over them.
        device: where the model and the features run.
        on_samples: called with (drawn, all) samples.
        settings: as for ``dar_probe.models.generator.load_generator``.

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    evaluation.check(samples=samples, seeds=seeds)
    place, path = str(find_device(device)), Path(path)
    if path.suffix == ".npz":
        return evaluation.of_samples(evaluation.read(path), data=data, space=space, device=place)
    return evaluation.of_generator(
        load_generator(path, device=place, **settings),
        data=data, space=space, samples=samples, seeds=seeds, device=place, on_samples=on_samples,
    )  # fmt: skip


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

    With ``train_steps`` the analysis is that of a copy, trained on ``batch`` and ``loss`` with
    samples of its own; ``before`` of the analysis is the module as it came.

    Args:
        module: compiled or parallel ones are unwrapped; afterwards bit for bit as it was.
        batch: batch(sample_ids (N,) int64, noise_level (N,) float64) -> (args, kwargs) for
            ``module``; a pure function of each (id, level). Left out for classes of transformers:
            random inputs by their config.
        loss: loss(output, sample_ids, noise_level) -> (N,); left out: the mean square of the
            output, less a random target where it ends in a norm; a causal language model's own
            next-token loss; a diffusers transformer's denoising loss.
        noise_levels: 0 = data, 1 = noise; left out: the axis has length one and value 0.
        samples: sample ids are 0..samples - 1.
        batch_size: cells of the grid in one forward, halved where memory runs out; and samples
            in one step of training.
        blocks: patterns of the names of blocks, e.g. "encoder.layers.*"; left out, they are found.
        readers: patterns of the names of what reads the stream; left out, they are found.
        train_steps: steps of AdamW, see ``dar_probe.training.finetune``.
        lr: learning rate of the training, as of the bundled trainer; wide models want less.
        seed: of the training.
        fail_on: judgement instead of the default.
        on_cells: told (finished, all) cells of the grid.
        on_step: told (step, steps, loss) of the training.

    Raises:
        ProbeError: no pre-norm stack was found, or nothing could be measured.
        UsageError: an argument does not fit.
    """
    planned = module_plan.of_module(
        module,
        batch=batch,
        loss=loss,
        noise_levels=noise_levels,
        samples=samples,
        batch_size=batch_size,
        blocks=blocks,
        readers=readers,
    )
    if not train_steps:
        return Analysis(planned.measure(on_cells=on_cells), fail_on=fail_on)
    if planned.loss in (module_plan.random_target, module_plan.mean_square):
        raise UsageError(
            "training takes a loss: nothing is learnt from what stands in for one",
            hint="loss(output, sample_ids, noise_level) -> (N,), third of (module, batch, loss)",
        )
    check(steps=train_steps, lr=lr, batch_size=batch_size, seed=seed)
    before = Analysis(planned.measure(on_cells=on_cells), fail_on=fail_on)
    losses: list[float] = []

    def tell(step: int, steps: int, value: float) -> None:
        losses.append(value)
        if on_step:
            on_step(step, steps, value)

    with same_randomness(module):  # training forks torch's alone
        twin = train_copy(
            planned.subject.model,
            planned.batch,
            planned.loss,
            steps=train_steps,
            lr=lr,
            batch_size=batch_size,
            noise_levels=planned.grid.levels,
            first_id=samples,
            seed=seed,
            on_step=tell,
        )
    subject = module_plan.find_sites(
        twin, planned.batch, planned.grid.levels, blocks=blocks, readers=readers
    )
    training = {
        "steps": train_steps,
        "lr": lr,
        "batch_size": batch_size,
        "seed": seed,
        "first_loss": losses[0],
        "final_loss": losses[-1],
    }
    own = {"model": {**planned.manifest["model"], **subject.facts}, "training": training}
    trained = replace(planned, subject=subject, manifest={**planned.manifest, **own})
    return Analysis(trained.measure(on_cells=on_cells), fail_on=fail_on, before=before)


def _plan(ranks: Ranks, out: str | Path | None, path: str | Path, **settings: Any) -> Task:
    if out is not None and ranks.leads:
        check_target(Path(out))
    with ranks.leader_first():  # it may draw samples, which the others then find
        return task.of_checkpoint(path, **settings)
