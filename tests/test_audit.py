"""Discovery of the pre-norm stack in modules that nobody described."""

import numpy as np
import pytest
import torch
from torch import nn

import dar_probe as dp
from dar_probe.models.sit import unpatchify
from dar_probe.probe.recorder import untouched
from dar_probe.sites import discover
from tests.helpers import tiny


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


def gates(model):
    return dp.audit(model, batch=batch, samples=2).dataset["gate"].values


def test_a_norm_that_two_branches_share_has_a_site_for_each():
    torch.manual_seed(0)
    model = Stack()
    for block in model.blocks:
        block.norm2 = nn.LayerNorm(16)
    expected = gates(model)
    for block in model.blocks:
        block.norm2 = block.norm1
    np.testing.assert_array_equal(gates(model), expected)


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
        *(f"block {k} {kind}" for k in range(1, 5) for kind in ("attention", "mlp")), "head",
    ]  # fmt: skip
    assert [r.kind for r in subject.readers] == ["attention", "mlp"] * 4 + ["head"]
    assert subject.block_readers == [0, 2, 4, 6, 8]


def test_audit_of_any_module():
    torch.manual_seed(0)
    model = Stack().train()
    analysis = dp.audit(model, batch=batch, noise_levels=[0.1, 0.9], samples=6)
    assert analysis.dataset.sizes["block"] == 5 and analysis.dataset.sizes["noise_level"] == 2
    assert model.training and all(p.grad is None for p in model.parameters())
    assert analysis.dataset["read_residual"].isnull().all()  # writes known as differences only
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
            return unpatchify(self.inner.final_layer(h, c), 2)

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


@pytest.mark.parametrize("module", [Stack(depth=1), nn.Linear(5, 5)], ids=["one block", "none"])
def test_a_module_without_blocks_is_refused(module):
    with pytest.raises(dp.ProbeError, match="no stack of blocks"):
        dp.audit(module, batch=batch, samples=2)


def by_hooks(model):
    """RMS of every state between blocks and of its gradient, one sample at a time: (2, blocks)."""
    states = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, args: states.append(args[0]))
    last = model.blocks[-1].register_forward_hook(lambda module, args, out: states.append(out))
    found = []
    for sample in range(2):
        states.clear()
        output = model(batch(torch.tensor([sample]), None)[0][0].requires_grad_())
        grads = torch.autograd.grad(loss(output, None, None).sum(), states)
        found.append([[z.detach().square().mean().sqrt() for z in zs] for zs in (states, grads)])
    last.remove()
    for block in model.blocks:
        block._forward_pre_hooks.clear()
    return np.array(found)


def loss(output, ids, level):
    return (output - 1).square().mean((1, 2))


@pytest.mark.parametrize("kind", ["post-norm", "two norms", "no gradient of a norm"])
def test_what_is_no_pre_norm_stack_is_measured_between_its_blocks(kind):
    torch.manual_seed(0)
    model = Stack(post=kind == "post-norm")
    why = "hands on no state that a norm in it reads"
    if kind == "two norms":
        model.blocks = nn.ModuleList(TwoNorms() for _ in range(4))
        why = "two modules read the same state"
    if kind == "no gradient of a norm":
        model.blocks = nn.ModuleList(Rescaling() for _ in range(4))
    assert dp.audit(model, batch=batch, loss=loss, samples=2).verdict.status == "untrained"
    nn.init.normal_(model.norm.weight, 1.0, 0.1)  # as training leaves it
    expected = by_hooks(model)
    analysis = dp.audit(model, batch=batch, loss=loss, samples=2)
    ds = analysis.dataset
    np.testing.assert_allclose(ds["rms"][0], expected[:, 0], rtol=1e-6)
    np.testing.assert_allclose(ds["grad_rms"][0], expected[:, 1], rtol=2e-6)
    assert np.isfinite(ds["cosine"][0, :, 1:]).all()
    for name in ("gate", "route", "write_rms", "gate_conservation", "route_entropy"):
        assert ds[name].isnull().all(), name
    assert ds["reader_kind"].values.tolist() == ["block"] * 4 + ["head"]
    assert any(f"no pre-norm stack: a {type(model.blocks[0]).__name__} {why}" in sentence
               or f"no pre-norm stack: {why}" in sentence
               for sentence in analysis.manifest["assumptions"])  # fmt: skip
    assert analysis.verdict.status in ("pass", "warn", "fail")


class Rescaling(nn.Module):
    """Halves the stream before it adds to it."""

    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(16), Branch(16)

    def forward(self, x):
        return x / 2 + self.mlp(self.norm(x))


