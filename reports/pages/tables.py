"""The numbers behind the figures as tables: every block, and every reader."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from dar_probe.files.text import decimal
from dar_probe.reports.style import palette, source_maps
from dar_probe.reports.style.sample_band import middle
from dar_probe.results import metrics
from dar_probe.results.metrics import Metric
from dar_probe.results.schema import VARIABLES
from dar_probe.results.symptoms import SYMPTOMS

# What a marked block is said to have: the paper's three symptoms.
SHORT = {"rms": "RMS", "grad_rms": "gradient", "cosine": "cosine"}
# Every variable over blocks, and every one over readers or what they write; raw predictions of the
# noise level are told by decodability.
BLOCK_COLUMNS = sorted(
    (name for name, spec in VARIABLES.items() if spec.dims == ("block",)),
    key=lambda name: name not in SHORT,
)
READER_COLUMNS = [
    name
    for name, spec in VARIABLES.items()
    if spec.dims in (("reader",), ("sublayer",)) and name != "decoded_level"
]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell; a number keeps its full precision for export and sorting, a text has none.

    ``low`` and ``high`` are empty where there is no interval.
    """

    text: str
    value: str = ""
    low: str = ""
    high: str = ""
    range: str = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        name: in the exported file.
        title: on the page.
        define: key of its definition; empty where the title says all.
        kind: "text", "number", "interval" (a number with two ends) or "range" (two ends alone).
        spread: whether it is shown only with the spread over samples.
        short: what it is called beside a marked block; empty where it is not shown there.
    """

    name: str
    title: str
    define: str = ""
    kind: str = "interval"
    spread: bool = False
    short: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page; ``blocks`` has the block of every row, where rows are of blocks."""

    id: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)


def blocks(ds: xr.Dataset) -> Table:
    """Return one row per block: its state, gradient and cosine, pooled over noise levels."""
    numbers = [int(block) for block in ds["block"].values]
    columns = [Column(name="block", title="Block", define="axis:block", kind="number")]
    parts = [[Cell(text=str(number), value=str(number)) for number in numbers]]
    for name in BLOCK_COLUMNS:
        if not np.isfinite(ds[name].values).any():
            continue
        columns.append(_column(name, SHORT.get(name, "")))
        parts.append(_interval_cells(metrics.profile(ds, name)))
        if name in SHORT and ds.sizes["sample"] > 1:
            title = f"{columns[-1].title}, middle 90 % of samples"
            columns.append(
                Column(
                    name=f"{name}_samples", title=title, define="spread", kind="range", spread=True
                )
            )
            parts.append([_range(low, high) for low, high in middle(ds, name).T])
    rows = [list(row) for row in zip(*parts, strict=True)]
    caption = "Every block, pooled over samples and noise levels, with 95 % intervals"
    return Table(id="blocks", caption=caption, columns=columns, rows=rows, blocks=numbers)


def readers(ds: xr.Dataset, every: Sequence[source_maps.SourceMap]) -> Table:
    """Return one row per reader: what it reads from, what it writes, and its error bars.

    Args:
        ds: an analysis.
        every: what ``source_maps.sublayer_maps`` gave for it.
    """
    names = palette.depth_names(ds, "reader")
    homes = palette.depth_blocks(ds, "reader")
    kinds = [str(kind).replace("_", " ") for kind in ds["reader_kind"].values]
    columns = [
        Column(name="reader", title="Reader", define="axis:reader", kind="text"),
        Column(name="block", title="Block", define="axis:reader_block", kind="number"),
        Column(name="kind", title="Kind", define="axis:reader_kind", kind="text"),
    ]
    parts = [
        [Cell(text=name) for name in names],
        [Cell(text=str(home), value=str(home)) for home in homes],
        [Cell(text=palette.clean(kind, 40)) for kind in kinds],
    ]
    for level in dict.fromkeys((0, ds.sizes["noise_level"] - 1)):
        found = _largest(ds, every, level)
        if found:
            text = palette.levels(ds)[level]
            title = f"Most important source at noise level {text}"
            columns.append(
                Column(name=f"source_at_{text}", title=title, define="largest_source", kind="text")
            )
            parts.append(found)
    for name in READER_COLUMNS:
        if np.isfinite(ds[name].values).any():
            cells = _interval_cells(metrics.profile(ds, name))
            columns.append(_column(name))
            parts.append(cells + [Cell(text="n/a")] * (len(names) - len(cells)))  # the head's write
    rows = [list(row) for row in zip(*parts, strict=True)]
    caption = "Every reader, pooled over samples and noise levels, with 95 % intervals"
    return Table(id="readers", caption=caption, columns=columns, rows=rows, blocks=homes)


