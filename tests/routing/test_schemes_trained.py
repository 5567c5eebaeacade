"""Every routing is trained, saved, found again and analysed by its flag."""

import pytest

import dar_probe as dp
from dar_probe.models.inspection import survey
from dar_probe.models.options import CheckpointOptions
from dar_probe.routing.schemes import known
from dar_probe.training.config import TrainConfig
from dar_probe.training.loop import train

OPTIONS = {
    "denseformer": {"dilation": 2, "period": 2},
    "hc-static": {"streams": 2},
    "hc-dynamic": {"streams": 2},
    "mhc": {"streams": 2},
    "mhc-lite": {"streams": 3},
    "attnres-block": {"chunk_size": 3},
    "sigmoid": {"query": "dynamic", "chunk_size": 2},
    "time-mix": {"chunk_size": 2},
}


@pytest.mark.parametrize("name", sorted(known()))
def test_a_scheme_is_trained_and_analysed(name, tmp_path):
    options = OPTIONS.get(name, {})
    config = TrainConfig(
        depth=4, width=16, batch_size=8, steps=3, warmup=0, validation_samples=8, routing=name,
        **options,
    )  # fmt: skip
    path = train(config, tmp_path / "run")
    found = survey(CheckpointOptions(path=path))
    assert found.sizes["routing"] == name
    assert {option: found.sizes[option] for option in options} == options
    drawn = name in ("mhc", "deepnorm", "uvit")  # a router, no routes, fusions
    out = tmp_path / "out" if drawn else None
    analysis = dp.analyze(path, noise_levels=2, samples=2, out=out)
    model = analysis.manifest["model"]
    assert model["routing"] == name and {o: model[o] for o in options} == options
    assert (tmp_path / "out" / "report.html").is_file() == drawn
