"""Every figure of any dataset: described without failing, and drawn by both libraries."""

import json
import warnings

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dar_probe.reports.draw import matplotlib, none, plotly
from dar_probe.reports.figures import (
    differences,
    dilution,
    reader_maps,
    registry,
    study_curves,
    study_ranking,
    study_routes,
    trajectory,
)
from dar_probe.reports.style import source_maps
from dar_probe.results import metrics
from dar_probe.results.schema import VARIABLES
from dar_probe.results.study import aggregate
from dar_probe.results.trajectory import split
from dar_probe.results.verdict import Thresholds
from tests.helpers.studies import everything
from tests.helpers.synthetic import dataset, trained
from tests.results.test_interventions import dataset as ablated

HOSTILE = "</script>%{y}{{ 7 }} $\\frac{\n\udcff\u202e" + "x" * 300
NAMES = st.sampled_from(["a", "", HOSTILE, "\u0645\u0631", "@SUM(1)"])
GRID = [name for name, spec in VARIABLES.items() if spec.grid]
DEPTHS = [name for name in GRID if len(VARIABLES[name].dims) == 1]


@st.composite
def datasets(draw):
    """Return an analysis of any small size, with holes in any of its variables and any names."""
    ds = dataset(
        blocks=draw(st.integers(1, 5)),
        samples=draw(st.sampled_from([1, 2, 7])),
        levels=draw(st.integers(1, 3)),
        routing=draw(st.sampled_from(["residual", "dar"])),
        chunk_size=draw(st.sampled_from([None, 2, 4])),
        inflation=draw(st.sampled_from([None, 1.0, 1e6])),
        name=draw(NAMES),
        seed=draw(st.integers(0, 3)),
    ).copy(deep=True)
    for name in draw(st.sets(st.sampled_from(GRID), max_size=4)):
        ds[name][:] = draw(st.sampled_from([np.nan, 0.0, 1.0, -1.0]))
    for name in draw(st.sets(st.sampled_from(GRID), max_size=3)):
        ds[name][..., draw(st.integers(0, ds[name].shape[-1] - 1))] = np.nan
    if draw(st.booleans()):
        for dim in ("reader", "source"):
            names = [draw(NAMES)] * ds.sizes[dim]
            ds[f"{dim}_name"] = (dim, np.array(names, dtype=object))
    return ds


def described(ds, width="two"):
    """Yield every figure that an analysis gives, for print and for the page."""
    options = registry.Options(width=width, variables=tuple(DEPTHS))
    for stem in registry.stems(registry.FIGURES, options):
        if not registry.lacks(ds, stem, options):
            yield registry.describe(ds, stem, options, name=HOSTILE)
    if "step" in ds.dims:
        steps = split(ds)
        means = [(step, metrics.means(one)) for step, one in steps]
        yield trajectory.symptoms(means, Thresholds())
        yield from (trajectory.step_map(steps, name) for name in trajectory.MAPS)
        return
    yield dilution.dilution([("a", ds), ("a", ds)], width=width, middles=True)
    if differences.drawable([("a", ds), ("b", ds)]):
        yield differences.differences([("a", ds), (HOSTILE, ds)], width=width)
    if shown := source_maps.sublayer_maps(ds):
        yield reader_maps.every_reader(ds, shown)
        yield reader_maps.one_reader(ds, shown)


def of_studies():
    """Yield the figures of a study."""
    found = aggregate.Results(everything())
    for width in ("one", "two"):
        yield from (drawing.figure for drawing in study_curves.drawings(found, width=width))
    yield study_ranking.figure(study_ranking.ranking(found))
    yield study_routes.figure(study_routes.maps(found))


def check(figure):
    """Describe, draw for the screen, and let plotly say whether that is a figure."""
    calls = none.draw(figure)
    assert [call for call in calls if call.what == "panel"]
    return json.dumps(plotly.draw(figure), allow_nan=False)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(datasets(), st.sampled_from(["one", "two"]))
def test_any_dataset_gives_figures(ds, width):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing but NaN
        for figure in described(ds, width):
            check(figure)


CASES = {
    "no numbers": lambda: _without_numbers(dataset(blocks=3, samples=2, levels=2, routing="dar")),
    "one of everything": lambda: dataset(blocks=1, samples=1, levels=1),
    "200 blocks": lambda: dataset(blocks=200, samples=2, levels=2),
    "hostile": lambda: _renamed(dataset(blocks=3, samples=7, levels=2, routing="dar")),
    "training": lambda: trained(steps=3, blocks=3, samples=2, levels=2, name=HOSTILE),
    "interventions": ablated,
}


def _without_numbers(ds):
    for name in VARIABLES:
        if name in ds and VARIABLES[name].grid:
            ds[name][:] = np.nan
    return ds


def _renamed(ds):
    for dim in ("reader", "source"):
        names = np.array([f"{HOSTILE}{at}" for at in range(ds.sizes[dim])], dtype=object)
        ds[f"{dim}_name"] = (dim, names)
    return ds


@pytest.mark.parametrize("case", CASES)
def test_both_libraries_draw_what_is_described(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing but NaN
        figures = list(described(CASES[case]()))
    assert figures
    for figure in figures:
        text = check(figure)
        assert "<img" not in text and "</script" not in text
        go.Figure(json.loads(text))  # it refuses what it does not know
        made = matplotlib.draw(figure)
        shown = [axis for axis in made.axes if axis.get_label() != "<colorbar>"]
        assert len([axis for axis in shown if axis.get_visible()]) == len(figure.panels)


def test_both_libraries_draw_a_study():
    for figure in of_studies():
        go.Figure(json.loads(check(figure)))
        assert len(matplotlib.draw(figure).axes) >= len(figure.panels)


def test_what_is_recorded_is_what_is_described():
    ds = dataset(blocks=3, samples=3, levels=2)
    calls = none.draw(dilution.dilution([("plain", ds)]))
    curves = [call for call in calls if call.what == "curve"]
    assert [(call.panel, call.words) for call in curves] == [(at, "plain") for at in range(3)]
    expected = metrics.profile(ds, "rms")["value"].values[1:]
    np.testing.assert_array_equal(curves[0].values, expected)


def test_lines_end_where_another_stream_begins():
    """There no state has a cosine to the one before, and sizes do not compare."""
    ds = dataset(blocks=5, samples=3, levels=2)
    ds["cosine"][:, :, 3] = np.nan
    for middles in (False, True):
        figure = dilution.dilution([("a", ds)], middles=middles)
        for panel in figure.panels[:2]:
            (curve,) = panel.curves
            assert curve.x.tolist() == [1, 2, 2.5, 3, 4, 5]
            assert np.isnan(curve.value).tolist() == [False, False, True, False, False, False]
            assert curve.middle is None or np.isnan(curve.middle).all(0).tolist()[2]
    ds = dataset(blocks=5, samples=3, levels=2)
    assert dilution.dilution([("a", ds)]).panels[0].curves[0].x.tolist() == [1, 2, 3, 4, 5]
