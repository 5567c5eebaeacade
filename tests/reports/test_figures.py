"""The printed figures: equal bytes, readable axes, and names that cannot hurt."""

import math
import warnings
from pathlib import Path

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
import seaborn as sns
from fontTools import subset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.colors import CenteredNorm, LogNorm, to_hex
from matplotlib.figure import Figure

from dar_probe.errors import UsageError
from dar_probe.files.text import decimal
from dar_probe.reports import printing
from dar_probe.reports.draw import matplotlib as canvas
from dar_probe.reports.draw.matplotlib import fonts, lettering
from dar_probe.reports.figures import registry
from dar_probe.reports.style import palette, source_maps
from dar_probe.results import importance, metrics
from tests.helpers.drawn import printed
from tests.helpers.synthetic import dataset

HOSTILE = [
    "$\\frac{ a\nb\tc\0d" + "x" * 300,
    "\u0645\u0631\u062d\u0628\u0627 \u202egpj.exe \u4f60\u597d \U0001f9ff \udcff \ue000",
    "",
]


def drawn_text(figure: Figure) -> list[str]:
    with canvas.paper():
        figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def meshes(figure: Figure) -> list[QuadMesh]:
    return [m for m in figure.findobj(QuadMesh) if m.axes.get_label() != "<colorbar>"]


@pytest.fixture(scope="module")
def dar():
    return dataset(blocks=8, samples=4, levels=3, routing="dar", chunk_size=4)


@pytest.fixture(scope="module")
def residual():
    return dataset(blocks=8, samples=4)


@pytest.mark.parametrize("stem", ["dilution", "sources", "matrix", "spread", "heatmap_rms"])
def test_equal_datasets_give_equal_bytes(tmp_path, dar, stem):
    users = {"font.size": 30, "font.family": "serif", "savefig.dpi": 50, "svg.hashsalt": "x"}
    users |= {"axes.grid": True, "text.parse_math": True}
    for turn, own in enumerate([{}, users]):
        with matplotlib.rc_context(own):  # a user's own settings change nothing
            figure = printing.draw(dar, stem, registry.Options(), name="a $b$")
            for suffix in ("png", "pdf", "svg"):
                canvas.save(figure, tmp_path / f"{turn}.{suffix}")
    for suffix in ("png", "pdf", "svg"):
        first, second = ((tmp_path / f"{turn}.{suffix}").read_bytes() for turn in (0, 1))
        assert first == second
        assert len(first) > 4000


def test_fonts_travel_with_the_file(tmp_path, dar):
    for suffix in ("pdf", "svg"):
        canvas.save(printed.dilution([("a", dar)]), tmp_path / f"a.{suffix}")
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf
    svg = (tmp_path / "a.svg").read_text()
    assert "<text" not in svg  # outlines: no font is asked for
    assert svg.count("<use") > 100


def test_fonts_of_a_pdf_have_no_layout_tables(tmp_path, dar, monkeypatch):
    asked = []

    def recorded(**settings):
        asked.append(options(**settings))
        return asked[-1]

    options = subset.Options
    monkeypatch.setattr(subset, "Options", recorded)
    canvas.save(printed.dilution([("a", dar)]), tmp_path / "a.pdf")
    assert asked  # matplotlib still asks fontTools
    assert all(set(fonts.TABLES) <= set(one.drop_tables) for one in asked)
    assert subset.Options is recorded  # nobody else's fonts change


@pytest.mark.parametrize("wrong", ["three", "", None])
def test_other_widths_and_formats_are_refused(tmp_path, dar, wrong):
    with pytest.raises(UsageError, match="width"):
        printed.heatmap(dar, "rms", width=wrong)
    with pytest.raises(UsageError, match="format"):
        canvas.save(printed.heatmap(dar, "rms"), tmp_path / "a", form=wrong or "")


