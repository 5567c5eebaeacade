"""Draws figures for print with matplotlib, and distributions with seaborn."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dar_probe.reports.draw.matplotlib.canvas import FORMATS, PaperFigure, figure, paper, save
from dar_probe.reports.draw.matplotlib.cells import colour_map, draw_dots, scale
from dar_probe.reports.draw.matplotlib.compose import draw, draw_into

__all__ = [
    "FORMATS",
    "Axes",
    "Figure",
    "PaperFigure",
    "colour_map",
    "draw",
    "draw_dots",
    "draw_into",
    "figure",
    "paper",
    "save",
    "scale",
]
