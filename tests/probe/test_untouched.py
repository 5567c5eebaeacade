"""Whatever is asked of a model, and however it ends: the model and the process are as they were."""

import random
import tempfile
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

import dar_probe as dp
from dar_probe.probe import bench, module_plan, nnsight_engine
from dar_probe.probe.grid import walk
from dar_probe.probe.options import GridOptions, ModuleOptions
from dar_probe.probe.recompute import Careful
from tests.helpers import process
from tests.test_audit import Stack, batch

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip
GRID = {"noise_levels": [0.2, 0.8], "samples": 3}


class Drawing(Stack):
    """Counts its calls in a buffer, and draws from every random state that there is."""

    def __init__(self, draws):
        super().__init__(depth=2)
        self.draws = draws
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        if self.draws:
            assert all(np.isfinite([torch.rand(()), random.random(), np.random.rand()]))  # noqa: NPY002
        return super().forward(x)


def loss(output, ids, level):
    return (output - 1).square().mean((1, 2))


def planned(model, **settings):
    wanted = ModuleOptions(batch=batch, loss=loss)
    return module_plan.of_module(model, wanted, GridOptions(**GRID, **settings))


def ablated(model, engine):
    task = planned(model)
    wanted = {"kinds": ["gate", "source", "block"], "pairs": 2, "gates": [], "frozen_at": 0.2}
    return replace(task, engine=engine, interventions=wanted).measure()


def walked(model):
    task = planned(model)
    careful = Careful(nnsight_engine.forward, task.subject, recompute=False)
    return walk(task.subject, task.grid, task.batch, task.loss, careful=careful)


def traced(model):
    with dp.Probe(model, batch=batch, loss=loss) as probe:
        with probe.trace(0.2):
            early = probe.save(probe.reads["block 1 mlp"].input)
        with probe.trace(0.8):
            probe.reads["block 1 mlp"].input = early
            probe.save(probe.model.output)


def timed(model):
    task = planned(model)
    ids, levels = torch.arange(2), torch.tensor([0.2, 0.8], dtype=torch.float64)
    work = bench.Workload(
        subject=task.subject, batch=batch, loss=loss, ids=ids, levels=levels
    )  # fmt: skip
    return bench.bench(work, repeats=1, with_step=True)


def audited(model, **settings):
    return dp.audit(model, batch=batch, loss=loss, **GRID, **settings)


def watched(model):
    with tempfile.TemporaryDirectory() as folder:
        watch = dp.Probe.watch(model, batch=batch, loss=loss, **GRID, out=f"{folder}/run.nc")
        watch(0)


ASKED = {
    "audit": audited,
    "audit that trains": partial(audited, train_steps=2),
    "nnsight": walked,
    "ablate": partial(ablated, engine="hooks"),
    "ablate by nnsight": partial(ablated, engine="nnsight"),
    "trace": traced,
    "bench": timed,
    "watch": watched,
}


def model_with_hooks(said, draws):
    """A model as a user has it: half frozen, in mixed modes, with gradients and hooks of theirs."""
    torch.manual_seed(0)
    model = Drawing(draws).train()
    model.blocks[0].eval()
    model.embed.bias.requires_grad_(False)
    model(*batch(torch.arange(2), None)[0]).sum().backward()

    def says(name):
        return lambda *_: said.append(name)

    for name, part in (("norm", model.blocks[0].norm1), ("block", model.blocks[1])):
        for number in (1, 2):
            part.register_forward_pre_hook(says(f"{name} before {number}"))
            part.register_forward_hook(says(f"{name} after {number}"))
            part.register_full_backward_pre_hook(says(f"{name} back before {number}"))
            part.register_full_backward_hook(says(f"{name} back {number}"))
        part.register_forward_pre_hook(says(f"{name} with kwargs"), with_kwargs=True)
        part.register_forward_hook(says(f"{name} in front"), prepend=True)
        part.register_forward_hook(says(f"{name} always"), always_call=True)
    return model


@pytest.fixture
def global_hooks():
    """What the hooks of every module said."""
    said = []
    handles = [
        torch_module.register_module_forward_pre_hook(lambda *_: said.append("global before")),
        torch_module.register_module_forward_hook(lambda *_: said.append("global after")),
        torch_module.register_module_full_backward_hook(lambda *_: said.append("global back")),
    ]
    yield said
    for handle in handles:
        handle.remove()


