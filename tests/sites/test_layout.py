"""States with other axes than (N, T, D) give the numbers of the same stack with these."""

import numpy as np
import pytest
import torch
from torch import nn

import dar_probe as dp
from dar_probe.sites.layout import Layout, parse
from tests.sites.test_written_otherwise import (
    DEPTH,
    FEW,
    Attention,
    Block,
    ChannelsFirst,
    D,
    InLists,
    Stack,
    T,
    audit,
    batch,
    drawn,
    loss,
    made,
    mlp,
    same,
)


class TokensFirstBlock(Block):
    def forward(self, x):
        x = x + self.attn(self.norm1(x).transpose(0, 1)).transpose(0, 1)
        return x + self.mlp(self.norm2(x))


class TokensFirst(Stack):
    """(T, N, D), as torch's own layers have it by default."""

    def __init__(self):
        super().__init__(TokensFirstBlock)

    def run(self, x):
        return super().run(x.transpose(0, 1)).transpose(0, 1)


class RowsBlock(Block):
    def forward(self, x):
        x = x + self.attn(self.norm1(x).view(-1, T, D)).reshape(-1, D)
        return x + self.mlp(self.norm2(x))


class Rows(Stack):
    """(N T) D, as packed sequences have it."""

    def __init__(self):
        super().__init__(RowsBlock)

    def run(self, x):
        return super().run(x.reshape(-1, D)).view(-1, T, D)


class TurnsBlock(Block):
    def forward(self, x):
        x = x + self.attn(self.norm1(x).view(T, -1, D).transpose(0, 1)).transpose(0, 1).reshape(
            -1, D
        )
        return x + self.mlp(self.norm2(x))


class Turns(Stack):
    """(T N) D: neighbours are samples."""

    def __init__(self):
        super().__init__(TurnsBlock)

    def run(self, x):
        rows = super().run(x.transpose(0, 1).reshape(-1, D))
        return rows.view(T, -1, D).transpose(0, 1)


class FramesBlock(Block):
    def forward(self, x):
        x = x + self.attn(self.norm1(x).reshape(-1, T, D)).view(x.shape)
        return x + self.mlp(self.norm2(x))


