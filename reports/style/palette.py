"""Colours, labels, ticks and names shared by the printed and the interactive figures."""

import math
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.files.text import decimal
from dar_probe.results.importance import signs_can_tell
from dar_probe.results.schema import MAPS, VARIABLES, manifest

# seaborn's "colorblind" palette; blue and orange belong to the paper's two curves.
BLUE, ORANGE = "#0173b2", "#de8f05"
OTHERS = ("#029e73", "#d55e00", "#cc78bc", "#ca9161", "#949494", "#56b4e9")
DASHES = ("solid", "dashed", "dashdot", "dotted")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # 7 and 4 have no common factor: 28 pairs
MISSING = "#e3e3e3"
DOT_FACE, DOT_EDGE = "#ffffff", "#1b2430"  # one of the two stands out from any colour of a map

# seaborn's mako_r and rocket_r without their nearly black tenth, and vlag, at nine even steps.
# Gates and routes are different quantities, so they never share a colour map.
COLOUR_MAPS: dict[str, tuple[str, ...]] = {
    "mako_r": (
        "#def5e5",
        "#a1dfb9",
        "#53c9ad",
        "#38a9ac",
        "#3488a6",
        "#37689f",
        "#40478b",
        "#3a2c59",
        "#251729",
    ),
    "rocket_r": (
        "#faebdd",
        "#f6c19f",
        "#f59269",
        "#f05e42",
        "#db2946",
        "#b01759",
        "#811e5a",
        "#511e4d",
        "#251433",
    ),
    "vlag": (
        "#2369bd",
        "#678bbe",
        "#9baecb",
        "#cfd4e0",
        "#faf5f4",
        "#e7c8c6",
        "#d39794",
        "#bf6765",
        "#a9373b",
    ),
}

# The same for a dark page: what is large shines, and what is small still stands out from it.
DARK_MAPS: dict[str, tuple[str, ...]] = {
    "mako_r": ("#40478b", "#37689f", "#3488a6", "#38a9ac", "#53c9ad", "#a1dfb9", "#def5e5"),
    "rocket_r": ("#981b5a", "#b01759", "#db2946", "#f05e42", "#f59269", "#f6c19f", "#faebdd"),
    "vlag": (
        "#a9cbff",
        "#7faae4",
        "#6288bd",
        "#516994",
        "#55555f",
        "#8a5558",
        "#b8696a",
        "#dc8f8b",
        "#ffc0b8",
    ),
}


class Panel(NamedTuple):
    """One panel of the dilution figure; the title says in full what the axis label shortens."""

    variable: str
    title: str
    label: str
    may_log: bool


PANELS = (
    Panel("rms", "hidden-state RMS", "RMS (activation)", True),
    Panel("grad_rms", "gradient RMS", "RMS (loss / activation)", True),
    Panel("cosine", "cosine to the block before", "cosine", False),
)
HEATMAPS = MAPS
NOISE = "noise level (0 = data, 1 = noise)"
NOISE_NOTE = "Noise level: 0 is data, 1 is noise."
GRADIENT_NOTE = "Gradient: of the whole stream under plain residuals, of one reader under a router."
NOTES = {
    "importance": "Importance: root mean square of the gate over samples; each column sums to 1.",
    "route": "Route: mean over samples and tokens, summed within a block, {}.",
}
HALVES_NOTE = "The gates of two sources cancel, so each share is one half in every model."
DOT_NOTE = "Dot: over the samples this gate has a consistent sign, beyond what chance explains."
FEW_NOTE = "Too few samples to tell whether the sign of a gate is consistent: that takes six."
GAP_NOTE = "Hatched: not offered, or not measurable."
SIGN_NOTE = "Dash in a cell: negative."
ELLIPSIS = "\u2026"
REPLACEMENT = "\ufffd"


def clean(name: str, limit: int = 60) -> str:
    """Return ``name`` on one line, without control characters, at most ``limit`` long.

    Long names lose their middle, because checkpoints differ at the end ("step-0400000.pt").
    """
    kept = []
    for character in name:
        category = unicodedata.category(character)
        if character.isspace() or category in ("Cc", "Zl", "Zp"):
            kept.append(" ")
        elif category in ("Cs", "Co", "Cn"):
            kept.append(REPLACEMENT)
        elif category != "Cf":  # format characters can turn the text around them
            kept.append(character)
    text = " ".join("".join(kept).split())
    if len(text) > limit:
        tail = (limit - 1) // 3
        text = text[: limit - 1 - tail] + ELLIPSIS + text[len(text) - tail :]
    return text or "unnamed"


def tick(value: float, digits: int = 3) -> str:
    """Return ``value`` as a tick label: a plain decimal where sane, without trailing zeros."""
    text = decimal(value, digits)
    mantissa, mark, power = text.partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return mantissa + mark + power


