"""What is said beside a warning holds this model's own numbers, and promises nothing."""

import json

import numpy as np
import pytest

from dar_probe.results import metrics, verdict
from tests.helpers import synthetic

BAD = {"blocks": 8, "samples": 16, "levels": 3, "inflation": 40.0, "decay": 50.0, "cosine": 0.99}


def planted(**changes):
    """Return an analysis whose block 7 writes least, and which is worst at the middle level."""
    ds = synthetic.dataset(**{**BAD, **changes}).copy(deep=True)
    ds["write_ratio"].values[..., 12:14] = 0.0123  # the sublayers of block 7
    ds["rms"].values[1, :, -1] *= 3
    ds["grad_rms"].values[1, :, 1:6] *= 3
    ds["cosine"].values[1, :, 5:] = 0.9999
    ds["cosine"].values[:, :, 6] = 0.99999
    return ds


def advice(ds):
    found = verdict.judge(ds, metrics.compute(ds, resamples=50))
    return {item.name: item.advice for item in found.findings if item.advice}


def test_every_warning_has_advice_with_the_models_own_numbers():
    ds = planted()
    level = f"noise level {float(ds['noise_level'].values[1]):.2g}"
    said = advice(ds)
    assert set(said) >= {"inflation", "gradient_decay", "redundancy"}
    assert "Block 7 adds least of the deep half, 1.2 %" in said["inflation"].meaning
    assert "block 6 least, cosine 1.0000" in said["redundancy"].meaning
    for name in ("inflation", "gradient_decay", "redundancy"):
        assert level in said[name].meaning
        assert said[name].meaning.count(".") >= 2 and 1 <= len(said[name].commands) <= 2
        assert "Sure for these data" in said[name].certainty
    grad = np.sqrt((ds["grad_rms"].astype(float) ** 2).mean(("noise_level", "sample"))).values
    weakest = 5 + int(np.argmin(grad[5:]))
    assert f"Block {weakest} gets the smallest" in said["gradient_decay"].meaning


def test_redundancy_is_no_promise_that_a_block_can_go():
    said = advice(planted())["redundancy"]
    assert "does not say that a block can go" in said.meaning
    assert any("ablate" in command and "--kinds block" in command for command in said.commands)


@pytest.mark.parametrize(
    ("samples", "words"), [(1, "One sample gives no interval"), (6, "interval of 6 samples")]
)
def test_certainty_is_that_of_the_interval(samples, words):
    assert words in advice(planted(samples=samples))["inflation"].certainty


def test_a_module_is_told_in_python_and_a_file_by_its_quoted_name():
    ds = planted(name="my model.pt")
    assert "dar-probe ablate 'my model.pt' --kinds block" in advice(ds)["redundancy"].commands[0]
    manifest = json.loads(ds.attrs["manifest"])
    manifest["checkpoint"] = None
    ds.attrs["manifest"] = json.dumps(manifest)
    assert advice(ds)["redundancy"].commands[0].startswith("dp.ablate(module, batch=batch")


def test_what_passes_has_none_and_the_summary_has_it_all():
    good = synthetic.dataset(inflation=1.1, decay=1.1, cosine=0.5)
    assert not advice(good)
    ds = planted()
    given = metrics.compute(ds, resamples=20)
    found = verdict.summary(ds, given, verdict.judge(ds, given))["findings"]
    told = {item["name"]: item for item in found}
    assert set(told["inflation"]) == {
        "name", "status", "sentence", "meaning", "certainty", "commands",
    }  # fmt: skip
    assert "meaning" not in told["importance_shift"]
    json.dumps(found)
