"""A whole printed figure from its description."""

import math

from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dar_probe.reports.draw.matplotlib import axes, canvas, cells, lettering, lines
from dar_probe.reports.figures import arrangement, description
from dar_probe.reports.figures.description import Panel

LETTERS = "abcdefghijklmnopqrstuvwxyz"
Colours = list[tuple[Normalize, Colormap]]


def draw(figure: description.Figure) -> Figure:
    """Draw a figure for print, at the size that it has on paper.

    Args:
        figure: what it shows.
    """
    paper = figure.paper
    inches = arrangement.inches(paper.width)
    norms = [cells.norm_of(scale) for scale in figure.scales]
    colours = [
        (norm, cells.colour_map(norm, scale.colours))
        for norm, scale in zip(norms, figure.scales, strict=True)
    ]
    legend: dict[lines.Key, Line2D] = {}
    with canvas.paper():
        made = canvas.figure(inches, paper.height)
        grid = _Grid(made, figure)
        for at, panel in enumerate(figure.panels):
            for key, line in _draw_panel(grid.axes[at], panel, colours).items():
                legend.setdefault(key, line)
            _title(grid, at, panel, inches)
        for at, (scale, (norm, colour)) in enumerate(zip(figure.scales, colours, strict=True)):
            members = [
                grid.axes[place]
                for place, panel in enumerate(figure.panels)
                if panel.cells and panel.cells.scale == at
            ]
            cells.colour_bar(made, members, norm, colour, scale.label, below=scale.below)
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


class _Grid:
    """The axes of all panels in the order of the panels, and where they stand."""

    def __init__(self, made: Figure, figure: description.Figure) -> None:
        paper, count = figure.paper, len(figure.panels)
        self.figure = figure
        self.across = paper.across
        self.down = math.ceil(count / self.across)
        grid = made.subplots(
            self.down,
            self.across,
            squeeze=False,
            height_ratios=paper.rows or None,
            width_ratios=paper.columns or None,
        )
        self.places = [self._place(at) for at in range(count)]
        self.axes: list[Axes] = [grid[place] for place in self.places]
        for at in range(count, self.down * self.across):
            grid[self._place(at)].set_visible(False)

    def _place(self, at: int) -> tuple[int, int]:
        if self.figure.paper.downwards:
            return at % self.down, at // self.down
        return divmod(at, self.across)

    def beside(self, at: int, down: int, right: int) -> Panel | None:
        """Return the panel that stands so many places away from another."""
        row, column = self.places[at]
        wanted = (row + down, column + right)
        return self.figure.panels[self.places.index(wanted)] if wanted in self.places else None

    def letter(self, at: int) -> str:
        """Return "(a) " for the first panel in reading order."""
        row, column = self.places[at]
        return f"({LETTERS[(row * self.across + column) % 26]}) " if self.figure.lettered else ""


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
    axes.set_up(axis, panel, "x")
    axes.set_up(axis, panel, "y")
    return found


def _title(grid: _Grid, at: int, panel: Panel, inches: float) -> None:
    """Write a panel's title, and the titles of its axes where no other panel says the same."""
    axis = grid.axes[at]
    room = (inches - 0.8) / grid.across
    axis.set_title(
        lettering.titled(grid.letter(at) + panel.title, panel.subject, room), parse_math=False
    )
    below, left = grid.beside(at, 1, 0), grid.beside(at, 0, -1)
    if below is None or below.x.title != panel.x.title:
        axis.set_xlabel(panel.x.title)
    if left is None or left.y.title != panel.y.title or not panel.cells:
        axis.set_ylabel(panel.y.title)
    if grid.figure.paper.shared:
        axis.tick_params(labelbottom=below is None, labelleft=left is None)