@pytest.mark.parametrize("width", ["one", "two"])
def test_widths_are_those_of_the_columns(dar, width):
    figure = printed.sources(dar, width=width)
    assert figure.get_figwidth() == {"one": 3.25, "two": 6.75}[width]


def test_write_all_writes_every_figure_and_leaves_no_trace(tmp_path, residual):
    before = dict(matplotlib.rcParams)
    ds = residual.copy(deep=True)
    for name in ("rms_top1", "cosine", "cosine_centred", "write_rms", "grad_rms", "route_entropy"):
        ds[name][:] = np.nan
    every = registry.stems(registry.FIGURES, registry.Options())
    paths = printing.write_all(ds, tmp_path / "figures", name="../../$\\frac{\n", only=every)
    stems = [
        "dilution",
        "sources",
        "matrix",
        "decodability",
        "heatmap_rms",
        "heatmap_token_top1",
        "heatmap_write_ratio",
        "heatmap_write_lost",
    ]
    assert [path.name for path in paths] == [
        f"{stem}.{suffix}"
        for stem in stems
        for suffix in (("png", "pdf") if stem in registry.PAPER else ("png",))
    ]
    assert sorted(tmp_path.rglob("*.p*")) == sorted(paths)
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF")
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.pyplot.get_fignums() == []


def test_an_analysis_comes_with_the_main_figures(tmp_path, residual):
    names = [path.name for path in printing.write_all(residual, tmp_path, name="a")]
    maps = [f"heatmap_{name}.png" for name in ("rms", "grad_rms", "cosine")]
    both = [
        f"{stem}.{suffix}"
        for stem in ("dilution", "sources", "matrix")
        for suffix in ("png", "pdf")
    ]
    assert names == [*both, *maps]


def test_a_model_without_gates_and_router_gets_no_sources(tmp_path, residual):
    ds = residual.copy(deep=True)
    ds["gate"][:] = 0
    for name in (*palette.HEATMAPS, "decodability"):
        ds[name][:] = np.nan
    assert [path.name for path in printing.write_all(ds, tmp_path, name="a")] == [
        "dilution.png",
        "dilution.pdf",
    ]
    assert drawn_text(printed.dilution([("a", ds)])).count("not measured") == 3
    with pytest.raises(UsageError, match="neither"):
        printed.sources(ds)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_drawn(tmp_path, name):
    ds = dataset(blocks=3, samples=2, levels=2, name=name)
    ds["reader_name"] = ("reader", np.array([f"{name}{at}" for at in range(7)], dtype=object))
    canvas.save(printed.dilution([(name, ds)]), tmp_path / "a.pdf")
    drawn_text(printed.heatmap(ds, "write_rms"))


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=80))
@example("$x$ \\frac")
@example("\u0301" * 200)
@example("\u202e\u2066\u200d")
def test_any_name_becomes_one_short_drawable_line(name):
    text = lettering.printable(name)
    assert 0 < len(text) <= 60
    assert "\n" not in text
    figure = canvas.figure(3, 1)
    figure.text(0, 0, text, parse_math=False, family="DejaVu Sans")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph is a warning
        figure.canvas.draw()


@pytest.mark.parametrize(
    "shape",
    [{"levels": 1}, {"samples": 1}, {"blocks": 1}, {"blocks": 2, "levels": 1, "samples": 1}],
)
def test_smallest_datasets_can_be_drawn(shape):
    ds = dataset(**{"blocks": 3, "levels": 2, "samples": 2, **shape})
    for figure in [
        printed.dilution([("a", ds)]),
        printed.sources(ds),
        printed.heatmap(ds, "rms"),
    ]:
        assert drawn_text(figure)