def test_a_head_without_a_norm_reads_what_the_last_block_returns():
    torch.manual_seed(0)
    model = Stack(head=False)
    ds = dp.audit(model, batch=batch, loss=loss, samples=2).dataset
    np.testing.assert_allclose(ds["grad_rms"][0], by_hooks(model)[:, 1], rtol=2e-6)
    conservation = ds["gate_conservation"][0].values
    assert np.isnan(conservation[:, -1]).all() and (conservation[:, 1:-1] < 1e-4).all()
    assert np.isfinite(ds["gate"][0, :, -1]).all()  # its gates need no law


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


class Between(Stack):
    """Something else than the sublayers adds to the stream."""

    def __init__(self, how):
        super().__init__()
        self.how, self.extra = how, nn.Linear(16, 16)

    def forward(self, x):
        x = start = early = self.embed(x)
        for k, block in enumerate(self.blocks):
            if self.how == "embedding":
                x = x + start
            elif self.how == "time":
                x = x + self.extra.weight[0]
            elif self.how == "skip" and k == 3:
                x = x + early
            elif self.how == "linear skip" and k == 3:
                x = x + self.extra(early)
            x = block(x)
            if k == 1:
                early = x
        if self.how == "after":
            x = x + self.extra.weight[0]
        return self.head(self.norm(x))


@pytest.mark.parametrize("how", ["embedding", "time", "skip", "linear skip", "after"])
def test_what_is_added_between_blocks_is_a_source_and_no_sublayers_write(how):
    torch.manual_seed(0)
    model = Between(how)
    written = []
    for block in model.blocks:
        for branch in (block.attention, block.mlp):
            branch.register_forward_hook(
                lambda module, args, out: written.append(out.square().mean((1, 2)).sqrt())
            )
    model(*batch(torch.arange(2), None)[0])
    expected = torch.stack(written, 1).detach().numpy()
    ds = dp.audit(model, batch=batch, loss=loss, samples=2).dataset
    fused = [str(n) for n, kind in zip(ds["source_name"].values, ds["source_kind"].values,
                                       strict=True) if kind == "fusion"]  # fmt: skip
    # What is added before the first block belongs to the embedding.
    assert (
        fused
        == {
            "embedding": ["block 2 fusion", "block 3 fusion", "block 4 fusion"],
            "time": ["block 2 fusion", "block 3 fusion", "block 4 fusion"],
            "skip": ["block 4 fusion"],
            "linear skip": ["block 4 fusion"],
            "after": ["head fusion"],
        }[how]
    )
    np.testing.assert_allclose(ds["write_rms"][0], expected, rtol=1e-6)
    assert float(ds["gate_conservation"].max()) < 3e-4  # every reader's sources add up


class Within(Block):
    """Adds positions between its two sublayers."""

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        x = x + torch.linspace(0, 1, x.shape[1])[:, None] ** 2
        return x + self.mlp(self.norm2(x))


def test_what_is_added_within_a_block_is_said():
    def longer(ids, level):
        (x,), _ = batch(ids, level)
        return (torch.cat([x, x.flip(1), x.square()], 1),), {}

    def said(kind):
        model = Stack()
        model.blocks = nn.ModuleList(kind(16) for _ in range(4))
        found = dp.audit(model, batch=longer, loss=loss, samples=2).manifest["assumptions"]
        return [sentence for sentence in found if "could not be confirmed" in sentence]

    assert said(Block) == []
    (sentence,) = said(Within)
    assert sentence.startswith("4 of 8 writes, such as that of 'block 1 attention',")


class TwoNorms(nn.Module):
    """Parallel branches, each behind a norm of its own (GPT-NeoX)."""

    def __init__(self):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(16), Branch(16)
        self.norm2, self.mlp = nn.LayerNorm(16), Branch(16)

    def forward(self, x):
        return x + self.attention(self.norm1(x)) + self.mlp(self.norm2(x))


@pytest.mark.parametrize("samples", [2, 3, 8])
def test_sequence_first_streams_are_measured_as_others(samples):
    """Also where there are as many samples as tokens."""

    class SequenceFirst(Stack):
        def forward(self, x):
            return super().forward(x.transpose(0, 1)).transpose(0, 1)

    torch.manual_seed(0)
    plain, other = Stack(), SequenceFirst()
    other.load_state_dict(plain.state_dict())
    found, expected = (
        dp.audit(model, batch=batch, samples=samples).dataset for model in (other, plain)
    )
    for name in ("rms", "cosine", "gate", "loss"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-7)


