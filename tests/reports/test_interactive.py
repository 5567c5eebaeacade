"""The figures for the screen: values of metrics, names that cannot hurt, equal JSON."""

import base64
import html
import json
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dar_probe.errors import UsageError
from dar_probe.reports.draw import plotly, still
from dar_probe.reports.style import palette, source_maps
from dar_probe.results import importance, metrics
from tests.helpers.drawn import screened, unpacked
from tests.helpers.synthetic import dataset
from tests.results.test_interventions import dataset as ablated

SCRIPT = "</script><img src=x onerror=alert(1)>%{y} $\\frac{"


@pytest.fixture(scope="module")
def dar():
    return dataset(blocks=6, samples=4, levels=3, routing="dar", chunk_size=4)


@pytest.fixture(scope="module")
def residual():
    return dataset(blocks=6, samples=4, levels=3)


def spec(figure) -> dict:
    return json.loads(json.dumps(figure, allow_nan=False))


def decoded(array: dict) -> np.ndarray:
    """Read plotly's base64 form, the one the browser gets."""
    values = np.frombuffer(base64.b64decode(array["bdata"]), dtype=np.dtype(array["dtype"]))
    return values.reshape([int(size) for size in array["shape"].split(",")])


def axis_of(trace: dict, layout: dict, letter: str) -> dict:
    return layout[trace[f"{letter}axis"].replace(letter, f"{letter}axis")]


def test_equal_datasets_give_equal_json(dar):
    for draw in (
        lambda: screened.dilution([("a", dar)]),
        lambda: screened.every_reader(dar),
    ):
        assert json.dumps(draw()) == json.dumps(draw())


def test_dilution_hovers_hold_value_and_interval(residual):
    lines = [t for t in spec(screened.dilution([("a", residual)]))["data"] if "name" in t]
    assert len(lines) == 3
    profile = metrics.profile(residual, "rms").sel(block=slice(1, None))
    np.testing.assert_allclose(unpacked(lines[0]["y"]), profile["value"])
    low, high = map(float, re.findall(r"[\d.]+", lines[0]["customdata"][0]))
    assert low == pytest.approx(float(profile["low"][0]), rel=1e-3)
    assert high == pytest.approx(float(profile["high"][0]), rel=1e-3)


def test_one_sample_has_no_band_and_no_interval():
    drawn = spec(screened.dilution([("a", dataset(samples=1))]))
    assert len(drawn["data"]) == 3
    assert set(drawn["data"][0]["customdata"]) == {""}


@pytest.mark.parametrize("inflation", [2.0, 100.0])
def test_a_still_shows_the_values_between_its_ticks(inflation):
    ds = dataset(blocks=9, samples=4, levels=2, inflation=inflation)
    found = still.still(screened.dilution([("<b> & co", ds)]))
    assert [name for _, _, name in found.legend] == ["<b> & co"]
    assert len(found.panels) == 3
    for panel, name in zip(found.panels, ("rms", "grad_rms", "cosine"), strict=True):
        (line,) = [path for path in panel.paths if not path.filled]
        assert [path.filled for path in panel.paths].count(True) == 1  # no spread over samples
        places, texts = zip(*panel.y_ticks, strict=True)
        marks = np.array([float(text) for text in texts])
        log = panel.title.endswith("RMS") and not np.isclose(*np.diff(marks)[[0, -1]])
        fit = np.polyfit(places, np.log(marks) if log else marks, 1)
        values = np.polyval(fit, [y for _, y in line.points])
        expected = metrics.profile(ds, name)["value"].values[1:]
        np.testing.assert_allclose(np.exp(values) if log else values, expected, rtol=0.02)
        for x, y in line.points:
            assert panel.left <= x <= panel.left + panel.width
            assert panel.top <= y <= panel.top + panel.height


def test_a_still_of_one_huge_value_has_an_axis(residual):
    ds = residual.copy(deep=True)
    ds["rms"].values[:] = 1e38
    drawn = still.still(screened.dilution([("a", ds)], middles=True))
    assert all(len(panel.y_ticks) > 1 for panel in drawn.panels)


