"""Discovery of the pre-norm stack in modules that nobody described."""

import numpy as np
import pytest
import torch
from torch import nn

import dar_probe as dp
from dar_probe.probe.recorder import untouched
from dar_probe.subjects import discover
from tests import tiny


class Branch(nn.Module):
    """An MLP with a norm of its own inside, which does not read the stream."""

    def __init__(self, width):
        super().__init__()
        self.up, self.inner, self.down = (
            nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, width),
        )  # fmt: skip

    def forward(self, x):
        return self.down(torch.tanh(self.inner(self.up(x))))


class Block(nn.Module):
    def __init__(self, width, post=False):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Branch(width)
        self.norm2, self.mlp = nn.RMSNorm(width), Branch(width)
        self.post = post

    def forward(self, x):
        if self.post:
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.mlp(x))
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Stack(nn.Module):
    def __init__(self, depth=4, width=16, post=False, head=True):
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.blocks = nn.ModuleList(Block(width, post) for _ in range(depth))
        self.norm = nn.LayerNorm(width) if head else nn.Identity()
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def batch(ids, level):
    rows = [torch.randn(3, 5, generator=torch.Generator().manual_seed(int(i))) for i in ids]
    return (torch.stack(rows),), {}


def test_a_norm_that_two_branches_share_is_refused():
    model = Stack()
    for block in model.blocks:
        block.norm2 = block.norm1
    with pytest.raises(dp.ProbeError, match="several times"):
        dp.audit(model, batch=batch, samples=2)


def test_branches_behind_one_norm_are_parallel():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.attention, self.mlp = nn.LayerNorm(16), Branch(16), Branch(16)

        def forward(self, x):
            h = self.norm(x)
            return x + self.attention(h) + self.mlp(h)

    model = Stack(depth=3)
    model.blocks = nn.ModuleList(Parallel() for _ in range(3))
    with untouched(model):
        subject = discover.discover(model, *batch(torch.tensor([0]), None))
    assert [r.kind for r in subject.readers] == ["parallel"] * 3 + ["head"]


def test_readers_are_the_norms_that_read_the_stream():
    model = Stack()
    with untouched(model):
        subject = discover.discover(model, *batch(torch.tensor([0]), None))
    assert [r.name for r in subject.readers] == [
        *(f"block {k} norm{j}" for k in range(1, 5) for j in (1, 2)), "head",
    ]  # fmt: skip
    assert [r.kind for r in subject.readers] == ["attention", "mlp"] * 4 + ["head"]
    assert subject.block_readers == [0, 2, 4, 6, 8]


def test_audit_of_any_module():
    torch.manual_seed(0)
    model = Stack().train()
    analysis = dp.audit(model, batch=batch, noise_levels=[0.1, 0.9], samples=6)
    assert analysis.dataset.sizes["block"] == 5 and analysis.dataset.sizes["noise_level"] == 2
    assert model.training and all(p.grad is None for p in model.parameters())
    assert float(analysis.dataset["read_residual"].max()) < 1e-6
    assert float(np.nanmean(analysis.dataset["gate_conservation"])) < 1e-2
    alone = dp.audit(model, batch=batch, samples=6, batch_size=1)
    assert alone.dataset["noise_level"].values.tolist() == [0]
    gate = analysis.dataset["gate"][0]
    np.testing.assert_allclose(
        alone.dataset["gate"][0], gate, rtol=1e-3, atol=1e-5 * float(np.abs(gate).max())
    )


def test_audit_by_discovery_equals_the_named_sites():
    model = tiny.model(depth=3, dtype=torch.float32)
    data, problem = tiny.problem(model, dtype=torch.float32)

    class Plain(nn.Module):
        """The same model without a Stream."""

        def __init__(self):
            super().__init__()
            self.inner = model
            self.layers = nn.ModuleList(Sublayers(b) for b in model.blocks)

        def forward(self, x, t, y):
            h = self.inner.x_embedder(x) + self.inner.pos_embed
            c = self.inner.t_embedder(t) + self.inner.y_embedder(y)
            for layer in self.layers:
                h = layer(h, c)
            return self.inner.unpatchify(self.inner.final_layer(h, c))

    options = {"batch": problem.batch, "loss": problem.loss, "noise_levels": [0.2, 0.8]}
    named = dp.audit(model, **options, samples=4).dataset
    found = dp.audit(Plain(), **options, samples=4).dataset
    for name in ("rms", "grad_rms", "cosine", "gate", "write_rms", "loss"):
        scale = float(np.abs(named[name]).max())
        np.testing.assert_allclose(
            found[name], named[name], rtol=1e-4, atol=2e-6 * scale, err_msg=name
        )


class Sublayers(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, h, c):
        b = self.block
        parts = b.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)
        h = h + parts[2] * b.attn(b.norm1(h) * (1 + parts[1]) + parts[0])
        return h + parts[5] * b.mlp(b.norm2(h) * (1 + parts[4]) + parts[3])


def test_token_ids_need_no_gradient_of_the_input():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(11, 16)
            self.stack = Stack(width=16)

        def forward(self, ids):
            x = self.table(ids)
            for block in self.stack.blocks:
                x = block(x)
            return self.stack.head(self.stack.norm(x))

    def tokens(ids, level):
        return (torch.arange(7)[None].repeat(len(ids), 1) + ids[:, None] % 4,), {}

    analysis = dp.audit(Language(), batch=tokens, samples=4)
    assert float(analysis.dataset["grad_rms"].min()) > 0


@pytest.mark.parametrize("encoder", ["plain", "torch"])
def test_stack_of_torch_encoder_layers(encoder):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    model = nn.Module()
    if encoder == "torch":
        model = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(16), enable_nested_tensor=False)

        def inputs(ids, level):
            return (torch.nn.functional.pad(batch(ids, level)[0][0], (0, 11)),), {}

        analysis = dp.audit(model, batch=inputs, samples=3)
    else:
        wide = Stack(depth=3)
        wide.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
            for _ in range(3)
        )
        analysis = dp.audit(wide, batch=batch, samples=3)
    assert analysis.dataset.sizes["reader"] == 7


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Stack(post=True), "no pre-norm stack"),
        (Stack(head=False), "no pre-norm stack"),
        (Stack(depth=1), "no stack of blocks"),
        (nn.Linear(5, 5), "no stack of blocks"),
    ],
    ids=["post-norm", "no head norm", "one block", "no blocks"],
)
def test_what_is_no_pre_norm_stack_is_refused(module, sentence):
    with pytest.raises(dp.ProbeError, match=sentence):
        dp.audit(module, batch=batch, samples=2)


def test_fresh_adaln_zero_model_is_untrained():
    model = dp.build(
        "SiT-S/2", depth=3, width=32, heads=2, input_size=8, in_channels=1, num_classes=10
    )

    def noised(ids, level):
        x = batch(ids, level)[0][0].new_ones(len(ids), 1, 8, 8)
        return (x, level.float(), ids % 10), {}

    analysis = dp.audit(model, batch=noised, samples=4)
    assert analysis.verdict.status == "untrained"
    # Gradients are zero throughout: their ratio is not measurable.
    statuses = {f.name: f.status for f in analysis.verdict.findings}
    assert (statuses["inflation"], statuses["redundancy"]) == ("untrained", "untrained")
    assert statuses["gradient_decay"] == "not measurable"


def test_loss_of_the_wrong_shape():
    with pytest.raises(dp.ProbeError, match="shape"):
        dp.audit(Stack(), batch=batch, loss=lambda out, ids, level: out.sum(), samples=2)
