"""Streams that discovery must follow, refuse, or say something true about."""

import dataclasses
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import dar_probe as dp
from dar_probe.probe import nnsight_engine
from dar_probe.probe.measure import measure
from dar_probe.probe.recorder import untouched
from dar_probe.sites import discover
from tests.test_audit import Block, Branch, Stack, TwoNorms, batch, loss

Pair = namedtuple("Pair", "state other")


def audited(model, **options):
    return dp.audit(model, **{"batch": batch, "loss": loss, "samples": 2, **options})


def said(analysis, words):
    return [sentence for sentence in analysis.manifest["assumptions"] if words in sentence]


def of_blocks(kind, depth=4, **options):
    torch.manual_seed(0)
    model = Stack(**options)
    model.blocks = nn.ModuleList(kind() for _ in range(depth))
    return model


class Sublayer(nn.Module):
    """Returns what it writes; the model adds it."""

    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(16), Branch(16)

    def forward(self, x):
        return self.mlp(self.norm(x))


class AddedOutside(Stack):
    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


class Whole(nn.Module):
    def __init__(self, sublayer):
        super().__init__()
        self.sublayer = sublayer

    def forward(self, x):
        return x + self.sublayer(x)


def test_writes_that_are_added_outside_of_the_blocks():
    torch.manual_seed(0)
    model = AddedOutside()
    model.blocks = nn.ModuleList(Sublayer() for _ in range(4))
    found = audited(model).dataset
    within = Stack()
    within.load_state_dict(model.state_dict(), strict=False)
    within.blocks = nn.ModuleList(Whole(block) for block in model.blocks)
    expected = audited(within).dataset
    for name in ("rms", "grad_rms", "cosine", "write_rms", "gate", "write_ratio"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-8)
    assert "fusion" not in found["source_kind"].values


def test_writes_that_are_added_outside_and_read_by_no_norm_are_refused():
    model = AddedOutside(head=False)
    model.blocks = nn.ModuleList(Sublayer() for _ in range(4))
    with pytest.raises(dp.ProbeError, match="added to the stream outside of it"):
        audited(model)


class Copied(Block):
    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x.clone()))


class Functional(Block):
    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(functional.rms_norm(x, (16,)))


class Scaled(Block):
    def forward(self, x):
        x = (x + self.attention(self.norm1(x))) / 2
        return x + self.mlp(self.norm2(x))


class More(Stack):
    """A block of another class behind the list, or within it, or a second head."""

    def __init__(self, where):
        super().__init__()
        self.where, self.more = where, Whole(Sublayer())

    def forward(self, x):
        x = self.embed(x)
        for k, block in enumerate(self.blocks):
            x = block(x)
            if self.where == "within" and k == 1:
                x = self.more(x)
        if self.where == "head":
            return self.head(self.norm(x)) + self.head(self.more.sublayer.norm(x))
        return self.head(self.norm(self.more(x) if self.where == "behind" else x))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda: of_blocks(lambda: Copied(16)), "blocks.0.norm2"),
        (lambda: of_blocks(lambda: Functional(16)), "blocks.0.mlp"),
        (lambda: of_blocks(lambda: Scaled(16)), "blocks.0.norm1"),
        (lambda: More("within"), "more.sublayer.norm"),
        (lambda: More("behind"), "norm"),
        (lambda: More("head"), "more.sublayer.norm"),
    ],
    ids=["copied", "functional", "scaled", "another class", "behind the head", "two heads"],
)
def test_what_reads_the_stream_and_is_no_reader_is_said(model, name):
    (sentence,) = said(audited(model()), "left out")
    assert f"such as {name!r}," in sentence