def test_axes_are_labelled_in_plain_decimals():
    ds = dataset(blocks=28, samples=3, levels=2, inflation=100.0, decay=40.0)
    figure = printed.dilution([("a", ds)])
    texts = drawn_text(figure)
    assert not [text for text in texts if "$" in text or "mathdefault" in text]
    assert [axis.get_yscale() for axis in figure.axes] == ["log", "log", "linear"]
    for axis in figure.axes:
        assert axis.get_xlabel() == "block index"
        assert axis.get_ylabel()
        labels = [label.get_text() for label in axis.get_yticklabels()]
        assert len(labels) >= 3
        assert all(labels)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["1", "10", "100"]


def test_small_ranges_stay_linear():
    ds = dataset(blocks=6, samples=3, levels=2, inflation=3.0, decay=3.0)
    assert {axis.get_yscale() for axis in printed.dilution([("a", ds)]).axes} == {"linear"}


def test_bands_are_the_intervals_and_absent_for_one_sample():
    many, one = dataset(blocks=4, samples=6, levels=2), dataset(blocks=4, samples=1, levels=2)
    band = printed.dilution([("a", many)]).axes[0].collections[0]
    profile = metrics.profile(many, "rms").sel(block=slice(1, None))
    edges = band.get_paths()[0].vertices[:, 1]
    assert edges.min() == pytest.approx(float(profile["low"].min()))
    assert edges.max() == pytest.approx(float(profile["high"].max()))
    assert not printed.dilution([("a", one)]).axes[0].collections


def test_one_legend_names_every_model_in_its_own_colour(dar, residual):
    figure = printed.dilution([("plain", residual), ("routed", dar), ("plain 2", residual)])
    colours = [to_hex(line.get_color()) for line in figure.axes[1].get_lines()]
    assert colours[:2] == [palette.BLUE, palette.ORANGE]
    assert len(set(colours)) == 3
    assert len(figure.legends) == 1
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["plain", "routed", "plain 2", "95 % interval over samples"]


def test_sources_show_the_maps_of_metrics_on_two_scales(dar):
    figure = printed.sources(dar, shallow=3, deep=9)
    maps_ = meshes(figure)
    titles = [mesh.axes.get_title("left") for mesh in maps_]
    assert sorted(titles) == [
        "(a) importance, shallow: block 3 attention",
        "(b) route, shallow: block 3 attention",
        "(c) importance, deep: head",
        "(d) route, deep: head",
    ]
    whole = importance.block_routes(dar).isel(reader=-1).values.T
    offered = np.isfinite(whole).any(axis=1)
    assert not offered.all()  # in chunks of four only every second block is there
    deep = maps_[titles.index("(d) route, deep: head")]
    np.testing.assert_array_equal(np.asarray(deep.get_array()), whole[offered])
    importances, routes = maps_[titles.index("(c) importance, deep: head")], deep
    assert importances.get_cmap() != routes.get_cmap()
    assert importances.norm is not routes.norm
    texts = [" ".join(text.split()) for text in drawn_text(figure)]
    assert any("not offered are left out" in text for text in texts)
    assert not any("Hatched" in text for text in texts)
    labels = [label.get_text() for label in deep.axes.get_yticklabels()]
    assert [int(label) for label in labels] == np.flatnonzero(offered).tolist()


def test_sources_say_how_they_are_normalised(dar):
    def note(ds):
        return " ".join(" ".join(drawn_text(printed.sources(ds))).split())

    assert note(dar).count("each column sums to 1") == 2  # a softmax
    free = dar.copy(deep=True)
    free["route"][:] = 2 * free["route"]
    assert note(free).count("each column sums to 1") == 1
    assert "summed within a block, not normalised" in note(free)


def dots(figure: Figure) -> list[set[tuple[int, int]]]:
    """Cells (depth, level) with a dot, one set for each map."""
    return [
        {(int(row), int(column)) for column, row in drawn.get_offsets()}
        for drawn in figure.findobj(PathCollection)
    ]