class Frames(Stack):
    """(N F) T D, as models of pictures see videos."""

    def __init__(self):
        super().__init__(FramesBlock)

    def run(self, x):
        return super().run(x.reshape(-1, T // 2, D)).reshape(-1, T, D)


KINDS = {
    TokensFirst: "T N D",
    Rows: "(N T) D",
    Turns: "(T N) D",
    Frames: "(N F) T D",
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_states_are_measured_however_their_axes_lie(kind, named):
    plain = made()
    given = {"layout": KINDS[kind]} if named else {}
    found = dp.audit(made(kind, like=plain), batch=batch, loss=loss, **FEW, **given)
    same(found.dataset, audit(plain).dataset)
    assert any("states between blocks are" in text for text in found.manifest["assumptions"])


class WithoutNormsBlock(Block):
    """Its norms are functions."""

    def forward(self, x):
        h = nn.functional.layer_norm(x.movedim(1, -1), (D,)).flatten(1, 2)
        x = x + self.attn(h).unflatten(1, x.shape[2:]).movedim(-1, 1)
        h = nn.functional.layer_norm(x.movedim(1, -1), (D,))
        return x + self.mlp(h).movedim(-1, 1)


class WithoutNorms(Stack):
    def __init__(self):
        super().__init__(WithoutNormsBlock)

    def run(self, x):
        return super().run(x.mT.unflatten(2, (2, T // 2))).flatten(2).mT


def test_functions_tell_the_axis_of_the_features_of_images():
    class Plain(Block):
        def forward(self, x):
            x = x + self.attn(nn.functional.layer_norm(x, (D,)))
            return x + self.mlp(nn.functional.layer_norm(x, (D,)))

    plain = audit(made(Stack, Plain))
    for given in ({}, {"layout": "N D H W"}):
        found = dp.audit(made(WithoutNorms), batch=batch, loss=loss, **FEW, **given)
        same(found.dataset, plain.dataset, ["rms", "grad_rms", "cosine", "loss"])
        assert any("are N D ...: N samples" in text for text in found.manifest["assumptions"])


def test_axes_are_named_in_their_order():
    assert Layout(features=1).shown == "N D ..."
    assert Layout(rows=4, features=1).shown == "(N T) D ..."
    assert Layout(samples=1).shown == "T N ... D"


@pytest.mark.parametrize("kind", KINDS)
def test_interventions_reach_the_right_tokens(kind):
    plain, few = made(), {"batch": batch, "loss": loss, "noise_levels": [0.5], "samples": 3}
    few |= {"pairs": 4, "figures": False, "report": False}
    found = dp.ablate(made(kind, like=plain), **few).dataset
    expected = dp.ablate(plain, **few).dataset
    same(found, expected, ("gate_ablated", "gate_linear"))


class TimeFirstBlock(TokensFirstBlock):
    """Takes a condition (N, D) before the state."""

    def forward(self, time, x):
        return super().forward(x) + 0 * time


class TimeFirst(TokensFirst):
    def __init__(self):
        Stack.__init__(self, TimeFirstBlock)

    def run(self, x):
        time, x = x.mean(1), x.transpose(0, 1)
        for block in self.blocks:
            x = block(time, x)
        return x.transpose(0, 1)


class ListsTokensFirst(InLists):
    """Blocks are lists of modules, and their states have tokens first."""

    def run(self, x):
        x = x.transpose(0, 1)
        for attn, feed in self.blocks:
            x = x + attn.branch(attn.norm(x).transpose(0, 1)).transpose(0, 1)
            x = x + feed(x)
        return x.transpose(0, 1)


@pytest.mark.parametrize("kind", [TimeFirst, ListsTokensFirst])
@pytest.mark.parametrize("layout", [None, "T N D"])
def test_a_state_is_found_behind_a_condition_and_in_lists(kind, layout):
    plain = made()
    found = dp.audit(made(kind, like=plain), batch=batch, loss=loss, layout=layout, **FEW)
    same(found.dataset, audit(plain).dataset)


def test_torch_s_own_layers_with_tokens_first():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 4, 2 * D, 0.0, norm_first=True)
    model = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    other = nn.TransformerEncoderLayer(D, 4, 2 * D, 0.0, norm_first=True, batch_first=True)
    plain = nn.TransformerEncoder(other, DEPTH, enable_nested_tensor=False).eval()
    plain.load_state_dict(model.state_dict())

    def tokens_first(ids, level, /):
        return (batch(ids, level)[0][0].transpose(0, 1),), {}

    def of_tokens_first(out, ids, level, /):
        return loss(out.transpose(0, 1), ids, level)

    found = dp.audit(model, batch=tokens_first, loss=of_tokens_first, **FEW)
    same(found.dataset, audit(plain).dataset)
    kinds = found.dataset["reader_kind"].values
    assert list(kinds) == ["attention", "mlp"] * DEPTH + ["head"]


class NoNormBlock(nn.Module):
    """No norm tells the axis of the features of a state (N, D, T)."""

    def __init__(self):
        super().__init__()
        self.attn, self.mlp = Attention(), mlp()

    def forward(self, x):
        x = torch.tanh(x + self.attn(x.mT).mT)
        return torch.tanh(x + self.mlp(x.mT).mT)


class NoNorm(Stack):
    def __init__(self):
        super().__init__(NoNormBlock)

    def run(self, x):
        return super().run(x.mT).mT


def test_features_are_where_the_user_says():
    model = made(NoNorm)
    found = dp.audit(model, batch=batch, loss=loss, layout="N C T", **FEW)
    states = [batch(torch.arange(3), None)[0][0].mT]
    for block in model.blocks:
        states.append(block(states[-1]))
    expected = torch.cosine_similarity(states[1], states[2], dim=1).mean(1).detach()
    np.testing.assert_allclose(found.dataset["cosine"].values[0, :, 2], expected, rtol=2e-5)
    assert not any("no norm tells" in text for text in found.manifest["assumptions"])


def test_a_layout_that_contradicts_the_norms_is_refused():
    with pytest.raises(dp.UsageError, match=r"the layout N D T contradicts the norms"):
        dp.audit(made(), batch=batch, loss=loss, layout="N D T", **FEW)


def test_a_layout_of_other_axes_is_refused():
    with pytest.raises(dp.UsageError, match=r"N D H W does not fit .* \(1, 16, 6\)"):
        dp.audit(made(ChannelsFirst), batch=batch, loss=loss, layout="N D H W", **FEW)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "T D",
        "N T",
        "N D",
        "N T D D",
        "N T D!",
        "N (T D)",
        "N (T F) D",
        "(T N F) D",
        "T D N",
        "D (N T)",
    ],
)
def test_what_is_no_layout_is_refused(text):
    with pytest.raises(dp.UsageError, match="layout"):
        parse(text)


class AlternatingBlock(Block):
    """Takes rows of one axis of the grid, returns rows of the other."""

    def forward(self, x):
        grid = super().forward(x).view(-1, T, T, D)
        return grid.transpose(1, 2).reshape(-1, T, D)


class Alternating(Stack):
    def __init__(self):
        super().__init__(AlternatingBlock)

    def run(self, x):
        rows = x[:, :, None] * torch.linspace(0.5, 1.5, T)[:, None]
        return super().run(rows.reshape(-1, T, D)).view(-1, T * T, D)


def test_tokens_that_change_their_places_between_blocks_are_refused_for_it():
    """Otherwise each token would be compared with another one."""
    with pytest.raises(dp.ProbeError, match="tokens change their places"):
        audit(made(Alternating))


PLACES, FRAMES = 3, 4


def video(ids, level, /):
    return (drawn(ids, FRAMES * PLACES, D),), {}


class Turned(Stack):
    """Every other block has one row for each place, and attends along time; as Latte has it."""

    def run(self, x):
        x = x.reshape(-1, PLACES, D)
        for k, block in enumerate(self.blocks):
            if k % 2:
                x = x.view(-1, FRAMES, PLACES, D).transpose(1, 2).reshape(-1, FRAMES, D)
            x = block(x)
            if k % 2:
                x = x.view(-1, PLACES, FRAMES, D).transpose(1, 2).reshape(-1, PLACES, D)
        return x.reshape(-1, FRAMES * PLACES, D)


class WithinBlock(Block):
    """The same, its rows made and unmade within the block."""

    along_time = False

    def forward(self, x):
        rows = self.norm1(x).view(-1, FRAMES, PLACES, D)
        if self.along_time:
            rows = rows.transpose(1, 2)
        written = self.attn(rows.flatten(0, 1)).view(rows.shape)
        if self.along_time:
            written = written.transpose(1, 2)
        x = x + written.reshape(x.shape)
        return x + self.mlp(self.norm2(x))


def test_rows_of_a_video_are_frames_for_one_block_and_places_for_the_next():
    plain = made(Stack, WithinBlock)
    for block in plain.blocks[1::2]:
        block.along_time = True
    found = audit(made(Turned, like=plain), video).dataset
    same(found, audit(plain, video).dataset)


class Unshared(Stack):
    """The states do not know how many samples there are."""

    def run(self, x):
        state = super().run(x.mean(0, keepdim=True).expand(4, T, D))
        return x + state[:1]


def test_states_without_an_axis_of_samples_are_refused():
    with pytest.raises(dp.ProbeError, match="no axis of the states .* the samples'") as caught:
        audit(made(Unshared))
    assert "--layout" in caught.value.hint


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Layout(), (3, 2, 4, 5)),
        (Layout(features=1), (3, 5, 2, 4)),
        (Layout(samples=1), (8, 3, 5)),
        (Layout(samples=1, features=0), (5, 3, 8)),
        (Layout(rows=8), (24, 5)),
        (Layout(rows=4, across=True), (12, 2, 5)),
        (Layout(rows=8, inner=True), (24, 5)),
        (Layout(rows=4, features=1), (12, 5, 2)),
        (Layout(samples=1, rows=4, features=0, inner=True), (5, 12, 2)),
    ],
)
def test_what_is_taken_is_put_back(layout, shape):
    value = torch.randn(shape)
    taken = layout.take(value)
    assert taken.shape == (3, 8, 5)
    assert torch.equal(layout.put(value, taken), value)