def test_a_still_has_a_gap_where_nothing_was_measurable():
    ds = dataset(blocks=9, samples=3, levels=2).copy(deep=True)
    ds["cosine"][:, :, 4:6] = np.nan
    ds["rms"][:] = np.nan
    empty, _, gap = still.still(screened.dilution([("a", ds)], middles=True)).panels
    assert not empty.paths
    assert sorted(len(path.points) for path in gap.paths if not path.filled) == [3, 4]


def test_models_share_one_legend(dar, residual):
    drawn = spec(screened.dilution([("plain", residual), ("routed", dar)]))
    shown = [trace["name"] for trace in drawn["data"] if trace["showlegend"]]
    assert shown == ["plain", "routed"]


def test_wide_ranges_get_a_log_axis_with_plain_ticks():
    drawn = spec(screened.dilution([("a", dataset(inflation=100.0))]))
    assert drawn["layout"]["yaxis"]["type"] == "log"
    assert drawn["layout"]["yaxis"]["ticktext"] == ["1", "10", "100"]
    assert "type" not in drawn["layout"]["yaxis3"]


def test_sources_hold_the_block_maps_on_separate_scales(dar):
    drawn = spec(screened.sources(dar, shallow=3, deep=7, gaps=True))
    assert [trace["coloraxis"] for trace in drawn["data"]] == ["coloraxis"] * 2 + ["coloraxis2"] * 2
    assert drawn["layout"]["coloraxis"]["colorscale"] != drawn["layout"]["coloraxis2"]["colorscale"]
    expected = importance.block_importance(dar).isel(reader=2, source_block=slice(0, 3)).values.T
    np.testing.assert_allclose(decoded(drawn["data"][0]["z"]), expected, rtol=1e-6)
    assert len(spec(screened.sources(dataset(samples=2)))["data"]) == 2
    with pytest.raises(UsageError, match="no block 9"):
        screened.sources(dar, deep=9)


def frames(figure) -> dict:
    """Read the levels of a matrix as the page's script does."""
    drawn = spec(figure)
    found = drawn["layout"]["meta"]["frames"]
    shape = (len(found["levels"]), len(drawn["data"][0]["y"]), len(drawn["data"][0]["x"]))
    for one in found["maps"]:
        one["z"] = np.frombuffer(base64.b64decode(one["z"]), dtype="<f4").reshape(shape)
        bits = np.unpackbits(np.frombuffer(base64.b64decode(one["marks"]), dtype=np.uint8))
        one["marks"] = bits[: np.prod(shape)].reshape(shape).astype(bool) if bits.size else None
    return found


def test_matrix_shows_one_level_and_keeps_all(dar):
    drawn = spec(screened.every_reader(dar))
    assert len(drawn["data"]) == 2
    assert "sliders" not in drawn["layout"]
    found = frames(screened.every_reader(dar))
    assert found["levels"] == ["0.01", "0.5", "0.99"]
    assert found["values"] == pytest.approx(dar["noise_level"].values)
    assert [one["quantity"] for one in found["maps"]] == ["importance", "route"]
    route = metrics.over_noise(dar, "route").transpose("noise_level", "reader", "source").values
    np.testing.assert_allclose(found["maps"][1]["z"], route, rtol=1e-6)
    np.testing.assert_allclose(decoded(drawn["data"][1]["z"]), route[0], rtol=1e-6)
    assert np.isnan(decoded(drawn["data"][0]["z"])[0, 1:]).all()  # nothing comes from later


def signed(ds):
    """Return the dataset with gates of one sign from every third source, all others by chance."""
    ds = ds.copy(deep=True)
    third = ds["source"].values % 3 == 0
    ds["gate"][:] = np.where(third, np.abs(ds["gate"].values), ds["gate"].values)
    return ds


