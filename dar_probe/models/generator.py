"""A checkpoint loaded to draw samples from."""

from pathlib import Path

from dar_probe.diffusion.generation import Generator
from dar_probe.diffusion.samplers import Sampler
from dar_probe.errors import UsageError
from dar_probe.models.diffusers import vae
from dar_probe.models.loading import BySignature, load_checkpoint
from dar_probe.models.options import CheckpointOptions, SamplingOptions
from dar_probe.runtime.checks import check_counts
from dar_probe.runtime.device import find_device


def load_generator(
    checkpoint: CheckpointOptions, sampling: SamplingOptions | None = None
) -> Generator:
    """Load a checkpoint that takes class labels, to draw samples from.

    Args:
        checkpoint: what to load, and where it runs.
        sampling: how samples are drawn; None: the defaults.

    Raises:
        CheckpointError: the file is refused.
        UsageError: a setting does not fit the model.
    """
    sampling = sampling or SamplingOptions()
    _sampler(sampling, null_class=0)  # a wrong setting is told before a large file is read
    check_counts(batch_size=sampling.batch_size)
    place = find_device(checkpoint.device)
    loaded = load_checkpoint(checkpoint)
    if isinstance(loaded.call, BySignature):
        raise UsageError(
            f"{loaded.identified.family} draws samples with its own pipeline in diffusers",
            hint="save them as images, and give them to dar-probe evaluate",
        )
    found = loaded.identified
    if len(found.shape) != 3:
        shape = "x".join(map(str, found.shape))
        raise UsageError(
            f"{found.family} has samples of {shape}, which are no images",
            hint="draw them with their authors' code; dar-probe analyze needs no samples",
        )
    dropped = found.sizes.get("null_class") or found.sizes.get("rows", 0) > found.num_classes
    null = found.num_classes if dropped else None
    sampler = _sampler(sampling, null_class=null)
    loaded.model.to(place)
    decode = None
    if sampling.vae is not None:
        decode = vae.load_decoder(Path(sampling.vae), place, scaled=loaded.norm is None)
    return Generator(loaded=loaded, sampler=sampler, batch_size=sampling.batch_size, decode=decode)


def _sampler(sampling: SamplingOptions, *, null_class: int | None) -> Sampler:
    return Sampler(
        solver=sampling.solver,
        steps=sampling.steps,
        guidance=sampling.guidance,
        null_class=null_class,
    )
