"""Settings that name a path and a prediction choose the objective, or are said not to."""

import argparse

import pytest
import torch

from dar_probe import checkpoints
from dar_probe.models.inspection import survey
from dar_probe.models.options import CheckpointOptions
from tests.models import files

# Its own checkpoints name the objective itself; a MeanFlow of noise is refused.
CASES = sorted(files.CASES.keys() - {"dar-probe", "MeanFlow"})
# What names an objective, or a part of one.
NAMES = {"path_type", "prediction", "rf", "noise_scale", "t_eps", "transport"}


def surveyed(case, folder, **named):
    file = files.write(case, folder)
    read = checkpoints.read(file.path)
    args = {name: value for name, value in read.args.items() if name not in NAMES}
    content = {"ema": read.state, "args": argparse.Namespace(**args, **named)}
    torch.save(content, folder / "named.pt")
    return file, survey(CheckpointOptions(path=folder / "named.pt", heads=file.heads))


@pytest.mark.parametrize("case", CASES)
def test_no_setting_of_an_objective_is_passed_over(case, tmp_path):
    named = {"path_type": "GVP", "prediction": "score", "predict_xstart": False}
    file, found = surveyed(case, tmp_path, **named)
    (said,) = [one for one in found.assumptions if "'GVP' and prediction 'score'" in one]
    assert said.endswith("--objective overrides") and found.objective in said
    assert (
        found.objective.endswith(":gvp:score") or f"choose no objective: it is {file.clock}" in said
    )


@pytest.mark.parametrize("case", CASES)
def test_what_a_file_is_read_as_is_said(case, tmp_path):
    """The clock is in no weight: where no setting names it, every family says what it takes."""
    _, found = surveyed(case, tmp_path)
    assert any(" overrides" in one and "objective" in one for one in found.assumptions)
