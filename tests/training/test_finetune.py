"""Audits before and after training: what is trained, on what, and what stays as it was."""

import copy
import json
import runpy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import dar_probe as dp
from dar_probe.analysis import open_analysis
from dar_probe.training.finetune import FinetuneOptions, train_copy
from tests.helpers.shell import FIXTURES

OPTIONS = FinetuneOptions(steps=6, lr=1e-2, batch_size=4)
CELLS = {"noise_levels": [0.2, 0.8], "first_id": 10}


class Block(nn.Module):
    def __init__(self, width, dropout):
        super().__init__()
        self.norm, self.up, self.drop = nn.LayerNorm(width), nn.Linear(width, width), dropout
        self.down = nn.Linear(width, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x):
        return x + self.down(self.drop(torch.tanh(self.up(self.norm(x)))))


class Stack(nn.Module):
    """Blocks that write nothing at first."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(Block(8, nn.Dropout(dropout)) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def rows(ids):
    made = [torch.randn(3, 5, generator=torch.Generator().manual_seed(int(i))) for i in ids]
    return torch.stack(made)


def batch(ids, level):
    return (rows(ids) * (1 + level.float()[:, None, None]),), {}


def loss(output, ids, level):
    return (output - rows(ids).flip(2)).square().mean((1, 2))


def stack(**options):
    torch.manual_seed(0)
    return Stack(**options)


def values(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_callers_module_stays_as_it_was():
    module = stack(dropout=0.5)
    module.blocks[1].eval()
    loss(module(rows([0])), [0], None).sum().backward()
    module.head.bias.requires_grad_(False)
    before, modes = values(module), [m.training for m in module.modules()]
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}
    random = torch.get_rng_state()
    with torch.no_grad():  # training asks for gradients by itself
        trained = train_copy(module, batch, loss, OPTIONS, **CELLS)
    assert torch.equal(torch.get_rng_state(), random)
    assert same(values(module), before)
    assert [m.training for m in module.modules()] == modes
    assert [m.training for m in trained.modules()] == modes
    for name, parameter in module.named_parameters():
        kept = grads[name]
        assert (parameter.grad is None) == (kept is None), name
        assert kept is None or torch.equal(parameter.grad, kept), name
    assert not module.head.bias.requires_grad
    assert all(p.grad is None for p in trained.parameters())
    moved = {n for n, p in trained.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, _ in module.named_parameters()} - {"head.bias"}


def test_a_loss_that_holds_the_callers_module_leaves_its_gradients_alone():
    module = stack()

    def holding(output, ids, level):
        return loss(output, ids, level) + module.head(output @ module.embed.weight.T).mean((1, 2))

    train_copy(module, batch, holding, OPTIONS, **CELLS)
    assert all(p.grad is None for p in module.parameters())


def test_training_is_that_of_a_plain_loop():
    module, steps = stack(), 103
    plain = copy.deepcopy(module).train()
    optimiser = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0)
    rng = np.random.default_rng([0, 1])
    for step in range(steps):
        ids = torch.arange(10 + 4 * step, 14 + 4 * step)
        level = torch.from_numpy(rng.choice([0.2, 0.8], 4))
        optimiser.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 100)
        optimiser.zero_grad()
        loss(plain(*batch(ids, level)[0]), ids, level).mean().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimiser.step()
    trained = train_copy(module, batch, loss, replace(OPTIONS, steps=steps), **CELLS)
    assert same(values(trained), values(plain))


def test_equal_seeds_train_equal_bits_and_other_seeds_do_not():
    module = stack(dropout=0.5)
    once, again, other = (
        values(train_copy(module, batch, loss, replace(OPTIONS, seed=seed), **CELLS))
        for seed in (3, 3, 4)
    )
    assert same(once, again)
    assert not same(once, other)


def test_every_step_and_every_seed_has_samples_of_its_own():
    seen = []

    def watched(ids, level):
        assert ids.dtype == torch.int64 and level.dtype == torch.float64
        assert set(level.tolist()) <= {0.2, 0.8}
        seen.extend(ids.tolist())
        return batch(ids, level)

    for seed in range(3):
        train_copy(stack(), watched, loss, replace(OPTIONS, seed=seed), **CELLS)
    assert len(set(seen)) == len(seen) == 3 * 6 * 4
    assert min(seen) == 10


def test_a_loss_that_is_not_finite_names_its_step():
    def breaking(output, ids, level):
        return loss(output, ids, level) * (torch.nan if int(ids[0]) >= 10 + 2 * 4 else 1)

    with pytest.raises(dp.ProbeError, match="loss is not finite at step 3") as caught:
        train_copy(stack(), batch, breaking, OPTIONS, **CELLS)
    assert caught.value.exit_code == 4

    def steep(output, ids, level):
        return (output - output.detach()).abs().sqrt().mean((1, 2))

    with pytest.raises(dp.ProbeError, match="gradient is not finite at step 1"):
        train_copy(stack(), batch, steep, OPTIONS, **CELLS)


def test_a_module_without_trainable_parameters_is_refused():
    with pytest.raises(dp.UsageError, match="no trainable parameters"):
        train_copy(stack().requires_grad_(False), batch, loss, OPTIONS, **CELLS)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "at least 1 step"),
        ({"lr": 0.0}, "learning rate of 0"),
        ({"lr": float("nan")}, "learning rate of nan"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_that_do_not_fit(change, sentence):
    with pytest.raises(dp.UsageError, match=sentence):
        train_copy(stack(), batch, loss, replace(OPTIONS, **change), **CELLS)


def test_a_table_that_ends_is_explained():
    table = rows(range(12))
    with pytest.raises(dp.UsageError, match="step 1: IndexError") as caught:
        train_copy(stack(), lambda ids, level: ((table[ids],), {}), loss, OPTIONS, **CELLS)
    assert "modulo" in caught.value.hint


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda out, ids, level: out.mean(), "shape"),
        (lambda out, ids, level: out.detach().mean((1, 2)), "autograd"),
        (lambda out, ids, level: torch.ones(len(ids), requires_grad=True) * 2, "depend on"),
    ],
)
def test_a_loss_from_which_nothing_is_learnt(wrong, sentence):
    with pytest.raises(dp.ProbeError, match=sentence):
        train_copy(stack(), batch, wrong, OPTIONS, **CELLS)


def test_audit_judges_the_trained_copy_and_keeps_the_module_as_it_came(tmp_path, monkeypatch):
    monkeypatch.setattr("dar_probe.reports.printing.write_all", lambda *args, **options: None)
    module, told = stack(), []
    options = {"batch": batch, "loss": loss, "noise_levels": [0.2, 0.8], "samples": 4}
    plain = dp.audit(module, **options)
    assert plain.verdict.status == "untrained" and plain.before is None and plain.changes == {}
    audit = dp.audit(
        module, **options, train_steps=30, lr=1e-2, on_step=lambda *told_: told.append(told_)
    )
    assert audit.before.verdict.status == "untrained" != audit.verdict.status
    for name in ("rms", "gate", "loss"):
        np.testing.assert_array_equal(audit.before.dataset[name], plain.dataset[name])
    assert audit.loss.value < audit.before.loss.value
    assert [step for step, _, _ in told] == list(range(1, 31))
    assert audit.manifest["training"] == {
        "steps": 30, "lr": 1e-2, "batch_size": 8, "seed": 0,
        "first_loss": told[0][2], "final_loss": told[-1][2],
    }  # fmt: skip
    assert "training" not in audit.before.manifest

    audit.save(tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["before"]["verdict"] == "untrained"
    assert summary["before"]["metrics"]["inflation"]["value"] == audit.before.metrics[
        "inflation"
    ].value  # fmt: skip
    assert summary["before"]["loss"]["value"] > summary["loss"]["value"]
    assert "Before and after training" in (tmp_path / "out" / "report.html").read_text()
    again = open_analysis(tmp_path / "out")
    again.save(tmp_path / "out")  # as the report command does
    assert open_analysis(tmp_path / "out").before.summary == audit.before.summary
    plain.save(tmp_path / "out")
    assert not (tmp_path / "out" / "before.nc").exists()
    assert "Before and after training" not in (tmp_path / "out" / "report.html").read_text()


def test_measured_samples_are_held_out():
    trained_on, measured = set(), set()

    def watched(ids, level):
        (trained_on if len(ids) == 5 else measured).update(ids.tolist())
        return batch(ids, level)

    dp.audit(stack(), batch=watched, loss=loss, samples=4, batch_size=5, train_steps=3)
    assert measured == {0, 1, 2, 3} and min(trained_on) == 4


def test_nothing_is_learnt_from_a_random_target():
    with pytest.raises(dp.UsageError, match="takes a loss"):
        dp.audit(stack(), batch=batch, samples=2, train_steps=3)


def test_the_toy_of_the_readme_learns():
    toy = runpy.run_path(str(FIXTURES / "toy.py"))
    module, batch, loss = toy["denoiser"]()
    audit = dp.audit(
        module, batch=batch, loss=loss, noise_levels=[0.1, 0.5, 0.9], samples=4, train_steps=20
    )
    assert audit.loss.value < 0.98 * audit.before.loss.value
    assert audit.before.metrics["inflation"].value == pytest.approx(2.6, abs=0.1)
