"""A checkpoint loaded to draw samples from."""

from pathlib import Path

from dar_probe.diffusion.generation import Generator
from dar_probe.diffusion.samplers import Sampler
from dar_probe.errors import UsageError
from dar_probe.models.diffusers import vae as decoder
from dar_probe.models.loading import BySignature, load
from dar_probe.runtime.checks import check_counts
from dar_probe.runtime.device import find_device, find_dtype


def load_generator(
    path: str | Path,
    *,
    solver: str = "euler",
    steps: int = 50,
    guidance: float = 1.0,
    batch_size: int = 256,
    device: str = "auto",
    dtype: str = "float32",
    weights: str = "auto",
    objective: str | None = None,
    heads: int | None = None,
    family: str | None = None,
    vae: str | Path | None = None,
) -> Generator:
    """Load a checkpoint that takes class labels, to draw samples from.

    Args:
        path: a checkpoint file.
        solver: see ``Sampler``.
        steps: see ``Sampler``.
        guidance: see ``Sampler``.
        batch_size: samples that are drawn together.
        device: where the model runs.
        dtype: in which type it runs.
        weights: as for ``api.analyze``.
        objective: as for ``api.analyze``.
        heads: as for ``api.analyze``.
        family: as for ``api.analyze``.
        vae: a local folder of diffusers' AutoencoderKL, which makes images of latents.

    Raises:
        CheckpointError: the file is refused.
        UsageError: a setting does not fit the model.
    """
    Sampler(solver=solver, steps=steps, guidance=guidance, null_class=0)  # before a large file
    check_counts(batch_size=batch_size)
    place, kind = find_device(device), find_dtype(dtype)
    loaded = load(
        path, weights=weights, heads=heads, objective_name=objective, family=family, dtype=kind
    )
    if isinstance(loaded.call, BySignature):
        raise UsageError(
            f"{loaded.identified.family} draws samples with its own pipeline in diffusers",
            hint="save them as images, and give them to dar-probe evaluate",
        )
    found = loaded.identified
    null = found.num_classes if found.sizes.get("null_class") else None
    sampler = Sampler(solver=solver, steps=steps, guidance=guidance, null_class=null)
    loaded.model.to(place)
    decode = None if vae is None else decoder.load(Path(vae), place)
    return Generator(loaded=loaded, sampler=sampler, batch_size=batch_size, decode=decode)
