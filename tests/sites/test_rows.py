"""Streams that have one row for each frame of a video, or for each place in it, by turns."""

import numpy as np
import torch
from torch import nn

import dar_probe as dp
from tests.test_audit import Stack

FRAMES, PLACES = 3, 4


def videos(ids, level):
    rows = [
        torch.randn(FRAMES * PLACES, 5, generator=torch.Generator().manual_seed(int(i)))
        for i in ids
    ]
    return (torch.stack(rows),), {}


def turned(x, rows):
    """(N * rows, M, D) -> (N * M, rows, D)."""
    return x.unflatten(0, (-1, rows)).transpose(1, 2).flatten(0, 1)


class Rows(Stack):
    """Blocks of odd numbers see one frame, the others one place; positions come in between."""

    def __init__(self):
        super().__init__()
        self.late = nn.Parameter(torch.randn(FRAMES, 16))

    def forward(self, x):
        x = self.embed(x).unflatten(1, (FRAMES, PLACES)).flatten(0, 1)
        for k, block in enumerate(self.blocks):
            if k % 2:
                x = turned(x, FRAMES)
                x = turned(block(x + self.late if k == 1 else x), PLACES)
            else:
                x = block(x)
        return self.head(self.norm(x)).unflatten(0, (-1, FRAMES))


class Whole(Rows):
    """The same on a stream of all tokens, which only the branches take apart."""

    def forward(self, x):
        x = self.embed(x)
        for k, block in enumerate(self.blocks):
            if k == 1:
                x = x + self.late.repeat_interleave(PLACES, 0)
            x = block(x)
        return self.head(self.norm(x))


class Apart(nn.Module):
    """A branch of ``Whole``."""

    def __init__(self, branch, across):
        super().__init__()
        self.branch, self.across = branch, across

    def forward(self, x):
        x = x.unflatten(1, (FRAMES, PLACES)).flatten(0, 1)
        if not self.across:
            return self.branch(x).unflatten(0, (-1, FRAMES)).flatten(1, 2)
        x = turned(self.branch(turned(x, FRAMES)), PLACES)
        return x.unflatten(0, (-1, FRAMES)).flatten(1, 2)


class Mixing(nn.Module):
    """Tokens of one row see each other."""

    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return torch.softmax(q @ k.transpose(1, 2) / 4, -1) @ v


def pair():
    """Return a model on rows, and the same on whole videos."""
    torch.manual_seed(0)
    rows = Rows()
    for block in rows.blocks:
        block.attention = Mixing(16)
    whole = Whole()
    for k, block in enumerate(whole.blocks):
        block.load_state_dict(rows.blocks[k].state_dict(), strict=False)
        block.attention = Apart(rows.blocks[k].attention, across=k % 2 == 1)
    for name in ("embed", "norm", "head"):
        getattr(whole, name).load_state_dict(getattr(rows, name).state_dict())
    whole.late.data = rows.late.data
    return rows, whole


def test_rows_are_measured_as_the_tokens_of_their_sample():
    rows, whole = pair()
    options = {"batch": videos, "samples": 3, "batch_size": 3}
    audited, plain = (dp.audit(model, **options) for model in (rows, whole))
    assert any("rows of 3 and of 4 to a sample" in one for one in audited.manifest["assumptions"])
    found, expected = audited.dataset, plain.dataset
    assert found["reader_name"].values.tolist() == expected["reader_name"].values.tolist()
    assert found["source_name"].values.tolist() == expected["source_name"].values.tolist()
    assert "block 2 fusion" in found["source_name"]
    for name in ("rms", "grad_rms", "cosine", "cosine_centred", "write_rms", "write_ratio", "gate"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-8, err_msg=name)


def test_a_source_is_taken_from_rows_as_from_whole_videos():
    rows, whole = pair()
    found, expected = (
        dp.ablate(model, batch=videos, samples=2, gates=[(3, 1), (4, 3), (9, 0)], kinds=[]).dataset
        for model in (rows, whole)
    )
    change = expected["gate_ablated"].values
    assert np.abs(change).min() > 1e-6
    np.testing.assert_allclose(found["gate_ablated"], change, rtol=1e-4, atol=1e-8)


class Behind(Rows):
    """Its rows of one place are those of all samples, before those of the next place."""

    def forward(self, x):
        x = self.embed(x).unflatten(1, (FRAMES, PLACES)).flatten(0, 1)
        for k, block in enumerate(self.blocks):
            if k % 2:
                whole = x.unflatten(0, (-1, FRAMES)).permute(2, 0, 1, 3)  # (places, N, frames, D)
                x = block(whole.flatten(0, 1)).unflatten(0, whole.shape[:2])
                x = x.permute(1, 2, 0, 3).flatten(0, 1)
            else:
                x = block(x)
        return self.head(self.norm(x)).unflatten(0, (-1, FRAMES))


def test_places_may_come_before_samples():
    rows, whole = pair()
    behind = Behind()
    for block in behind.blocks:
        block.attention = Mixing(16)
    behind.load_state_dict(rows.state_dict())
    whole.late.data.zero_()
    options = {"batch": videos, "samples": 3, "batch_size": 3}
    found, expected = (dp.audit(model, **options).dataset for model in (behind, whole))
    for name in ("rms", "grad_rms", "cosine", "gate", "loss"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-8, err_msg=name)


class Square(Stack):
    """As many frames as places, by turns."""

    def forward(self, x):
        x = self.embed(x).unflatten(1, (3, 3)).flatten(0, 1)
        for block in self.blocks:
            x = turned(block(x), 3)
        return self.head(self.norm(x)).unflatten(0, (-1, 3))


def test_of_as_many_rows_as_tokens_every_other_block_is_aside():
    """Tokens would be compared with others, which sizes do not show."""

    def square(ids, level):
        return (videos(ids, level)[0][0][:, :9],), {}

    found = dp.audit(Square(), batch=square, samples=2)
    said = found.manifest["assumptions"]
    assert any("aside of the measured stream are 2 blocks" in text for text in said)


class Captioned(nn.Module):
    """Attention to a text of its own row, behind a norm."""

    def __init__(self):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm2, self.mlp = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x, text):
        x = x + self.attn(self.norm1(x), text, text, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def test_text_is_another_stream_in_rows_of_places_as_of_frames():
    class Video(Rows):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Captioned() for _ in range(4))

        def forward(self, x, text):
            x = self.embed(x).unflatten(1, (FRAMES, PLACES)).flatten(0, 1)
            for k, block in enumerate(self.blocks):
                rows = PLACES if k % 2 else FRAMES
                repeated = text.repeat_interleave(rows, 0)
                x = (
                    turned(block(turned(x, FRAMES), repeated), PLACES)
                    if k % 2
                    else block(x, repeated)
                )
            return self.head(self.norm(x)).unflatten(0, (-1, FRAMES))

    def captioned(ids, level):
        text = [
            torch.randn(7, 16, generator=torch.Generator().manual_seed(50 + int(i))) for i in ids
        ]
        return (*videos(ids, level)[0], torch.stack(text)), {}

    found = dp.audit(Video(), batch=captioned, samples=2).dataset
    assert found["reader_kind"].values.tolist() == ["cross_attention", "mlp"] * 4 + ["head"]
