"""The figures for the screen: values of metrics, names that cannot hurt, equal JSON."""

import base64
import json
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dar_probe import importance, metrics
from dar_probe.errors import UsageError
from dar_probe.reports import interactive, screen
from tests.synthetic import dataset

SCRIPT = "</script><img src=x onerror=alert(1)>%{y} $\\frac{"


@pytest.fixture(scope="module")
def dar():
    return dataset(blocks=6, samples=4, levels=3, routing="dar", chunk_size=4)


@pytest.fixture(scope="module")
def residual():
    return dataset(blocks=6, samples=4, levels=3)


def spec(figure) -> dict:
    return json.loads(figure.to_json(engine="json"))


def decoded(array: dict) -> np.ndarray:
    """Read plotly's base64 form, the one the browser gets."""
    values = np.frombuffer(base64.b64decode(array["bdata"]), dtype=np.dtype(array["dtype"]))
    return values.reshape([int(size) for size in array["shape"].split(",")])


def axis_of(trace: dict, layout: dict, letter: str) -> dict:
    return layout[trace[f"{letter}axis"].replace(letter, f"{letter}axis")]


def test_equal_datasets_give_equal_json(dar):
    for draw in (
        lambda: interactive.dilution([("a", dar)]),
        lambda: interactive.matrix(dar),
    ):
        assert draw().to_json(engine="json") == draw().to_json(engine="json")


def test_dilution_hovers_hold_value_and_interval(residual):
    lines = [t for t in spec(interactive.dilution([("a", residual)]))["data"] if "name" in t]
    assert len(lines) == 3
    profile = metrics.profile(residual, "rms").sel(block=slice(1, None))
    np.testing.assert_allclose(interactive.dilution([("a", residual)]).data[1].y, profile["value"])
    low, high = map(float, re.findall(r"[\d.]+", lines[0]["customdata"][0]))
    assert low == pytest.approx(float(profile["low"][0]), rel=1e-3)
    assert high == pytest.approx(float(profile["high"][0]), rel=1e-3)


def test_one_sample_has_no_band_and_no_interval():
    drawn = spec(interactive.dilution([("a", dataset(samples=1))]))
    assert len(drawn["data"]) == 3
    assert set(drawn["data"][0]["customdata"]) == {""}


def test_models_share_one_legend(dar, residual):
    drawn = spec(interactive.dilution([("plain", residual), ("routed", dar)]))
    shown = [trace["name"] for trace in drawn["data"] if trace["showlegend"]]
    assert shown == ["plain", "routed"]


def test_wide_ranges_get_a_log_axis_with_plain_ticks():
    drawn = spec(interactive.dilution([("a", dataset(inflation=100.0))]))
    assert drawn["layout"]["yaxis"]["type"] == "log"
    assert drawn["layout"]["yaxis"]["ticktext"] == ["1", "10", "100"]
    assert "type" not in drawn["layout"]["yaxis3"]


def test_sources_hold_the_block_maps_on_separate_scales(dar):
    drawn = spec(interactive.sources(dar, shallow=3, deep=7))
    assert [trace["coloraxis"] for trace in drawn["data"]] == ["coloraxis"] * 2 + ["coloraxis2"] * 2
    assert drawn["layout"]["coloraxis"]["colorscale"] != drawn["layout"]["coloraxis2"]["colorscale"]
    expected = importance.block_importance(dar).isel(reader=2, source_block=slice(0, 3)).values.T
    np.testing.assert_allclose(decoded(drawn["data"][0]["z"]), expected, rtol=1e-6)
    assert len(spec(interactive.sources(dataset(samples=2)))["data"]) == 2
    with pytest.raises(UsageError, match="no block 9"):
        interactive.sources(dar, deep=9)


def test_matrix_shows_one_level_of_every_map(dar):
    drawn = spec(interactive.matrix(dar))
    assert len(drawn["data"]) == 2 * 3
    assert [trace["visible"] for trace in drawn["data"]] == [True, False, False] * 2
    steps = drawn["layout"]["sliders"][0]["steps"]
    assert [step["label"] for step in steps] == ["0.01", "0.5", "0.99"]
    assert steps[1]["args"] == [{"visible": [False, True, False] * 2}]
    route = metrics.over_noise(dar, "route").transpose("noise_level", "reader", "source").values
    np.testing.assert_allclose(decoded(drawn["data"][5]["z"]), route[2], rtol=1e-6)
    assert np.isnan(decoded(drawn["data"][0]["z"])[0, 1:]).all()  # nothing comes from later


def test_dots_mark_importances_whose_sign_is_chance():
    ds = dataset(blocks=6, samples=12, levels=3, routing="dar", chunk_size=4)
    below = importance.below_null(ds).values
    below[:, 0] = False  # the share of an only source is not shown, and not marked
    traces = spec(interactive.matrix(ds))["data"]
    for level in range(3):
        marks = np.array(traces[level]["text"]) != ""
        np.testing.assert_array_equal(marks, below[level])
        assert set(np.ravel(traces[level]["text"])) == {"", screen.DOT}
        assert "%{text}" in traces[level]["hovertemplate"]
        assert "text" not in traces[3 + level]  # a route
        assert "%{text}" not in traces[3 + level]["hovertemplate"]
    shown = spec(interactive.sources(ds, shallow=3, deep=7))["data"]
    expected = importance.block_below_null(ds).values[:, 2, :3].T
    np.testing.assert_array_equal(np.array(shown[0]["text"]) != "", expected)


