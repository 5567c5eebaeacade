"""Stacks as people write them: each gives the numbers of the same stack written plainly."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dar_probe as dp

D, T, DEPTH = 16, 6, 4
FEW = {"noise_levels": [0.2, 0.8], "samples": 3}


def drawn(ids, *shape, salt=0):
    seeds = [torch.Generator().manual_seed(1000 * salt + int(i)) for i in ids]
    return torch.stack([torch.randn(*shape, generator=seed) for seed in seeds])


def batch(ids, level, /):
    return (drawn(ids, T, D),), {}


def loss(out, ids, level, /):
    return (out - drawn(ids, *out.shape[1:], salt=1)).square().flatten(1).mean(1)


def mlp():
    return nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x):
        return self.out(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(D), Attention()
        self.norm2, self.mlp = nn.LayerNorm(D), mlp()

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Stack(nn.Module):
    def __init__(self, block=Block, depth=DEPTH):
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.norm_out, self.head = nn.LayerNorm(D), nn.Linear(D, D)

    def run(self, x):
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x):
        return self.head(self.norm_out(self.run(x)))


def made(kind=Stack, *arguments, like=None):
    torch.manual_seed(0)
    model = kind(*arguments)
    if like is None:
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    else:
        own = zip(model.parameters(), like.parameters(), strict=True)
        for parameter, other in own:
            parameter.data = other.data.clone()
    return model.eval()


def audit(model, given=batch):
    return dp.audit(model, batch=given, loss=loss, **FEW)


def same(found, expected, names=None):
    for name in names or expected.data_vars:
        # What gates do not conserve is a difference of numbers of size one: all of it is rounding.
        atol = 5e-6 if name == "gate_conservation" else 1e-7
        np.testing.assert_allclose(
            found[name].values, expected[name].values, rtol=2e-4, atol=atol, err_msg=name
        )


class Keyed(Stack):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleDict({f"layer{k}": Block() for k in range(DEPTH)})

    def run(self, x):
        for block in self.blocks.values():
            x = block(x)
        return x


class Holes(Stack):
    def __init__(self):
        super().__init__()
        blocks = list(self.blocks)
        self.blocks = nn.ModuleList([blocks[0], None, *blocks[1:]])

    def run(self, x):
        for block in self.blocks:
            x = x if block is None else block(x)
        return x


class Choice(Stack):
    """A dict of heads to choose from, which holds norms, is no stack of blocks."""

    def __init__(self):
        super().__init__()
        own = nn.Sequential(self.norm_out, self.head)
        self.heads = nn.ModuleDict({"one": own, "other": nn.Sequential(nn.LayerNorm(D))})


class ByKeyword(Stack):
    def run(self, x):
        for block in self.blocks:
            x = block(x=x)
        return x


@pytest.mark.parametrize("kind", [Keyed, Holes, Choice, ByKeyword])
def test_lists_with_keys_gaps_and_choices_are_stacks(kind):
    plain = made()
    model = kind()
    named = dict(plain.named_parameters())
    for (_, parameter), value in zip(
        [(n, p) for n, p in model.named_parameters() if not n.startswith("heads.other")],
        named.values(), strict=True,
    ):  # fmt: skip
        parameter.data = value.data.clone()
    same(audit(model.eval()).dataset, audit(plain).dataset)


class Direct(Stack):
    def run(self, x):
        for block in self.blocks:
            x = block.forward(x)
        return x


class DirectBlock(Block):
    def forward(self, x):
        x = x + self.attn.forward(self.norm1.forward(x))
        return x + self.mlp.forward(self.norm2.forward(x))


@pytest.mark.parametrize("block", [Block, DirectBlock])
def test_forwards_that_are_called_past_every_hook_are_heard(block):
    plain = made()
    model = made(Direct, block, like=plain)
    found, expected = audit(model), audit(plain)
    same(found.dataset, expected.dataset)
    assert any("called as block.forward(x)" in text for text in found.manifest["assumptions"])
    assert not any("forward" in module.__dict__ for module in model.modules())
    given = {"batch": batch, "loss": loss, **FEW}
    same(dp.audit(model, recompute=True, **given).dataset, expected.dataset)
    few = {**given, "pairs": 4}
    same(dp.ablate(model, **few).dataset, dp.ablate(plain, **few).dataset, ("gate_ablated",))
    with pytest.raises(dp.ProbeError, match="past their modules"):
        dp.analyze(model, engine="nnsight", **given)


@pytest.mark.parametrize("block", [DirectBlock])
def test_parts_that_a_block_calls_past_their_hooks(block):
    plain = made()
    same(audit(made(Stack, block, like=plain)).dataset, audit(plain).dataset)


class Uncalled(Stack):
    def run(self, x):
        return x


def test_blocks_that_nobody_calls_are_refused_for_it():
    with pytest.raises(dp.ProbeError, match="no block was called in the forward, of 4"):
        audit(made(Uncalled))


class Looped(Stack):
    def __init__(self, *, listed=True):
        super().__init__(depth=1)
        if not listed:
            self.block, self.blocks = self.blocks[0], None

    def run(self, x):
        block = self.block if self.blocks is None else self.blocks[0]
        for _ in range(DEPTH):
            x = block(x)
        return x


@pytest.mark.parametrize("listed", [True, False])
def test_each_pass_of_a_looped_block_is_a_block(listed):
    torch.manual_seed(0)
    model = Looped(listed=listed).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    plain = Stack().eval()
    block = model.blocks[0] if listed else model.block
    for one in plain.blocks:
        one.load_state_dict(block.state_dict())
    plain.norm_out.load_state_dict(model.norm_out.state_dict())
    plain.head.load_state_dict(model.head.state_dict())
    found = audit(model).dataset
    assert found.sizes["block"] == DEPTH + 1
    same(found, audit(plain).dataset)


class Staged(Stack):
    """Lists of blocks in a list, one for each stage."""

    def __init__(self):
        super().__init__()
        blocks = list(self.blocks)
        self.blocks = nn.ModuleList([nn.ModuleList(blocks[:1]), nn.ModuleList(blocks[1:])])

    def run(self, x):
        for stage in self.blocks:
            for block in stage:
                x = block(x)
        return x


class InDict(Block):
    def forward(self, state):
        return {**state, "x": super().forward(state["x"])}


class InDicts(Stack):
    def __init__(self):
        super().__init__(InDict)

    def run(self, x):
        return super().run({"condition": x.mean(1), "x": x})["x"]


@dataclass(frozen=True)
class State:
    x: torch.Tensor
    count: int = 0


class InState(Block):
    def forward(self, state):
        return State(super().forward(state.x), state.count + 1)


class InStates(Stack):
    def __init__(self):
        super().__init__(InState)

    def run(self, x):
        return super().run(State(x)).x


class Chunked(Block):
    """An MLP that sees a part of the tokens at a time."""

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + torch.cat([self.mlp(part) for part in self.norm2(x).chunk(2, 1)], 1)


class InChunks(Stack):
    def __init__(self):
        super().__init__(Chunked)


@pytest.mark.parametrize("kind", [Staged, InDicts, InStates, InChunks])
def test_however_states_are_handed_on(kind):
    plain = made()
    same(audit(made(kind, like=plain)).dataset, audit(plain).dataset)


@pytest.mark.parametrize("kind", [InDicts, InStates])
def test_a_last_state_in_a_dict_is_the_head_s(kind):
    """Where no norm reads it, the head is what the last block returns: within whatever it is."""
    plain, model = made(), made(kind, like=made())
    for one in (plain, model):
        one.norm_out = nn.Identity()
    found = audit(model)
    same(found.dataset, audit(plain).dataset)
    assert any("no reader was found behind" in text for text in found.manifest["assumptions"])


class Grid(Block):
    def forward(self, x):
        x = x + self.attn(self.norm1(x).flatten(1, 2)).view(x.shape)
        return x + self.mlp(self.norm2(x))


class OnGrid(Stack):
    def __init__(self):
        super().__init__(Grid)

    def run(self, x):
        return super().run(x.unflatten(1, (2, T // 2))).flatten(1, 2)


def test_a_grid_with_its_features_last_is_a_row_of_tokens():
    plain = made()
    same(audit(made(OnGrid, like=plain)).dataset, audit(plain).dataset)


class Transposed(Block):
    def forward(self, x):
        x = x + self.attn(self.norm1(x.mT)).mT
        return x + self.mlp(self.norm2(x.mT)).mT


class ChannelsFirst(Stack):
    def __init__(self, block=Transposed):
        super().__init__(block)

    def run(self, x):
        return super().run(x.mT).mT


STATES = ("rms", "rms_top1", "grad_rms", "cosine", "cosine_centred", "loss")


class ParallelTransposed(Block):
    def forward(self, x):
        return x + self.attn(self.norm1(x.mT)).mT + self.mlp(self.norm2(x.mT)).mT


class ParallelBlock(Block):
    def forward(self, x):
        return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))


def test_states_with_features_before_tokens_are_compared_over_features():
    """A cosine along time looks as plausible as the right one."""
    plain = made(Stack, ParallelBlock)
    model = made(ChannelsFirst, ParallelTransposed, like=plain)
    expected, found = audit(plain).dataset, audit(model)
    assert any("second axis" in text for text in found.manifest["assumptions"])
    same(found.dataset, expected, STATES)
    assert np.isnan(found.dataset["gate"]).all()


class Functional(nn.Module):
    """No norm is a module, and both branches read one state."""

    def __init__(self):
        super().__init__()
        self.attn, self.mlp = Attention(), mlp()

    def forward(self, x):
        return x + self.attn(F.rms_norm(x, (D,))) + self.mlp(F.rms_norm(x, (D,)))


def test_without_a_stream_functions_leave_the_states_between_blocks():
    model = made(Stack, Functional)
    found = audit(model)
    assert any("no norm tells the axis" in text for text in found.manifest["assumptions"])
    ids = torch.arange(3)
    (x,), _ = batch(ids, None)
    states = [x.clone().requires_grad_()]
    for block in model.blocks:
        states.append(block(states[-1]))
    total = loss(model.head(model.norm_out(states[-1])), ids, None).sum()
    grads = torch.autograd.grad(total, states)
    for k, (state, grad) in enumerate(zip(states, grads, strict=True)):
        for name, value in (("rms", state), ("grad_rms", grad)):
            expected = value.detach().square().mean((1, 2)).sqrt()
            np.testing.assert_allclose(found.dataset[name].values[0, :, k], expected, rtol=2e-5)
    cosine = F.cosine_similarity(states[1], states[2], dim=-1).mean(1).detach()
    np.testing.assert_allclose(found.dataset["cosine"].values[0, :, 2], cosine, rtol=2e-5)


class DynamicTanh(nn.Module):
    """A norm by its place, not by its name; it does not ignore the scale of what it reads."""

    def __init__(self):
        super().__init__()
        self.scale, self.gain = nn.Parameter(torch.full((1,), 0.5)), nn.Parameter(torch.ones(D))

    def forward(self, x):
        return torch.tanh(self.scale * x) * self.gain


class Tanh(Block):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = DynamicTanh(), DynamicTanh()


def test_names_of_norms_play_no_part():
    model = made(Stack, Tanh)
    found = audit(model)
    assert list(found.dataset["reader_kind"].values) == ["attention", "mlp"] * DEPTH + ["head"]
    # The gate of the last MLP by a factor on its own, differentiated as it stands.
    ids = torch.arange(3)
    (x,), _ = batch(ids, None)
    factor = torch.ones(3, 1, 1, requires_grad=True)
    state = x
    for block in model.blocks[:-1]:
        state = block(state)
    last = model.blocks[-1]
    write = last.attn(last.norm1(state))
    after = state + write
    out = after + last.mlp(last.norm2(state + factor * write))
    total = loss(model.head(model.norm_out(out)), ids, None).sum()
    (gate,) = torch.autograd.grad(total, factor)
    own = found.dataset["gate"].values[0, :, 2 * DEPTH - 1, 2 * DEPTH - 1]
    np.testing.assert_allclose(own, gate.flatten(), rtol=1e-4)
    law = found.dataset["gate_conservation"].values
    assert np.isnan(law[..., :-1]).all(), "no law holds where the scale is not ignored"
    assert math.isfinite(law[0, 0, -1])


class Branched(nn.Module):
    """A branch with its norm, as a module of its own."""

    def __init__(self, branch):
        super().__init__()
        self.norm, self.branch = nn.LayerNorm(D), branch

    def forward(self, x):
        return self.branch(self.norm(x))


class Feeding(Branched):
    pass


class InLists(Stack):
    """Blocks are lists of two branches, which the model adds to the stream itself."""

    def __init__(self):
        super().__init__()
        pairs = ([Branched(Attention()), Feeding(mlp())] for _ in range(DEPTH))
        self.blocks = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)

    def run(self, x):
        for attn, feed in self.blocks:
            x = x + attn(x)
            x = x + feed(x)
        return x


class Added(nn.Module):
    def forward(self, written, x):
        return written + x


class InTriples(Stack):
    """Lists of a list of norms, the branch and the addition, one for each branch."""

    def __init__(self):
        super().__init__()
        branches = (kind() for _ in range(DEPTH) for kind in (Attention, mlp))
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.ModuleList([nn.LayerNorm(D), None]), branch, Added()])
            for branch in branches
        )

    def run(self, x):
        for (norm, _), branch, added in self.blocks:
            x = added(branch(norm(x)), x)
        return x


class LoopedLists(InLists):
    def run(self, x):
        x = super().run(x)
        return super().run(x)


@pytest.mark.parametrize("kind", [InLists, InTriples])
def test_blocks_may_be_lists_of_modules(kind):
    plain = made()
    found, expected = audit(made(kind, like=plain)), audit(plain).dataset
    kinds = list(found.dataset["reader_kind"].values)
    assert kinds == ["attention", "mlp"] * DEPTH + ["head"]
    assert not any("be confirmed" in text for text in found.manifest["assumptions"])
    if kind is InLists:
        same(found.dataset, expected)
    else:  # each of its lists is a block
        assert found.dataset.sizes["block"] == 2 * DEPTH + 1
        same(found.dataset, expected, ("gate", "write_rms", "loss"))


def test_lists_of_modules_that_run_twice_are_twice_as_many_blocks():
    found = audit(made(LoopedLists)).dataset
    assert found.sizes["block"] == 2 * DEPTH + 1
    assert np.isfinite(found["gate_conservation"].values[..., 1:]).all()


def test_states_between_lists_of_modules():
    class Post(InLists):
        def run(self, x):
            for attn, feed in self.blocks:
                x = F.layer_norm(x + attn(x), (D,))
                x = F.layer_norm(x + feed(x), (D,))
            return x

    model = made(Post)
    found = audit(model)
    assert any("no pre-norm stack" in text for text in found.manifest["assumptions"])
    states = [batch(torch.arange(3), None)[0][0]]
    for attn, feed in model.blocks:
        x = F.layer_norm(states[-1] + attn(states[-1]), (D,))
        states.append(F.layer_norm(x + feed(x), (D,)))
    expected = [state.detach().square().mean((1, 2)).sqrt() for state in states[:-1]]
    rms = found.dataset["rms"].values[0, :, :DEPTH]
    np.testing.assert_allclose(rms, torch.stack(expected, -1), rtol=2e-5)
