"""Blocks of a text and an image stream: the modules of one run between the reads of the other."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import dar_probe as dp
from tests.sites.test_written_otherwise import (
    DEPTH,
    FEW,
    D,
    Stack,
    T,
    audit,
    drawn,
    loss,
    made,
    mlp,
    same,
)  # fmt: skip

TEXT = 3


class Half(nn.Module):
    """What one stream has in a block."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2, self.mlp = nn.LayerNorm(D), nn.LayerNorm(D), mlp()
        self.attn = nn.ModuleDict({"qkv": nn.Linear(D, 3 * D), "out": nn.Linear(D, D)})


class Joint(nn.Module):
    """Both streams attend to both; the text writes first, or the image."""

    def __init__(self, text_first=True):
        super().__init__()
        self.text, self.image, self.text_first = Half(), Half(), text_first

    def forward(self, text, image):
        halves = (self.text, text), (self.image, image)
        qkv = torch.cat([half.attn["qkv"](half.norm1(x)) for half, x in halves], 1)
        mixed = F.scaled_dot_product_attention(*qkv.chunk(3, -1)).split([TEXT, T], 1)
        states = {}
        for at in (0, 1) if self.text_first else (1, 0):
            half, x = halves[at]
            x = x + half.attn["out"](mixed[at])
            states[at] = x + half.mlp(half.norm2(x))
        return states[0], states[1]


class Fused(nn.Module):
    """One projection in, one out, attention between them; no module is called so."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear1 = nn.LayerNorm(D), nn.Linear(D, 5 * D)
        self.mlp_act, self.linear2 = nn.GELU(), nn.Linear(3 * D, D)

    def forward(self, x):
        qkv, wide = self.linear1(self.norm(x)).split([3 * D, 2 * D], -1)
        mixed = F.scaled_dot_product_attention(*qkv.chunk(3, -1))
        return x + self.linear2(torch.cat([mixed, self.mlp_act(wide)], -1))


class TwoStreams(Stack):
    def __init__(self, text_first=True):
        super().__init__(lambda: Joint(text_first))
        self.single = nn.ModuleList(Fused() for _ in range(2))

    def forward(self, image, text):
        for block in self.blocks:
            text, image = block(text, image)
        x = torch.cat([text, image], 1)
        for block in self.single:
            x = block(x)
        return self.head(self.norm_out(x[:, TEXT:]))


def batch(ids, level, /):
    return (drawn(ids, T, D), drawn(ids, TEXT, D, salt=2)), {}


def test_a_sublayer_is_not_called_by_the_modules_of_the_other_stream():
    text_first = made(TwoStreams)
    image_first = made(TwoStreams, False, like=text_first)
    found, expected = audit(text_first, batch), audit(image_first, batch)
    names = ["rms", "grad_rms", "cosine", "write_rms", "gate"]
    same(found.dataset, expected.dataset, names)
    for analysis in (found, expected):
        kinds = list(analysis.dataset["reader_kind"].values)
        assert kinds == ["attention", "mlp"] * DEPTH + ["parallel"] * 2 + ["head"]
        assert not [s for s in analysis.manifest["assumptions"] if "left out" in s]


class Residual(nn.Module):
    """Hands on what it got, and how to add to it."""

    def forward(self, x):
        return x, lambda written: x + written


class ByResidual(Joint):
    """Takes a condition first, and adds through modules that hand the state on."""

    def __init__(self):
        super().__init__()
        self.keep, self.keep_text = Residual(), Residual()

    def forward(self, *, condition, text, image):
        (text, add_text), (image, add) = self.keep_text(text), self.keep(image)
        halves = (self.text, text), (self.image, image)
        qkv = torch.cat([half.attn["qkv"](half.norm1(x)) for half, x in halves], 1)
        mixed = F.scaled_dot_product_attention(*qkv.chunk(3, -1)).split([TEXT, T], 1)
        text = add_text(self.text.attn["out"](mixed[0]))
        image = add(self.image.attn["out"](mixed[1]))
        (text, add_text), (image, add) = self.keep_text(text), self.keep(image)
        text = add_text(self.text.mlp(self.text.norm2(text)))
        image = add(self.image.mlp(self.image.norm2(image)))
        return text, image


class Both(Stack):
    """Returns both streams, the text first."""

    def __init__(self, kind, rows=1):
        super().__init__(kind)
        self.rows = rows

    def run_both(self, image, text):
        condition = text.mean(1)
        text, image = text.repeat_interleave(self.rows, 0), image.repeat_interleave(self.rows, 0)
        for block in self.blocks:
            if isinstance(block, ByResidual):
                text, image = block(condition=condition, text=text, image=image)
            else:
                text, image = block(text, image)
        return text, image

    def forward(self, image, text):
        text, image = self.run_both(image, text)
        return text, self.head(self.norm_out(image))[:: self.rows]


def of_image(output, ids, level, /):
    return loss(output[1], ids, level)


def measured(model):
    return dp.audit(model, batch=batch, loss=of_image, **FEW)


def test_the_stream_is_the_one_that_the_loss_depends_on_however_it_is_handed_on():
    plain = made(Both, Joint)
    names = ["rms", "grad_rms", "cosine", "write_rms", "gate"]
    expected = measured(plain)
    found = measured(made(Both, ByResidual, like=plain))
    same(found.dataset, expected.dataset, names)
    kinds = ["attention", "mlp"] * DEPTH + ["head"]
    for analysis in (found, expected):
        assert list(analysis.dataset["reader_kind"].values) == kinds
        assert not [s for s in analysis.manifest["assumptions"] if "be confirmed" in s]
    with torch.no_grad():
        _, image = plain.run_both(*batch(range(3), None)[0])
    size = image.square().mean((1, 2)).sqrt()
    np.testing.assert_allclose(found.dataset["rms"][0, :, -1], size, rtol=1e-5)


def test_rows_of_two_parallel_states_are_tokens_of_one_sample():
    """As hyper-connections have them, of which the head reads the first alone."""
    expected = measured(made(Both, Joint)).dataset
    found = measured(made(Both, ByResidual, 2)).dataset
    same(found, expected, ["rms", "cosine", "gate"])
