"""Names, dims, units and definitions of every variable of an analysis, and its validation."""

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from dar_probe.errors import CheckpointError

SCHEMA_VERSION = 3
GRID = ("noise_level", "sample")
INDEX_DIMS = ("noise_level", "sample", "block", "sublayer", "reader", "source")

Average = Literal["mean", "mean_square"]


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One measured quantity.

    Attributes:
        dims: the dims after noise_level and sample.
        grid: whether the array has noise_level and sample axes; a fit over all cells has none.
        units: units of the array; "1" where it has none.
        long_name: the name on an axis.
        definition: the formula in words.
        source: where the formula comes from.
        title, caption: of its map over depth and noise level; one without a title has no map.
        average: how samples are pooled, "mean_square" for sqrt(mean(x^2)).
        low, high: bounds that every finite value keeps; None where there are none.
    """

    dims: tuple[str, ...]
    grid: bool = True
    long_name: str
    definition: str
    source: str
    title: str = ""
    caption: str = ""
    units: str = "1"
    average: Average = "mean"
    low: float | None = None
    high: float | None = None

    @property
    def all_dims(self) -> tuple[str, ...]:
        """The dims of the array: noise_level and sample, where it has them, and ``dims``."""
        return (*GRID, *self.dims) if self.grid else self.dims


VARIABLES: dict[str, Variable] = {
    "rms": Variable(
        dims=("block",),
        long_name="hidden-state RMS",
        title="Hidden-state RMS",
        caption="Shallow at the bottom, noise to the right.",
        units="activation",
        definition="sqrt of the mean over tokens and features of z_k squared; "
        "z_k is what the first reader of block k+1 reads, z_B what the head reads",
        source="arXiv 2605.20708, section 3",
        average="mean_square",
        low=0.0,
    ),
    "rms_top1": Variable(
        dims=("block",),
        long_name="energy in the top 1 % of channels",
        title="Energy in the top channels",
        caption="The share that 1 % of the channels hold.",
        definition="share of the energy of z_k (sum over tokens of squares) "
        "in the largest 1 % of channels, at least one channel",
        source="dar-probe",
        low=0.0,
        high=1.0,
    ),
    "token_top1": Variable(
        dims=("block",),
        long_name="energy in the top 1 % of tokens",
        title="Energy in the top tokens",
        caption="The share that 1 % of the tokens hold: registers and sinks stand out.",
        definition="share of the energy of z_k (sum over features of squares) "
        "in the largest 1 % of tokens, at least one token",
        source="dar-probe; tokens of large norm as in arXiv 2309.16588",
        low=0.0,
        high=1.0,
    ),
    "token_norm_top1": Variable(
        dims=("block",),
        long_name="norm in the top 1 % of tokens",
        definition="share of the norms of the tokens of z_k that the largest 1 % of tokens have, "
        "at least one token",
        source="dar-probe; tokens of large norm as in arXiv 2309.16588",
        low=0.0,
        high=1.0,
    ),
    "grad_rms": Variable(
        dims=("block",),
        long_name="backward gradient RMS",
        title="Gradient RMS",
        caption="How strongly the loss pulls at each block.",
        units="loss/activation",
        definition="sqrt of the mean over tokens and features of (dLoss/dz_k) squared; the whole "
        "stream's gradient under plain residuals, one reader's gradient under a router; "
        "Loss is one sample's mean squared error",
        source="arXiv 2605.20708, section 3",
        average="mean_square",
        low=0.0,
    ),
    "cosine": Variable(
        dims=("block",),
        long_name="cosine between neighbouring blocks",
        title="Cosine to the block before",
        caption="Near 1: almost no change.",
        definition="mean over tokens of cos(z_(k-1), z_k), token by token; NaN at block 0",
        source="arXiv 2605.20708, section 3",
        low=-1.0,
        high=1.0,
    ),
    "cosine_centred": Variable(
        dims=("block",),
        long_name="cosine between neighbouring blocks, token mean removed",
        title="Centred cosine",
        caption="The same with the mean over tokens taken off.",
        definition="the same after the mean over tokens has been taken off each state",
        source="dar-probe",
        low=-1.0,
        high=1.0,
    ),
    "write_rms": Variable(
        dims=("sublayer",),
        long_name="RMS of a sublayer's write",
        title="Write RMS",
        caption="The size of what a sublayer adds.",
        units="activation",
        definition="sqrt of the mean over tokens and features of v_l squared, "
        "the adaLN gate multiplied in",
        source="dar-probe",
        average="mean_square",
        low=0.0,
    ),
    "write_ratio": Variable(
        dims=("sublayer",),
        long_name="write over read",
        title="Write over read",
        caption="How much a sublayer adds, against what it reads.",
        definition="RMS of v_l over the RMS of h_l, the state that the sublayer reads",
        source="dar-probe",
        low=0.0,
    ),
    "write_lost": Variable(
        dims=("sublayer",),
        long_name="share of a write lost to rounding",
        title="Lost to rounding",
        caption="The share of a write that the addition drops.",
        definition="norm of ((h_(l+1) - h_l) - v_l) over the norm of v_l, the difference of reads "
        "formed in float32 or wider; NaN where reads are not sums of writes, or where v_l "
        "is known only as that difference",
        source="dar-probe",
        low=0.0,
    ),
    "gate": Variable(
        dims=("reader", "source"),
        long_name="reader-gate gradient",
        units="loss",
        definition="signed dLoss/dg[l,i] at g = 1, where g[l,i] multiplies the value of source i "
        "as read by reader l alone: sum over tokens of w[l,i,t] <G_l[t], v_i[t]>, "
        "G_l = dLoss/dh_l along that reader's branch",
        source="arXiv 2605.20708, section 3",
        average="mean_square",
    ),
    "route": Variable(
        dims=("reader", "source"),
        long_name="route",
        definition="coefficient w[l,i] with which source i enters reader l, averaged over tokens; "
        "1 under plain residuals, the softmax weight under DAR",
        source="arXiv 2605.20708, section 4",
    ),
    "route_token_std": Variable(
        dims=("reader", "source"),
        long_name="spread of a route over tokens",
        definition="standard deviation of w[l,i,t] over the tokens of one sample",
        source="dar-probe",
        low=0.0,
    ),
    "route_entropy": Variable(
        dims=("reader",),
        long_name="routing entropy",
        title="Routing entropy",
        caption="0: one source alone; higher: spread over many.",
        units="nat",
        definition="entropy of |w| / sum |w| over the sources offered, per token, then averaged",
        source="dar-probe",
        low=0.0,
    ),
    "query_share": Variable(
        dims=("source",),
        long_name="share of a source's effect that flows through queries",
        definition="|q| / (|q| + |s|), s the sum over readers of gate[l,i] and "
        "q = <dLoss/dv_i, v_i> - s; NaN without a router",
        source="dar-probe",
        low=0.0,
        high=1.0,
    ),
    "gate_conservation": Variable(
        dims=("reader",),
        long_name="error bar of the gates",
        definition="|sum over sources of gate| over the largest |gate| of the reader; zero up to "
        "the norm's eps, because a normed reader ignores the scale of what it reads; NaN for a "
        "reader with one source",
        source="dar-probe",
        low=0.0,
    ),
    "read_residual": Variable(
        dims=("reader",),
        long_name="error bar of the routes",
        definition="mean over tokens of |sum over sources of w v_i - h_l| / |h_l|; NaN where "
        "writes are known only as differences of reads",
        source="dar-probe",
        low=0.0,
    ),
    "decoded_level": Variable(
        dims=("reader",),
        long_name="noise level decoded from a read",
        definition="noise level predicted from the token mean of h_l, what the reader reads, by "
        "ridge regression fitted on other samples: folds of whole samples with all their levels, "
        "features standardised on the fitted part; NaN with fewer than two noise levels or two "
        "samples, and for samples beyond those whose token means were kept",
        source="arXiv 2605.20708, the timestep probe; folds and ridge strength are dar-probe's",
    ),
    "decodability": Variable(
        dims=("reader",),
        grid=False,
        long_name="noise level decodability (R2)",
        definition="1 - sum of (decoded_level - s)^2 / sum of (s - mean s)^2, s the noise level, "
        "both sums over noise levels and samples: R2 on samples that were not fitted; 1 is exact, "
        "0 no better than the mean level, below 0 worse than it",
        source="arXiv 2605.20708, the timestep probe",
        high=1.0,
    ),
    "loss": Variable(
        dims=(),
        long_name="loss",
        units="loss",
        definition="one sample's loss: the mean over its elements of the squared error of the "
        "denoising target, or the loss that was given",
        source="arXiv 2605.20708, section 3",
    ),
}

# Those with a map over depth and noise level, in the order of the schema.
MAPS = tuple(name for name, spec in VARIABLES.items() if spec.title)

# What ``dar-probe ablate`` adds: all of it is there, or nothing.
ABLATION: dict[str, Variable] = {
    "gate_ablated": Variable(
        dims=("ablation",),
        long_name="true change of the loss",
        units="loss",
        definition="loss with the intervention minus loss without it, by a real forward: chosen "
        "gates are 0, or one router's weights are replaced",
        source="dar-probe",
    ),
    "gate_linear": Variable(
        dims=("ablation",),
        long_name="predicted change of the loss",
        units="loss",
        definition="first order of the same intervention: minus the sum of the gates that are set "
        "to zero; for a router <G_l, h'_l - h_l>, h'_l what the other weights would make of the "
        "same sources",
        source="dar-probe",
    ),
    "linearisation_error": Variable(
        dims=("noise_level", "ablation"),
        grid=False,
        long_name="error of the prediction",
        definition="root mean square over samples of (gate_linear - gate_ablated) over that of "
        "gate_ablated",
        source="dar-probe",
        low=0.0,
    ),
    "rank_correlation": Variable(
        dims=("noise_level", "intervention"),
        grid=False,
        long_name="rank correlation of true and predicted changes",
        definition="Spearman's correlation of the means over samples of gate_ablated and "
        "gate_linear over the interventions of one kind; NaN for fewer than three",
        source="dar-probe",
        low=-1.0,
        high=1.0,
    ),
}

STRING_COORDS = {
    "reader_name": "reader",
    "reader_kind": "reader",
    "source_name": "source",
    "source_kind": "source",
}
ABLATION_COORDS = {  # dim and text
    "ablation_name": ("ablation", "what was done"),
    "ablation_kind": ("ablation", "gate, source, block, uniform or frozen"),
    "intervention": ("intervention", "the kinds that were done"),
}
NUMBER_COORDS = {
    "timestep": "noise_level",
    "log_snr": "noise_level",
    "reader_block": "reader",
    "source_block": "source",
}
MANIFEST: dict[str, type] = {
    "versions": dict,
    "model": dict,
    "data": dict,
    "config": dict,
    "assumptions": list,
    "warnings": list,
}
OWN_SAMPLES = "own samples"  # the name of data that the model drew itself
TRAINING = ("steps", "batch_size", "lr")  # what an entry "training" tells
STEP_TEXT = "training step of the checkpoint"
COORD_TEXT = {
    "noise_level": "noise level s: 0 = data, 1 = pure noise",
    "timestep": "the model's own clock at this noise level; NaN where it has none",
    "log_snr": "log of the signal-to-noise power ratio at this noise level",
    "sample": "sample id; for files the row number",
    "block": "block k = 0..B: z_0 is what reader 1 reads, z_B what the head reads",
    "sublayer": "sublayer l = 1..L, in firing order: what reader l writes",
    "reader": "reader l = 1..L+1; the last one is the head",
    "source": "source i in the order of entering the stream; 0 is the embedding",
    "reader_block": "block of the reader; B+1 for the head",
    "source_block": "block of the source; 0 for the embedding",
    "reader_kind": "attention, mlp, cross_attention, mixer, parallel, block or head",
    "source_kind": "embedding, attention, mlp, cross_attention, mixer, parallel, block or fusion",
}


def describe(ds: xr.Dataset) -> xr.Dataset:
    """Give every variable and coord its units, long_name, definition and source."""
    for name, spec in {**VARIABLES, **ABLATION}.items():
        if name in ds:
            ds[name].attrs = {
                "units": spec.units,
                "long_name": spec.long_name,
                "definition": spec.definition,
                "source": spec.source,
            }
    texts = {**COORD_TEXT, **{name: text for name, (_, text) in ABLATION_COORDS.items()}}
    for name, text in texts.items():
        if name in ds.coords:
            ds[name].attrs = {"long_name": text}
    return ds


def manifest(ds: xr.Dataset) -> dict[str, Any]:
    """Return the provenance stored in the dataset's ``manifest`` attribute.

    Raises:
        CheckpointError: the attribute is missing or is no JSON object.
    """
    try:
        value = json.loads(ds.attrs["manifest"], parse_constant=_no_number)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            "the dataset carries no readable manifest",
            hint="only files written by dar-probe analyze or audit can be opened",
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError("the dataset's manifest is not a JSON object")
    return value


def with_facts(ds: xr.Dataset) -> xr.Dataset:
    """Return a dataset whose attributes tell the main facts of its manifest, before the manifest.

    They are for people: the manifest is what programs read. With ten attributes xarray folds them
    in a notebook, where a screen of JSON would stand otherwise.
    """
    found = manifest(ds)
    versions = found["versions"]
    facts = {
        "title": f"dar-probe analysis of {found['model']['name']}",
        "data": found["data"]["name"],
        **{key: found.get(key) for key in ("seed", "device", "dtype", "created")},
        **{key: versions.get(key) for key in ("dar_probe", "torch", "python", "numpy")},
    }
    facts = {key: "unknown" if value is None else _plain(value) for key, value in facts.items()}
    attrs = {key: value for key, value in ds.attrs.items() if key not in facts}
    return ds.drop_attrs(deep=False).assign_attrs({**facts, **attrs})


def renamed(ds: xr.Dataset, name: str) -> xr.Dataset:
    """Return the same analysis of a model that is called otherwise."""
    found = manifest(ds)
    found["model"] = {**found["model"], "name": name}
    return with_facts(ds.assign_attrs(manifest=json.dumps(found)))


def _plain(value: object) -> str:
    """Return a text of anybody's on one line of a terminal; other characters become "?"."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:120])


