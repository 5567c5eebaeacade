"""Sublayers are called by what their branches do."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.sites.test_written_otherwise import (
    DEPTH,
    Attention,
    Block,
    D,
    Stack,
    T,
    audit,
    made,
    mlp,
)


def kinds(model):
    return list(audit(model).dataset["reader_kind"].values)


class WithState(Attention):
    """Attention that is handed the state as well, to add it by itself, as BLOOM's."""

    def forward(self, x, state):
        return super().forward(x) + 0 * state.sum()


class HandedState(Block):
    def __init__(self):
        super().__init__()
        self.attn = WithState()

    def forward(self, x):
        x = x + self.attn(self.norm1(x), x)
        return x + self.mlp(self.norm2(x))


class Beside(Block):
    """What serves the attention has its name: a norm with weights, and a dropout."""

    def __init__(self):
        super().__init__()
        self.attn_norm_out, self.resid_attn_dropout = nn.LayerNorm(D), nn.Dropout(0.1)

    def forward(self, x):
        x = x + self.resid_attn_dropout(self.attn_norm_out(self.attn(self.norm1(x))))
        return x + self.mlp(self.norm2(x))


class Scan(nn.Module):
    """Carries a state from token to token, as Mamba does."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x):
        kept = torch.zeros_like(x[:, 0])
        states = []
        for token in self.into(x).unbind(1):
            kept = 0.9 * kept + token
            states.append(kept)
        return self.out(torch.stack(states, 1))


class Mixing(Block):
    def __init__(self):
        super().__init__()
        self.attn = None
        self.mixer = Scan()

    def forward(self, x):
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Convolved(Block):
    """An MLP that looks at its neighbours is an MLP."""

    def __init__(self):
        super().__init__()
        self.mlp, self.near = mlp(), nn.Conv1d(D, D, 3, padding=1)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.near(self.mlp(self.norm2(x)).mT).mT


class Gated(nn.Module):
    """A short convolution before a scan, as recurrent blocks have it."""

    def __init__(self):
        super().__init__()
        self.near, self.scan = nn.Conv1d(D, D, 2, padding=1), Scan()

    def forward(self, x):
        return self.scan(self.near(x.mT)[..., :-1].mT)


class Recurrent(Block):
    def __init__(self):
        super().__init__()
        self.attn = None
        self.temporal = Gated()

    def forward(self, x):
        x = x + self.temporal(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Inner(nn.Module):
    """Hands what it read to its output as well, as BEiT's attention does."""

    def __init__(self):
        super().__init__()
        self.attention, self.output = Attention(), Output()

    def forward(self, x):
        return self.output(self.attention(x), x)


class Output(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(D, D)

    def forward(self, found, x):
        return self.dense(found)


class HandsOnWhatItRead(Block):
    def __init__(self):
        super().__init__()
        self.attn, self.attention = None, Inner()

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(D, D), nn.Linear(D, 2 * D)

    def forward(self, x, text):
        return F.scaled_dot_product_attention(self.q(x), *self.kv(text).chunk(2, -1))


class CrossAttended(Block):
    """Reads a text of its own, and says so by nothing but that."""

    def __init__(self):
        super().__init__()
        self.norm3, self.attn_b = nn.LayerNorm(D), Reads()
        self.text = nn.Parameter(torch.randn(1, 3, D))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        x = x + self.attn_b(self.norm3(x), self.text.expand(len(x), -1, -1))
        return x + self.mlp(self.norm2(x))


class WithValues(Block):
    """Mixes values of an embedding, of as many tokens, into those of its own."""

    def __init__(self):
        super().__init__()
        self.attn, self.values = WithValue(), nn.Parameter(torch.randn(1, T, D))

    def forward(self, x):
        x = x + self.attn(self.norm1(x), self.values.expand(len(x), -1, -1))
        return x + self.mlp(self.norm2(x))


class WithValue(Attention):
    def forward(self, x, values):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v + values))


class CrossAttendedLong(CrossAttended):
    """The text has as many tokens as the stream."""

    def __init__(self):
        super().__init__()
        self.text = nn.Parameter(torch.randn(1, T, D))


class ByFunction(Block):
    """Calls the function of attention itself, on a text of some tokens, or of its own."""

    def __init__(self, tokens):
        super().__init__()
        self.norm3, self.q, self.kv = nn.LayerNorm(D), nn.Linear(D, D), nn.Linear(D, 2 * D)
        self.text = nn.Parameter(torch.randn(1, tokens, D)) if tokens else None

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        read = self.norm3(x)
        known = read if self.text is None else self.text.expand(len(x), -1, -1)
        x = x + F.scaled_dot_product_attention(self.q(read), *self.kv(known).chunk(2, -1))
        return x + self.mlp(self.norm2(x))


class Conditioned(Block):
    """Gets a condition before its state."""

    def __init__(self):
        super().__init__()
        self.condition = nn.Linear(D, D)

    def forward(self, condition, x):
        return super().forward(x + self.condition(condition))


class Told(Stack):
    def run(self, x):
        condition = x.mean(1, keepdim=True)
        for block in self.blocks:
            x = block(condition, x)
        return x


def test_what_reads_a_condition_before_the_first_block_reads_no_stream():
    analysis = audit(made(Told, Conditioned))
    assert list(analysis.dataset["source_kind"].values).count("fusion") == DEPTH - 1
    assert not [said for said in analysis.manifest["assumptions"] if "left out" in said]


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (partial(ByFunction, 0), ["attention", "attention", "mlp"]),
        (partial(ByFunction, 3), ["attention", "cross_attention", "mlp"]),
        (partial(ByFunction, T), ["attention", "cross_attention", "mlp"]),
        (WithValues, ["attention", "mlp"]),
        (CrossAttendedLong, ["attention", "cross_attention", "mlp"]),
        (HandedState, ["attention", "mlp"]),
        (Beside, ["attention", "mlp"]),
        (Recurrent, ["mixer", "mlp"]),
        (HandsOnWhatItRead, ["attention", "mlp"]),
        (Mixing, ["mixer", "mlp"]),
        (Convolved, ["attention", "mlp"]),
        (CrossAttended, ["attention", "cross_attention", "mlp"]),
    ],
)
def test_a_sublayer_is_called_by_what_its_branch_does(block, expected):
    assert kinds(made(Stack, block)) == expected * DEPTH + ["head"]
