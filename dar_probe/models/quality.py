"""How near the samples that a checkpoint draws come to real ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dar_probe.diffusion import evaluation
from dar_probe.diffusion.evaluation import OnSamples, Quality
from dar_probe.models.generator import load_generator
from dar_probe.models.options import CheckpointOptions, SamplingOptions
from dar_probe.runtime.device import find_device


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """What samples are held against, and how many.

    Attributes:
        data: the real samples: "digits", "images:DIR" or "latents:PATH"; their training rows are
            the reference.
        space: of the features: "digits", or a local folder of an image model of transformers.
        samples: drawn per seed; Fréchet distances compare only between equal numbers.
        seeds: random seeds of the samples; intervals are over them.
    """

    data: str = "digits"
    space: str = "digits"
    samples: int = 1000
    seeds: Sequence[int] = (0, 1, 2)


def evaluate(
    checkpoint: CheckpointOptions,
    sampling: SamplingOptions,
    wanted: QualityOptions,
    *,
    on_samples: OnSamples | None = None,
) -> Quality:
    """Draw samples from a checkpoint, once per seed, and measure how far they are from real ones.

    Args:
        checkpoint: a checkpoint; or a .npz of images, from which nothing is drawn.
        sampling: how samples are drawn.
        wanted: what they are held against.
        on_samples: called with (drawn, all) samples.

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    evaluation.check(samples=wanted.samples, seeds=wanted.seeds)
    place, path = str(find_device(checkpoint.device)), Path(checkpoint.path)
    data, space = wanted.data, wanted.space
    if path.suffix == ".npz":
        return evaluation.of_samples(evaluation.read(path), data=data, space=space, device=place)
    return evaluation.of_generator(
        load_generator(replace(checkpoint, path=path, device=place), sampling),
        data=data, space=space, samples=wanted.samples, seeds=wanted.seeds, device=place,
        on_samples=on_samples,
    )  # fmt: skip
