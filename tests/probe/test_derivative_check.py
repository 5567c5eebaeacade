"""Gradients that are not those of the loss are found, and left out; all else is measured."""

import numpy as np
import pytest
import torch
from torch import nn

import dar_probe as dp
from dar_probe.probe.derivative_check import wrong_derivative
from dar_probe.probe.module_plan import find_sites
from dar_probe.probe.options import ModuleOptions
from dar_probe.probe.recorder import untouched
from tests.test_audit import Stack, batch, loss

FEW = {"batch": batch, "loss": loss, "samples": 3}
GRADIENTS = ("grad_rms", "gate", "gate_conservation")


class Partly(nn.Module):
    """A branch that autograd sees in part, as routed experts in eval mode are."""

    def __init__(self, inner, how):
        super().__init__()
        self.inner, self.how = inner, how
        self.weigh = nn.Linear(16, 1)

    def forward(self, x):
        if self.how == "no_grad":
            with torch.no_grad():
                found = self.inner(x)
        else:
            found = self.inner(x.detach()) if self.how == "detach" else self.inner(x)
        return 2 * found * torch.sigmoid(self.weigh(x))


def made(how):
    torch.manual_seed(0)
    model = Stack()
    for block in model.blocks:
        block.mlp = Partly(block.mlp, how)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("how", ["no_grad", "detach"])
def test_what_rests_on_gradients_is_left_out_and_the_rest_is_right(how):
    plain, model = made(None), made(how)
    expected, found = dp.audit(plain, **FEW), dp.audit(model, **FEW)
    (warning,) = found.manifest["warnings"]
    assert "gradients of this model are not those of its loss" in warning
    assert ("'blocks.0.mlp.inner" in warning) == (how == "no_grad")
    for name in GRADIENTS:
        assert np.isnan(found.dataset[name]).all(), name
        assert not np.isnan(expected.dataset[name]).all(), name
    for name in ("rms", "cosine", "write_rms", "loss"):
        np.testing.assert_array_equal(found.dataset[name], expected.dataset[name])
    assert found.metrics["inflation"].value == expected.metrics["inflation"].value
    decay = next(item for item in found.verdict.findings if item.name == "gradient_decay")
    assert decay.status == "not measurable" and "autograd" in decay.sentence
    assert expected.manifest["warnings"] == []
    with pytest.raises(dp.UsageError, match="interventions are held against gates"):
        dp.ablate(model, **FEW)


def test_what_autograd_does_not_see_outside_of_the_blocks_is_nobody_s_loss():
    """A frozen embedder runs without gradients, and changes no derivative by the blocks."""
    model = made(None)
    embed = model.embed.forward
    model.embed.forward = torch.no_grad()(embed)
    assert dp.audit(model, **FEW).manifest["warnings"] == []


def test_a_forward_that_is_another_each_time_is_not_called_detached():
    model = made(None)
    inner = model.blocks[0].mlp.forward
    subject = find_sites(model, ModuleOptions(batch=batch), [0.0])
    with untouched(model):
        assert wrong_derivative(subject, batch, loss, [0], 0.0) == ""
        model.blocks[0].mlp.forward = lambda x: inner(x) * (1 + 0.5 * torch.rand(()))
        assert wrong_derivative(subject, batch, loss, [0], 0.0) == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rounding_is_no_detaching(dtype):
    assert dp.audit(made(None), dtype=str(dtype)[6:], **FEW).manifest["warnings"] == []
