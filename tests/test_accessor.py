"""ds.dar is the analysis that the dataset is: the same numbers, the same figures."""

import io

import pytest

import dar_probe.accessor  # noqa: F401  it registers ds.dar
from dar_probe.analysis import Analysis
from dar_probe.errors import UsageError
from dar_probe.reports.draw import matplotlib
from dar_probe.results import dataframe, metrics
from tests.helpers.synthetic import dataset


@pytest.fixture(scope="module")
def ds():
    return dataset(blocks=4, samples=6, levels=3, routing="dar")


def pixels(figure):
    buffer = io.BytesIO()
    with matplotlib.paper():
        figure.savefig(buffer, format="rgba", dpi=50)
    return buffer.getvalue()


def test_the_same_as_an_analysis(ds):
    analysis = Analysis(ds)
    assert ds.dar.metrics == analysis.metrics and ds.dar.verdict == analysis.verdict
    assert ds.dar.manifest == analysis.manifest
    assert ds.dar.metrics is ds.dar.metrics  # computed once
    frame = ds.dar.to_dataframe("gate", per="pooled")
    assert frame.equals(dataframe.to_dataframe(ds, "gate", per="pooled"))
    assert analysis.to_dataframe("gate", per="pooled").equals(frame)


@pytest.mark.parametrize("name", ["dilution", "heatmap"])
def test_the_same_figures(ds, name):
    arguments = ["rms"] if name == "heatmap" else []
    own = getattr(ds.dar.plot, name)(*arguments)
    assert pixels(own) == pixels(getattr(Analysis(ds).plot, name)(*arguments))


def test_selected_levels_and_samples_are_an_analysis(ds):
    some = ds.sel(noise_level=slice(0.4, 1)).isel(sample=[0, 1, 2])
    assert some.dar.metrics == metrics.compute(some) != ds.dar.metrics


@pytest.mark.parametrize(
    "broken",
    [lambda ds: ds[["rms"]], lambda ds: ds.isel(noise_level=0), lambda ds: ds.drop_attrs()],
)
def test_other_datasets_are_told_so(ds, broken):
    other = broken(ds)
    assert "metrics" in repr(other.dar)  # nothing is asked yet
    for ask in (lambda: other.dar.metrics, lambda: other.dar.plot, other.dar.to_dataframe):
        with pytest.raises(UsageError, match="no whole analysis") as caught:
            ask()
        assert "isel(noise_level=[0])" in caught.value.hint


@pytest.mark.parametrize("name", ["cosine", "route_entropy"])
def test_an_array_draws_its_map(ds, name):
    assert pixels(ds[name].dar.plot()) == pixels(ds.dar.plot.heatmap(name))


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (lambda ds: ds["write_rms"], "does not know the names of its sublayers"),
        (lambda ds: ds["gate"], "'gate' has no map"),
        (lambda ds: ds["rms"].rename(None), "'None' has no map"),
        (lambda ds: ds["rms"].isel(sample=0), "takes the dims noise_level, sample, block, not"),
        (lambda ds: ds["rms"].mean(), "block, not none"),
    ],
)
def test_an_array_without_a_map_says_so(ds, array, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        array(ds).dar.plot()
    assert caught.value.hint
