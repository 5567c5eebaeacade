"""Looking changes nothing: output, gradients, modes, hooks and random state stay bit for bit."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dar_probe.errors import ProbeError
from dar_probe.models import sit_family
from dar_probe.probe.grid import Grid, walk
from dar_probe.probe.measure import measure
from dar_probe.probe.recorder import Recorder, untouched
from tests.helpers import tiny


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        (name, kind): list(getattr(module, kind))
        for name, module in model.named_modules()
        for kind in kinds
    }


def state(model):
    return {
        "modes": [module.training for module in model.modules()],
        "wanted": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad for p in model.parameters()],
        "hooks": hooks(model),
        "rng": torch.get_rng_state().tolist(),
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "grad": torch.is_grad_enabled(),
    }


def prepare(options, dtype=torch.float32):
    model = tiny.model(depth=2, dtype=dtype, **options).train()
    model.blocks[0].eval()
    model.x_embedder.proj.bias.requires_grad_(False)
    model.blocks[1].attn.register_forward_hook(lambda *args: None)
    return model


@pytest.mark.parametrize("options", tiny.ROUTINGS, ids=tiny.name_of)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_observed_output_is_bit_equal(options, dtype):
    model = prepare(options, dtype)
    data, problem = tiny.problem(model, dtype=dtype)
    (x, t, y), _ = problem.batch(data.ids, torch.full((4,), 0.3))
    x.requires_grad_()
    with untouched(model):
        bare = model(x, t, y)
        with Recorder(sit_family.subject(model)) as recorder:
            observed = model(x, t, y)
        recorder.check()
        assert torch.equal(bare, observed)
        weights = torch.randn_like(bare)
        (grad_bare,) = torch.autograd.grad((bare * weights).sum(), x)
        (grad_observed,) = torch.autograd.grad((observed * weights).sum(), x)
    torch.testing.assert_close(
        grad_observed, grad_bare, rtol=1e-12 if dtype == torch.float64 else 0.02, atol=1e-5
    )


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_model_is_left_as_it_was(failure):
    model = prepare(tiny.ROUTINGS[1])
    data, problem = tiny.problem(model, dtype=torch.float32)
    grid = Grid(levels=(0.5,), ids=tuple(data.ids.tolist()), batch_size=2)

    def loss(output, ids, level):
        if failure:
            raise failure("planted")
        return problem.loss(output, ids, level)

    torch.manual_seed(3)
    parameters = [p.detach().clone() for p in model.parameters()]
    before = state(model)
    if failure:
        with pytest.raises(failure):
            walk(sit_family.subject(model), grid, problem.batch, loss)
    else:
        walk(sit_family.subject(model), grid, problem.batch, loss)
    assert state(model) == before
    assert all(map(torch.equal, parameters, model.parameters()))


def test_hooks_are_gone_when_a_block_raises():
    model = prepare(tiny.ROUTINGS[0])
    before = hooks(model)
    handle = model.blocks[1].register_forward_pre_hook(lambda *args: 1 / 0)
    data, problem = tiny.problem(model, dtype=torch.float32)
    with pytest.raises(ZeroDivisionError):
        measure(
            sit_family.subject(model), problem.batch, problem.loss, data.ids, torch.full((4,), 0.5)
        )
    handle.remove()
    assert hooks(model) == before


def test_compiled_blocks_are_probed_eagerly():
    model, plain = tiny.model(dtype=torch.float32), tiny.model(dtype=torch.float32)
    for block in model.blocks:
        block.compile(backend="eager")
    data, problem = tiny.problem(model, dtype=torch.float32)
    grid = Grid(levels=(0.5,), ids=tuple(data.ids.tolist()), batch_size=4)
    found = walk(sit_family.subject(model), grid, problem.batch, problem.loss)
    expected = walk(sit_family.subject(plain), grid, problem.batch, problem.loss)
    assert (found["gate"][0, :, 1:, 0] == expected["gate"][0, :, 1:, 0]).all()


def test_reader_that_fires_twice_is_an_error():
    model = tiny.model(dtype=torch.float32)
    model.blocks[1].norm2 = model.blocks[1].norm1
    subject = sit_family.subject(model)
    data, problem = tiny.problem(model, dtype=torch.float32)
    with untouched(model), pytest.raises(ProbeError, match="fired"):
        measure(subject, problem.batch, problem.loss, data.ids, torch.full((4,), 0.5))


def test_a_norm_that_runs_for_two_readers_has_one_site_a_call():
    model, shared = tiny.model(dtype=torch.float32), tiny.model(dtype=torch.float32)
    for block in shared.blocks:
        block.norm2 = block.norm1  # without parameters: the same function
    subjects = [sit_family.subject(model), sit_family.subject(shared)]
    rows = subjects[1].readers
    calls = [replace(r, call=(row % 2, 2)) for row, r in enumerate(rows[:-1])]
    subjects[1] = replace(subjects[1], readers=(*calls, rows[-1]))
    data, problem = tiny.problem(model, dtype=torch.float32)
    found = []
    for subject in subjects:
        with untouched(subject.model):
            level = torch.full((4,), 0.5)
            found.append(measure(subject, problem.batch, problem.loss, data.ids, level)["gate"])
    assert torch.equal(*(gate.nan_to_num() for gate in found))


class InPlace(nn.Module):
    """Overwrites the stream after the norm has read it."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        y = self.norm(x)
        x += 1
        return x + y


def test_stream_that_is_overwritten_in_place_is_an_error():
    from dar_probe.sites.subject import Reader, Source, Subject

    model = InPlace()
    subject = Subject(
        model=model,
        family="module",
        readers=(Reader(name="block 1 norm", kind="mlp", block=1, module=model.norm),),
        sources=(Source(name="embedding", kind="embedding", block=0),),
        offered=((0,),),
        facts={},
    )
    with Recorder(subject) as recorder, torch.no_grad():
        model(torch.randn(1, 2, 4))
    with pytest.raises(ProbeError, match="in place"):
        recorder.check()


def test_nan_names_the_first_bad_reader():
    model = tiny.model(dtype=torch.float32)
    with torch.no_grad():
        model.blocks[0].mlp.fc2.bias[0] = float("nan")
    data, problem = tiny.problem(model, dtype=torch.float32)
    grid = Grid(levels=(0.5,), ids=tuple(data.ids.tolist()), batch_size=4)
    with pytest.raises(ProbeError, match="'block 2 attention' reads"):
        walk(sit_family.subject(model), grid, problem.batch, problem.loss)


def test_a_model_that_couples_samples_is_refused():
    model = tiny.model(dtype=torch.float32)
    data, problem = tiny.problem(model, dtype=torch.float32)

    def loss(output, ids, level):
        return problem.loss(output - output.mean(0), ids, level)

    grid = Grid(levels=(0.5,), ids=tuple(data.ids.tolist()), batch_size=4)
    with pytest.raises(ProbeError, match="couples samples"):
        walk(sit_family.subject(model), grid, problem.batch, loss)
