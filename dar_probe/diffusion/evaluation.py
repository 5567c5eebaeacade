"""How near samples come to real ones: Fréchet and kernel distance, precision and recall."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dar_probe.diffusion import data as datasets
from dar_probe.diffusion import features
from dar_probe.diffusion.data import Data
from dar_probe.diffusion.generation import Generator
from dar_probe.errors import UsageError
from dar_probe.files import arrays
from dar_probe.files.text import quote
from dar_probe.results import sample_quality
from dar_probe.results.intervals import Interval, Scale, over_seeds
from dar_probe.runtime.checks import check_counts

LEAST = 8
SHARES = ("precision", "recall", "agreement")
OnSamples = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Distances from the training rows of the data, means over seeds with 95 % intervals.

    Attributes:
        name: of what was judged.
        drawn: how its samples were drawn, one sentence.
        samples: per seed.
        measures: "frechet", "kernel", "precision", "recall"; for the digits also "agreement", the
            share of samples in which the classifier sees the label they were drawn for.
        floor: the same of the real rows that are held out.
        held_out: how many these are; a Fréchet distance of fewer samples is larger by itself.
    """

    name: str
    drawn: str
    samples: int
    measures: dict[str, Interval]
    floor: dict[str, float]
    held_out: int


class Judge:
    """Real rows and their features, to hold samples against.

    Args:
        data: digits, images:DIR or latents:PATH; the rows of its training split are the reference.
        space: as for ``features.extractor``.
        shape: of the samples that will come.
        device: where features are computed.

    Raises:
        UsageError: the data or the space do not fit the samples.
    """

    def __init__(
        self, data: str, space: str, *, shape: tuple[int, ...], device: str = "cpu"
    ) -> None:
        if shape[0] not in (1, 3):
            raise UsageError(
                f"samples of {'x'.join(map(str, shape))} are latents, not images",
                hint="decode them, and give evaluate a .npz of images as dar-probe sample writes",
            )
        self.extract = features.extractor(space, device)
        everything = datasets.load_data(data, shape=shape)
        self.real = self.extract(everything.split("train").latents).numpy()
        self._agree = features.classifier() if space == "digits" and data == "digits" else None
        held_out = everything.split("held-out")
        if min(len(self.real), len(held_out)) < LEAST:
            raise UsageError(
                f"{data} has too few rows to judge by: {len(self.real)}, and {len(held_out)} that "
                "are held out",
                hint=f"it takes {LEAST} of each; every seventh row is held out",
            )
        self.held_out, self.floor = len(held_out), self.measure(held_out)

    def measure(self, drawn: Data) -> dict[str, float]:
        """Return the measures of one set of samples."""
        found = self.extract(drawn.latents).numpy()
        precision, recall = sample_quality.precision_recall(self.real, found)
        measures = {
            "frechet": sample_quality.frechet(self.real, found),
            "kernel": sample_quality.kernel(self.real, found),
            "precision": precision,
            "recall": recall,
        }
        if self._agree is not None:
            with torch.no_grad():
                seen = self._agree.head(torch.from_numpy(found)).argmax(-1)
            measures["agreement"] = float((seen == drawn.labels).double().mean())
        return measures


def of_samples(stored: Data, *, data: str, space: str, device: str) -> Quality:
    """Measure how far stored samples are from real ones; arguments as of ``Judge``."""
    judge = Judge(data, space, shape=tuple(stored.latents.shape[1:]), device=device)
    sets = [judge.measure(stored)]
    return _quality(judge, sets, name=stored.name, drawn=stored.description, samples=len(stored))


def of_generator(
    made: Generator,
    *,
    data: str,
    space: str,
    samples: int,
    seeds: Sequence[int],
    device: str,
    on_samples: OnSamples | None = None,
) -> Quality:
    """Draw samples, once per seed, and measure how far they are from real ones.

    Args:
        made: what draws them.
        data: see ``Judge``.
        space: see ``Judge``.
        samples: drawn per seed; Fréchet distances compare only between equal numbers.
        seeds: of the samples; intervals are over them.
        device: see ``Judge``.
        on_samples: called with (drawn, all) samples.
    """
    judge = Judge(data, space, shape=made.shape, device=device)
    sets = []
    for at, seed in enumerate(seeds):

        def tell(done: int, before: int = at * samples) -> None:
            if on_samples:
                on_samples(before + done, samples * len(seeds))

        sets.append(judge.measure(made.draw(made.labels(samples), seed=seed, on_samples=tell)))
    name, drawn = made.loaded.file["name"], made.described(samples)
    return _quality(judge, sets, name=name, drawn=drawn, samples=samples)


def check(*, samples: int, seeds: Sequence[int]) -> None:
    """Raise UsageError where no quality can be measured with these counts."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError("seeds must be different whole numbers from 0", hint="e.g. --seeds 3")
    if samples < LEAST:
        raise UsageError(f"{samples} samples cannot be judged", hint=f"it takes {LEAST} at least")
    check_counts(samples=samples)


def _quality(
    judge: Judge, sets: Sequence[dict[str, float]], *, name: str, drawn: str, samples: int
) -> Quality:
    return Quality(
        name=name,
        drawn=drawn,
        samples=samples,
        measures={key: over_seeds([one[key] for one in sets], _scale(key)) for key in sets[0]},
        floor=judge.floor,
        held_out=judge.held_out,
    )


def _scale(measure: str) -> Scale:
    """Return where a measure can lie: the kernel distance is unbiased, and may be negative."""
    return "share" if measure in SHARES else "ratio" if measure == "frechet" else "difference"


def read(path: Path) -> Data:
    """Return images of a .npz: the first array (N, H, W, 3), uint8, and labels, where they are.

    Raises:
        UsageError: no such file, or no such arrays.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}", hint="give a checkpoint or a .npz")
    found = arrays.read_arrays(path, ("arr_0", "arr_1"))
    images = found.get("arr_0")
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UsageError(
            f"{quote(path.name)} holds no images: arr_0 (N, H, W, 3), uint8",
            hint="dar-probe sample writes such files, and so do the samplers of the ADM suite",
        )
    if len(images) < LEAST:
        raise UsageError(
            f"{quote(path.name)} has too few images", hint=f"it takes {LEAST} at least"
        )
    labels = found.get("arr_1", np.zeros(len(images), np.int64))
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"{quote(path.name)}: arr_1 is no label (N,) for each image")
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    if bool((values == values[:, :1]).all()):
        values = values[:, :1]  # grey: what one channel was written as
    return Data(
        name=path.name,
        description=f"{len(images)} images of {quote(path.name)}",
        latents=values,
        labels=torch.from_numpy(labels.astype(np.int64)),
        ids=torch.arange(len(images)),
    )
