"""Printed figures at both widths: nothing clipped or overlapping, and legible in grey."""

import re

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from dar_probe.reports import printing
from dar_probe.reports.draw import matplotlib
from dar_probe.reports.draw.matplotlib.lettering import text_width, wrapped
from dar_probe.reports.draw.plotly.texts import GROUNDS
from dar_probe.reports.figures import registry
from dar_probe.reports.pages import document
from dar_probe.reports.style import palette
from tests.helpers import lettered
from tests.helpers.drawn import printed
from tests.helpers.synthetic import dataset, trained

MATH = "$\\frac{ a\nb\tc\0d" + "x" * 300
WIDE = "W" * 300
TURNED = "\u202e\u0645\u0631\u062d\u0628\u0627 <script>"
VARIABLES = ("rms", "query_share", "gate_conservation")  # over blocks, sources, readers


def renamed(ds, name):
    for dim in ("reader", "source"):
        names = [f"{name}{at}" for at in range(ds.sizes[dim])]
        ds[f"{dim}_name"] = (dim, np.array(names, dtype=object))
    kinds = ds["reader_kind"].values.astype(object)
    kinds[kinds == "mlp"] = WIDE
    ds["reader_kind"] = ("reader", kinds)
    return ds


CASES = {
    "smallest": lambda: dataset(blocks=1, levels=1, samples=1),
    "small": lambda: dataset(blocks=3, levels=2, samples=8, routing="dar", chunk_size=4),
    "large": lambda: dataset(blocks=28, levels=20, samples=8, routing="dar", chunk_size=4),
    "plain": lambda: dataset(blocks=28, levels=2, samples=1),
    "hostile": lambda: renamed(
        dataset(blocks=28, levels=20, samples=2, routing="dar", chunk_size=4), MATH
    ),
    "trajectory": lambda: trained(steps=3, blocks=3, levels=2, samples=2),
    "long trajectory": lambda: trained(steps=20, blocks=28, levels=2, samples=2, routing="dar"),
    "one step": lambda: trained(steps=1, blocks=1, levels=1, samples=1),
}
NAMES = {"hostile": WIDE, "large": TURNED, "plain": MATH}


@pytest.mark.parametrize("width", ["one", "two"])
@pytest.mark.parametrize("case", CASES)
def test_no_text_is_clipped_or_lies_on_another(case, width):
    ds = CASES[case]()
    options = registry.Options(width=width, variables=VARIABLES)
    wanted = ("trajectory",) if "step" in ds.dims else registry.FIGURES
    stems = [
        stem for stem in registry.stems(wanted, options) if not registry.lacks(ds, stem, options)
    ]
    assert len(stems) > 4 or wanted == ("trajectory",) == tuple(stems)
    for stem in stems:
        drawn = printing.draw(ds, stem, options, name=NAMES.get(case, case))
        found = lettered.texts(drawn)
        assert lettered.clipped(drawn, found) == [], stem
        assert lettered.overlapping(found) == [], stem
        sizes = {size for _, _, size in found}
        assert 6 <= min(sizes) <= max(sizes) <= 8, stem


@pytest.mark.parametrize("width", ["one", "two"])
def test_many_models_of_unlike_depth_share_one_figure(width):
    depths = (3, 28, 8, 56, 5)
    analyses = [
        (
            f"{WIDE if blocks == 8 else ''} model of {blocks} blocks",
            dataset(blocks=blocks, levels=2),
        )
        for blocks in depths
    ]
    figure = printed.dilution(analyses, width=width)
    found = lettered.texts(figure)
    assert lettered.clipped(figure, found) == lettered.overlapping(found) == []
    for axis in figure.axes:
        assert [len(line.get_xdata()) for line in axis.get_lines()] == list(depths)
        low, high = axis.get_xlim()
        assert low < 1
        assert high > 56
        assert [int(tick) for tick in axis.get_xticks()][-1] == 56


def luminance(colours):
    """Relative luminance of sRGB colours, IEC 61966-2-1."""
    rgb = np.asarray(colours)[..., :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("name", ["mako_r", "rocket_r"])
def test_colour_maps_grow_darker_all_the_way(name):
    norm = matplotlib.scale(np.array([0.0, 1.0]), from_zero=True)
    grey = luminance(matplotlib.colour_map(norm, name)(np.linspace(0, 1, 256)))
    assert (np.diff(grey) < 0).all()
    assert grey[0] / grey[-1] > 20


def test_the_map_of_both_signs_is_lightest_at_zero():
    norm = matplotlib.scale(np.array([-1.0, 1.0]))
    grey = luminance(matplotlib.colour_map(norm, "mako_r")(np.linspace(0, 1, 256)))
    assert (np.diff(grey[:128]) > 0).all()
    assert (np.diff(grey[128:]) < 0).all()


def over(ground, page):
    """Return the colour of plotly's "rgba(r,g,b,a)" over a page."""
    *rgb, alpha = (float(part) for part in ground[5:-1].split(","))
    return (1 - alpha) * np.array(to_rgb(page)) + alpha * np.array(rgb) / 255


def test_on_a_dark_page_large_is_bright_and_small_stands_out_from_what_is_not_offered():
    css = document.template("style.css")
    page = re.findall(r"--paper: (#\w+)", css)[1]
    ground = luminance(over(GROUNDS["dark"], page))
    assert set(palette.DARK_MAPS) == set(palette.COLOUR_MAPS)
    for name, steps in palette.DARK_MAPS.items():
        light = luminance([to_rgb(colour) for colour in steps])
        rising = np.diff(light) > 0
        middle = len(steps) // 2
        if name == "vlag":  # darkest at zero
            assert not rising[:middle].any()
            assert rising[middle:].all()
        else:
            assert rising.all()
        assert ((light + 0.05) / (ground + 0.05)).min() > 1.8
        assert light.max() > 0.5


def looks(lines: list[Line2D]):
    return [(line.get_linestyle(), line.get_marker()) for line in lines]


def test_lines_differ_in_dash_and_marker_without_colour():
    pairs = [palette.look(line) for line in range(28)]
    assert len(set(pairs)) == 28
    assert all(a != b and c != d for (a, c), (b, d) in zip(pairs, pairs[1:], strict=False))
    analyses = [(f"{at}", dataset(blocks=2 + 20 * at, levels=1)) for at in range(5)]
    drawn = looks(printed.dilution(analyses).axes[0].get_lines())
    assert len(set(drawn)) == 5
    assert all(marker not in ("", "None") for _, marker in drawn)  # deep models too
    dar = dataset(blocks=6, routing="dar")
    for figure in (printed.spread(dar), printed.decodability(dar)):
        handles = figure.legends[0].legend_handles
        kinds = [
            line for line in handles if isinstance(line, Line2D) and line.get_marker() != "None"
        ]
        assert len(set(looks(kinds))) == 3


def test_blue_and_orange_differ_in_grey():
    blue, orange = (luminance(to_rgb(colour)) for colour in (palette.BLUE, palette.ORANGE))
    assert orange / blue > 2


@pytest.mark.parametrize("room", [0.5, 1.7, 3.0])
def test_wrapped_lines_fit_and_lose_no_word(room):
    text = "Route: mean over samples and tokens, summed within a block. " * 3
    lines = wrapped(text, room, "note").split("\n")
    assert " ".join(lines).split() == text.split()
    assert all(text_width(line, "note") <= room + 0.02 or " " not in line for line in lines)
    assert all(  # each line is as full as it can be
        text_width(f"{line} {following.split()[0]}", "note") > room - 0.02
        for line, following in zip(lines, lines[1:], strict=False)
    )
