"""What a checkpoint is, without its weights: family, sizes, parameters by part, FLOPs, sites."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dar_probe.checkpoints import diffusers_folder, folders, hub, peek
from dar_probe.checkpoints.header import Header
from dar_probe.errors import UsageError
from dar_probe.models import registry
from dar_probe.models.diffusers import layouts, single_file
from dar_probe.models.diffusers import model as hub_model
from dar_probe.models.loading import (
    blank,
    check_real,
    check_weights,
    choose_objective,
    file_name,
    is_of_diffusers,
    of_weights,
    plan,
    sized,
)
from dar_probe.models.options import CheckpointOptions
from dar_probe.sites.block_lists import members
from dar_probe.sites.family import Family
from dar_probe.sites.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the header of a file, or the settings of a folder, say.

    Attributes:
        file: name, bytes, weights and dtype of what is stored.
        family: its name, and why it is taken for that.
        objective: name.
        sizes: what builds the model.
        shape: of one sample.
        parts: parameters by the model's own top-level parts.
        parameters: of all parts together.
        flops: of the forward of one sample; a multiply-add counts as two.
        unknown_flops: why they could not be counted; empty where they were.
        sites: one line for each group of like blocks or of readers.
        assumptions: one sentence for each thing that the file does not tell.
    """

    file: dict[str, Any]
    family: str
    why: str
    objective: str
    sizes: dict[str, Any]
    shape: tuple[int, ...]
    parts: dict[str, int]
    parameters: int
    flops: int | None
    unknown_flops: str
    sites: list[str]
    assumptions: list[str]


def survey(options: CheckpointOptions) -> Survey:
    """Say what a checkpoint is; of a safetensors file no more than the header is read.

    Args:
        options: the checkpoint; nothing runs, so that device, dtype and text do not matter.

    Raises:
        CheckpointError: the file is refused or of no known layout.
        UsageError: an option does not fit.
    """
    if options.adapter is not None:
        raise UsageError(
            "inspect reads no weights, so none of an adapter either", hint="leave adapter out"
        )
    place = hub.local(options.path)
    path = folders.model_file(place)
    if (home := diffusers_folder.home_of(path)) is not None:
        if (file := single_file.file_of(home)) is None:
            return _of_diffusers(diffusers_folder.read(home), options.objective)
        path = file
    header = peek.peek(path, weights=check_weights(options.weights))
    kind = registry.family_of(header, options.family)
    if is_of_diffusers(header, kind, options):
        read = single_file.read(header, path)
        found = _of_diffusers(read, options.objective, header)
        said = [*(folders.said_of(place, path) if home is None else ()), *of_weights(header)]
        return replace(found, assumptions=[*said, *found.assumptions])
    identified = sized(registry.identify(kind, header, options.heads))
    model = blank(header, kind, identified)
    check_real(header, model)
    chosen, assumed = choose_objective(identified.objective, options.objective)
    subject = kind.subject(model.eval(), identified)
    x = torch.zeros(1, *identified.shape, device="meta")
    time = torch.zeros(1, device="meta")
    label = torch.zeros(1, dtype=torch.long, device="meta")
    flops, unknown = count_flops(model, (x, time, label), {})
    return Survey(
        file={
            "name": path.name,
            "bytes": header.bytes,
            "weights": header.weights,
            "dtype": header.dtype,
        },
        family=identified.family,
        why="asked for" if options.family else f"names such as {_marked(kind, header)!r}",
        objective=chosen.name,
        sizes=identified.sizes,
        shape=identified.shape,
        **_parts(model),
        flops=flops,
        unknown_flops=unknown,
        sites=_sites(subject),
        assumptions=[
            *folders.said_of(place, path),
            *of_weights(header),
            *identified.assumptions,
            *assumed,
            *subject.assumptions,
        ],
    )


def _of_diffusers(
    read: diffusers_folder.Folder,
    objective_name: str | None,
    header: peek.Peek | None = None,
) -> Survey:
    """Say what a folder is, or the single file whose ``header`` is given."""
    call, chosen, assumed = plan(read, objective_name)
    model = single_file.blank(read) if header else hub_model.blank(read)
    x = torch.zeros(1, *call.shape, device="meta")
    args, kwargs = call.inputs(x, torch.zeros(1, device="meta"), torch.zeros(1, dtype=torch.long))
    flops, unknown = count_flops(model, args, kwargs)
    return Survey(
        file={
            "name": file_name(read.path),
            "bytes": read.bytes,
            "weights": header.weights if header else read.variant or "folder",
            "dtype": read.dtype,
        },
        family=read.class_name,
        why="the _class_name of its config.json"
        if read.settings
        else f"names such as {layouts.LAYOUTS[read.class_name].marks[0]!r}",
        objective=chosen.name,
        sizes={k: v for k, v in read.config.items() if not k.startswith("_")},
        shape=call.shape,
        **_parts(model),
        flops=flops,
        unknown_flops=unknown,
        sites=[
            f"{count} x {kind}"
            for kind, count in Counter(type(block).__name__ for block in members(model)).items()
        ],
        assumptions=[
            *read.assumptions,
            *assumed,
            *call.assumptions,
            "readers and sources are found when the model runs, by discovery",
        ],
    )


def _parts(model: nn.Module) -> dict[str, Any]:
    """Return the number of parameters of each part of a model, and of all."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[name.partition(".")[0]] += parameter.numel()
    return {"parts": dict(counts), "parameters": sum(counts.values())}


def count_flops(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[int | None, str]:
    """Count with torch's counter on tensors without memory; not every model runs on them."""
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            model.to("meta")(*args, **kwargs)
    except Exception as error:  # somebody else's code fails in any way it likes
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    return int(counter.get_total_flops()), ""


def _sites(subject: Subject) -> list[str]:
    """Return how many readers there are of each kind, and what else enters the stream."""
    depth = subject.readers[-1].block - 1
    kinds = Counter(reader.kind for reader in subject.readers)
    fusions = sum(source.kind == "fusion" for source in subject.sources)
    found = [f"{depth} blocks, {len(subject.readers)} readers, {len(subject.sources)} sources"]
    found.append("readers: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    if fusions:
        found.append(f"the stream is rewritten {fusions} times: skips, positions or stages")
    return found


def _marked(kind: Family, header: Header) -> str:
    """Return a name that the family is known by."""
    return next(key for key in header.shapes if re.match(kind.marks[-1], key))
