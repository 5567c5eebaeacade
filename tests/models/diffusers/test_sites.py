"""Discovery on transformers of diffusers: which sites, and whether the numbers are right."""

import pytest
import torch
from torch import nn

from dar_probe.models import registry
from dar_probe.models.diffusers import inputs
from dar_probe.probe.recorder import untouched
from dar_probe.sites.discover import Asked
from tests.models import check
from tests.models.diffusers import others, tiny

diffusers = pytest.importorskip("diffusers")

ATTENTION, MLP, CROSS, PARALLEL = "attention", "mlp", "cross_attention", "parallel"
DOUBLE = [(ATTENTION, True), (MLP, True)]
RAW = [(ATTENTION, True), (CROSS, False), (MLP, True)]  # cross-attention without a norm
NORMED = [(ATTENTION, True), (CROSS, True), (MLP, True)]
SINGLE = [(PARALLEL, True)]

# What the class's own forward does: per block the kind of every reader and whether it is normed.
STACKS = {
    "dit": [DOUBLE] * 3,
    "pixart": [RAW] * 3,
    "sana": [RAW] * 3,
    "sd3": [DOUBLE] * 3,
    "sd3-dual": [[(PARALLEL, True), (MLP, True)]] * 2 + [DOUBLE],
    "flux": [DOUBLE] * 2 + [SINGLE] * 2,
    "hunyuan-dit": [NORMED] * 6,
    "qwen-image": [DOUBLE] * 3,
    "lumina2": [DOUBLE] * 4,  # one refiner of the image first
    "z-image": [DOUBLE] * 4,
    "hunyuan-video": [DOUBLE] * 2 + [SINGLE] * 2,
    "ltx-video": [RAW] * 3,
    "wan": [NORMED] * 3,
}
FUSIONS = {"hunyuan-dit": [5, 6]}  # blocks in which an earlier state is mixed in
TOKENS = {  # of the sample alone: patches, or packed tokens
    "dit": 16, "pixart": 16, "sana": 64, "sd3": 16, "sd3-dual": 16, "flux": 12,
    "hunyuan-dit": 16, "qwen-image": 12, "lumina2": 8, "z-image": 6, "hunyuan-video": 12,
    "ltx-video": 12, "wan": 12,
}  # fmt: skip


class Called(nn.Module):
    """A transformer as a function of its latents alone."""

    def __init__(self, model, call, samples):
        super().__init__()
        self.model, self.call = model, call
        self.times = torch.linspace(0.2, 0.8, samples, dtype=torch.float64)

    def forward(self, x):
        times = self.times[: len(x)].to(x.dtype)
        args, kwargs = self.call.inputs(x, times, torch.arange(len(x)))
        return self.call.prediction(self.model(*args, **kwargs))


def prepare(model, name, shape=None, *, samples=2, dtype=torch.float64):
    call = inputs.plan(name, dict(model.config), shape=shape)
    called = Called(model.to(dtype), call, samples)
    x = torch.randn(samples, *call.shape, dtype=dtype)
    with untouched(called):
        return registry.find(
            called, (x[:1],), {}, live_only=True, asked=Asked(two=lambda: ((x[:2],), {}))
        ), x


def mean_square(output):
    return output.square().flatten(1).mean(1)


@pytest.fixture(scope="module", params=tiny.MODELS)
def found(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind = tiny.MODELS[request.param][0]
        dtype = torch.float32 if request.param in SINGLE_PRECISION else torch.float64
        shape = tiny.SHAPES.get(request.param)
        subject, x = prepare(tiny.build(request.param), kind, shape, dtype=dtype)
    return request.param, subject, x


def test_sites_are_those_of_the_classs_own_forward(found):
    name, subject, _ = found
    blocks = [[] for _ in STACKS[name]]
    for reader in subject.readers[:-1]:
        blocks[reader.block - 1].append((reader.kind, reader.normed))
    assert blocks == STACKS[name]
    fusions = [source.block for source in subject.sources if source.kind == "fusion"]
    assert fusions == FUSIONS.get(name, [])
    assert subject.facts["tokens"] == TOKENS[name]
    head = subject.readers[-1]
    assert (head.kind, head.normed, head.when) == ("head", True, "input")
    assert not any("could not be confirmed" in sentence for sentence in subject.assumptions)


# Its norms read a copy in float32 of a stream in any other type: the stream itself is not seen.
SINGLE_PRECISION = {"wan"}


def test_numbers_are_those_of_plain_autograd(found):
    name, subject, x = found
    expected = check.reference(subject, (x,), mean_square)
    with untouched(subject.model):
        probed = check.probed(subject, (x,), mean_square)
    # Measured: 7e-16 and 3e-7.
    tolerance = 1e-14 if x.dtype == torch.float64 else 2e-6
    for variable in ("rms", "grad_rms", "cosine", "gate"):
        assert check.relative(probed[variable], expected[variable]) < tolerance, variable
    conserved = probed["gate_conservation"]
    normed = torch.tensor([r.normed for r in subject.readers]) & (
        torch.tensor([len(ids) for ids in subject.offered]) > 1
    )
    assert conserved[:, ~normed].isnan().all()
    assert conserved[:, normed].max() < 0.02  # up to the norms' eps


def test_a_stream_that_is_copied_before_its_norms_is_measured_between_blocks():
    subject, _ = prepare(tiny.build("wan"), "WanTransformer3DModel", tiny.SHAPES["wan"])
    assert subject.granularity == "block"
    assert "hands on no state that a norm in it reads" in subject.assumptions[0]


@pytest.mark.filterwarnings("ignore")  # of classes that are deprecated, or use autocast
@pytest.mark.parametrize("name", sorted(others.OTHERS))
def test_other_transformers_are_carried_by_the_same_mechanism(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tiny.randomise(getattr(diffusers, name)(**others.OTHERS[name])).eval()
        subject, x = prepare(model, name, dtype=torch.float32)
    assert subject.granularity == "sublayer" and len(subject.readers) > 2
    with untouched(subject.model):
        found = check.probed(subject, (x,), mean_square)
    # The law that the signed gates of a normed reader cancel: up to the norms' eps.
    conserved = found["gate_conservation"]
    assert conserved[~conserved.isnan()].max() < 0.02
    assert not conserved.isnan().all()