def test_a_second_kind_of_block_on_the_stream_is_not_passed_over():
    class Double(Stack):
        def __init__(self):
            super().__init__()
            self.single = nn.ModuleList(TwoNorms() for _ in range(2))

        def forward(self, x):
            x = self.embed(x)
            for block in [*self.blocks, *self.single]:
                x = block(x)
            return self.head(self.norm(x))

    analysis = dp.audit(Double(), batch=batch, samples=2)
    assert "two modules read the same state" in " ".join(analysis.manifest["assumptions"])
    assert analysis.dataset["gate"].isnull().all()


def test_norms_inside_the_branches_have_their_own_names_and_kinds():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.proj = nn.LayerNorm(16), nn.Linear(16, 16)

        def forward(self, x):
            return self.proj(self.norm(x))

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.mlp = Inside(), Inside()

        def forward(self, x):
            x = x + self.attn(x)
            return x + self.mlp(x)

    model = Stack()
    model.blocks = nn.ModuleList(Outer() for _ in range(3))
    ds = dp.audit(model, batch=batch, samples=2).dataset
    assert ds["reader_kind"].values.tolist() == ["attention", "mlp"] * 3 + ["head"]
    assert ds["reader_name"].values.tolist()[:2] == ["block 1 attention", "block 1 mlp"]


def test_buffers_that_a_forward_changes_are_restored():
    class Counting(Stack):
        def __init__(self):
            super().__init__()
            self.register_buffer("n", torch.zeros(1))

        def forward(self, x):
            self.n += 1
            return super().forward(x)

    model = Counting()
    dp.audit(model, batch=batch, samples=2)
    assert model.n.item() == 0


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"batch": lambda ids, level: batch(ids, level)[0][0]}, dp.UsageError, "args, kwargs"),
        ({"batch": lambda ids, level: ((torch.ones(len(ids), 3),), {})}, dp.UsageError, "not run"),
        ({"loss": lambda out, ids, level: out.detach().mean((1, 2))}, dp.ProbeError, "autograd"),
        ({"loss": lambda out, ids, level: 3}, dp.ProbeError, "shape"),
    ],
)
def test_bad_batch_or_loss_gets_one_sentence(change, error, sentence):
    with pytest.raises(error, match=sentence):
        dp.audit(Stack(), **{"batch": batch, "samples": 2, **change})


def test_blocks_and_readers_may_be_named():
    torch.manual_seed(0)
    model = Stack()
    options = {"batch": batch, "loss": loss, "samples": 2}
    found = dp.audit(model, **options)
    named = dp.audit(
        model, **options, blocks="blocks.*", readers="blocks.*.norm1, blocks.*.norm2,norm"
    )
    np.testing.assert_array_equal(named.dataset["gate"], found.dataset["gate"])
    assert named.manifest["sites"] == found.manifest["sites"]
    assert [site["module"] for site in found.manifest["sites"]] == [
        *(f"blocks.{k}.norm{j}" for k in range(4) for j in (1, 2)), "norm",
    ]  # fmt: skip
    with pytest.raises(dp.UsageError, match=r"no module is called 'layers\.\*'") as caught:
        dp.audit(model, **options, blocks="layers.*")
    assert "blocks.0.norm1" in caught.value.hint
    with pytest.raises(dp.ProbeError, match="these readers read no common stream"):
        dp.audit(model, **options, readers="blocks.*.norm1,norm")  # the MLP stays uncut
    # What attention writes is then something that happens to the stream between two readers.
    half = dp.audit(model, **options, readers="blocks.*.norm2,norm").dataset
    assert [k for k in half["source_kind"].values if k == "fusion"] == ["fusion"] * 3
    whole = found.dataset["gate"].values[0, :, -1]  # of the head
    merged = half["gate"].values[0, :, -1]
    np.testing.assert_allclose(merged[:, 0], whole[:, 0] + whole[:, 1], rtol=1e-6)
    np.testing.assert_allclose(merged[:, 1::2], whole[:, 2::2], rtol=1e-6)


def test_a_part_of_the_blocks_may_be_chosen():
    torch.manual_seed(0)
    model = Stack(depth=6)
    whole = dp.audit(model, batch=batch, loss=loss, samples=2).dataset
    part = dp.audit(model, batch=batch, loss=loss, samples=2, blocks="blocks.[2345]").dataset
    assert part.sizes["block"] == 5
    for name in ("rms", "grad_rms"):
        np.testing.assert_array_equal(part[name][0], whole[name][0, :, 2:])