def tick_labels(values: Sequence[float]) -> list[str]:
    """Return tick labels in one notation: with powers on all of them where one of them has one."""
    labels = [tick(value, 6) for value in values]
    if any("e" in label for label in labels):
        parts = [f"{value:.5e}".split("e") for value in values]
        powers = [f"{m.rstrip('0').rstrip('.')}e{int(power)}" for m, power in parts]
        labels = [text if value else "0" for text, value in zip(powers, values, strict=True)]
    return labels


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most ``most`` ticks within [low, high]: 1-2-5, closer, or decades alone."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)

    def inside(*steps: int) -> list[float]:
        marks = [float(f"{step}e{decade}") for decade in decades for step in steps]
        return [mark for mark in marks if low <= mark <= high]

    found = inside(1, 2, 5)
    if len(found) < 3:
        found = inside(1, 2, 3, 5, 7)
    if len(found) > most:
        tens = inside(1)
        found = tens[:: math.ceil(len(tens) / most)] if len(tens) >= 3 else inside(1, 3)
    return found


def spans(values: np.ndarray, factor: float) -> bool:
    """Whether the finite ``values`` are positive and span more than ``factor``."""
    finite = values[np.isfinite(values)]
    return bool(finite.size and finite.min() > 0 and finite.max() / finite.min() > factor)


def both_signs(values: np.ndarray) -> bool:
    """Whether there are negative and positive values."""
    finite = values[np.isfinite(values)]
    return bool(finite.size and finite.min() < 0 < finite.max())


def thinned(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the positions 0..count-1, evenly apart, from the first on."""
    return list(range(0, count, max(1, math.ceil(count / most))))


def evenly(count: int, most: int) -> list[int]:
    """Return about ``most`` (three or more) of 0..count-1, both ends among them, even if it can."""
    if count <= most:
        return list(range(count))
    even = [kept for kept in range(most, 2, -1) if (count - 1) % (kept - 1) == 0]
    return [round(at) for at in np.linspace(0, count - 1, even[0] if even else most)]


def block_ticks(last: int, most: int = 6) -> list[int]:
    """Return round block numbers within 1..last, block 1 and the last one among them."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, last) if last / step <= most)
    middle = [k for k in range(step, last, step) if k - 1 >= step / 2 and last - k >= step / 2]
    return sorted({1, *middle, last})


def dot_note(ds: xr.Dataset) -> str:
    """Return what the dots of an importance map say, or why there are none."""
    return DOT_NOTE if signs_can_tell(ds.sizes["sample"]) else FEW_NOTE


def axis_label(name: str) -> str:
    """Return a variable's long name with its units."""
    spec = VARIABLES[name]
    return spec.long_name if spec.units == "1" else f"{spec.long_name} ({spec.units})"


def depth_dim(name: str) -> str:
    """Return the one depth dim of a variable that also runs over noise levels.

    Raises:
        UsageError: the variable is unknown, has no noise levels, or no depth dim, or two.
    """
    drawable = [key for key, spec in VARIABLES.items() if spec.grid and len(spec.dims) == 1]
    if name not in drawable:
        raise UsageError(
            f"{name!r} has no map of depth and noise level",
            hint=f"choose one of {', '.join(drawable)}",
        )
    return VARIABLES[name].dims[0]


def depth_names(ds: xr.Dataset, dim: str) -> list[str]:
    """Return the label of every position along a depth dim, cleaned."""
    if dim == "block":
        return [str(int(block)) for block in ds["block"].values]
    coord = ds["source_name"] if dim == "source" else ds["reader_name"]
    return [clean(str(name), 40) for name in coord.values[: ds.sizes[dim]]]


def unique(names: Sequence[str]) -> list[str]:
    """Return the names, numbered where two of them are equal."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result


def depth_blocks(ds: xr.Dataset, dim: str) -> list[int]:
    """Return the block of every position along a depth dim; B+1 for the head."""
    if dim == "block":
        return [int(block) for block in ds["block"].values]
    coord = ds["source_block"] if dim == "source" else ds["reader_block"]
    return [int(block) for block in coord.values[: ds.sizes[dim]]]


def levels(ds: xr.Dataset) -> list[str]:
    """Return the noise levels as tick labels, with as many digits as tell them apart."""
    values = [float(level) for level in ds["noise_level"].values]
    for digits in range(2, 17):
        labels = [tick(value, digits) for value in values]
        if len(set(labels)) == len(labels):
            break
    return labels


def look(line: int) -> tuple[str, str]:
    """Return the dashes and the marker of a line: no two of 28 lines share both, also in grey."""
    return DASHES[line % len(DASHES)], MARKERS[line % len(MARKERS)]


def colours(datasets: Sequence[xr.Dataset]) -> list[str]:
    """Return one colour per dataset: the first plain residual blue, the first DAR orange."""
    free = list(OTHERS)
    chosen: list[str] = []
    for ds in datasets:
        routing = routing_of(ds)
        wanted = {"residual": BLUE, "dar": ORANGE}.get(routing)
        if wanted is None or wanted in chosen:
            wanted = free.pop(0)
            free.append(wanted)
        chosen.append(wanted)
    return chosen


def routing_of(ds: xr.Dataset) -> str:
    """Return the routing scheme named in the manifest, "unknown" where there is none."""
    model = manifest(ds).get("model") or {}
    return str(model.get("routing") or "unknown")
