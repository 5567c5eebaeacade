"""Figures that keep kinds of readers apart, and the trajectory: their numbers, notes, refusals."""

import matplotlib.text
import numpy as np
import pytest
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.figure import Figure

from dar_probe.analysis import Analysis
from dar_probe.errors import UsageError
from dar_probe.reports import printing
from dar_probe.reports.draw import matplotlib as canvas
from dar_probe.reports.figures import registry
from dar_probe.reports.figures.trajectory import LOOKS
from dar_probe.reports.pages.wording import STEPS_CAPTION
from dar_probe.results import importance, metrics, trajectory
from dar_probe.results.symptoms import SYMPTOMS
from dar_probe.results.verdict import Thresholds
from tests.helpers.drawn import printed
from tests.helpers.synthetic import dataset, trained


@pytest.fixture(scope="module")
def dar():
    return dataset(blocks=6, samples=6, levels=4, routing="dar", chunk_size=4)


@pytest.fixture(scope="module")
def residual():
    return dataset(blocks=6, samples=4, levels=3)


@pytest.fixture(scope="module")
def run():
    return trained(steps=4, blocks=6, samples=6, levels=2)


def panels(figure: Figure):
    """Return the map of each panel by its title, without the letter."""
    found = [mesh for mesh in figure.findobj(QuadMesh) if mesh.axes.get_label() != "<colorbar>"]
    return {mesh.axes.get_title("left").split(" ", 1)[1]: mesh for mesh in found}


def values(mesh: QuadMesh):
    return np.ma.filled(np.ma.asarray(mesh.get_array()).astype(float), np.nan)


def notes(figure: Figure) -> str:
    texts = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    return " ".join(" ".join(texts).split())


def test_matrix_keeps_attention_mlp_and_head_apart(dar):
    found = panels(printed.matrix(dar, noise_level=0.99))
    assert set(found) == {
        f"{quantity}, {kind}"
        for quantity in ("importance", "route")
        for kind in ("attention", "mlp", "head")
    }
    shares = importance.importance(dar).isel(noise_level=-1)
    shares = shares.where(shares.notnull().sum("source") >= 2)
    route = metrics.over_noise(dar, "route").isel(noise_level=-1)
    for kind in ("attention", "mlp", "head"):
        own = dar["reader_kind"].values == kind
        importances, routes = (found[f"{name}, {kind}"] for name in ("importance", "route"))
        np.testing.assert_allclose(values(importances), shares.values[own])
        np.testing.assert_allclose(values(routes), route.values[own])
        assert importances.norm is not routes.norm


def test_matrix_of_plain_residuals_has_no_routes(residual):
    assert set(panels(printed.matrix(residual))) == {
        f"importance, {kind}" for kind in ("attention", "mlp", "head")
    }


@pytest.mark.parametrize(
    ("asked", "level", "says"),
    [
        (0.7, 2, "the measured one nearest to 0.7"),
        (0.0, 0, "nearest to 0"),
        (1.0, -1, "nearest to 1"),
    ],
)
def test_matrix_takes_the_nearest_level_and_says_which(dar, asked, level, says):
    figure = printed.matrix(dar, noise_level=asked, kind="attention")
    expected = metrics.over_noise(dar, "route").isel(noise_level=level).values
    attention = dar["reader_kind"].values == "attention"
    np.testing.assert_allclose(values(panels(figure)["route, attention"]), expected[attention])
    assert says in notes(figure)


def test_matrix_asked_for_a_measured_level_does_not_speak_of_another(dar):
    assert "nearest" not in notes(printed.matrix(dar, noise_level=0.01))
    assert "Noise level 0.34" in notes(printed.matrix(dar))  # of four the second


@pytest.mark.parametrize("level", [-0.1, 1.5, float("nan")])
def test_matrix_refuses_levels_that_there_cannot_be(dar, level):
    with pytest.raises(UsageError, match="between 0"):
        printed.matrix(dar, noise_level=level)


def test_matrix_says_whether_routes_are_shares(dar):
    free = dar.copy(deep=True)
    free["route"][:] = 3 * free["route"]
    assert "each row sums to 1. Route: mean over samples and tokens; each" in notes(
        printed.matrix(dar)
    )
    assert "Route: mean over samples and tokens, not normalised" in notes(printed.matrix(free))