def validate(ds: xr.Dataset) -> xr.Dataset:
    """Return ``ds`` unchanged if it is a whole analysis of this schema version.

    A trajectory is whole analyses of several training steps: every variable has a first dim
    ``step`` more.

    Raises:
        CheckpointError: naming the first attribute, coord or variable that is wrong.
    """
    version = ds.attrs.get("schema_version")
    if not np.issubdtype(np.asarray(version).dtype, np.integer) or version != SCHEMA_VERSION:
        raise CheckpointError(
            f"schema version {version} is not the supported version {SCHEMA_VERSION}",
            hint="analyse the checkpoint again with this version of dar-probe",
        )
    provenance = manifest(ds)
    steps = ("step",) if "step" in ds.dims else ()
    own = provenance.get("steps") if steps else [{}]
    count = ds.sizes["step"] if steps else 1
    if not isinstance(own, list) or [type(one) for one in own] != [dict] * count:
        raise CheckpointError("the dataset's manifest does not tell its steps apart")
    for one in own:
        _validate_manifest({**provenance, **one})
    for dim in (*steps, *INDEX_DIMS):
        if dim not in ds.coords or ds[dim].dims != (dim,):
            raise CheckpointError(f"the dataset has no index coordinate {dim!r}")
        if not np.issubdtype(ds[dim].dtype, np.number) or ds[dim].size == 0:
            raise CheckpointError(f"coordinate {dim!r} is empty or not numeric")
    level = ds["noise_level"].values
    if not (np.all(np.diff(level) > 0) and level[0] >= 0 and level[-1] <= 1):
        raise CheckpointError("noise_level must rise strictly within [0, 1]")
    if steps and not np.all(np.diff(ds["step"].values) > 0):
        raise CheckpointError("step must rise")
    sublayers = ds.sizes["sublayer"]
    if ds.sizes["reader"] != sublayers + 1 or ds.sizes["source"] < sublayers + 1:
        raise CheckpointError(
            "reader must be one longer than sublayer, source at least that (and more by fusions)"
        )
    for dim, first in (("block", 0), ("sublayer", 1), ("reader", 1), ("source", 0)):
        if (ds[dim].values != np.arange(first, first + ds.sizes[dim])).any():
            raise CheckpointError(f"coordinate {dim!r} does not count from {first} by ones")
    for name, dim in {**STRING_COORDS, **NUMBER_COORDS}.items():
        if name not in ds.coords or ds[name].dims != (dim,):
            raise CheckpointError(f"the dataset has no coordinate {name!r} over {dim!r}")
        if name in NUMBER_COORDS and not np.issubdtype(ds[name].dtype, np.number):
            raise CheckpointError(f"coordinate {name!r} is not numeric")
        if (
            name.endswith("_block")
            and not np.isin(ds[name], np.arange(ds.sizes["block"] + 1)).all()
        ):
            raise CheckpointError(f"coordinate {name!r} names blocks that are not there")
    expected = dict(VARIABLES)
    if "ablation" in ds.dims:
        expected |= ABLATION
        for name, (dim, _) in ABLATION_COORDS.items():
            if name not in ds.coords or ds[name].dims != (dim,):
                raise CheckpointError(f"the dataset has no coordinate {name!r} over {dim!r}")
    for name, spec in expected.items():
        if name not in ds:
            raise CheckpointError(
                f"variable {name!r} is missing",
                hint="the file was written by another version of dar-probe: analyse again",
            )
        _validate_variable(name, spec, ds[name], (*steps, *spec.all_dims))
    return ds


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _validate_manifest(found: dict[str, Any]) -> None:
    """Require the kinds that reports rely on, of which a file changed by hand may have others."""
    wrong = [name for name, kind in MANIFEST.items() if not isinstance(found.get(name), kind)]
    wrong += [
        name for name in ("checkpoint", "training") if not isinstance(found.get(name) or {}, dict)
    ]
    wrong = wrong or [
        name
        for name in ("assumptions", "warnings")
        if not all(isinstance(text, str) for text in found[name])
    ]
    if wrong:
        raise CheckpointError(f"the dataset's manifest has no sound entry {wrong[0]!r}")
    values: list[tuple[str, str, type | tuple[type, ...]]] = [
        ("model", "name", str),
        ("data", "name", str),
        *([("model", "parameters", int)] if found["model"].get("parameters") is not None else []),
        *([("training", name, (int, float)) for name in TRAINING] if found.get("training") else []),
    ]
    for part, name, kind in values:
        value = found[part].get(name)
        absurd = isinstance(value, int | float) and not abs(value) < 2**63
        if not isinstance(value, kind) or absurd:
            raise CheckpointError(f"the dataset's manifest has no sound {part} {name}")


def _validate_variable(
    name: str, spec: Variable, array: xr.DataArray, dims: tuple[str, ...]
) -> None:
    if array.dims != dims:
        raise CheckpointError(f"variable {name!r} has dims {array.dims}, expected {dims}")
    if not np.issubdtype(array.dtype, np.floating):
        raise CheckpointError(f"variable {name!r} is not floating point")
    values = array.values
    if np.isinf(values).any():
        raise CheckpointError(f"variable {name!r} holds an infinite value")
    finite = values[np.isfinite(values)]
    slack = 1e-5
    if finite.size and (
        (spec.low is not None and finite.min() < spec.low - slack)
        or (spec.high is not None and finite.max() > spec.high + slack)
    ):
        raise CheckpointError(
            f"variable {name!r} leaves its range [{spec.low}, {spec.high}]",
            hint="the file was changed by hand or damaged",
        )
