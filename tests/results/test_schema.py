import json

import numpy as np
import pytest
import xarray as xr

from dar_probe.errors import CheckpointError
from dar_probe.results import schema, trajectory
from tests.helpers import synthetic


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"routing": "dar"},
        {"routing": "dar", "chunk_size": 4},
        {"blocks": 1, "samples": 1, "levels": 1},
        {"blocks": 28, "samples": 2, "levels": 2},
    ],
)
def test_whole_analyses_are_valid(options) -> None:
    ds = synthetic.dataset(**options)
    assert schema.validate(ds) is ds
    assert set(schema.VARIABLES) == set(ds.data_vars)
    assert all(ds[name].dtype == np.float32 for name in schema.VARIABLES)


def test_every_variable_is_described() -> None:
    ds = synthetic.dataset()
    for name, spec in schema.VARIABLES.items():
        assert set(spec.dims) <= set(schema.INDEX_DIMS), name
        assert spec.all_dims == ds[name].dims
        assert ds[name].attrs == {
            "units": spec.units,
            "long_name": spec.long_name,
            "definition": spec.definition,
            "source": spec.source,
        }
        assert all(ds[name].attrs.values()), name
    assert all(ds[name].attrs["long_name"] for name in schema.COORD_TEXT)
    assert set(ds.coords) == set(schema.COORD_TEXT) | {"reader_name", "source_name"}


def test_the_manifest_has_what_reports_read() -> None:
    text = schema.manifest(synthetic.dataset(name="a.pt", routing="dar", chunk_size=4))
    assert text["checkpoint"]["name"] == "a.pt"
    assert (text["model"]["routing"], text["model"]["chunk_size"]) == ("dar", 4)
    assert {"versions", "created", "data", "config", "seed", "device", "dtype"} <= set(text)
    assert text["assumptions"] and text["warnings"] == []


@pytest.mark.parametrize("value", [None, "", "{", "[1, 2]", '"text"', 7])
def test_a_manifest_that_is_no_object_is_refused(value) -> None:
    ds = synthetic.dataset()
    if value is None:
        del ds.attrs["manifest"]
    else:
        ds.attrs["manifest"] = value
    with pytest.raises(CheckpointError, match="manifest"):
        schema.manifest(ds)
    with pytest.raises(CheckpointError, match="manifest"):
        schema.validate(ds)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": {}}, "no sound model name"),
        ({"model": {"name": ["x"]}}, "no sound model name"),
        ({"data": {"name": 3}}, "no sound data name"),
        ({"model": {"name": "x", "parameters": "many"}}, "no sound model parameters"),
        ({"model": {"name": "x", "parameters": 10**400}}, "no sound model parameters"),
        ({"checkpoint": "x.pt"}, "no sound entry 'checkpoint'"),
        ({"training": [3]}, "no sound entry 'training'"),
        ({"training": {"steps": 3, "batch_size": 8}}, "no sound training lr"),
        ({"warnings": [1]}, "no sound entry 'warnings'"),
        ({"assumptions": [["x"]]}, "no sound entry 'assumptions'"),
        ({"config": {"x": float("nan")}}, "no readable manifest"),
    ],
)
def test_a_manifest_of_other_kinds_is_refused(change, sentence) -> None:
    """Reports rely on them: a file that was changed by hand must not end in a traceback."""
    ds = synthetic.dataset()
    ds.attrs["manifest"] = json.dumps({**schema.manifest(ds), **change})
    with pytest.raises(CheckpointError, match=sentence):
        schema.validate(ds)


def test_a_manifest_that_is_nested_without_end_is_refused() -> None:
    ds = synthetic.dataset()
    ds.attrs["manifest"] = '{"a":' * 10_000
    with pytest.raises(CheckpointError, match="no readable manifest"):
        schema.validate(ds)


@pytest.mark.parametrize("steps", [3, [], [1, 2], [{}, {"model": 3}]])
def test_steps_of_other_kinds_are_refused(steps) -> None:
    ds = trajectory.join([(at, synthetic.dataset(blocks=2, samples=2, levels=2)) for at in (1, 2)])
    ds.attrs["manifest"] = json.dumps({**schema.manifest(ds), "steps": steps})
    with pytest.raises(CheckpointError, match="steps apart|no sound"):
        schema.validate(ds)


def put(name: str, value: float, where: int = -1):
    def change(ds: xr.Dataset) -> xr.Dataset:
        ds[name].values[..., where] = value
        return ds

    return change


def levels(*values: float):
    return lambda ds: ds.isel(noise_level=slice(len(values))).assign_coords(noise_level=[*values])