def certain(ds) -> np.ndarray:
    """Return the cells that get a dot, (levels, readers, sources): the sign is no chance."""
    found = ~importance.below_null(ds).values & (importance.importance(ds).values > 0)
    found[:, 0] = False  # the share of an only source is not shown, and not marked
    return found


def test_dots_mark_the_importances_of_a_consistent_sign():
    ds = signed(dataset(blocks=6, samples=12, levels=3, routing="dar", chunk_size=4))
    expected = certain(ds)
    assert 0.1 < expected.mean() < 0.5
    drawn = spec(screened.every_reader(ds))
    assert [trace["type"] for trace in drawn["data"]] == ["heatmap", "heatmap", "scatter"]
    assert drawn["layout"]["meta"]["dots"] == [2]
    marks = np.array(drawn["data"][0]["text"])
    np.testing.assert_array_equal(marks != "", expected[0])
    assert set(np.ravel(marks)) == {"", plotly.DOT}
    assert "%{text}" in drawn["data"][0]["hovertemplate"]
    assert "text" not in drawn["data"][1]  # a route
    assert "%{text}" not in drawn["data"][1]["hovertemplate"]
    cells, dots = drawn["data"][0], drawn["data"][2]
    shown = {
        (cells["y"].index(up), cells["x"].index(across))
        for up, across in zip(dots["y"], dots["x"], strict=True)
    }
    assert shown == {(up, across) for up, across in zip(*np.nonzero(expected[0]), strict=True)}
    first, second = frames(screened.every_reader(ds))["maps"]
    np.testing.assert_array_equal(first["marks"], expected)
    assert second["marks"] is None
    shown = spec(screened.sources(ds, shallow=3, deep=7, gaps=True))["data"]
    shares = importance.block_importance(ds).values[:, 2, :3].T
    expected = ~importance.block_below_null(ds).values[:, 2, :3].T & np.isfinite(shares)
    assert expected.any()
    np.testing.assert_array_equal(np.array(shown[0]["text"]) != "", expected)


def test_dots_are_round_and_of_one_size_in_every_map():
    """Sizes are in pixels, so cells of any shape have the same dot."""
    ds = signed(dataset(blocks=6, samples=12, levels=3))
    looks = []
    for figure in (screened.every_reader(ds), screened.one_reader(ds), screened.sources(ds)):
        found = [trace for trace in spec(figure)["data"] if trace["type"] == "scatter"]
        assert found
        assert "shapes" not in spec(figure)["layout"]
        looks += [(trace["marker"], trace["mode"], trace["hoverinfo"]) for trace in found]
    assert all(look == looks[0] for look in looks)
    marker, mode, hover = looks[0]
    assert (marker["symbol"], mode, hover) == ("circle", "markers", "skip")
    assert 4 <= marker["size"] + marker["line"]["width"] <= 8
    assert not marker.get("sizeref")


def test_a_gate_of_zero_and_gates_of_unlike_sign_have_no_dot():
    ds = dataset(blocks=3, samples=12, levels=1).copy(deep=True)
    ds["gate"][:] = np.where(np.arange(12) % 2, 1.0, -1.0)[:, None, None]
    ds["gate"][:, :, 4, 1] = 2.0
    ds["gate"][:, :, 4, 2] = 0.0
    marks = spec(screened.every_reader(ds))["layout"]["meta"]["frames"]["maps"][0]["marks"]
    bits = np.unpackbits(np.frombuffer(base64.b64decode(marks), dtype=np.uint8))
    assert np.flatnonzero(bits).tolist() == [4 * ds.sizes["source"] + 1]


def test_a_reader_is_one_row_of_the_matrix_over_the_levels(dar):
    for position in (0, 7, 12):
        drawn = spec(screened.one_reader(dar, position=position))
        offered = np.isfinite(dar["route"].values[:, :, position]).any(axis=(0, 1))
        for trace, one in zip(drawn["data"], source_maps.sublayer_maps(dar), strict=True):
            expected = one.values.values[:, position, offered].T
            np.testing.assert_allclose(decoded(trace["z"]), expected, rtol=1e-6)
            assert len(trace["y"]) == offered.sum()
        assert drawn["layout"]["meta"]["reader"] == position


