"""Flat keywords become objects at the door, and objects reach the numbers whole."""

import dataclasses
import subprocess
import sys

import pytest
import torch

import dar_probe as dp
from dar_probe.models.options import CheckpointOptions, SamplingOptions
from dar_probe.probe import module_plan, options
from dar_probe.probe.options import GridOptions, InterventionOptions, ModuleOptions, OutputOptions
from tests.test_audit import Stack, batch


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (CheckpointOptions, {"path": "x.pt"}), (SamplingOptions, {}), (GridOptions, {}),
        (InterventionOptions, {}), (ModuleOptions, {}), (OutputOptions, {}),
    ],
)  # fmt: skip
def test_options_are_frozen_and_take_keywords_alone(kind, given):
    made = kind(**given)
    name = dataclasses.fields(made)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, name, 1)
    with pytest.raises(TypeError, match="positional"):
        kind("x.pt")


def test_flat_keywords_are_sorted():
    checkpoint, grid = options.sort("x.pt", {"samples": 3, "heads": 2, "data": "digits"})
    assert checkpoint == CheckpointOptions(path="x.pt", heads=2)
    assert grid == GridOptions(samples=3, data="digits")
    with pytest.raises(TypeError, match="blocks"):
        options.sort("x.pt", {"blocks": "*"})


def test_the_public_functions_know_their_keywords():
    with pytest.raises(TypeError, match="colour"):
        dp.ablate("x.pt", colour="red")
    with pytest.raises(TypeError, match="heads"):
        dp.Probe(Stack(), batch=batch, heads=2)


def test_a_module_has_no_data_and_no_seed_of_ours():
    for grid in (GridOptions(data="digits"), GridOptions(seed=1)):
        with pytest.raises(dp.UsageError, match="batch function"):
            module_plan.of_module(Stack(), ModuleOptions(batch=batch), grid)


def test_a_module_without_inputs_is_an_error_of_its_own():
    with pytest.raises(module_plan.UnknownInputsError, match="Stack came without a batch"):
        module_plan.of_module(Stack(), ModuleOptions(), GridOptions())


def test_a_module_is_measured_on_eight_samples_by_default():
    torch.manual_seed(0)
    task = module_plan.of_module(Stack(), ModuleOptions(batch=batch), GridOptions())
    assert len(task.grid.ids) == 8 and task.grid.batch_size == 8


def test_options_cost_no_torch():
    code = (
        "import sys\nimport dar_probe.models.options, dar_probe.probe.options\n"
        "assert not {'torch', 'xarray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
