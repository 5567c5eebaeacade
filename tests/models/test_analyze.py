"""A file on disk in its official layout, analysed, against plain autograd on the same weights."""

import numpy as np
import pytest
import torch

import dar_probe as dp
from dar_probe.models import loading
from dar_probe.models.options import CheckpointOptions
from dar_probe.models.registry import FAMILIES
from tests.helpers import reference
from tests.models import check, files

LEVELS = [0.1, 0.5, 0.93]
ROWS = 3
TOLERANCE = 3e-11  # measured: 1e-11 for the gates of the routed file, 3e-12 elsewhere


def routed(state, inputs, loss):
    """The expected arrays of a routed file, by the transcription with a gate on every pair."""
    x, t, y = inputs
    depth, size = files.SMALL["depth"], 2 * files.SMALL["depth"] + 1
    gates = torch.ones(len(x), size, size, dtype=torch.float64, requires_grad=True)
    output, parts = reference.forward(state, x, t, y, heads=2, patch=2, gates=gates, **files.DAR)
    reads = [parts["reads"][row] for row in [*range(0, 2 * depth, 2), 2 * depth]]
    losses = loss(output)
    gate, *grads = torch.autograd.grad(losses.sum(), [gates, *reads])
    offered = torch.zeros(size, size, dtype=torch.bool)
    for row, (ids, _) in enumerate(parts["weights"]):
        offered[row, ids] = True
    return {
        **check.of_blocks([read.detach() for read in reads], grads),
        "gate": gate.masked_fill(~offered, torch.nan),
        "loss": losses.detach(),
        "write_rms": torch.stack(
            [v.detach().square().mean((1, 2)).sqrt() for v in parts["writes"][1:]], 1
        ),
    }


@pytest.mark.parametrize("case", files.CASES)
def test_an_analysis_is_what_autograd_says(case, tmp_path):
    file = files.write(case, tmp_path)
    analysis = dp.analyze(
        file.path, data=file.data, dtype="float64", noise_levels=LEVELS, samples=ROWS,
        heads=file.heads,
    )  # fmt: skip
    ds, manifest = analysis.dataset, analysis.manifest
    assert manifest["model"]["family"] == file.family
    assert manifest["config"]["objective"] == file.clock
    loaded = loading.load_checkpoint(
        CheckpointOptions(path=file.path, heads=file.heads, dtype="float64")
    )
    loaded.model.requires_grad_(False)
    for row, s in enumerate(LEVELS):
        level, inputs, loss = files.problem(file, s, ROWS)
        assert float(ds["noise_level"][row]) == pytest.approx(level, rel=1e-12)
        assert float(ds["timestep"][row]) == pytest.approx(float(inputs[1][0]), rel=1e-10)
        if case == "dar-probe":
            expected = routed(loaded.model.state_dict(), inputs, loss)
        else:
            expected = check.reference(loaded.subject, inputs, loss)
        found = {name: torch.from_numpy(ds[name].values[row]) for name in expected}
        for name in ("loss", "rms", "grad_rms", "cosine", "write_rms"):
            assert check.each(found[name], expected[name]) < TOLERANCE, name
        assert check.gate_error(found["gate"], expected["gate"]) < TOLERANCE
    assert np.isfinite(ds["rms"]).all() and np.isfinite(ds["write_ratio"]).all()


def test_every_family_has_a_file_among_the_cases():
    known = {family for _, _, family, *_ in files.CASES.values()} | {"sit"}
    assert {family.name for family in FAMILIES} <= known, "CASES of tests/models/files.py"