def test_few_samples_have_no_dots(dar):
    for figure in (interactive.matrix(dar), interactive.sources(dar)):
        assert not [trace for trace in spec(figure)["data"] if "text" in trace]


def test_decodability_has_a_line_for_every_kind_of_reader(residual):
    drawn = spec(interactive.decodability(residual))
    bands = [trace for trace in drawn["data"] if trace.get("fill")]
    lines = {trace["name"]: trace for trace in drawn["data"] if "name" in trace}
    assert list(lines) == ["attention", "mlp", "head"]
    assert len(bands) == 2  # the head has a whisker
    profile = metrics.profile(residual, "decodability")
    figure = interactive.decodability(residual)
    named = {trace.name: trace for trace in figure.data if trace.name}
    np.testing.assert_array_equal(named["mlp"].y, profile["value"].values[1::2])
    np.testing.assert_array_equal(named["mlp"].x, np.arange(1, 7))
    assert list(named["head"].x) == [7]
    assert named["head"].y[0] + named["head"].error_y.array[0] == pytest.approx(
        float(profile["high"][-1]), rel=1e-12
    )
    assert lines["mlp"]["text"][1] == "block 2 mlp"
    assert len({trace["line"]["color"] for trace in lines.values()}) == 3


def test_the_share_of_an_only_source_is_not_shown(residual):
    ds = residual.copy(deep=True)
    ds["gate"][:, :, 0, 0] = 1e-12  # rounding noise where theory says zero
    assert importance.importance(ds).values[0, 0, 0] == 1
    shown = decoded(spec(interactive.matrix(ds))["data"][0]["z"])
    assert np.isnan(shown[0]).all()
    assert np.isfinite(shown[1, :2]).all()


def test_matrix_of_one_level_has_no_slider(residual):
    assert "sliders" not in spec(interactive.matrix(residual.isel(noise_level=[0])))["layout"]


def test_equal_names_stay_apart(residual):
    ds = residual.copy()
    ds["reader_name"] = ("reader", np.array(["same"] * ds.sizes["reader"]))
    names = spec(interactive.matrix(ds))["data"][0]["y"]
    assert names[:3] == ["same", "same (2)", "same (3)"]
    assert len(set(names)) == ds.sizes["reader"]


def test_heatmap_is_logarithmic_where_it_spans_much():
    ds = dataset(inflation=100.0, samples=2, levels=2)
    drawn = spec(interactive.heatmap(ds, "rms"))
    expected = np.log10(metrics.over_noise(ds, "rms").values)
    np.testing.assert_allclose(decoded(drawn["data"][0]["z"]), expected, atol=1e-6)
    assert drawn["layout"]["coloraxis"]["colorbar"]["ticktext"] == ["1", "2", "5", "10", "20", "50"]
    hover = drawn["data"][0]["customdata"][6][0]
    assert float(hover.split(" [")[0]) == pytest.approx(10 ** expected[6, 0], rel=1e-3)
    assert len(re.findall(r"[\d.]+", hover)) == 3


def test_a_model_that_shows_nothing_is_refused(residual):
    ds = residual.copy(deep=True)
    ds["gate"][:] = 0
    for draw in (interactive.sources, interactive.matrix):
        with pytest.raises(UsageError, match="neither"):
            draw(ds)


def test_every_axis_of_the_two_layouts_exists(dar):
    for figure in (interactive.dilution([("a", dar)]), interactive.sources(dar)):
        layout = spec(figure)["layout"]
        wide, narrow = layout["meta"]["wide"], layout["meta"]["narrow"]
        assert set(wide) == set(narrow)
        assert narrow["height"] > wide["height"]
        for patch in (wide, narrow):
            for path, value in patch.items():
                assert path.split(".")[0] in layout
                if path.endswith("domain"):
                    assert 0 <= value[0] < value[1] <= 1


def test_every_map_has_a_range_and_a_colour_scale(dar):
    for figure in (interactive.sources(dar), interactive.matrix(dar)):
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
        interactive.dilution([(SCRIPT, ds)]),
        interactive.sources(ds),
        interactive.matrix(ds),
        interactive.heatmap(ds, "write_rms"),
        interactive.decodability(ds),
    ):
        text = figure.to_json(engine="json")
        assert "img" in text or "&lt;" in text
        assert "\\u003c/script" not in text
        assert "<img" not in text
        assert "\\u003cimg" not in text
        assert "onerror=alert(1)>" not in text


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
@example("<b>%{x}</b>&amp;")
def test_any_name_is_plain_text_for_plotly(name):
    text = screen.text(name)
    assert not set("<>%") & set(text)
    assert "&" not in re.sub(r"&(lt|gt|amp|#37);", "", text)