def steps(found: Sequence[tuple[int, Mapping[str, Metric]]]) -> Table:
    """Return one row per training step: the three symptoms, from what ``metrics.means`` gave."""
    columns = [Column(name="step", title="Training step", define="step", kind="number")]
    for name, symptom in SYMPTOMS.items():
        columns.append(Column(name=name, title=symptom.title, define=f"metric:{name}"))
    rows = [
        [
            Cell(text=f"{step:,}", value=str(step)),
            *(number_cell(m[name].value, m[name].low, m[name].high) for name in SYMPTOMS),
        ]
        for step, m in found
    ]
    caption = "The three symptoms at every checkpoint of the run, with 95 % intervals"
    return Table(id="steps", caption=caption, columns=columns, rows=rows)


def streams(found: Mapping[str, Mapping[str, Metric]]) -> Table:
    """Return one row per stream: the three symptoms, from what ``metrics.compute`` gave."""
    columns = [Column(name="stream", title="Stream", kind="text")]
    for name, symptom in SYMPTOMS.items():
        columns.append(Column(name=name, title=symptom.title, define=f"metric:{name}"))
    rows = [
        [Cell(text=stream), *(number_cell(m[n].value, m[n].low, m[n].high) for n in SYMPTOMS)]
        for stream, m in found.items()
    ]
    caption = "The three symptoms of each stream, with 95 % intervals"
    return Table(id="streams", caption=caption, columns=columns, rows=rows)


def number_cell(value: float, low: float = np.nan, high: float = np.nan) -> Cell:
    """Return a number with its interval, where it has one."""
    if not np.isfinite(value):
        return Cell(text="n/a")
    whole = np.isfinite(low) and np.isfinite(high)
    return Cell(
        text=decimal(value),
        value=repr(float(value)),
        low=repr(float(low)) if whole else "",
        high=repr(float(high)) if whole else "",
        range=f"[{decimal(low)}, {decimal(high)}]" if whole else "",
    )


def _column(name: str, short: str = "") -> Column:
    label = palette.axis_label(name)
    return Column(name=name, title=label[:1].upper() + label[1:], define=name, short=short)


def _interval_cells(profile: xr.Dataset) -> list[Cell]:
    parts = (profile[key].values for key in ("value", "low", "high"))
    return [number_cell(*map(float, row)) for row in zip(*parts, strict=True)]


def _range(low: float, high: float) -> Cell:
    if not (np.isfinite(low) and np.isfinite(high)):
        return Cell(text="n/a")
    text = f"{decimal(low)} to {decimal(high)}"
    return Cell(text=text, low=repr(float(low)), high=repr(float(high)))


def _largest(ds: xr.Dataset, every: Sequence[source_maps.SourceMap], level: int) -> list[Cell]:
    """Name the most important source of every reader; nothing without importances."""
    rows = [row for row in every if row.quantity == "importance"]
    if not rows:
        return []
    names: Sequence[str] = palette.depth_names(ds, "source")
    cells = []
    for shares in rows[0].values.values[level]:
        if not np.isfinite(shares).any():
            cells.append(Cell(text="n/a"))
            continue
        at = int(np.nanargmax(shares))
        cells.append(Cell(text=f"{names[at]} ({decimal(float(shares[at]), 2)})"))
    return cells