def test_panels_say_what_their_axes_run_over(dar):
    levels = dar["noise_level"].values
    home = {
        "reader": dar["reader_block"].values,
        "source": dar["source_block"].values,
        "sublayer": dar["reader_block"].values[:-1],
        "block": dar["block"].values,
    }
    every = spec(screened.every_reader(dar))["layout"]["meta"]["panels"]
    assert len(every) == 2
    for panel, axes in zip(every, (("xaxis", "yaxis"), ("xaxis2", "yaxis2")), strict=True):
        assert (panel["xaxis"], panel["yaxis"]) == axes
        assert panel["x"] == {"dim": "block", "values": home["source"].tolist()}
        assert panel["y"] == {"dim": "block", "values": home["reader"].tolist()}
        assert panel["last"] == 6
    for name in ("rms", "cosine", "write_rms", "gate_conservation"):
        drawn = spec(screened.heatmap(dar, name))
        (panel,) = drawn["layout"]["meta"]["panels"]
        dim = palette.depth_dim(name)
        assert panel["y"]["values"] == home[dim][-len(drawn["data"][0]["y"]) :].tolist()
        assert panel["x"]["dim"] == "noise_level"
        assert panel["x"]["values"] == pytest.approx(levels)
    for figure in (screened.dilution([("a", dar)]), screened.decodability(dar)):
        for panel in spec(figure)["layout"]["meta"]["panels"]:
            assert panel["x"] == {"dim": "block", "values": None}
            assert "y" not in panel
    for panel, trace in zip(
        spec(screened.sources(dar, gaps=True))["layout"]["meta"]["panels"],
        spec(screened.sources(dar, gaps=True))["data"],
        strict=True,
    ):
        assert panel["y"]["values"] == list(range(len(trace["y"])))


def test_the_spread_is_hidden_and_holds_the_middle_of_the_samples():
    ds = dataset(blocks=4, samples=40, levels=3, spread=0.5, inflation=100.0)
    drawn = spec(screened.dilution([("a", ds)], middles=True))
    meta = drawn["layout"]["meta"]["spread"]
    assert [drawn["data"][at]["visible"] for at in meta["traces"]] == [False] * 3
    band = unpacked(drawn["data"][meta["traces"][0]]["y"])
    values = np.sqrt(np.square(ds["rms"].values.astype(float)).mean(axis=0))[:, 1:]
    ends = np.quantile(values, [0.05, 0.95], axis=0)
    np.testing.assert_allclose(band, [*ends[1], *ends[0][::-1]])
    low, high = (10**end for end in meta["shown"]["yaxis.range"])
    assert low < ends.min()
    assert ends.max() < high
    assert set(meta["shown"]) == set(meta["hidden"])
    assert meta["hidden"]["yaxis.range"] == drawn["layout"]["yaxis"]["range"]
    size = [
        len(screened.dilution([("a", dataset(blocks=4, samples=n))], middles=True)["data"])
        for n in (4, 64)
    ]
    assert size[0] == size[1]
    assert (
        "spread"
        not in spec(screened.dilution([("a", dataset(samples=1))], middles=True))["layout"]["meta"]
    )


def test_few_samples_have_no_dots(dar):
    for figure in (
        screened.every_reader(dar),
        screened.one_reader(dar),
        screened.sources(dar, gaps=True),
    ):
        assert {trace["type"] for trace in spec(figure)["data"]} == {"heatmap"}
        assert not [trace for trace in spec(figure)["data"] if "text" in trace]


