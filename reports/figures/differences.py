"""Paired differences over depth, other models minus the first."""

from collections.abc import Sequence

import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.reports.figures.arrangement import Paper, Screen, Width
from dar_probe.reports.figures.description import Axis, Curve, Figure, Panel, Rule
from dar_probe.reports.figures.dilution import block_axis
from dar_probe.reports.style import palette, source_maps
from dar_probe.results.comparability import obstacle, unlike_depth
from dar_probe.results.paired import over_depth
from dar_probe.results.schema import VARIABLES
from dar_probe.results.streams import single

Named = Sequence[tuple[str, xr.Dataset]]

NOTHING = "no model has the samples and the depth of the first, so nothing differs over depth"
ZERO_NOTE = "Zero: as in {}. Intervals are paired over samples."


def differences(analyses: Named, *, width: Width = "two") -> Figure:
    """Describe other minus reference of RMS, gradient RMS and neighbour cosine over depth.

    Args:
        analyses: (name, dataset) pairs; the first is the reference. Those that cannot be compared
            with it, or are of another depth, are left out. Colours and looks are those of the
            overlay of all models.
        width: "one" column (panels stacked) or "two" (side by side).

    Raises:
        UsageError: none is left, another width.
    """
    stacked = width == "one"
    paper = Paper(width=width, height=4.8 if stacked else 2.3, across=1 if stacked else 3)
    kept = drawable(analyses)
    if not kept:
        raise UsageError(NOTHING)
    last = int(analyses[0][1]["block"].values[-1])
    colours = palette.colours([ds for _, ds in analyses])
    panels = [
        Panel(
            title=panel.title,
            x=block_axis(last, "block index"),
            y=Axis(title=_label(panel), fitted=True, signed=True),
            curves=[_curve(analyses, at, panel.variable, colours[at]) for at in kept],
            rules=[Rule(y=0.0)],
        )
        for panel in palette.PANELS
    ]
    routed = any(source_maps.has_router(ds) for _, ds in analyses)
    return Figure(
        panels=panels,
        paper=paper,
        says="The other models minus the reference: RMS, gradient RMS and neighbour cosine over "
        "the block index.",
        screen=Screen(columns=3, row=240, room=760, gap=0.085),
        notes=[
            ZERO_NOTE.format(palette.clean(analyses[0][0])),
            *([palette.GRADIENT_NOTE] if routed else []),
        ],
        last=last,
    )


def drawable(analyses: Named) -> list[int]:
    """Return the positions of the analyses that differ from the first over a common depth."""
    (_, reference), *others = [(name, single(ds)) for name, ds in analyses]
    return [
        at
        for at, (_, ds) in enumerate(others, start=1)
        if not (obstacle(reference, ds) or unlike_depth(reference, ds))
    ]


def _curve(analyses: Named, at: int, variable: str, colour: str) -> Curve:
    found = over_depth(analyses[0][1], analyses[at][1], variable).sel(block=slice(1, None))
    return Curve(
        label=palette.clean(analyses[at][0], 80),
        colour=colour,
        look=at,
        x=found["block"].values,
        value=found["value"].values,
        low=found["low"].values,
        high=found["high"].values,
    )


def _label(panel: palette.Panel) -> str:
    units = VARIABLES[panel.variable].units.replace("/", " / ")
    return "difference" if units == "1" else f"difference ({units})"
