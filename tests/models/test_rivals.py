"""Weights that fit another split into encoder and decoder than was assumed are said to."""

import pytest
import torch
import torch.nn.functional as F

import dar_probe as dp
from dar_probe.models.ddt import DDT, DDTConfig
from dar_probe.probe.denoising import CHECK_LEVELS
from tests.models import check, files, test_ddt

TRUE = 2  # of 3 blocks


def fitted(file):
    """Random weights whose last layer is fitted, by least squares, to the encoder of TRUE blocks.

    What the file's samples are at the levels of the check, and their noise, is all that it knows.
    """
    state = check.random_state(test_ddt.official())
    model = DDT(
        DDTConfig(
            depth=3, encoder=TRUE, width=test_ddt.D, heads=test_ddt.H, patch=test_ddt.P,
            channels=test_ddt.C, rows=test_ddt.ROWS, hidden=test_ddt.HIDDEN,
        )
    ).double()  # fmt: skip
    model.load_state_dict(state)
    seen, wanted = [], []
    model.final_layer.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for s in CHECK_LEVELS:
        _, inputs, _ = files.problem(file, s, files.SAMPLES)
        with torch.no_grad():
            model(*inputs)
        noise = (inputs[0] - (1 - s) * file.latents) / s
        wanted.append(F.unfold(file.latents - noise, test_ddt.P, stride=test_ddt.P).transpose(1, 2))
    features = torch.cat(seen).flatten(0, 1)
    features = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(features, torch.cat(wanted).flatten(0, 1)).solution
    state["final_layer.linear.weight"], state["final_layer.linear.bias"] = best[:-1].T, best[-1]
    return {name: value.float().contiguous() for name, value in state.items()}


@pytest.mark.parametrize("told", [1, 2])
def test_a_wrong_split_is_said_where_data_are_given(told, tmp_path):
    file = files.write("DDT", tmp_path)
    args = {**test_ddt.OPTIONS, "num_encoder_blocks": told}
    path = tmp_path / "fitted.pt"
    torch.save({"ema": fitted(file), "args": args}, path)
    found = dp.analyze(path, data=file.data, noise_levels=[0.5], samples=files.SAMPLES)
    if told == TRUE:
        assert found.manifest["warnings"] == []
        return
    (warning,) = found.manifest["warnings"]
    assert warning.startswith("The weights contradict what was assumed of them: their loss is ")
    assert "with num_encoder_blocks 2 it is 0." in warning
