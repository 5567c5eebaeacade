"""Starts a model from the trained weights of another, whatever the routing of the two."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dar_probe import checkpoints
from dar_probe.checkpoints.peek import peek
from dar_probe.diffusion import objectives as objective
from dar_probe.diffusion.flow import Flow
from dar_probe.errors import UsageError
from dar_probe.models import sit_family
from dar_probe.models.sit import SiT, SiTConfig
from dar_probe.routing.schemes import OF_THE_START, OPTIONS

SIZES = ("depth", "width", "heads", "patch", "learn_sigma", "qk_norm")  # told by the file


@dataclass(frozen=True, kw_only=True)
class Original:
    """A trained model, and what is to be known of its file.

    Attributes:
        model: in eval mode and frozen.
        config: its sizes and its routing.
        objective: the name of its clock and prediction.
        name, sha256, weights: of the file, and which weights of it.
    """

    model: nn.Module
    config: SiTConfig
    objective: str
    name: str
    sha256: str
    weights: str

    def give(self, model: SiT) -> None:
        """Copy every weight but the original's routing into ``model``, which keeps its own routing.

        Where both have one routing, with the same options, it is copied too.

        Raises:
            UsageError: the sizes of the two differ.
        """
        ours, theirs = model.config.to_dict(), self.config.to_dict()
        routing = {"routing", *OPTIONS}
        for name in ours:
            if (
                name not in routing | {"projectors", "projector_width", *OF_THE_START}
                and ours[name] != theirs[name]
            ):
                raise UsageError(
                    f"{name} is {theirs[name]} in {self.name!r} and {ours[name]} here",
                    hint="a run takes its sizes from --init-from; its data must fit them",
                )
        same = all(ours[name] == theirs[name] for name in routing)
        state = {
            name: value
            for name, value in self.model.state_dict().items()
            if (same or not name.startswith("stream.")) and not name.startswith("projectors.")
        }
        kept = {name: value for name, value in model.state_dict().items() if name not in state}
        known = set(model.state_dict())
        model.load_state_dict({**{n: v for n, v in state.items() if n in known}, **kept})


def sizes(path: str | Path) -> dict[str, Any]:
    """Return the settings of a training run that the file decides, without reading its weights."""
    identified = sit_family.identify(peek(path))
    found = {name: identified.sizes[name] for name in SIZES}
    return {**found, **objective_settings(identified.objective)}


def objective_settings(name: str) -> dict[str, str]:
    """Return the settings of a training run that give the objective called ``name``.

    Raises:
        UsageError: there is no such objective.
    """
    found = objective.get(name)
    if not isinstance(found, Flow):
        return {"objective": name}
    return {"objective": found.clock, "path": found.path, "prediction": found.prediction}


def original(path: str | Path) -> Original:
    """Read a checkpoint of the SiT layout: an official one, REPA's or our own.

    Raises:
        CheckpointError: the file is refused, or of another layout.
    """
    found = checkpoints.read(path)
    identified = sit_family.identify(found.header)
    if identified.sizes["latent_norm"]:
        raise UsageError(
            f"{found.path.name!r} normalises its latents by a batch norm of its own (REPA-E), and "
            "a run here takes data as they are",
            hint="leave --init-from out, or save the file without bn and give normalised latents",
        )
    model = sit_family.build(identified)
    found.header.compare({key: tuple(value.shape) for key, value in model.state_dict().items()})
    model.load_state_dict(found.state)
    return Original(
        model=model.eval().requires_grad_(False),
        config=model.config,
        objective=identified.objective,
        name=found.path.name,
        sha256=found.sha256,
        weights=found.weights,
    )
