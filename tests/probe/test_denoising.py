"""Losses beside that of predicting zero: what tells a wrong clock."""

import pytest
import torch
from torch import nn

from dar_probe.probe import denoising
from tests.helpers import tiny


class Answer(nn.Module):
    """Returns ``share`` of its input's noised sample, whatever the time."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x, t, y):
        return self.share * x


def setting(samples):
    model = tiny.model()
    data, problem = tiny.problem(model, samples=samples)
    return data, problem


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_predicting_zero_has_the_relative_loss_one(samples):
    data, problem = setting(samples)
    assert denoising._relative_loss(Answer(0.0), problem, data) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_the_relative_loss_is_a_ratio_of_means_over_levels_and_samples(samples):
    data, problem = setting(samples)
    found = denoising._relative_loss(Answer(0.3), problem, data)
    missed, zero = [], []
    for level in (0.1, 0.3, 0.5, 0.7, 0.9):
        s = torch.full((samples,), level, dtype=torch.float64)
        (x, _, _), _ = problem.batch(data.ids, s)
        missed += problem.error(0.3 * x, data.ids, s).tolist()
        zero += problem.error(0.0 * x, data.ids, s).tolist()
    assert found == pytest.approx(sum(missed) / sum(zero), rel=1e-12)
