"""A checkpoint turned into a model: read, identified, checked, built."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dar_probe import checkpoints
from dar_probe.checkpoints import diffusers_folder, folders, hub, memory_check, peek
from dar_probe.checkpoints.header import Header
from dar_probe.checkpoints.peek import Peek
from dar_probe.checkpoints.quantised import EIGHT_BITS
from dar_probe.checkpoints.reader import check_finite
from dar_probe.checkpoints.state_dict import Weights
from dar_probe.diffusion import objectives as objective
from dar_probe.diffusion import samplers
from dar_probe.diffusion.latent_norm import LatentNorm
from dar_probe.diffusion.objective import Objective
from dar_probe.errors import CheckpointError, ProbeError, UsageError, blamed
from dar_probe.files.text import quote
from dar_probe.models import lora, offload, registry
from dar_probe.models.blank import without_weights
from dar_probe.models.diffusers import conditioning, in_files, inputs, sampling, single_file
from dar_probe.models.diffusers import model as hub_model
from dar_probe.models.diffusers import scheduler as clock
from dar_probe.models.options import CheckpointOptions
from dar_probe.runtime.device import find_dtype
from dar_probe.sites.family import Family, Identified
from dar_probe.sites.subject import Subject

NO_TEXT = "no text is given: samples have the model's own null caption; --text gives embeddings"


class Call(Protocol):
    """How a model is called, and what of its output is the prediction."""

    def inputs(
        self, x: Tensor, time: Tensor, ids: Tensor, labels: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) for noised samples (N, *shape), times, ids and labels (N,)."""

    def prediction(self, output: Any) -> Tensor:
        """Return what is compared with the target, in the shape of the samples."""


