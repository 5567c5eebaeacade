"""U-DiT: a U-Net of transformer blocks on feature maps, which attend on down-sampled tokens.

After "U-DiTs: Downsample Tokens in U-Shaped Diffusion Transformers" (arXiv 2405.02730), with the
official parameter names. Shapes: N samples, C channels, D features, h and w of the map at hand,
G = s^2 grids of T = h w / s^2 tokens each for the factor s, H heads.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar_probe.checkpoints.header import Header
from dar_probe.errors import CheckpointError
from dar_probe.files.text import quote
from dar_probe.models import conventions
from dar_probe.models.sit import LabelEmbedder, TimestepEmbedder, modulate
from dar_probe.sites.family import Family, Identified
from dar_probe.sites.layout import Layout
from dar_probe.sites.stack import Stack
from dar_probe.sites.subject import Subject, View

# Lists of blocks in firing order, and their widths in units of the first.
LEVELS = {
    "encoder_level_1": 1, "encoder_level_2": 2, "latent": 4, "decoder_level_2": 2,
    "decoder_level_1": 2,
}  # fmt: skip
# The module that ends the level before each: the first to read its last state.
RESAMPLERS = (None, "down1_2", "down2_3", "up3_2", "up2_1")
# (width, heads) of S, B and L; their depths; and what no shape tells, by its official name.
PRESETS = ((96, 4), (192, 8), (384, 16))
DEPTHS = [2, 5, 8, 5, 2]
SCALE = "encoder_level_1.0.attn1.logit_scale"
OPTIONS = {"down_factor": 2, "posemb_type": "rope2d", "down_shortcut": 1}


class UDiT(nn.Module):
    """forward(x (N, C, h, w), t (N,), y (N,)) -> noise (N, C, h, w)."""

    def __init__(
        self, *, width: int, channels: int, outputs: int, rows: int, depths: Sequence[int],
        hidden: Sequence[int], **attention: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.channels = channels
        d1, d2, d4 = width, 2 * width, 4 * width
        self.x_embedder = named(proj=nn.Conv2d(channels, d1, 3, padding=1))
        self.t_embedder_1, self.y_embedder_1 = TimestepEmbedder(d1), LabelEmbedder(rows, d1)
        self.t_embedder_2, self.y_embedder_2 = TimestepEmbedder(d2), LabelEmbedder(rows, d2)
        self.t_embedder_3, self.y_embedder_3 = TimestepEmbedder(d4), LabelEmbedder(rows, d4)
        levels = [
            nn.ModuleList(Block(times * width, inner, **attention) for _ in range(depth))
            for times, depth, inner in zip(LEVELS.values(), depths, hidden, strict=True)
        ]
        self.encoder_level_1, self.encoder_level_2, self.latent = levels[:3]
        self.decoder_level_2, self.decoder_level_1 = levels[3:]
        self.down1_2 = resample(d1, d1 // 2, nn.PixelUnshuffle(2))
        self.down2_3 = resample(d2, d1, nn.PixelUnshuffle(2))
        self.up3_2 = resample(d4, 2 * d4, nn.PixelShuffle(2))
        self.reduce_chan_level2 = nn.Conv2d(d4, d2, 1)
        self.up2_1 = resample(d2, d4, nn.PixelShuffle(2))
        self.reduce_chan_level1 = nn.Conv2d(d2, d2, 1)
        self.output = nn.Conv2d(d2, d2, 3, padding=1)
        self.final_layer = FinalLayer(d2, outputs)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict the noise; of learned variances the first half is returned."""
        c1 = self.t_embedder_1(t) + self.y_embedder_1(y)  # (N, D)
        c2 = self.t_embedder_2(t) + self.y_embedder_2(y)  # (N, 2 D)
        c3 = self.t_embedder_3(t) + self.y_embedder_3(y)  # (N, 4 D)
        skip1 = x = through(self.encoder_level_1, self.x_embedder(x), c1)  # (N, D, h, w)
        skip2 = x = through(self.encoder_level_2, self.down1_2(x), c2)  # (N, 2 D, h/2, w/2)
        x = through(self.latent, self.down2_3(x), c3)  # (N, 4 D, h/4, w/4)
        x = self.reduce_chan_level2(torch.cat([self.up3_2(x), skip2], dim=1))
        x = through(self.decoder_level_2, x, c2)  # (N, 2 D, h/2, w/2)
        x = self.reduce_chan_level1(torch.cat([self.up2_1(x), skip1], dim=1))
        x = through(self.decoder_level_1, x, c2)  # (N, 2 D, h, w)
        out: Tensor = self.final_layer(self.output(x), c2)
        return out[:, : self.channels]


