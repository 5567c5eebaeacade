"""Compiled, parallel and checkpointed modules: the same numbers as the plain one, or a refusal."""

import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import dar_probe as dp
from dar_probe.models import sit_family
from dar_probe.probe.grid import Grid, walk
from dar_probe.sites.unwrap import unwrap
from tests.helpers import tiny
from tests.probe.test_recorder import state
from tests.test_audit import Branch, Stack, batch

# torch.compile warns of this in its own code.
GRAD_OF_NO_LEAF = "ignore:The .grad attribute of a Tensor that is not a leaf"


def stack(kind=Stack):
    torch.manual_seed(0)
    return kind(depth=2)


def audit(module):
    return dp.audit(module, batch=batch, samples=3)


def same(found, expected):
    """Every number, name and coordinate, bit for bit; and what the manifest says of the model."""
    assert found.dataset.equals(expected.dataset)
    assert found.manifest["model"] == expected.manifest["model"]


class Compiler:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    yield Compiler()
    torch._dynamo.reset()


class Outer(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return self.backbone(x)


def whole(model, backend):
    return torch.compile(model, backend=backend)


def in_place(model, backend):
    model.compile(backend=backend)
    return model


def forward_alone(model, backend):
    model.forward = torch.compile(model.forward, backend=backend)
    return model


def each_block_in_place(model, backend):
    for block in model.blocks:
        block.compile(backend=backend)
    return model


def each_block(model, backend):
    model.blocks = nn.ModuleList(torch.compile(b, backend=backend) for b in model.blocks)
    return model


def norms_and_branches(model, backend):
    for block in model.blocks:
        block.norm1 = torch.compile(block.norm1, backend=backend)
        block.norm2.compile(backend=backend)
        block.mlp = torch.compile(block.mlp, backend=backend)
    return model


def submodule(model, backend):
    return Outer(torch.compile(model, backend=backend))


def data_parallel(model, backend):
    return nn.DataParallel(torch.compile(nn.DataParallel(model), backend=backend))


COMPILED = [
    whole, in_place, forward_alone, each_block, each_block_in_place, norms_and_branches, submodule,
    data_parallel,
]  # fmt: skip


def step(model):
    """One call of training and one of evaluation; no gradient is left behind."""
    (x,), _ = batch(torch.arange(3), None)
    trained = model.train()(x)
    trained.sum().backward()
    model.zero_grad()
    with torch.no_grad():
        return trained, model.eval()(x)


@pytest.mark.filterwarnings(GRAD_OF_NO_LEAF)
@pytest.mark.parametrize("wrap", COMPILED, ids=lambda wrap: wrap.__name__)
def test_compiled_modules_are_probed_as_if_they_were_plain(wrap, compiler):
    plain = stack()
    expected = audit(Outer(plain) if wrap is submodule else plain)
    model = wrap(copy.deepcopy(plain), compiler)
    before_step, graphs = step(model), compiler.graphs
    assert graphs > 0, "nothing was compiled: this test would say nothing"
    before = state(model)
    same(audit(model), expected)
    assert state(model) == before
    assert all(map(torch.equal, step(model), before_step))
    assert compiler.graphs == graphs, "neither the probe nor what follows may compile again"


@pytest.mark.parametrize("options", tiny.ROUTINGS[:4], ids=tiny.name_of)
def test_a_compiled_bundled_model_is_known(options, compiler):
    plain, model = (tiny.model(dtype=torch.float32, **options) for _ in range(2))
    _, problem = tiny.problem(model, dtype=torch.float32)
    for block in model.blocks:
        block.mlp = torch.compile(block.mlp, backend=compiler)
    model.blocks = nn.ModuleList(torch.compile(b, backend=compiler) for b in model.blocks)
    wrapped = torch.compile(model, backend=compiler)
    (args, _) = problem.batch(torch.arange(3), torch.full((3,), 0.5))
    with torch.no_grad():
        assert torch.equal(wrapped(*args), plain(*args))
    assert compiler.graphs > 0
    task = {"batch": problem.batch, "loss": problem.loss, "samples": 3, "noise_levels": [0.2, 0.8]}
    found = dp.audit(wrapped, **task)
    assert found.manifest["model"]["family"] == "sit"
    same(found, dp.audit(plain, **task))


def test_data_parallel_is_unwrapped():
    plain = stack()
    model = nn.DataParallel(copy.deepcopy(plain))
    same(audit(model), audit(plain))
    assert unwrap(model) is model.module
    assert unwrap(plain) is plain


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("stacked", [False, True], ids=["ddp", "compile(ddp)"])
def test_distributed_data_parallel_is_unwrapped(stacked, one_process, compiler):
    plain = stack()
    model = DistributedDataParallel(copy.deepcopy(plain))
    if stacked:
        model = torch.compile(model, backend=compiler)
    before = step(model)
    assert (compiler.graphs > 0) == stacked
    flags = state(model)
    same(audit(model), audit(plain))
    assert state(model) == flags
    assert all(map(torch.equal, step(model), before))


def test_parallel_wrappers_inside_are_refused(one_process):
    for wrapper in (nn.DataParallel, DistributedDataParallel):
        with pytest.raises(dp.ProbeError, match=f"'backbone' is wrapped in {wrapper.__name__},"):
            audit(torch.compile(Outer(wrapper(stack())), backend="eager"))


def fsdp1(model):
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def fsdp1_inside(model):
    return torch.compile(Outer(fsdp1(model)), backend="eager")


def fsdp2(model):
    mesh = init_device_mesh("cpu", (1,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(model):
    mesh = init_device_mesh("cpu", (1,))
    return dist.tensor.parallel.parallelize_module(
        model, mesh, {"head": dist.tensor.parallel.ColwiseParallel()}
    )


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
@pytest.mark.parametrize("wrap", [fsdp1, fsdp1_inside], ids=lambda wrap: wrap.__name__)
def test_flattened_parameters_are_refused(wrap, one_process):
    model = wrap(stack())
    with pytest.raises(dp.ProbeError, match="over processes by FullyShardedDataParallel") as caught:
        audit(model)
    assert "fully_shard" in caught.value.hint and "full state dict" in caught.value.hint


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
@pytest.mark.parametrize("wrap", [fsdp2, tensor_parallel], ids=lambda wrap: wrap.__name__)
def test_sharded_parameters_of_one_process_are_measured_as_they_are(wrap, one_process):
    """Of several processes: tests/probe/test_sharded_modules.py."""
    same(audit(wrap(stack())), audit(stack()))


class Scaled(nn.Module):
    """A block that a condition scales, as in adaLN."""

    def __init__(self, how, reentrant):
        super().__init__()
        self.how, self.reentrant = how, reentrant
        self.norm1, self.attention = nn.LayerNorm(16), Branch(16)
        self.norm2, self.mlp = nn.RMSNorm(16), Branch(16)

    def forward(self, x, c):
        if self.how == "sublayer":
            x = checkpoint(self.attend, x, c, self.attention, use_reentrant=self.reentrant)
        elif self.how == "branch":
            x = self.attend(x, c, partial(checkpoint, self.attention, use_reentrant=self.reentrant))
        else:
            x = self.attend(x, c, self.attention)
        return x + self.mlp(self.norm2(x))

    def attend(self, x, c, branch):
        return x + c * branch(self.norm1(x) * (1 + c))


class Checkpointed(Stack):
    def __init__(self, how, reentrant, depth):
        super().__init__(depth)
        self.how, self.reentrant = how, reentrant
        self.condition = nn.Linear(5, 16)
        self.blocks = nn.ModuleList(Scaled(how, reentrant) for _ in range(depth))

    def forward(self, x):
        c = self.condition(x.mean(1, keepdim=True))
        x = self.embed(x)
        if self.how == "sequential":
            calls = [partial(self.call, block, c=c) for block in self.blocks]
            x = checkpoint_sequential(calls, 2, x, use_reentrant=self.reentrant)
        else:
            for block in self.blocks:
                run = partial(checkpoint, block, use_reentrant=self.reentrant)
                x = run(x, c) if self.how == "block" else block(x, c)
        return self.head(self.norm(x))

    def call(self, block, x, c):
        return block(x, c)


HOW = ["block", "sublayer", "branch", "sequential", "wrapper"]


def checkpointed(how, *, reentrant=False):
    model = stack(partial(Checkpointed, how, reentrant))
    if how == "wrapper":
        kind = CheckpointImpl.REENTRANT if reentrant else CheckpointImpl.NO_REENTRANT
        model.blocks = nn.ModuleList(checkpoint_wrapper(b, kind) for b in model.blocks)
    return model


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("how", HOW)
def test_checkpointed_modules_are_probed_as_if_they_were_plain(how, reentrant):
    plain, model = checkpointed(None), checkpointed(how, reentrant=reentrant)
    model.load_state_dict(plain.state_dict())
    fired = {plain: 0, model: 0}
    for kind in fired:
        branch = kind.blocks[0].attention

        def count(module, inputs, kind=kind):
            fired[kind] += 1

        branch.register_forward_pre_hook(count)
    expected, found = audit(plain), audit(model)
    assert fired[model] == fired[plain], "nothing runs twice"
    same(found, expected)


class Attending(Scaled):
    """Attention is handed one tensor three times, and asks whether it is one."""

    def __init__(self):
        super().__init__(None, False)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def attend(self, x, c, branch):
        read = self.norm1(x) * (1 + c)
        return x + c * branch(read, read, read, need_weights=False)[0]


def test_a_checkpoint_of_attention_with_inputs_by_keyword():
    """What is run again has to meet the very tensors, and the hooks, of the first time."""

    def made(how):
        model = checkpointed(how)
        model.blocks = nn.ModuleList(Attending() for _ in range(3))
        return model

    torch.manual_seed(0)
    plain, model = made(None), made("block")
    model.load_state_dict(plain.state_dict())

    def by_keyword(ids, levels):
        (x,), _ = batch(ids, levels)
        return (), {"x": x}

    task = {"batch": by_keyword, "samples": 3}
    same(dp.audit(model, **task), dp.audit(plain, **task))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_branches_of_a_bundled_model(reentrant):
    plain, model = (tiny.model(dtype=torch.float32, **tiny.ROUTINGS[1]) for _ in range(2))
    for block in model.blocks:
        inner = block.mlp.forward
        block.mlp.forward = partial(checkpoint, inner, use_reentrant=reentrant)
    _, problem = tiny.problem(model, dtype=torch.float32)
    task = {"batch": problem.batch, "loss": problem.loss, "samples": 3, "noise_levels": [0.2, 0.8]}
    same(dp.audit(model, **task), dp.audit(plain, **task))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("bundled", [False, True])
def test_a_forward_without_gradients_is_refused(mode, bundled):
    model = tiny.model(dtype=torch.float32) if bundled else stack()
    _, problem = tiny.problem(tiny.model(dtype=torch.float32), dtype=torch.float32)
    model.forward = mode()(model.forward)
    with pytest.raises(dp.ProbeError, match="runs without gradients"):
        dp.audit(model, batch=problem.batch if bundled else batch, samples=2)


def test_a_frozen_encoder_may_run_without_gradients():
    class Encoded(Stack):
        def __init__(self, depth):
            super().__init__(depth)
            self.encoder = nn.Linear(5, 5)

        def forward(self, x):
            with torch.no_grad():
                x = self.encoder(x)
            return super().forward(x)

    assert audit(stack(Encoded)).dataset.sizes["reader"] == 5


def test_a_writer_that_fires_twice_is_an_error():
    model = tiny.model(dtype=torch.float32)
    model.stream.writers[3] = model.stream.writers[2]
    data, problem = tiny.problem(model, dtype=torch.float32)
    grid = Grid(levels=(0.5,), ids=tuple(data.ids.tolist()), batch_size=4)
    with pytest.raises(dp.ProbeError, match="fired 2 times.*'block 2 attention' share"):
        walk(sit_family.subject(model), grid, problem.batch, problem.loss)