class Factorised(Block):
    """Then the frames of each place attend to each other: rows of another tensor, and no norm."""

    def __init__(self, width):
        super().__init__(width)
        self.temporal = Branch(width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        frames = x.unflatten(1, (3, -1)).transpose(1, 2)  # (N, places, frames, D)
        written = self.temporal(frames.flatten(0, 1)).reshape(frames.shape)
        x = x + written.transpose(1, 2).flatten(1, 2)
        return x + self.mlp(self.norm2(x))


def test_a_branch_along_another_axis_is_part_of_the_write_before():
    def videos(ids, level):  # 3 frames of 2 places
        return (torch.cat([batch(ids + shift, level)[0][0] for shift in (0, 99)], 1),), {}

    model = of_blocks(lambda: Factorised(16))
    analysis = audited(model, batch=videos)
    (sentence,) = said(analysis, "left out")
    assert sentence.startswith("left out are 4 modules, such as 'blocks.0.temporal', that read")
    ds, states = analysis.dataset, []
    for module in (*model.blocks, model.norm):
        module.register_forward_pre_hook(lambda module, args: states.append(args[0]))
    model(*videos(torch.arange(2), None)[0])
    expected = torch.stack([z.square().mean((1, 2)).sqrt() for z in states], -1)
    np.testing.assert_allclose(ds["rms"][0], expected.detach(), rtol=1e-6)
    names = [f"block {k} {kind}" for k in range(1, 5) for kind in ("attention", "mlp")]
    assert ds["reader_name"].values.tolist() == [*names, "head"]


class Masking(Stack):
    """A mask keeps tokens from what the blocks wrote to them."""

    def forward(self, x):
        x = self.embed(x)
        keep = torch.ones(x.shape[1], 1)
        keep[1] = 0
        for block in self.blocks:
            x = keep * block(x) + (1 - keep) * x
        return self.head(self.norm(x))


def test_a_mask_between_blocks_is_a_source_of_its_own():
    model = Masking()
    analysis = audited(model)
    ds = analysis.dataset
    assert [str(k) for k in ds["reader_kind"].values] == ["attention", "mlp"] * 4 + ["head"]
    fusions = [str(name) for name in ds["source_name"].values if "fusion" in str(name)]
    assert fusions == [*(f"block {k} fusion" for k in (2, 3, 4)), "head fusion"]
    # The gates of the head, by factors on what each source adds.
    (x,), _ = batch(torch.arange(2), None)
    state, keep, parts = model.embed(x), torch.tensor([1.0, 0.0, 1.0])[:, None], []
    parts.append(state)
    for block in model.blocks:
        attended = block.attention(block.norm1(state))
        fed = block.mlp(block.norm2(state + attended))
        parts += [attended, fed, -(1 - keep) * (attended + fed)]
        state = state + keep * (attended + fed)
    factors = torch.ones(len(parts), 2, 1, 1, requires_grad=True)
    read = sum(f * part.detach() for f, part in zip(factors, parts, strict=True))
    output = model.head(model.norm(read))
    total = loss(output, torch.arange(2), None).sum()
    (gate,) = torch.autograd.grad(total, factors)
    np.testing.assert_allclose(ds["gate"].values[0, :, -1], gate.flatten(1).T, rtol=1e-4, atol=1e-7)


def test_what_reads_no_stream_is_not_left_out():
    assert not said(audited(Stack()), "left out")


class ReadsBack(TwoNorms):
    """Its third branch reads what the first one did."""

    def __init__(self):
        super().__init__()
        self.norm3, self.other = nn.LayerNorm(16), Branch(16)

    def forward(self, x):
        start, x = x, x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x + self.other(self.norm3(start))


class Merges(Block):
    """Two states become one, and each has been read by a branch."""

    def forward(self, x, other):
        return x + other + self.attention(self.norm1(x)) + self.mlp(self.norm2(other))


class Merged(Stack):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Merges(16) for _ in range(4))

    def forward(self, x):
        x, other = self.embed(x), self.embed(x.square())
        for block in self.blocks:
            x = block(x, other)
        return self.head(self.norm(x))


@pytest.mark.parametrize("model", [lambda: of_blocks(ReadsBack), Merged])
def test_branches_that_do_not_follow_each_other_have_no_gates(model):
    analysis = audited(model())
    assert said(analysis, "parallel branches")
    assert analysis.dataset["gate"].isnull().all()


def test_a_block_that_is_overwritten_in_place_is_refused():
    class InPlace(Stack):
        def forward(self, x):
            x = self.embed(x)
            for block in self.blocks:
                x = block(x)
                x += torch.linspace(0, 1, 16)
            return self.head(self.norm(x))

    with pytest.raises(dp.ProbeError, match=r"overwritten in place after 'blocks\.0'"):
        audited(InPlace())


