"""Two streams in one dataset: joined, taken apart again, and read with suspicion."""

import json

import numpy as np
import pytest

from dar_probe.errors import CheckpointError
from dar_probe.results import schema, store, streams
from tests.helpers import synthetic


@pytest.fixture(scope="module")
def pair():
    """Two analyses of the same samples, of six blocks and of four."""
    one, other = (synthetic.dataset(blocks=blocks, samples=3) for blocks in (6, 4))
    return {"image": one, "text": other.assign(loss=one["loss"])}


def test_streams_are_taken_apart_as_they_were_joined(pair, tmp_path):
    whole = streams.join(pair)
    assert whole["gate"].dims == ("stream", *schema.VARIABLES["gate"].all_dims)
    assert whole["loss"].dims == ("noise_level", "sample")
    assert np.isnan(whole["rms"].sel(stream="text").values[..., 5:]).all()
    assert whole["reader_name"].sel(stream="text").values[-1] == ""
    store.write(whole, tmp_path / "both.nc")
    again = streams.split(store.read(tmp_path / "both.nc"))
    assert list(again) == ["image", "text"]
    for name, ds in pair.items():
        for variable in schema.VARIABLES:
            np.testing.assert_array_equal(again[name][variable], ds[variable], err_msg=variable)
        assert again[name]["reader_name"].values.tolist() == ds["reader_name"].values.tolist()
        assert schema.manifest(again[name]) == schema.manifest(ds)
    assert streams.single(whole).identical(streams.split(whole)["image"])
    assert streams.selected(whole.sel(stream="text")).identical(streams.split(whole)["text"])
    assert streams.single(pair["image"]) is pair["image"] is streams.selected(pair["image"])


@pytest.mark.parametrize(
    "own",
    [None, [], "text", {"image": {}}, {"image": {"sizes": {}}, "text": {"sizes": {}}},
     {"image": {"sizes": {d: 2 for d in streams.SITES}},
      "text": {"sizes": {d: -1 for d in streams.SITES}}}],
)  # fmt: skip
def test_manifests_that_do_not_tell_streams_apart_are_refused(pair, own):
    whole = streams.join(pair)
    told = {**schema.manifest(whole), "streams": own}
    damaged = whole.assign_attrs(manifest=json.dumps(told))
    with pytest.raises(CheckpointError):
        streams.validate(damaged)
    if not isinstance(own, dict) or "text" not in own:
        with pytest.raises(CheckpointError, match="tell its streams apart"):
            streams.selected(damaged.sel(stream="text"))


def test_other_names_of_streams_are_refused(pair):
    whole = streams.join(pair).assign_coords(stream=["image", "audio"])
    with pytest.raises(CheckpointError, match="not those of image and text"):
        streams.validate(whole)