def anatomy(model):
    """Everything of a model, by identity where it is an object and by value where it can change."""
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "modules": [(name, id(m), m.training) for name, m in model.named_modules()],
        "names": [list(vars(module)) for module in model.modules()],
        "hooks": [
            {kind: list(h.items()) if isinstance(h := getattr(module, kind), dict) else h
             for kind in HOOKS}
            for module in model.modules()
        ],
        "tensors": [(id(t), t.data_ptr(), t.requires_grad, t.tolist()) for t in tensors],
        "gradients": [(id(p.grad), p.grad.tolist()) if p.grad is not None else None
                      for p in model.parameters()],
    }  # fmt: skip


def heard(model, said):
    """What the hooks say in one step of training, in order; nothing of the step stays."""
    said.clear()
    with torch.random.fork_rng(devices=[]):
        output = model(*batch(torch.arange(2), None)[0])
    model.calls -= 1
    torch.autograd.grad(output.sum(), model.head.weight, retain_graph=True)
    torch.autograd.grad(output.sum(), model.embed.weight)
    return list(said)


# torch says so of a user's hook on the first module, whose input has no gradient.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", ASKED)
def test_the_model_and_the_process_are_as_they_were(name, global_hooks):
    ask, said = ASKED[name], global_hooks
    model = model_with_hooks(said, draws=name != "trace")  # what a trace draws is the user's own
    usual = heard(model, said)
    assert {"norm back 2", "block back before 1", "global back"} <= set(usual)
    countdown = [0]

    def fail(module, inputs):
        countdown[0] -= 1
        if countdown[0] == 0:
            raise failure("planted")

    model.blocks[1].mlp.register_forward_pre_hook(fail)
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(3)
    torch.set_num_threads(1)
    before, around = anatomy(model), process.state()

    def unchanged():
        assert process.changed(around) == {}
        after = anatomy(model)
        assert [key for key in before if after[key] != before[key]] == []

    ask(model)
    unchanged()
    calls = -countdown[0]
    assert calls >= 2
    for failure in (RuntimeError, KeyboardInterrupt):
        for at in (1, calls // 2, calls):
            countdown[0] = at
            expected = failure if failure is KeyboardInterrupt else (failure, dp.DarProbeError)
            with pytest.raises(expected):
                ask(model)
            unchanged()
    assert heard(model, said) == usual


def test_hooks_that_could_not_all_be_registered_are_gone(monkeypatch):
    """Ctrl-C may come while hooks are being put in place."""
    model = Stack(depth=2)
    before, left = anatomy(model), [0]

    def interrupted(register):
        def counted(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return register(*args, **kwargs)

        return counted

    for name in ("register_forward_hook", "register_forward_pre_hook"):
        monkeypatch.setattr(nn.Module, name, interrupted(getattr(nn.Module, name)))
    audited(model)
    registered = -left[0]
    assert registered > 50
    for at in range(1, registered + 1, 7):
        left[0] = at
        with pytest.raises(KeyboardInterrupt):
            audited(model)
        assert anatomy(model) == before, f"of {registered} hooks the {at}th was refused"


class Shifted(nn.Module):
    """A block that takes a table of its caller beside the states."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, table):
        return self.block(x + 0.1 * table)


class Tabled(Stack):
    """Holds tables as plain attributes, as models do those of rotary positions."""

    def __init__(self):
        super().__init__(depth=2)
        self.blocks = nn.ModuleList(Shifted(block) for block in self.blocks)
        self.table, self.tables = torch.randn(1, 1, 16), [torch.randn(1, 1, 16)]
        self.trained = torch.ones(1, requires_grad=True)  # what already requires grad stays so

    def forward(self, x):
        x = self.blocks[0](self.embed(x) * self.trained, self.table)
        return self.head(self.norm(self.blocks[1](x, self.tables[0])))


@pytest.mark.parametrize("ask", [audited, walked])
def test_tables_in_plain_attributes_require_no_grad_afterwards(ask):
    model = Tabled()
    ask(model)
    assert not model.table.requires_grad and not model.tables[0].requires_grad
    assert model.trained.requires_grad