def test_decodability_has_a_line_for_every_kind_of_reader(residual):
    drawn = spec(screened.decodability(residual))
    bands = [trace for trace in drawn["data"] if trace.get("fill")]
    lines = {trace["name"]: trace for trace in drawn["data"] if "name" in trace}
    assert list(lines) == ["attention", "mlp", "head"]
    assert len(bands) == 2  # the head has a whisker
    profile = metrics.profile(residual, "decodability")
    np.testing.assert_array_equal(unpacked(lines["mlp"]["y"]), profile["value"].values[1::2])
    np.testing.assert_array_equal(unpacked(lines["mlp"]["x"]), np.arange(1, 7))
    head = lines["head"]
    assert unpacked(head["x"]) == [7]
    assert unpacked(head["y"])[0] + unpacked(head["error_y"]["array"])[0] == pytest.approx(
        float(profile["high"][-1]), rel=1e-12
    )
    assert lines["mlp"]["text"][1] == "block 2 mlp"
    assert len({trace["line"]["color"] for trace in lines.values()}) == 3


def test_the_share_of_an_only_source_is_not_shown(residual):
    ds = residual.copy(deep=True)
    ds["gate"][:, :, 0, 0] = 1e-12  # rounding noise where theory says zero
    assert importance.importance(ds).values[0, 0, 0] == 1
    shown = decoded(spec(screened.every_reader(ds))["data"][0]["z"])
    assert np.isnan(shown[0]).all()
    assert np.isfinite(shown[1, :2]).all()


def test_equal_names_stay_apart(residual):
    ds = residual.copy()
    ds["reader_name"] = ("reader", np.array(["same"] * ds.sizes["reader"]))
    names = spec(screened.every_reader(ds))["data"][0]["y"]
    assert names[:3] == ["same", "same (2)", "same (3)"]
    assert len(set(names)) == ds.sizes["reader"]


def test_heatmap_is_logarithmic_where_it_spans_much():
    ds = dataset(inflation=100.0, samples=2, levels=2)
    drawn = spec(screened.heatmap(ds, "rms", intervals=True))
    expected = np.log10(metrics.over_noise(ds, "rms").values)
    np.testing.assert_allclose(decoded(drawn["data"][0]["z"]), expected, atol=1e-6)
    assert drawn["layout"]["coloraxis"]["colorbar"]["ticktext"] == ["1", "2", "5", "10", "20", "50"]
    hover = drawn["data"][0]["customdata"][6][0]
    assert float(hover.split(" [")[0]) == pytest.approx(10 ** expected[6, 0], rel=1e-3)
    assert len(re.findall(r"[\d.]+", hover)) == 3


def test_a_model_that_shows_nothing_is_refused(residual):
    ds = residual.copy(deep=True)
    ds["gate"][:] = 0
    for draw in (screened.sources, screened.every_reader, screened.one_reader):
        with pytest.raises(UsageError, match="neither"):
            draw(ds)


def test_every_axis_of_the_two_layouts_exists(dar):
    for figure in (screened.dilution([("a", dar)]), screened.sources(dar, gaps=True)):
        layout = spec(figure)["layout"]
        wide, narrow = layout["meta"]["wide"], layout["meta"]["narrow"]
        assert set(wide) == set(narrow)
        assert narrow["height"] > wide["height"]
        for patch in (wide, narrow):
            for path, value in patch.items():
                assert re.split(r"[.\[]", path)[0] in layout
                if path.endswith("domain"):
                    assert 0 <= value[0] < value[1] <= 1


def test_a_long_title_is_broken_on_a_narrow_page_and_loses_no_word(dar):
    ds = dar.copy()
    ds["reader_name"] = ("reader", np.array([f"a reader < of a long & winding name {at}"
                                             for at in range(13)]))  # fmt: skip
    layout = spec(screened.sources(ds, gaps=True))["layout"]
    wide, narrow = layout["meta"]["wide"], layout["meta"]["narrow"]
    lines = narrow["annotations[0].text"].split("<br>")
    assert len(lines) == 2
    assert max(map(len, map(html.unescape, lines))) <= 42
    assert " ".join(lines) == wide["annotations[0].text"] == layout["annotations"][0]["text"]
    assert narrow["margin.t"] == wide["margin.t"] + 16 == layout["margin"]["t"] + 16