def test_effective_number_of_sources_is_exp_of_the_entropy_below_what_is_offered(dar):
    figure = printed.spread(dar)
    profile = metrics.profile(dar, "route_entropy")
    entropy, number = figure.axes
    offered = np.isfinite(dar["route"].values[0, 0]).sum(axis=1)
    for line, kind in enumerate(("attention", "mlp", "head")):
        own = dar["reader_kind"].values == kind
        drawn = [axis.get_lines()[line].get_ydata() for axis in (entropy, number)]
        np.testing.assert_allclose(drawn[0], profile["value"].values[own])
        np.testing.assert_allclose(drawn[1], np.exp(drawn[0]))
        bound = number.get_lines()[3 + line].get_ydata()
        np.testing.assert_array_equal(bound, offered[own])
        assert (drawn[1] <= bound * (1 + 1e-6)).all()
    band = number.collections[0].get_paths()[0].vertices[:, 1]
    attention = dar["reader_kind"].values == "attention"
    assert band.max() == pytest.approx(float(np.exp(profile["high"].values[attention].max())))


def test_without_a_router_there_is_no_spread(residual):
    with pytest.raises(UsageError, match="no router"):
        printed.spread(residual)


def test_decodability_is_that_of_metrics_and_the_head_has_a_whisker(dar):
    axis = printed.decodability(dar).axes[0]
    profile = metrics.profile(dar, "decodability")
    for line, kind in zip(axis.get_lines(), ("attention", "mlp", "head"), strict=True):
        own = dar["reader_kind"].values == kind
        np.testing.assert_allclose(line.get_ydata(), profile["value"].values[own])
        np.testing.assert_array_equal(line.get_xdata(), dar["reader_block"].values[own])
    whisker = axis.collections[-1].get_segments()[0][:, 1]
    assert whisker.tolist() == pytest.approx(
        [float(profile["low"][-1]), float(profile["high"][-1])]
    )


def test_decodability_needs_levels_and_samples():
    with pytest.raises(UsageError, match="two noise levels"):
        printed.decodability(dataset(blocks=2, levels=1))


def test_distributions_keep_within_the_samples_and_show_their_quartiles():
    ds = dataset(blocks=6, samples=24, levels=3, spread=0.5, inflation=100.0)
    figure = printed.samples(ds)
    for axis, variable in zip(figure.axes, ("rms", "grad_rms", "cosine"), strict=True):
        average = ds[variable].astype(np.float64)
        pooled = average.mean("noise_level")
        if variable != "cosine":
            pooled = np.sqrt((average**2).mean("noise_level"))
        blocks = [int(text.get_text()) for text in axis.get_xticklabels()]
        assert blocks[0] == 1 and blocks[-1] == 6
        shapes = [found for found in axis.collections if isinstance(found, PolyCollection)]
        for place, (block, shape) in enumerate(zip(blocks, shapes, strict=True)):
            own = pooled.sel(block=block).values
            up = shape.get_paths()[0].vertices[:, 1]
            assert (up.min(), up.max()) == pytest.approx((own.min(), own.max()), rel=1e-6)
            lines = axis.get_lines()[3 * place : 3 * place + 3]
            scaled = np.log10(own) if axis.get_yscale() == "log" else own
            wanted = np.quantile(scaled, [0.25, 0.5, 0.75])
            if axis.get_yscale() == "log":
                wanted = 10**wanted
            np.testing.assert_allclose([line.get_ydata()[0] for line in lines], wanted, rtol=1e-5)
    assert figure.axes[0].get_yscale() == "log"


def test_few_samples_have_no_distribution(dar):
    with pytest.raises(UsageError, match="6 samples show no distribution: it takes 8"):
        printed.samples(dar)


@pytest.mark.parametrize("name", ["matrix", "spread", "decodability"])
def test_one_kind_alone(dar, name):
    figure = getattr(printed, name)(dar, kind="mlp")
    assert "attention" not in notes(figure)
    with pytest.raises(UsageError, match="'nothing'") as caught:
        getattr(printed, name)(dar, kind="nothing")
    assert caught.value.hint == "there are attention, mlp, head"


def test_every_variable_with_one_depth_has_a_heatmap(dar):
    from dar_probe.results.schema import VARIABLES

    drawn = 0
    for name, spec in VARIABLES.items():
        if spec.grid and len(spec.dims) == 1:
            (mesh,) = panels_of_heatmap(printed.heatmap(dar, name))
            first = 1 if name.startswith("cosine") else 0
            expected = metrics.over_noise(dar, name).values[first:]
            np.testing.assert_allclose(values(mesh), expected)
            drawn += 1
    assert drawn == 15


