"""The analyses of one model at several training steps, joined along a first dim ``step``."""

import json
from collections.abc import Sequence

import xarray as xr

from dar_probe.errors import UsageError
from dar_probe.results import schema

SAME = ("noise_level", "sample", "reader_name", "source_name", "timestep")


def join(analyses: Sequence[tuple[int, xr.Dataset]]) -> xr.Dataset:
    """Return one dataset of (training step, analysis) pairs, in the order of the steps.

    Its manifest is that of the last step; ``steps`` in it keeps what each step's own differs in.

    Raises:
        UsageError: two analyses of one step, or analyses of unlike models, samples or levels.
    """
    ordered = sorted(analyses, key=lambda pair: pair[0])
    check(*ordered)
    manifests = [schema.manifest(ds) for _, ds in ordered]
    last = manifests[-1]
    own = [{key: m[key] for key in m if m[key] != last.get(key)} for m in manifests]
    step = xr.Variable("step", [at for at, _ in ordered], {"long_name": schema.STEP_TEXT})
    joined = xr.concat([ds for _, ds in ordered], step, data_vars="all", join="exact")
    joined.attrs = {**ordered[-1][1].attrs, "manifest": json.dumps({**last, "steps": own})}
    return schema.validate(schema.describe(joined))


def check(*pairs: tuple[int, xr.Dataset]) -> None:
    """Raise UsageError where two (training step, analysis) pairs cannot be joined."""
    for (earlier, first), (later, second) in zip(pairs, pairs[1:], strict=False):
        if earlier == later:
            raise UsageError(f"two of the analyses are of step {later}")
        for name in SAME:
            if not first[name].identical(second[name]):
                raise UsageError(
                    f"steps {earlier} and {later} cannot be joined: they differ in {name}",
                    hint="give the checkpoints of one training run",
                )


def split(ds: xr.Dataset) -> list[tuple[int, xr.Dataset]]:
    """Return the (training step, analysis) pairs of a joined dataset; ``join`` undone."""
    whole = schema.manifest(ds)
    steps = whole.pop("steps")
    pairs = []
    for at, step in enumerate(ds["step"].values):
        one = ds.isel(step=at).drop_vars("step")
        one.attrs = {**ds.attrs, "manifest": json.dumps({**whole, **steps[at]})}
        pairs.append((int(step), one))
    return pairs
