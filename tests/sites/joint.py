"""A small model of two streams, as SD3 and Flux are, and its forward once more with gates."""

import torch
import torch.nn.functional as F
from torch import nn

D, IMAGE, TEXT = 8, 6, 5  # features, and tokens of each stream
DOUBLE, SINGLE = 3, 2  # blocks with weights of their own for each stream, and with the same


class Part(nn.Module):
    """What a double block has for one stream."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.mlp = nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))


class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = Part(), Part()

    def forward(self, image, text):
        a = self.image.qkv(self.image.norm1(image)).chunk(3, -1)
        b = self.text.qkv(self.text.norm1(text)).chunk(3, -1)
        q, k, v = (torch.cat(pair, 1) for pair in zip(b, a, strict=True))
        out = F.scaled_dot_product_attention(q, k, v)
        text = text + self.text.out(out[:, :TEXT])
        image = image + self.image.out(out[:, TEXT:])
        return (
            image + self.image.mlp(self.image.norm2(image)),
            text + self.text.mlp(self.text.norm2(text)),
        )


class Single(nn.Module):
    """Both streams in one sequence, text first."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(D), nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, image, text):
        both = torch.cat([text, image], 1)
        both = both + self.out(
            F.scaled_dot_product_attention(*self.qkv(self.norm(both)).chunk(3, -1))
        )
        return both[:, TEXT:], both[:, :TEXT]


class Joint(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.words = nn.Linear(3, D), nn.Linear(4, D)
        self.doubles = nn.ModuleList(Double() for _ in range(DOUBLE))
        self.singles = nn.ModuleList(Single() for _ in range(SINGLE))
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, 3)

    def forward(self, image, text):
        image, text = self.embed(image), self.words(text)
        for block in (*self.doubles, *self.singles):
            image, text = block(image, text)
        return self.head(self.norm(image))


def made():
    torch.manual_seed(3)
    return Joint().double().eval()


def drawn(ids, *shape, salt):
    seeds = [torch.Generator().manual_seed(100 * salt + int(i)) for i in ids]
    return torch.stack([torch.randn(*shape, generator=s, dtype=torch.float64) for s in seeds])


def batch(ids, level, /):
    image = (1 - level[:, None, None]) * drawn(ids, IMAGE, 3, salt=1)
    return (image, drawn(ids, TEXT, 4, salt=2)), {}


def loss(out, ids, level, /):
    return (out - drawn(ids, IMAGE, 3, salt=3)).square().flatten(1).mean(1)


def attend(q, k, v):
    return F.softmax(q @ k.mT / D**0.5, -1) @ v


class Stream:
    """The sources of one stream, and gates on each as every reader reads it."""

    def __init__(self, first):
        self.state, self.sources = first, [first]
        self.gates, self.states = [], []

    def read(self):
        """Return what the next reader gets: its sources, each times a gate of its own."""
        gate = torch.ones(len(self.sources), dtype=torch.float64, requires_grad=True)
        self.gates.append(gate)
        self.states.append(self.state)
        # The state itself stays whole for gradients of it; what is read is gated beside it.
        return self.state + sum((g - 1) * v for g, v in zip(gate, self.sources, strict=True))

    def write(self, value):
        self.sources.append(value)
        self.state = self.state + value


def gated(model, image, text):
    """Run one sample (1, ...) and return the output and both streams."""
    image, text = Stream(model.embed(image)), Stream(model.words(text))
    for block in model.doubles:
        a = block.image.qkv(block.image.norm1(image.read())).chunk(3, -1)
        b = block.text.qkv(block.text.norm1(text.read())).chunk(3, -1)
        q, k, v = (torch.cat([y, x], 1) for x, y in zip(a, b, strict=True))
        out = attend(q, k, v)
        text.write(block.text.out(out[:, :TEXT]))
        image.write(block.image.out(out[:, TEXT:]))
        image.write(block.image.mlp(block.image.norm2(image.read())))
        text.write(block.text.mlp(block.text.norm2(text.read())))
    for block in model.singles:
        both = torch.cat([text.read(), image.read()], 1)
        both = block.out(attend(*block.qkv(block.norm(both)).chunk(3, -1)))
        image.write(both[:, TEXT:])
        text.write(both[:, :TEXT])
    return model.head(model.norm(image.read())), image, text