def test_what_a_level_scales_is_a_fusion_although_the_lowest_level_is_zero():
    class Clocked(Stack):
        def forward(self, x, time):
            x = self.embed(x)
            for k, block in enumerate(self.blocks):
                if k:
                    x = x + time.to(x.dtype)[:, None, None] * self.head.weight[0]
                x = block(x)
            return self.head(self.norm(x))

    def clocked(ids, level):
        return (*batch(ids, level)[0], level), {}

    ds = audited(Clocked(), batch=clocked, noise_levels=[0.0, 0.5]).dataset
    assert list(ds["source_kind"].values).count("fusion") == 3


def test_a_head_that_starts_from_zero_hides_no_stream():
    model = Stack()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    analysis = audited(model)
    assert analysis.dataset.sizes["reader"] == 9 and not said(analysis, "no pre-norm stack")


def test_blocks_that_run_without_gradients_come_before_the_stream():
    class Blind(Stack):
        def forward(self, x):
            x = self.embed(x)
            with torch.no_grad():
                x = self.blocks[0](x)
            for block in self.blocks[1:]:
                x = block(x)
            return self.head(self.norm(x))

    analysis = audited(Blind())
    assert analysis.dataset["reader_name"].values[0] == "block 1 attention"
    assert analysis.dataset.sizes["reader"] == 7 and said(analysis, "aside")


def test_a_head_without_a_norm_is_said():
    assert said(audited(Stack(head=False)), "no reader was found behind the last block")


class Packed(Block):
    def forward(self, x):
        return Pair(super().forward(x), None)


class Unpacks(Stack):
    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x).state
        return self.head(self.norm(x))


def test_blocks_may_return_a_namedtuple():
    model = Unpacks(head=False)
    model.blocks = nn.ModuleList(Packed(16, post=True) for _ in range(3))
    assert audited(model).dataset.sizes["block"] == 4


class Told(Block):
    def forward(self, mask, x):
        return super().forward(x)


@pytest.mark.parametrize("first", ["none", "constant"])
def test_blocks_whose_first_argument_is_not_the_state(first):
    class Telling(Stack):
        def forward(self, x):
            told = None if first == "none" else self.head.weight[None].expand(len(x), 3, 16)
            x = self.embed(x)[:, :3]
            for block in self.blocks:
                x = block(told, x)
            return self.head(self.norm(x))

    model = Telling()
    model.head = nn.Linear(16, 3)
    model.blocks = nn.ModuleList(Told(16, post=True) for _ in range(3))
    if first == "none":
        assert audited(model).dataset.sizes["block"] == 4
    else:
        with pytest.raises(dp.ProbeError, match="takes first does not come from the one before"):
            audited(model)


def test_a_dataclass_is_an_output():
    @dataclasses.dataclass
    class Output:
        sample: torch.Tensor

    class Returns(Stack):
        def forward(self, x):
            return Output(super().forward(x))

    model = Returns()
    assert audited(model, loss=None).dataset.sizes["reader"] == 9


def test_a_norm_that_branches_share_is_named_twice_and_met_once_by_nnsight():
    model = Stack()
    for block in model.blocks:
        block.norm2 = block.norm1
    names = audited(model).dataset["reader_name"].values.tolist()
    assert names[:2] == ["block 1 attention", "block 1 mlp"] and len(set(names)) == 9
    with untouched(model):
        subject = discover.discover(model, *batch(torch.tensor([0]), None))
        with pytest.raises(dp.ProbeError, match="runs 2 times in one forward"):
            measure(
                subject, batch, loss, torch.arange(2), torch.zeros(2), engine=nnsight_engine.forward
            )
    with dp.Probe(model, batch=batch) as probe:
        assert list(probe.reads) == ["head"]


def failing(*args):
    if len(args[-2]) > 1:
        raise ZeroDivisionError
    return batch(*args)


@pytest.mark.parametrize("name", ["batch", "loss"])
def test_a_function_that_fails_on_more_samples_gets_one_sentence(name):
    with pytest.raises(dp.UsageError, match=f"the {name} function fails: ZeroDivisionError"):
        audited(Stack(), **{name: failing})


def test_inputs_that_are_not_finite_get_one_sentence():
    def longer(ids, level):
        return (torch.full((len(ids), 6, 5), torch.nan),), {}

    with pytest.raises(dp.ProbeError, match="the first NaN or Inf is in"):
        audited(Stack(), batch=longer)