def test_dots_mark_the_importances_of_a_consistent_sign():
    ds = dataset(blocks=8, samples=12, levels=3, routing="dar", chunk_size=4).copy(deep=True)
    even = ds["source"].values % 4 < 2  # both sublayers of every other block
    ds["gate"][:] = np.where(even, np.abs(ds["gate"].values), ds["gate"].values)
    figure = printed.sources(ds, shallow=3, deep=9)
    below = importance.block_below_null(ds).values
    shares = np.isfinite(importance.block_importance(ds).values).any(axis=0)
    expected = [
        {(int(i), int(k)) for k, i in np.argwhere(~below[:, at, shares[at]])} for at in (2, 8)
    ]
    letters = [mesh.axes.get_title("left")[:3] for mesh in meshes(figure)]
    found = dict(zip(letters, dots(figure), strict=True))
    assert found == {"(a)": expected[0], "(b)": set(), "(c)": expected[1], "(d)": set()}
    assert expected[1]
    assert any("Dot:" in text for text in drawn_text(figure))


def test_few_samples_have_no_dots_and_the_figure_says_so(residual):
    figure = printed.sources(residual)
    assert not any(dots(figure))
    assert any("Too few samples" in text for text in drawn_text(figure))


def luminance(colour: str) -> float:
    """Relative luminance, IEC 61966-2-1."""
    rgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_dot_is_round_and_stands_out_from_every_colour_of_every_map():
    figure = canvas.figure(2, 2)
    canvas.draw_dots(figure.subplots(), np.ones((1, 2), bool))
    (drawn,) = figure.findobj(PathCollection)
    assert to_hex(drawn.get_facecolors()[0]) == palette.DOT_FACE
    assert to_hex(drawn.get_edgecolors()[0]) == palette.DOT_EDGE
    assert drawn.get_paths()[0].get_extents().size == pytest.approx([1, 1])  # a circle
    assert len(drawn.get_sizes()) == 1
    for steps in palette.COLOUR_MAPS.values():
        for colour in steps:
            face, edge = (contrast(colour, own) for own in (palette.DOT_FACE, palette.DOT_EDGE))
            assert max(face, edge) > 3


def test_plain_residuals_have_one_row_and_nothing_hatched(residual):
    figure = printed.sources(residual)
    assert len(figure.axes) == 3  # two maps, one colour bar
    assert not any("Hatched" in text for text in drawn_text(figure))


def test_signed_routes_get_a_diverging_scale(dar):
    ds = dar.copy(deep=True)
    ds["route"][:] = ds["route"] * np.where(ds["source"].values % 3 == 0, -1, 1)
    figure = printed.sources(ds)
    for mesh in meshes(figure):
        signed = "route" in mesh.axes.get_title("left")
        assert isinstance(mesh.norm, CenteredNorm) is signed
        values = np.asarray(mesh.get_array())
        marks = [set(map(tuple, np.argwhere(values < 0)))] if signed else []
        drawn = [
            {(int(row), int(column)) for column, row in points.get_offsets()}
            for points in mesh.axes.findobj(PathCollection)
        ]
        assert all(mark in drawn for mark in marks)  # grey tells the signs apart no more
    assert any("Dash in a cell: negative" in text for text in drawn_text(figure))


def test_locations_avoid_readers_whose_importance_is_fixed():
    for blocks in (1, 2, 3, 4, 8, 28):
        ds = dataset(blocks=blocks, samples=2, levels=2)
        shares = importance.block_importance(ds)
        places = source_maps.locations(shares)
        assert all(place.sources >= min(3, blocks + 1) for place in places)
        assert len(places) == (2 if blocks > 2 else 1)
    assert [place.block for place in places] == [7, 21]
    with pytest.raises(UsageError, match="no block 30"):
        source_maps.locations(shares, deep=30)


def test_heatmap_scale_is_logarithmic_only_where_it_must_be():
    wide, narrow = dataset(inflation=100.0, levels=2), dataset(inflation=5.0, levels=2)
    assert isinstance(meshes(printed.heatmap(wide, "rms"))[0].norm, LogNorm)
    assert not isinstance(meshes(printed.heatmap(narrow, "rms"))[0].norm, LogNorm)


