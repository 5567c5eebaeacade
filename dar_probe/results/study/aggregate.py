"""What the records of a study say: means over seeds, pairs against the residual model."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from dar_probe.errors import CheckpointError, UsageError
from dar_probe.results.intervals import Interval, over_seeds
from dar_probe.results.study import record
from dar_probe.results.study.record import Record

REFERENCES = {"deep": "residual-28", "repa": "residual-repa"}  # of the other groups: "residual"


@dataclass(frozen=True, kw_only=True)
class SchemeResult:
    """One entry of the study with the runs that there are, and the line it is held against.

    Attributes:
        records: one for every seed, rising.
        pairs: (record, reference's record) of the seeds that both have.
    """

    name: str
    label: str
    group: str
    records: tuple[Record, ...]
    pairs: tuple[tuple[Record, Record], ...]

    @property
    def seeds(self) -> int:
        """How often it was trained."""
        return len(self.records)

    @property
    def steps(self) -> int:
        """The last training step."""
        return self.records[0].steps[-1]

    @property
    def is_reference(self) -> bool:
        """Whether it is held against itself."""
        return any(own is other for own, other in self.pairs)

    @cached_property
    def curve(self) -> tuple[list[int], list[Interval]]:
        """Validation loss along the steps."""
        losses = zip(*(one.losses for one in self.records), strict=True)
        return self.records[0].steps, [over_seeds(values, "ratio") for values in losses]

    @cached_property
    def loss(self) -> Interval:
        """Validation loss at the end."""
        return over_seeds([one.losses[-1] for one in self.records], "ratio")

    @cached_property
    def quality(self) -> tuple[list[int], list[Interval]]:
        """Fréchet distance along the steps; empty where nothing judged the samples."""
        rows = list(zip(*(one.quality for one in self.records), strict=True))
        return [row[0]["step"] for row in rows], [
            over_seeds([one["frechet"] for one in row], "ratio") for row in rows
        ]

    @cached_property
    def frechet(self) -> Interval:
        """Fréchet distance at the end; NaN where nothing judged the samples."""
        found = self.quality[1]
        return found[-1] if found else Interval(math.nan, math.nan, math.nan, self.seeds)

    @property
    def ratio(self) -> float:
        """Seconds of a step over those of the reference, median over seeds; 1 of the reference."""
        return self.price.value

    @cached_property
    def price(self) -> Interval:
        """The ratio with the quartiles of its timed steps, median over seeds."""
        if self.is_reference:
            return Interval(1.0, math.nan, math.nan, self.seeds)
        costs = [one.cost for one in self.records]
        middle, low, high = (
            float(np.median([cost[key] for cost in costs])) for key in ("ratio", "low", "high")
        )
        return Interval(middle, low, high, self.seeds)

    @cached_property
    def memory(self) -> float:
        """Peak memory of a step over that of the reference, median over seeds."""
        costs = [one.cost for one in self.records]
        return float(np.median([c["peak_bytes"] / c["reference_peak_bytes"] for c in costs]))

    @cached_property
    def at_equal_time(self) -> Interval:
        """Validation loss when the reference has done all its steps; at most its own last."""
        return over_seeds([self.loss_in_time(one) for one in self.records], "ratio")

    @cached_property
    def factors(self) -> list[float]:
        """Per pair the reference's steps over those in which its final loss is reached.

        0 where it never is.
        """
        return [other.steps[-1] / self._reached(own, other.losses[-1]) for own, other in self.pairs]

    def of_seeds(self, seeds: Collection[int]) -> "SchemeResult":
        """Return the same line with these seeds alone."""
        return replace(
            self,
            records=tuple(one for one in self.records if one.seed in seeds),
            pairs=tuple(pair for pair in self.pairs if pair[0].seed in seeds),
        )

    def gain(self, value: Callable[[Record], float]) -> Interval:
        """Return what the reference has more of ``value``, paired over seeds."""
        return over_seeds([value(other) - value(own) for own, other in self.pairs])

    def loss_in_time(self, one: Record) -> float:
        """Return a run's validation loss when the reference has done all its steps."""
        return float(np.interp(self.steps / self.ratio, one.steps, one.losses))

    def _reached(self, one: Record, target: float) -> float:
        """Return the step, between two measured ones, at which a loss is reached; else infinity."""
        for at, loss in enumerate(one.losses):
            if loss > target:
                continue
            if at == 0:
                return one.steps[0]
            before, step = one.losses[at - 1], one.steps[at - 1]
            return step + (one.steps[at] - step) * (before - target) / (before - loss)
        return math.inf


class Results:
    """The lines of a study, in the order of their names' first appearance in the plan.

    Args:
        records: of one scale.
        order: names; others come behind.

    Raises:
        UsageError: there is none, or they are of different scales or steps.
    """

    def __init__(self, records: Sequence[Record], order: Sequence[str] = ()) -> None:
        if not records:
            raise UsageError("there is no finished run yet", hint="dar-probe reproduce makes them")
        if len(scales := sorted({one.scale for one in records})) > 1:
            raise UsageError(f"runs of the scales {' and '.join(scales)} lie in one folder")
        self.scale = scales[0]
        by_name: dict[str, list[Record]] = {}
        for one in sorted(records, key=lambda r: r.seed):
            by_name.setdefault(one.name, []).append(one)
        for name, own in by_name.items():
            if len({(tuple(one.steps), len(one.quality)) for one in own}) > 1:
                raise UsageError(f"the runs of {name} have different steps")
        ranks = {name: at for at, name in enumerate(order)}
        names = sorted(by_name, key=lambda name: (ranks.get(name, len(ranks)), name))
        self.lines = {name: self._line(by_name, name) for name in names}
        self.records = list(records)

    @staticmethod
    def _line(by_name: dict[str, list[Record]], name: str) -> SchemeResult:
        own = by_name[name]
        group = own[0].group
        others = {r.seed: r for r in by_name.get(_reference(group), [])}
        pairs = tuple((r, others[r.seed]) for r in own if r.seed in others)
        return SchemeResult(
            name=name, label=own[0].label, group=group, records=tuple(own), pairs=pairs
        )

    def get(self, name: str) -> SchemeResult | None:
        """Return a line, None where it has no run yet."""
        return self.lines.get(name)

    def of(self, group: str) -> list[SchemeResult]:
        """Return the lines of one group."""
        return [line for line in self.lines.values() if line.group == group]

    @cached_property
    def main(self) -> list[SchemeResult]:
        """The schemes that were trained more than once; all of them where none was."""
        schemes = self.of("schemes")
        return [line for line in schemes if line.seeds > 1] or schemes

    def varied(self, group: str) -> list[SchemeResult]:
        """Return DAR static+t and what varies it, with the seeds that all of them have.

        A seed moves all losses alike, and by more than most settings do.
        """
        base, others = self.get("dar-static+t"), self.of(group)
        return of_same_seeds([base, *others] if base and others else others)

    @cached_property
    def single(self) -> list[SchemeResult]:
        """Return the schemes behind ``main`` and, before them, what they are held against.

        One seed beside a mean of others would show the luck of the seeds.
        """
        schemes = self.of("schemes")
        rest = [line for line in schemes if line not in self.main]
        return of_same_seeds([*(line for line in schemes if line.is_reference and rest), *rest])

    def reference_seconds(self, lines: Sequence[SchemeResult]) -> float:
        """Return the seconds of a step of these lines' reference, median over all its timings."""
        own = {_reference(line.group) for line in lines}
        timed = [one for one in self.records if _reference(one.group) in own]
        return float(np.median([one.cost["reference_seconds"] for one in timed]))


def of_same_seeds(lines: Sequence[SchemeResult]) -> list[SchemeResult]:
    """Return lines with the seeds that all of them have; none where there is no such seed."""
    seeds = [{one.seed for one in line.records} for line in lines]
    shared = set.intersection(*seeds) if seeds else set()
    return [line.of_seeds(shared) for line in lines] if shared else []


def _reference(group: str) -> str:
    return REFERENCES.get(group, "residual")


def read_records(folder: Path) -> list[Record]:
    """Return every record in OUT/runs.

    Raises:
        CheckpointError: one cannot be read.
        UsageError: there is none.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UsageError(
            f"{str(folder)!r} holds no finished run", hint="dar-probe reproduce makes them"
        )
    found = [record.read(path) for path in paths]
    for path, one in zip(paths, found, strict=True):
        if path.stem != f"{one.name}-seed{one.seed}":
            raise CheckpointError(
                f"{path.name!r} is the run {one.name}, seed {one.seed}",
                hint="give it its own name back",
            )
    return found


def optimal_chunk(sublayers: int, share: float) -> float:
    """Return S* = sqrt(L (1 - a) / (1 + a)), which C(S) = log(L/S + S) + a log S is least at.

    The paper's cost model (arXiv 2605.20708, section 4): a log number of sources against what a
    summary loses, weighed by a in (0, 1).
    """
    return math.sqrt(sublayers * (1 - share) / (1 + share))


def chunk_cost(sublayers: int, size: float, share: float) -> float:
    """Return C(S), see ``optimal_chunk``."""
    return math.log(sublayers / size + size) + share * math.log(size)