@dataclass(frozen=True)
class ByClass:
    """Models that are called as model(x, t, y) and return the prediction.

    Attributes:
        captions: the user's text by the names of the model's arguments.
    """

    captions: Mapping[str, Tensor] = field(default_factory=dict)

    def inputs(
        self, x: Tensor, time: Tensor, ids: Tensor, labels: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return ((x, time, labels), the captions of these samples)."""
        return (x, time, labels), self.of(ids, x)

    def of(self, ids: Tensor, like: Tensor) -> dict[str, Tensor]:
        """Return the captions of samples ``ids`` (N,), where ``like`` is and in its type."""
        found = {name: conditioning.rows(self.captions, name, ids.cpu()) for name in self.captions}
        return {
            name: value.to(like.device, like.dtype if value.is_floating_point() else None)
            for name, value in found.items()
        }

    def prediction(self, output: Any) -> Tensor:
        """Return the output as it is.

        Raises:
            ProbeError: a family of the user's own returns something else.
        """
        if not isinstance(output, Tensor):
            raise ProbeError(
                f"the model returns a {type(output).__name__}, not the prediction",
                hint="a family's model returns one tensor, shaped like its samples",
            )
        return output


@dataclass(frozen=True)
class BySignature:
    """Transformers of diffusers, with conditions that are functions of the sample's id."""

    call: inputs.Signature
    dtype: torch.dtype  # of the weights; what the model itself keeps in float32 it casts to

    def inputs(
        self, x: Tensor, time: Tensor, ids: Tensor, labels: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments; labels take the place of classes in turn, not of the user's."""
        args, kwargs = self.call.inputs(x.to(self.dtype), time, ids)
        return args, kwargs | ({"class_labels": labels} if self.call.classes else {})

    def prediction(self, output: Any) -> Tensor:
        """Return the prediction without a learned variance."""
        return self.call.prediction(output)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A checkpoint turned into a model, with what was read and what was assumed.

    Attributes:
        file: name, sha256, bytes and weights of what was read, for the manifest.
        identified: what it is.
        model: on the CPU, in eval mode.
        subject: its sites; None where they have to be discovered.
        objective: of its training.
        assumptions: one sentence for each thing that the file does not tell.
        call: how the model is called.
        scheduler: settings with which a diffusers model draws samples, None for others.
        conditions: what the model's own samples depend on beside its file.
        name: what figures and tables call the model; None: as its file.
        rivals: what the same weights may be as well, see ``Family``.
        norm: how its training normalised the data it was given; None: it did not.
        weights: every parameter by name where the model has none of them yet: they are read from
            their files as they are asked for; None: the model has its own.
    """

    file: dict[str, Any]
    identified: Identified
    model: nn.Module
    subject: Subject | None
    objective: Objective
    assumptions: list[str]
    call: Call
    scheduler: dict[str, Any] | None = None
    conditions: str = ""
    name: str | None = None
    rivals: Mapping[str, nn.Module] = field(default_factory=dict)
    norm: LatentNorm | None = None
    weights: Mapping[str, Tensor] | None = None

    def draw(self, count: int, *, seed: int) -> tuple[Tensor, str]:
        """Return samples (count, *shape) of the model itself, labels in turn, and how.

        They are in the space that the model was trained in, behind its ``norm``.
        """
        with self.refusing():
            return self._draw(count, seed=seed)

    def _draw(self, count: int, *, seed: int) -> tuple[Tensor, str]:
        if isinstance(self.call, BySignature):
            return sampling.draw(
                self.model, self.call.call, self.objective, self.scheduler, count=count, seed=seed
            )
        labels = torch.arange(count) % max(self.identified.num_classes, 1)
        place = samplers.Place(
            device=offload.device_of(self.model), dtype=next(self.model.parameters()).dtype
        )
        given = self.call.of if isinstance(self.call, ByClass) else None
        drawn = samplers.draw(
            self.model, self.objective, labels, self.identified.shape,
            seed=seed, place=place, sampler=samplers.Sampler(given=given),
        )  # fmt: skip
        many = f"{count} sample{'s' * (count > 1)}"
        mean = samplers.has_two_times(self.objective)
        steps = (
            f"{samplers.Sampler.steps} {'steps of its mean velocity' if mean else 'Euler steps'}"
        )
        return drawn, f"{many} drawn from the model itself ({steps}, labels in turn)"

    def refusing(self) -> AbstractContextManager[None]:
        """Refuse the checkpoint for whatever fails while it draws samples."""
        return blamed(
            lambda why: CheckpointError(
                f"{quote(self.file['name'])} does not draw samples: {quote(why)}",
                hint="give samples with --data; if it still does not run, its settings do not "
                "fit it",
            )
        )


def load_checkpoint(
    options: CheckpointOptions, *, shape: Sequence[int] | None = None, seed: int = 0
) -> Loaded:
    """Read a checkpoint and build its model on the CPU, in eval mode.

    Args:
        options: the checkpoint; its ``device`` is the caller's business.
        shape: of one sample, where a folder leaves that open.
        seed: random seed for conditions that are drawn.

    Raises:
        CheckpointError: the file is refused or of no known layout.
        ProbeError: its weights hold NaN or Inf.
        UsageError: an option does not fit.
    """
    dtype = find_dtype(options.dtype)
    offload.check(options.offload)
    place = hub.local(options.path)
    options = replace(options, path=folders.model_file(place))
    if (home := diffusers_folder.home_of(options.path)) is not None:
        for name, given in (("heads", options.heads), ("family", options.family)):
            if given is not None:
                raise UsageError(
                    f"--{name} is not for a diffusers folder", hint="its config.json says it all"
                )
        if (file := single_file.file_of(home)) is None:
            read = diffusers_folder.read(home)
            loaded = _load_diffusers(read, options, dtype=dtype, shape=shape, seed=seed)
            return _adapted(loaded, options)
        options = replace(options, path=file)
    path = Path(options.path)
    _refuse_in_files(options, home)
    header = peek.peek(path, weights=check_weights(options.weights))
    kind = registry.family_of(header, options.family)
    if is_of_diffusers(header, kind, options):
        read = single_file.read(header, path)
        loaded = _load_diffusers(read, options, header, dtype=dtype, shape=shape, seed=seed)
    elif options.text is not None and kind.captions is None:
        raise UsageError(
            f"models of the family {kind.name} read no text",
            hint="leave --text out: models of diffusers and of Open-Sora take it",
        )
    else:
        loaded = _load_file(options, header, kind, dtype, shape)
    said = folders.said_of(place, path) if home is None else []
    return _adapted(replace(loaded, assumptions=[*said, *loaded.assumptions]), options)


def _refuse_in_files(options: CheckpointOptions, home: Path | None) -> None:
    """Refuse to leave the weights of a single file in it.

    Raises:
        UsageError: that is asked for.
    """
    if options.offload != "disk":
        return
    what = "one file of weights is" if home is None else "weights that are packed or converted are"
    raise UsageError(
        f"--offload disk leaves weights in the files of a diffusers folder, and {what} read whole",
        hint="save its transformer by diffusers: model.save_pretrained(FOLDER); --recompute and "
        "--dtype bfloat16 take less memory, too",
    )


def _adapted(loaded: Loaded, options: CheckpointOptions) -> Loaded:
    """Return a checkpoint with the adapter merged into its model, where one is asked for."""
    if options.adapter is None:
        return loaded
    if loaded.weights is not None:
        raise UsageError(
            "an adapter is merged into weights in memory, and --offload disk has none there",
            hint="merge it beforehand, and save the model: model.save_pretrained(FOLDER)",
        )
    merged = lora.merge(loaded.model, options.adapter)
    both = f"{loaded.file['sha256']}:{merged.sha256}"
    file = {
        **loaded.file,
        "sha256": hashlib.sha256(both.encode()).hexdigest(),
        "bytes": loaded.file["bytes"] + merged.bytes,
        "adapter": merged.name,
    }
    return replace(loaded, file=file, assumptions=[merged.said, *loaded.assumptions])


def is_of_diffusers(header: Peek, kind: Family, options: CheckpointOptions) -> bool:
    """Tell whether a file without a family's marks is of a transformer of diffusers.

    Raises:
        UsageError: it is, and an option is not for it.
    """
    if options.family or kind is not registry.DEFAULT or kind.matches(header):
        return False
    if not single_file.matches(header, Path(options.path)):
        return False
    if options.heads is not None:
        raise UsageError(
            "--heads is not for a model of diffusers",
            hint="its shapes or its config.json tell them",
        )
    return True


def _load_file(
    options: CheckpointOptions,
    header: Peek,
    kind: Family,
    dtype: torch.dtype,
    shape: Sequence[int] | None,
) -> Loaded:
    path = Path(options.path)
    found = sized(registry.identify(kind, header, options.heads), shape)
    given = _captions(options, kind, found)
    model = blank(header, kind, found)
    check_real(header, model)
    # What is read is converted tensor by tensor, and both are there until the last one is.
    memory_check.require(header.stored + memory_check.needed(header.converted(dtype), dtype))
    checkpoint = checkpoints.read(path, weights=check_weights(options.weights), dtype=dtype)
    checkpoint.header.compare(header.shapes)
    check_finite(checkpoint.state)
    state = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in checkpoint.state.items()
        if key not in found.unused
    }
    model.load_state_dict(state, assign=True)
    make_tables(model)
    chosen, assumption = choose_objective(found.objective, options.objective)
    subject = kind.subject(model.eval(), found)
    return Loaded(
        file={
            "name": path.name,
            "sha256": checkpoint.sha256,
            "bytes": checkpoint.bytes,
            "weights": checkpoint.weights,
        },
        identified=found,
        model=model,
        subject=subject,
        objective=chosen,
        assumptions=[
            *of_weights(header),
            *found.assumptions,
            *assumption,
            *subject.assumptions,
            *([NO_TEXT] if kind.captions and not given else ()),
        ],
        call=ByClass(given),
        conditions=_digest(given) if given else "",
        rivals=kind.rivals(model, found) if kind.rivals else {},
        norm=kind.norm and kind.norm(checkpoint.state),
    )


def _captions(options: CheckpointOptions, kind: Family, found: Identified) -> dict[str, Tensor]:
    """Return the text that the user gives for a family that reads some, by the model's names."""
    if options.text is None or kind.captions is None:
        return {}
    return kind.captions(conditioning.read_conditions(options.text), found)


def _load_diffusers(
    read: diffusers_folder.Folder,
    options: CheckpointOptions,
    header: Peek | None = None,
    *,
    dtype: torch.dtype,
    shape: Sequence[int] | None,
    seed: int,
) -> Loaded:
    """Build the transformer of a folder, or of the single file whose ``header`` is given."""
    given = conditioning.read_conditions(options.text) if options.text is not None else None
    call, chosen, assumed = plan(read, options.objective, shape=shape, given=given, seed=seed)
    weights = None
    if header is not None:
        model, file = _of_file(read, header, options)
    elif options.offload == "disk":
        model, weights = in_files.build(read, dtype=dtype)
        file = _told(read)
    else:
        memory_check.require(memory_check.needed(read.shapes, dtype))
        model, file = hub_model.build(read, dtype=dtype), _told(read)
    return Loaded(
        file=file,
        identified=Identified(
            family=read.class_name,
            sizes=read.config,
            shape=call.shape,
            num_classes=call.classes,
            objective=chosen.name,
            assumptions=[],
        ),
        model=model,
        subject=None,
        objective=chosen,
        assumptions=[
            *(of_weights(header) if header else ()),
            *read.assumptions,
            *assumed,
            *call.assumptions,
        ],
        call=BySignature(call, hub_model.dtype_of(model)),
        scheduler=read.scheduler,
        conditions=f"{_digest(given) if given else seed}-{dtype}",
        weights=weights,
    )


def _told(read: diffusers_folder.Folder) -> dict[str, Any]:
    """Return what the manifest says of a folder."""
    return {
        "name": diffusers_folder.name_of(read.path),
        "sha256": read.sha256,
        "bytes": read.bytes,
        "weights": read.variant or "folder",
    }


def file_name(path: Path) -> str:
    """Return the name of a file, or of the folder of diffusers whose weights it holds."""
    home = diffusers_folder.home_of(path)
    return path.name if home is None else diffusers_folder.name_of(home)


def _of_file(
    read: diffusers_folder.Folder, header: Peek, options: CheckpointOptions
) -> tuple[nn.Module, dict[str, Any]]:
    single_file.blank(read)  # settings that the weights do not fit must not cost memory
    dtype = find_dtype(options.dtype)
    memory_check.require(header.stored + memory_check.needed(read.shapes, dtype))
    checkpoint = checkpoints.read(read.path, weights=check_weights(options.weights), dtype=dtype)
    checkpoint.header.compare(header.shapes)
    return single_file.build(read, checkpoint.state, dtype=dtype), {
        "name": file_name(read.path),
        "sha256": read.with_settings(checkpoint.sha256),
        "bytes": checkpoint.bytes,
        "weights": checkpoint.weights,
    }


def plan(
    read: diffusers_folder.Folder,
    objective_name: str | None = None,
    *,
    shape: Sequence[int] | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> tuple[inputs.Signature, Objective, list[str]]:
    """Return how a folder's model is called, its objective, and what the latter assumes.

    Raises:
        CheckpointError: the folder's settings are of the wrong kind, or lack something.
        UsageError: an option does not fit.
    """

    def refuse(why: str) -> CheckpointError:
        return CheckpointError(
            f"the settings of {read.shown} fit no {read.class_name}: {quote(why)}",
            hint="they were edited, or are of another version of diffusers",
        )

    with blamed(refuse):
        call = inputs.plan(
            read.class_name, read.config, shape=shape, given=given, seed=seed,
            labelled=shape is not None,  # of a file of latents: its labels are asked for
        )  # fmt: skip
        try:
            usual, assumed = clock.choose(read.class_name, read.config, read.scheduler)
        except (UsageError, CheckpointError) as error:
            if objective_name is not None:
                return call, *choose_objective(objective_name, objective_name)
            # Nobody typed what a scheduler was saved with.
            raise CheckpointError(f"{read.shown}: {error}", hint=error.hint) from None
        if objective_name is None:
            return call, usual, assumed
        # Another prediction, or time the other way, on the scheduler's own steps.
        known = objective.candidates(usual).get(objective_name)
        chosen, asked = choose_objective(objective_name, objective_name, known)
        return call, chosen, asked


def _digest(given: Mapping[str, Tensor]) -> str:
    hashed = hashlib.sha256()
    for name, value in sorted(given.items()):
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hashed.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def of_weights(header: Peek) -> list[str]:
    """Return what is assumed of the weights of a file: a flat one does not say which they are."""
    said = []
    if header.called_average:
        said.append("by the file's name its weights are averaged (EMA)")
    elif header.weights == "flat":
        said.append("the file does not say whether its weights are averaged (EMA)")
    coarse = sum(dtype in EIGHT_BITS for dtype in header.dtypes.values())
    if coarse:
        said.append(f"{coarse} of {len(header.dtypes)} weights are stored in 8 bits, as they are")
    return said


def sized(found: Identified, shape: Sequence[int] | None = None) -> Identified:
    """Let a model of any size take samples of the size of the data, else that of its presets."""
    if found.any_side is None and found.any_sizes is None:
        return found
    if shape is not None and _takes(found, shape):
        return replace(found, shape=tuple(shape))
    sizes = " x ".join(map(str, found.shape))
    said = f"samples of {sizes}, as in the presets: the model takes any size"
    return replace(found, assumptions=[*found.assumptions, said])


def _takes(found: Identified, shape: Sequence[int]) -> bool:
    """Tell whether a model of any size takes samples of this shape, (C, h, h) or (C, F, h, w)."""
    if len(shape) != len(found.shape) or shape[0] != found.shape[0]:
        return False
    multiples = found.any_sizes or (found.any_side,) * 2
    if found.any_sizes is None and shape[1] != shape[2]:
        return False
    return all(n > 0 and n % of == 0 for n, of in zip(shape[1:], multiples, strict=True) if of)


def blank(header: Header, family: Family, found: Identified) -> nn.Module:
    """Build the model without memory for weights, and hold the file to its names and shapes.

    Raises:
        CheckpointError: a weight is missing, left over, or of another shape.
    """
    with without_weights():
        model = family.build(found)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    header.compare(expected | {key: header.shapes[key] for key in found.unused})
    return model


def check_real(header: Peek, model: nn.Module) -> None:
    """Require weights that have gradients.

    Raises:
        CheckpointError: one of them is an integer.
    """
    for key, _ in model.named_parameters():
        if not header.dtypes[key].is_floating_point:
            kind = str(header.dtypes[key]).removeprefix("torch.")
            raise CheckpointError(
                f"{header.shown} holds quantised weights, which have no gradients to measure: "
                f"{quote(key)} is {kind}",
                hint="give the file in bfloat16 or float32",
            )


def make_tables(model: nn.Module) -> None:
    """Let modules compute what is in no file, such as tables of positions."""
    for module in model.modules():
        make = getattr(module, "make_tables", None)
        if make is not None:
            make()


def check_weights(weights: str) -> Weights:
    """Return the choice of weights.

    Raises:
        UsageError: there is no such choice.
    """
    known: Sequence[Weights] = ("auto", "ema", "model")
    for name in known:
        if weights == name:
            return name
    raise UsageError(f"unknown weights {weights!r}", hint="--weights takes auto, ema or model")


def choose_objective(
    usual: str, name: str | None, known: Objective | None = None
) -> tuple[Objective, list[str]]:
    """Return the objective called ``usual``, or the one asked for, and what that assumes.

    ``known`` is the one asked for where the name alone does not tell its steps.

    Raises:
        UsageError: there is no such objective, or it is one of models with a second time.
    """
    if name is not None:
        chosen = known or objective.get(name)
        two = samplers.has_two_times
        if two(chosen) and not two(objective.get(usual)):
            raise UsageError(
                f"the objective {name!r} is for models with a second time, and this one has none",
                hint="--objective repa has the same clock and prediction",
            )
        return chosen, [f"objective {name!r}, as asked for"]
    return objective.get(usual), []