def test_heatmap_values_are_those_of_metrics(residual):
    mesh = meshes(printed.heatmap(residual, "cosine"))[0]
    expected = metrics.over_noise(residual, "cosine").values[1:]
    np.testing.assert_array_equal(np.asarray(mesh.get_array()), expected)


@pytest.mark.parametrize("name", ["gate", "loss", "decodability", "nonsense"])
def test_heatmap_refuses_what_has_no_single_depth(residual, name):
    with pytest.raises(UsageError, match=name):
        printed.heatmap(residual, name)


def test_colour_maps_are_seaborns():
    for name, stop in {"mako_r": 0.9, "rocket_r": 0.9, "vlag": 1.0}.items():
        exact = sns.color_palette(name, as_cmap=True)(np.linspace(0, stop, 9))
        assert palette.COLOUR_MAPS[name] == tuple(to_hex(colour) for colour in exact)
    assert {palette.BLUE, palette.ORANGE, *palette.OTHERS} <= set(
        sns.color_palette("colorblind").as_hex()
    )


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-9, 1e9), st.floats(5.0, 1e8))
@example(1.9, 110.0)
@example(0.115, 5.1)
def test_log_ticks_are_few_inside_and_round(low, factor):
    ticks = palette.log_ticks(low, low * factor)
    assert 3 <= len(ticks) <= 6
    assert all(low <= tick <= low * factor for tick in ticks)
    labels = [palette.tick(tick) for tick in ticks]
    assert len(set(labels)) == len(labels)
    assert [float(label) for label in labels] == pytest.approx(ticks)


@given(st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=6, unique=True))
def test_ticks_of_one_axis_share_their_notation(values):
    labels = palette.tick_labels(values)
    assert len({"e" in label for label in labels}) == 1
    assert [float(label) for label in labels] == pytest.approx(values, rel=1e-4)


@given(st.integers(1, 300))
def test_block_ticks_hold_both_ends(last):
    ticks = palette.block_ticks(last)
    assert ticks[0] == 1
    assert ticks[-1] == last
    assert len(ticks) <= 8


@settings(max_examples=200)
@given(st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False, width=32))
def test_numbers_keep_three_digits(value):
    assert math.isclose(float(decimal(value)), value, rel_tol=6e-3, abs_tol=1e-300)


@pytest.mark.parametrize(
    ("value", "number", "tick"),
    [
        (0.98712, "0.987", "0.987"),
        (1576.0, "1576", "1576"),
        (5e-7, "5.00e-7", "5e-7"),
        (100.0, "100", "100"),
        (10.0, "10.0", "10"),
        (0.0, "0", "0"),
        (math.nan, "not measurable", "not measurable"),
    ],
)
def test_numbers_and_ticks(value, number, tick):
    assert decimal(value) == number
    assert palette.tick(value) == tick


def test_noise_levels_stay_apart():
    ds = dataset(levels=3)
    ds = ds.assign_coords(noise_level=[0.5001, 0.5002, 0.75])
    assert palette.levels(ds) == ["0.5001", "0.5002", "0.75"]


def test_long_names_keep_both_ends():
    assert palette.clean("a" * 100 + "step-0400000.pt", 40).endswith("step-0400000.pt"[-13:])
    assert Path(palette.clean("runs/x.pt")).name == "x.pt"


def test_a_file_does_not_depend_on_what_was_written_before(tmp_path, dar):
    first, second = (printed.matrix(dar) for _ in range(2))
    canvas.save(first, tmp_path / "a.png")
    for number, figure in enumerate((first, second)):
        canvas.save(figure, tmp_path / f"{number}.pdf")
    assert (tmp_path / "0.pdf").read_bytes() == (tmp_path / "1.pdf").read_bytes()