def test_a_long_name_is_broken_in_the_legend_which_has_room_for_it():
    shown = spec(screened.interventions(ablated()))
    names = [trace["name"] for trace in shown["data"] if trace.get("showlegend")]
    lines = [name.split("<br>") for name in names]
    assert all(len(one) == 2 and one[0].endswith(":") for one in lines)
    assert max(len(html.unescape(line)) for one in lines for line in one) <= 40
    narrow = shown["layout"]["meta"]["narrow"]
    assert narrow["margin.t"] >= 2 * 14 * len(names)
    pair = [(name, dataset(samples=2)) for name in ("fifteen letters", "fifteen LETTERS")]
    layout = spec(screened.dilution(pair))["layout"]["meta"]
    # One below the other, and a title; on a wide page side by side.
    assert layout["narrow"]["margin.t"] == 3 * 28 > layout["wide"]["margin.t"]
    short = spec(screened.dilution([("a: b", dataset(samples=2))]))["data"]
    assert [trace["name"] for trace in short if trace.get("showlegend")] == ["a: b"]


def test_maps_have_colours_for_a_light_and_for_a_dark_page(dar):
    drawn = spec(screened.sources(dar))["layout"]
    schemes = drawn["meta"]["schemes"]
    for at, name in (("coloraxis", "mako_r"), ("coloraxis2", "rocket_r")):
        for scheme, maps in (("light", palette.COLOUR_MAPS), ("dark", palette.DARK_MAPS)):
            steps = schemes[scheme][f"{at}.colorscale"]
            assert [colour for _, colour in steps] == list(maps[name])
            np.testing.assert_allclose([at for at, _ in steps], np.linspace(0, 1, len(steps)))
        assert schemes["light"][f"{at}.colorscale"] == drawn[at]["colorscale"]
    root = spec(screened.matrix(dar))["layout"]["meta"]["schemes"]["dark"]["coloraxis.colorscale"]
    np.testing.assert_allclose([at for at, _ in root], np.linspace(0, 1, len(root)) ** 2)
    ds = dar.copy(deep=True)
    ds["route"][:] = ds["route"] * np.where(ds["source"].values % 3 == 0, -1, 1)
    steps = spec(screened.sources(ds))["layout"]["meta"]["schemes"]["dark"]["coloraxis2.colorscale"]
    assert [colour for _, colour in steps] == list(palette.DARK_MAPS["vlag"])
    assert "schemes" not in spec(screened.dilution([("a", dar)]))["layout"]["meta"]


def test_every_map_has_a_range_and_a_colour_scale(dar):
    for figure in (
        screened.sources(dar, gaps=True),
        screened.every_reader(dar),
        screened.one_reader(dar),
    ):
        drawn = spec(figure)
        for trace in drawn["data"]:
            for letter in "xy":
                axis = axis_of(trace, drawn["layout"], letter)
                assert axis["range"] == [-0.5, len(trace[letter]) - 0.5]
            assert drawn["layout"][trace["coloraxis"]]["cmin"] == 0


def test_hostile_names_carry_no_markup_and_no_template(residual):
    ds = residual.copy()
    ds["reader_name"] = ("reader", np.array([f"{SCRIPT}{at}" for at in range(13)]))
    ds["source_name"] = ("source", np.array([SCRIPT] * 13))
    for figure in (
        screened.dilution([(SCRIPT, ds)]),
        screened.sources(ds),
        screened.every_reader(ds),
        screened.one_reader(ds),
        screened.heatmap(ds, "write_rms"),
        screened.decodability(ds),
    ):
        text = json.dumps(figure)
        assert "img" in text or "&lt;" in text
        assert "\\u003c/script" not in text
        assert "<img" not in text
        assert "\\u003cimg" not in text
        assert "onerror=alert(1)>" not in text


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
@example("<b>%{x}</b>&amp;")
def test_any_name_is_plain_text_for_plotly(name):
    text = plotly.text(name)
    assert not set("<>%") & set(text)
    assert "&" not in re.sub(r"&(lt|gt|amp|#37);", "", text)