def panels_of_heatmap(figure: Figure) -> list[QuadMesh]:
    return [mesh for mesh in figure.findobj(QuadMesh) if mesh.axes.get_label() != "<colorbar>"]


def test_trajectory_draws_each_step_as_its_own_analysis_has_it(run):
    figure = printed.trajectory(run)
    found, steps = panels(figure), trajectory.split(run)
    for variable, title in {
        "rms": "hidden-state RMS",
        "grad_rms": "gradient RMS",
        "cosine": "cosine to the block before",
    }.items():
        expected = [metrics.profile(ds, variable, resamples=1)["value"][1:] for _, ds in steps]
        np.testing.assert_allclose(values(found[title]), np.stack(expected, axis=1))
    axes = {axis.get_title("left").split(" ", 1)[-1]: axis for axis in figure.axes}
    computed = [metrics.compute(ds) for _, ds in steps]
    for name in SYMPTOMS:
        axis = axes[name.replace("_", " ")]
        *limits, line = axis.get_lines()
        np.testing.assert_allclose(line.get_ydata(), [each[name].value for each in computed])
        band = axis.collections[0].get_paths()[0].vertices[:, 1]
        assert band.min() == pytest.approx(min(each[name].low for each in computed))
        assert [limit.get_ydata()[0] for limit in limits] == [
            getattr(Thresholds(), f"{name}_{kind}") for kind in ("warn", "fail")
        ]
        low, high = axis.get_ylim()
        assert low < min(line.get_ydata().min(), limits[0].get_ydata()[0])
        assert high > limits[1].get_ydata()[0]


def test_trajectory_has_the_limits_that_it_is_given(run):
    limits = Thresholds(inflation_warn=1.5, inflation_fail=42.0)
    figure = printed.trajectory(run, thresholds=limits)
    (axis,) = (axis for axis in figure.axes if "inflation" in axis.get_title("left"))
    assert [line.get_ydata()[0] for line in axis.get_lines()[:2]] == [1.5, 42.0]


def test_uneven_steps_are_told():
    pairs = [(step, dataset(blocks=2, samples=2, levels=2)) for step in (0, 100, 5000)]
    uneven = printed.trajectory(trajectory.join(pairs))
    assert "equal distances" in notes(uneven)
    labels = [label.get_text() for label in uneven.axes[0].get_xticklabels()]
    assert labels == ["0", "100", "5,000"]
    assert "equal distances" not in notes(printed.trajectory(trained(steps=3, blocks=2)))


def test_one_analysis_is_no_trajectory(residual):
    with pytest.raises(UsageError, match="one training step"):
        printed.trajectory(residual)


def test_the_other_figures_of_a_trajectory_show_its_last_step(tmp_path, run, monkeypatch):
    last = trajectory.split(run)[-1][1]
    options = registry.Options()
    for stem in ("dilution", "matrix"):
        for ds, name in ((run, "run"), (last, "last")):
            drawn = printing.draw(ds, stem, options, name="a")
            canvas.save(drawn, tmp_path / f"{name}.png")
        assert (tmp_path / "run.png").read_bytes() == (tmp_path / "last.png").read_bytes()
    monkeypatch.setattr(printing, "save", lambda drawn, path: path.touch())
    whole, alone = (
        [path.name for path in printing.write_all(ds, tmp_path, name="a")] for ds in (run, last)
    )
    assert set(whole) - set(alone) == {"trajectory.png", "trajectory.pdf"}
    assert set(alone) < set(whole)


def test_means_are_the_first_numbers_of_compute(dar):
    means, whole = metrics.means(dar, seed=3), metrics.compute(dar, seed=3)
    assert list(means) == list(whole)[:4]
    for name, metric in means.items():
        assert metric == whole[name]


def test_an_analysis_plots_every_figure_at_both_widths(dar):
    plot = Analysis(dar).plot
    drawn = [plot.dilution(width="one"), plot.sources(shallow=2, width="one")]
    drawn += [plot.matrix(kind="mlp", width="one"), plot.spread(kind="mlp", width="one")]
    drawn += [plot.decodability(kind="mlp", width="one"), plot.heatmap("rms", width="one")]
    assert {figure.get_figwidth() for figure in drawn} == {3.25}
    assert plot.spread().get_figwidth() == 6.75
    for name in registry.FIGURES:
        assert callable(getattr(plot, name)), "a method of reports/plots.py"


def test_the_page_says_which_limit_is_dotted():
    for dashes, label in LOOKS.values():
        assert f"{dashes}: {label}" in STEPS_CAPTION.lower()