BROKEN = {
    "no version": (lambda ds: ds.assign_attrs(schema_version=None), "schema version"),
    "another version": (lambda ds: ds.assign_attrs(schema_version=1), "schema version 1"),
    "no rms": (lambda ds: ds.drop_vars("rms"), "'rms' is missing"),
    "no query_share": (lambda ds: ds.drop_vars("query_share"), "'query_share'"),
    "no sample ids": (lambda ds: ds.drop_vars("sample"), "'sample'"),
    "no reader names": (lambda ds: ds.drop_vars("reader_name"), "'reader_name'"),
    "no timestep": (lambda ds: ds.drop_vars("timestep"), "'timestep'"),
    "dims in another order": (
        lambda ds: ds.assign(rms=ds["rms"].transpose("sample", "noise_level", "block")),
        "'rms' has dims",
    ),
    "a dim too many": (
        lambda ds: ds.assign(decodability=ds["decoded_level"]),
        "'decodability' has dims",
    ),
    "an R2 above 1": (put("decodability", 1.01), "'decodability' leaves its range"),
    "a dim too few": (lambda ds: ds.assign(rms=ds["rms"].mean("sample")), "'rms' has dims"),
    "integers": (lambda ds: ds.assign(loss=ds["loss"].astype(int)), "not floating point"),
    "a block that is not there": (
        lambda ds: ds.assign_coords(reader_block=ds["reader_block"] + 2**62),
        "'reader_block' names blocks",
    ),
    "a block unknown": (
        lambda ds: ds.assign_coords(source_block=ds["source_block"] * float("nan")),
        "'source_block' names blocks",
    ),
    "no samples": (lambda ds: ds.isel(sample=slice(0)), "'sample' is empty"),
    "a source too few": (lambda ds: ds.isel(source=slice(1, None)), "one longer"),
    "levels that fall": (lambda ds: ds.isel(noise_level=slice(None, None, -1)), "rise strictly"),
    "levels above 1": (levels(0.5, 1.5), "rise strictly"),
    "levels below 0": (levels(-0.5, 0.5), "rise strictly"),
    "a level twice": (levels(0.5, 0.5), "rise strictly"),
    "a level unknown": (levels(float("nan")), "rise strictly"),
    "cosine above 1": (put("cosine", 1.01), "'cosine' leaves its range"),
    "cosine below -1": (put("cosine", -1.01), "'cosine' leaves its range"),
    "negative rms": (put("rms", -1.0), "'rms' leaves its range"),
    "infinite gradient": (put("grad_rms", float("inf")), "'grad_rms' holds an infinite"),
    "infinite gate": (put("gate", float("-inf"), 0), "'gate' holds an infinite"),
    "share above 1": (put("rms_top1", 1.5), "'rms_top1' leaves its range"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_a_whole_analysis_is_refused_by_name(case: str) -> None:
    change, sentence = BROKEN[case]
    with pytest.raises(CheckpointError, match=sentence) as caught:
        schema.validate(change(synthetic.dataset()))
    assert caught.value.exit_code == 3


def test_rounding_does_not_refuse() -> None:
    ds = synthetic.dataset()
    ds["cosine"].values[..., 1:] = np.float32(1 + 1e-6)
    schema.validate(ds)


def test_unknown_numbers_are_nan_and_allowed() -> None:
    ds = synthetic.dataset()
    ds["gate"].values[:] = np.nan
    schema.validate(ds)


def test_more_variables_may_be_there() -> None:
    ds = synthetic.dataset()
    ds["gate_ablated"] = ("pair", np.zeros(3, np.float32))
    schema.validate(ds)


def test_the_manifest_is_strict_json() -> None:
    json.loads(synthetic.dataset().attrs["manifest"], parse_constant=lambda name: pytest.fail(name))


def test_maps_and_tables_show_every_variable_over_depth():
    """A new row of the schema needs no other list."""
    from dar_probe.reports.pages import tables
    from dar_probe.reports.style import palette

    assert tuple(palette.HEATMAPS) == schema.MAPS
    for name, spec in schema.VARIABLES.items():
        assert bool(spec.title) == bool(spec.caption) == (name in schema.MAPS), name
        assert not spec.title or len(spec.dims) == 1 and spec.grid, name
    shown = {*tables.BLOCK_COLUMNS, *tables.READER_COLUMNS}
    deep = {name for name, spec in schema.VARIABLES.items() if len(spec.dims) == 1}
    assert deep - shown == {"query_share", "decoded_level"}


RANGES = [
    (name, bound, sign)
    for name, spec in schema.VARIABLES.items()
    for bound, sign in ((spec.low, -1), (spec.high, 1))
    if bound is not None
]


@pytest.mark.parametrize(("name", "bound", "sign"), RANGES)
def test_a_range_gives_way_by_a_rounding_of_1e_5(name, bound, sign) -> None:
    ds = synthetic.dataset(blocks=2, samples=2, levels=2, routing="dar").astype(np.float64)
    place = tuple(np.argwhere(np.isfinite(ds[name].values))[0])
    slack = bound + sign * 1e-5
    for value in (bound, slack):
        ds[name].values[place] = value
        schema.validate(ds)
    for value in (np.nextafter(slack, sign * np.inf), bound + sign):
        ds[name].values[place] = value
        with pytest.raises(CheckpointError, match=f"'{name}' leaves its range"):
            schema.validate(ds)


def test_what_lies_within_a_range_is_as_defined() -> None:
    """Sizes and shares are not negative, cosines lie within -1 and 1; signed numbers are free."""
    found = {name: (spec.low, spec.high) for name, spec in schema.VARIABLES.items()}
    free, size, share = (None, None), (0, None), (0, 1)
    assert found == {
        "rms": size, "rms_top1": share, "token_top1": share, "token_norm_top1": share,
        "grad_rms": size,
        "cosine": (-1, 1), "cosine_centred": (-1, 1),
        "write_rms": size, "write_ratio": size, "write_lost": size,
        "gate": free, "route": free, "route_token_std": size, "route_entropy": size,
        "query_share": share, "gate_conservation": size, "read_residual": size,
        "decoded_level": free, "decodability": (None, 1), "loss": free,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("levels", "fits"),
    [
        ([0.0, 0.5, 1.0], True),
        ([0.0, 0.5, 0.5], False),
        ([-1e-9, 0.5, 1.0], False),
        ([0.0, 0.5, 1 + 1e-9], False),
        ([0.5, 0.1, 0.9], False),
    ],
)
def test_noise_levels_rise_within_zero_and_one(levels, fits) -> None:
    ds = synthetic.dataset(blocks=2, samples=2, levels=3).assign_coords(noise_level=levels)
    if fits:
        schema.validate(ds)
    else:
        with pytest.raises(CheckpointError, match="rise strictly within"):
            schema.validate(ds)