class Block(nn.Module):
    """Attention and MLP, twice, each time with modulation of its own."""

    def __init__(self, width: int, hidden: int, **attention: Any) -> None:
        super().__init__()
        self.norm11, self.norm21 = LayerNorm2d(width), LayerNorm2d(width)
        self.attn1, self.mlp1 = Attention(width, **attention), FeedForward(width, hidden)
        self.adaLN_modulation1 = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.norm12, self.norm22 = LayerNorm2d(width), LayerNorm2d(width)
        self.attn2, self.mlp2 = Attention(width, **attention), FeedForward(width, hidden)
        self.adaLN_modulation2 = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, D, h, w), (N, D) -> (N, D, h, w)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation1(c)[
            :, :, None, None
        ].chunk(6, dim=1)  # (N, D, 1, 1) each
        x = x + gate1 * self.attn1(modulate(self.norm11(x), shift1, scale1))
        x = x + gate2 * self.mlp1(modulate(self.norm21(x), shift2, scale2))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation2(c)[
            :, :, None, None
        ].chunk(6, dim=1)
        x = x + gate1 * self.attn2(modulate(self.norm12(x), shift1, scale1))
        x = x + gate2 * self.mlp2(modulate(self.norm22(x), shift2, scale2))
        return x


class Attention(nn.Module):
    """Cosine attention inside each of the s^2 grids that take every s-th pixel both ways."""

    def __init__(
        self, width: int, *, heads: int, kernel: int, down_factor: int, posemb_type: str | None,
        down_shortcut: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.factor = heads, down_factor
        self.rotary, self.shortcut = posemb_type == "rope2d", bool(down_shortcut)
        near = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.downsampler = named(layer=near)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.logit_scale = nn.Parameter(torch.empty(heads, 1, 1))
        self.to_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, h, w) -> (N, D, h, w)."""
        n, _, height, width = x.shape
        s, h, w = self.factor, height // self.factor, width // self.factor
        x = self.downsampler(x) + (x if self.shortcut else 0)
        x = x.reshape(n, -1, h, s, w, s).permute(0, 3, 5, 2, 4, 1)  # (N, s, s, h/s, w/s, D)
        qkv = self.to_qkv(x).reshape(n, s * s, h * w, 3, self.heads, -1)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)  # (N, G, H, T, D/H) each
        if self.rotary:
            q, k = rotate(q, h, w), rotate(k, h, w)
        # The logits' scale is at most 100.
        scale = self.logit_scale.clamp(max=4.6052).exp()
        q, k = F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1)
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        out = out.reshape(n, s, s, self.heads, h, w, -1).permute(0, 3, 6, 4, 1, 5, 2)
        return self.to_out(out.reshape(n, -1, height, width))  # type: ignore[no-any-return]


def rotate(x: Tensor, h: int, w: int, step: float = 1.0) -> Tensor:
    """Turn neighbouring features of x (..., h*w, size) as pairs, by column and row in turn.

    ``step`` is the distance of neighbouring columns, and of rows.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    size = x.shape[-1]
    steps = torch.arange(0, size, 4, dtype=wide, device=x.device) / size
    place = torch.arange(h * w, device=x.device)
    both = step * torch.stack([place % w, place // w], dim=-1).to(wide)  # (T, 2)
    return turn(x, (both[:, None] * (10000.0**-steps)[:, None]).flatten(1))


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """Turn neighbouring features of x (..., T, size) as pairs by angles (T, size / 2)."""
    a, b = x.to(angles.dtype)[..., 0::2], x.to(angles.dtype)[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


class FeedForward(nn.Module):
    """Pointwise maps around depthwise convolutions of 5, 3 and 1 pixels and a shortcut.

    The authors' eval mode merges them into one each: the same function.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        half = hidden // 2
        self.project_in = nn.Sequential(nn.Conv2d(width, half, 1), nn.Conv2d(half, hidden, 1))
        self.dwconv = nn.ModuleList(
            nn.Conv2d(hidden, hidden, size, padding=size // 2, groups=hidden) for size in (5, 3, 1)
        )
        self.project_out = nn.Sequential(nn.Conv2d(hidden, half, 1), nn.Conv2d(half, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, h, w) -> (N, D, h, w)."""
        x = F.gelu(self.project_in(x))
        return self.project_out(x + sum(conv(x) for conv in self.dwconv))  # type: ignore[no-any-return]


class FinalLayer(nn.Module):
    """Norm, modulation and a convolution to the output."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = LayerNorm2d(width)
        self.out_proj = nn.Conv2d(width, outputs, 3, padding=1)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, D, h, w), (N, D) -> (N, C, h, w)."""
        shift, scale = self.adaLN_modulation(c)[:, :, None, None].chunk(2, dim=1)
        return self.out_proj(modulate(self.norm_final(x), shift, scale))  # type: ignore[no-any-return]


class LayerNorm2d(nn.Module):
    """LayerNorm over the features of every pixel, without weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, h, w) -> (N, D, h, w)."""
        return F.layer_norm(x.permute(0, 2, 3, 1), (self.width,), eps=1e-6).permute(0, 3, 1, 2)


def named(**module: nn.Module) -> nn.Sequential:
    """Return the module one level down, under the given name."""
    return nn.Sequential(OrderedDict(module))


def resample(width: int, out: int, shuffle: nn.Module) -> nn.Module:
    """Return a convolution, and what trades pixels for features or the other way round."""
    return named(body=nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), shuffle))


def through(blocks: nn.ModuleList, x: Tensor, c: Tensor) -> Tensor:
    """Pass x (N, D, h, w) through the blocks of one level, conditioned on c (N, D)."""
    for block in blocks:
        x = block(x, c)
    return x


def identify(header: Header, heads: int | None) -> Identified:
    """Read every size from one shape each.

    Down-sampling, positions and image size leave no trace in the shapes: the settings tell, or
    the presets.
    """
    width, channels, *_ = header.shape("x_embedder.proj.weight", 4)
    rows, _ = header.shape("y_embedder_1.embedding_table.weight", 2)
    shaped, *_ = header.shape(SCALE, 3)
    learn_sigma = conventions.learned_sigma(header, "final_layer.out_proj.bias", channels)
    conventions.check_heads(header, SCALE, shaped, width)
    if width % 2:
        raise header.misshapen(SCALE)
    depths = [conventions.depth(header, level) for level in LEVELS]
    sizes: dict[str, Any] = {
        "width": width,
        "heads": conventions.heads(header, heads, width=width, shaped=shaped),
        "channels": channels,
        "outputs": channels * (2 if learn_sigma else 1),
        "rows": rows,
        "depths": depths,
        "hidden": [header.shape(f"{level}.0.mlp1.dwconv.0.bias", 1)[0] for level in LEVELS],
        "kernel": header.shape("encoder_level_1.0.attn1.downsampler.layer.weight", 4)[-1],
        **_options(header, (width, shaped), depths),
    }
    side = _side(header, sizes["down_factor"])
    header.assumptions.append(
        "read as U-DiT: steps 0..999, linear betas, noise; --objective overrides"
    )
    return Identified(
        family="udit",
        sizes={**sizes, "side": side},
        shape=(channels, side, side),
        num_classes=conventions.classes(header, rows),
        objective="dit",
        assumptions=header.assumptions,
    )


def _options(header: Header, size: tuple[int, int], depths: list[int]) -> dict[str, Any]:
    """Return what no shape tells of the attention: from the settings, or the presets."""
    named = {name: header.args[name] for name in OPTIONS if name in header.args}
    if len(named) < len(OPTIONS):
        if size not in PRESETS or depths != DEPTHS:
            raise CheckpointError(
                f"{header.shown} does not tell how it down-samples, and no preset has width "
                f"{size[0]}, {size[1]} heads and depths {depths}",
                hint=f"store {', '.join(OPTIONS)} in its args, or measure the module in Python",
            )
        header.assumptions.append(f"down-sampling and positions from the preset of width {size[0]}")
    options = {**OPTIONS, **named}
    if (
        not conventions.is_count(options["down_factor"])
        or options["posemb_type"] not in (None, "rope2d")
        or options["down_shortcut"] not in (0, 1)
    ):
        raise header.contradiction(f"its settings of the attention are {quote(options, 120)}")
    # Rotary positions are pairs of features for columns and pairs for rows.
    if options["posemb_type"] and size[0] // size[1] % 4:
        raise header.misshapen(SCALE)
    return options


def _side(header: Header, factor: int) -> int:
    """Return the side of the latents, which are an eighth of the images' size."""
    pixels: Any = header.args.get("image_size", 256)
    if "image_size" not in header.args:
        header.assumptions.append("latents of 32 x 32, as for images of 256 pixels")
    # Two down-samplings by 2 and one by the factor.
    if not conventions.is_count(pixels) or pixels % (8 * 4 * factor):
        raise header.contradiction(f"images of {quote(pixels, 40)} pixels do not fit its levels")
    return int(pixels) // 8


def build(identified: Identified) -> UDiT:
    """Return the model, its weights not yet filled."""
    return UDiT(**{name: v for name, v in identified.sizes.items() if name != "side"})


def subject(model: nn.Module, identified: Identified) -> Subject:
    """Name the sites: four sublayers a block, and a new stream at each of the five levels.

    Between levels a convolution and a shuffle of pixels change the stream's shape, and in the
    decoder a pointwise convolution mixes what comes up with the encoder's last state of that
    size. The skipped state is no part of the new stream that could be taken off, as all channels
    are mixed, so that each such step is a fusion with which a fresh stream begins.
    The last stream is first read by the convolution ``output``, not by the norm behind it.
    """
    sites, number = Stack(View(layout=Layout(features=1))), 0
    for level, resampler, depth in zip(LEVELS, RESAMPLERS, identified.sizes["depths"], strict=True):
        if resampler:
            sites.fusion(number + 1, model.get_submodule(resampler), fresh=True)
        for k in range(depth):
            number, block = number + 1, model.get_submodule(f"{level}.{k}")
            for j in (1, 2):
                norms = [block.get_submodule(f"norm{i}{j}") for i in (1, 2)]
                branches = [block.get_submodule(f"{name}{j}") for name in ("attn", "mlp")]
                gate = block.get_submodule(f"adaLN_modulation{j}")
                sites.sublayer(number, "attention", norms[0], branches[0], gate, (2, 6), number=j)
                sites.sublayer(number, "mlp", norms[1], branches[1], gate, (5, 6), number=j)
    return sites.subject(
        model,
        identified,
        head=model.get_submodule("output"),
        tokens=identified.sizes["side"] ** 2,
        normed=False,
    )


FAMILY = Family(
    name="udit",
    title="U-DiT",
    marks=(r"encoder_level_1\.0\.", r"latent\.0\.", r"decoder_level_1\.0\.", r"t_embedder_3\."),
    identify=identify,
    build=build,
    subject=subject,
)
