"""What one file in this folder says about one family of checkpoints."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dar_probe.checkpoints.header import Header
from dar_probe.diffusion.latent_norm import LatentNorm
from dar_probe.sites.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Identified:
    """What a checkpoint is, told by its header.

    Attributes:
        family: name of the family.
        sizes: depth, width, heads and whatever else builds the model, as plain data. ``width``
            must be there; ``Stack.subject`` reads it.
        shape: of one sample, e.g. (C, h, w).
        num_classes: classes without the row for dropped labels; 0 without labels.
        objective: a name of ``dar_probe.diffusion.objectives``, unless the user says otherwise.
        assumptions: one sentence for each thing that the file could not tell.
        any_side: the model takes squares of any multiple of this side, and ``shape``, (C, h, h), is
            that of its presets; None: samples of ``shape`` alone.
        any_sizes: the same for models of video, whose frames, rows and columns are multiples of
            these; ``shape`` is (C, F, h, w).
        unused: names in the file that the model is built without: heads of training alone.
    """

    family: str
    sizes: dict[str, Any]
    shape: tuple[int, ...]
    num_classes: int
    objective: str
    assumptions: list[str]
    any_side: int | None = None
    any_sizes: tuple[int, ...] | None = None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of checkpoints: how it is known, built and probed.

    Attributes:
        name: e.g. "uvit".
        title: as its authors write it, e.g. "U-ViT".
        marks: regular expressions, each of which matches the start of some tensor's name.
        identify: header and the user's ``--heads`` (or None) to sizes. Raises CheckpointError
            where the file contradicts itself.
        build: a model called as model(x (N, C, h, w), t (N,), y (N,)) -> (N, C, h, w), whose
            state dict has exactly the names and shapes of the file, but for ``unused``.
        subject: names the sites of such a model.
        fits: tells whether a header with all the marks is of this family; None: it is.
        rivals: other models that the same weights may be, by the setting that would make them so,
            for what no weight tells: where data are given, their losses are compared.
        norm: the weights as they are stored to how training normalised its data, or None.
        captions: the arrays of ``--text`` to keyword arguments of the model, a row for each sample
            or one for all; raises UsageError. Without them it reads its own null caption. None:
            the family reads no text.
    """

    name: str
    title: str
    marks: tuple[str, ...]
    identify: Callable[[Header, int | None], Identified]
    build: Callable[[Identified], nn.Module]
    subject: Callable[[nn.Module, Identified], Subject]
    fits: Callable[[Header], bool] | None = None
    rivals: Callable[[nn.Module, Identified], dict[str, nn.Module]] | None = None
    norm: Callable[[Mapping[str, Tensor]], LatentNorm | None] | None = None
    captions: Callable[[Mapping[str, Tensor], Identified], dict[str, Tensor]] | None = None

    def matches(self, header: Header) -> bool:
        """Tell whether every mark is there, and the header fits."""
        marked = all(any(map(re.compile(mark).match, header.shapes)) for mark in self.marks)
        return marked and (self.fits is None or self.fits(header))
