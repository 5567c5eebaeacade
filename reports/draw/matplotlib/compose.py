"""A whole printed figure from its description."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dar_probe.errors import UsageError
from dar_probe.reports.draw.matplotlib import axes as axes_of_panels
from dar_probe.reports.draw.matplotlib import canvas, cells, lettering, lines
from dar_probe.reports.figures import arrangement, description
from dar_probe.reports.figures.caption import LETTERS
from dar_probe.reports.figures.description import Panel

Colours = list[tuple[Normalize, Colormap]]


def draw(figure: description.Figure, *, personal: bool = False) -> Figure:
    """Draw a figure for print, at the size that it has on paper.

    Args:
        figure: what it shows.
        personal: whether a user's own settings of matplotlib come on top of the paper's style.
    """
    paper = figure.paper
    with canvas.paper(personal=personal):
        made = canvas.figure(arrangement.inches(paper.width), paper.height)
        grid = _Grid(figure, _axes_of(made, figure))
        legend = _fill(made, grid)
        if legend or figure.has_bands:
            lettering.legend(
                made,
                list(legend.values()),
                [label for label, _ in legend],
                bands=figure.has_bands,
                band=figure.band,
            )
        lettering.note(made, figure.notes)
        if figure.heading:
            lettering.heading(made, figure.heading)
    return made


def draw_into(axes: Axes | Sequence[Axes], figure: description.Figure) -> Figure:
    """Draw the panels of a figure into axes of the user's, in the user's own style.

    The legend goes into the first of them; heading, notes and letters are left to the user.

    Args:
        axes: as many as there are panels, in reading order; a single one stands for itself.
        figure: what it shows.

    Returns:
        The figure that the axes belong to.

    Raises:
        UsageError: there are more or fewer axes than panels.
    """
    given = [axes] if isinstance(axes, Axes) else list(np.ravel(np.asarray(axes, dtype=object)))
    count = len(figure.panels)
    if len(given) != count:
        raise UsageError(
            f"this figure has {count} panel{'s' * (count > 1)} and takes as many axes, "
            f"not {len(given)}",
            hint=f"fig, axes = plt.subplots(1, {count}), and then ax=axes",
        )
    made = given[0].figure.figure
    with canvas.literal():
        grid = _Grid(replace(figure, lettered=False), given, own=False)
        if legend := _fill(made, grid):
            lettering.legend_within(given[0], list(legend.values()), [key[0] for key in legend])
    return made


def _axes_of(made: Figure, figure: description.Figure) -> list[Axes]:
    """Return the axes of a new figure in reading order, those without a panel hidden."""
    paper = figure.paper
    grid = made.subplots(
        math.ceil(len(figure.panels) / paper.across),
        paper.across,
        squeeze=False,
        height_ratios=paper.rows or None,
        width_ratios=paper.columns or None,
    )
    return list(grid.ravel())


def _fill(made: Figure, grid: "_Grid") -> dict[lines.Key, Line2D]:
    """Draw all panels and the colour bars; return what belongs into the legend."""
    figure = grid.figure
    norms = [cells.norm_of(scale) for scale in figure.scales]
    colours = [
        (norm, cells.colour_map(norm, scale.colours))
        for norm, scale in zip(norms, figure.scales, strict=True)
    ]
    legend: dict[lines.Key, Line2D] = {}
    for at, panel in enumerate(figure.panels):
        for key, line in _draw_panel(grid.axes[at], panel, colours).items():
            legend.setdefault(key, line)
        _title(grid, at, panel)
    for at, (scale, (norm, colour)) in enumerate(zip(figure.scales, colours, strict=True)):
        members = [
            grid.axes[place]
            for place, panel in enumerate(figure.panels)
            if panel.cells and panel.cells.scale == at
        ]
        cells.colour_bar(made, members, norm, colour, scale.label, below=scale.below)
    return legend


class _Grid:
    """The axes of all panels in the order of the panels, and where they stand.

    Args:
        figure: what is drawn.
        axes: in reading order; more than there are panels are hidden.
        own: whether they stand in the rows and columns that the description wants.
    """

    def __init__(self, figure: description.Figure, axes: list[Axes], *, own: bool = True) -> None:
        count = len(figure.panels)
        self.figure, self.own = figure, own
        self.across = figure.paper.across
        self.down = math.ceil(count / self.across)
        self.places = [self._place(at) for at in range(count)]
        order = [row * self.across + column for row, column in self.places] if own else range(count)
        self.axes = [axes[at] for at in order]
        for axis in axes:
            axis.set_visible(axis in self.axes)

    def _place(self, at: int) -> tuple[int, int]:
        if self.figure.paper.downwards:
            return at % self.down, at // self.down
        return divmod(at, self.across)

    def beside(self, at: int, down: int, right: int) -> Panel | None:
        """Return the panel that stands so many places away from another."""
        row, column = self.places[at]
        wanted = (row + down, column + right)
        if not self.own or wanted not in self.places:
            return None
        return self.figure.panels[self.places.index(wanted)]

    def letter(self, at: int) -> str:
        """Return "(a) " for the first panel in reading order."""
        row, column = self.places[at]
        return f"({LETTERS[(row * self.across + column) % 26]}) " if self.figure.lettered else ""

    def room(self, at: int) -> float:
        """Return how many inches a title has."""
        if self.own:
            beside = 0.8 + 0.9 * self.across * (canvas.enlarged() - 1)  # labels of axes
            return (arrangement.inches(self.figure.paper.width) - beside) / self.across
        axis = self.axes[at]
        return axis.get_position().width * axis.figure.figure.get_figwidth()


def _draw_panel(axis: Axes, panel: Panel, colours: Colours) -> dict[lines.Key, Line2D]:
    if shown := panel.cells:
        norm, colour = colours[shown.scale]
        cells.draw_map(axis, shown.values, norm, colour)
        if shown.marked is not None:
            cells.draw_dots(axis, shown.marked)
    if panel.distributions:
        # seaborn takes a second to load, for the sake of this kind of panel alone.
        from dar_probe.reports.draw.matplotlib.distributions import draw_distributions

        draw_distributions(axis, panel)
    found = lines.draw_all(axis, panel)
    axes_of_panels.set_up(axis, panel, "x")
    axes_of_panels.set_up(axis, panel, "y")
    return found


def _title(grid: _Grid, at: int, panel: Panel) -> None:
    """Write a panel's title, and the titles of its axes where no other panel says the same."""
    axis = grid.axes[at]
    lead = grid.letter(at) + panel.title
    axis.set_title(lettering.titled(lead, panel.subject, grid.room(at)), parse_math=False)
    below, left = grid.beside(at, 1, 0), grid.beside(at, 0, -1)
    if below is None or below.x.title != panel.x.title:
        axis.set_xlabel(panel.x.title)
    if left is None or left.y.title != panel.y.title or not panel.cells:
        axis.set_ylabel(panel.y.title)
    if grid.figure.paper.shared and grid.own:
        axis.tick_params(labelbottom=below is None, labelleft=left is None)
