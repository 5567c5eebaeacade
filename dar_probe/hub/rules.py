"""What a parameter of a transformer's forward takes, by its name and the settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dar_probe.hub import conditioning, rotary
from dar_probe.hub.latents import Latents, first

PIXELS = 8  # per latent, of the usual autoencoders


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One call: samples (N, ...), model times (N,) and sample ids (N,)."""

    x: Tensor
    time: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the rules may look at."""

    class_name: str
    config: dict[str, Any]
    latents: Latents
    tokens: int
    seed: int
    given: Mapping[str, Tensor]

    def text_tokens(self, *keys: str) -> int:
        """Return the number of text tokens that the settings fix under ``keys``, or the usual."""
        return first(self.config, keys) or self.tokens


Maker = Callable[[Batch], Any]
Rule = Callable[[Setting, bool], Maker | None]

# What the names of parameters cannot tell.
SINGLE_FRAME = {"ZImageTransformer2DModel"}  # lists of (C, 1, h, w), one for each sample
TIME_LIKE_LATENTS = {"HunyuanDiT2DModel"}  # its embedding takes the type of the time
LISTS = {"cap_feats"}
# Time runs as in other flows, but the velocity points from noise to data.
NEGATED = {"HiDreamImageTransformer2DModel", "NucleusMoEImageTransformer2DModel"}
GUIDANCE = 3.5
GUIDANCE_IN_THOUSANDTHS = {
    "HunyuanImageTransformer2DModel",
    "HunyuanVideoFramepackTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
}
TEXT_WIDTHS = (
    "caption_channels",
    "joint_attention_dim",
    "text_embed_dim",
    "text_dim",
    "cap_feat_dim",
    "text_in_dim",
    "context_in_dim",
    "in_text_dim",
    "text_hidden_dim",
    "llm_features_dim",
    "text_emb_dim",
    "dit_text_dim",
    "encoder_hidden_size",
    "condition_dim",
    "cond_token_dim",
    "cross_attention_input_dim",
    "cross_attention_dim",
)


def guidance_scale(setting: Setting) -> float:
    """Return the guidance scale that a model distilled for it is told."""
    scale = GUIDANCE * float(setting.config.get("guidance_embeds_scale", 1))
    return 1000 * scale if setting.class_name in GUIDANCE_IN_THOUSANDTHS else scale


def _drawn(name: str, setting: Setting, shape: tuple[int, ...]) -> Maker:
    def make(batch: Batch) -> Any:
        values = conditioning.normal(name, batch.ids, shape, seed=setting.seed)
        values = values.to(batch.x.device, batch.x.dtype)
        return list(values) if name in LISTS else values

    return make


def _text(name: str, widths: tuple[str, ...] = TEXT_WIDTHS, *lengths: str) -> Rule:
    """Tokens of text, left out where the settings give them no width."""

    def rule(setting: Setting, required: bool) -> Maker | None:
        width = first(setting.config, widths)
        shape = (setting.text_tokens(*lengths), width or 0)
        return _drawn(name, setting, shape) if width else None

    return rule


def _vector(name: str, *widths: str) -> Rule:
    """One vector per sample, left out where the settings give it no width."""

    def rule(setting: Setting, required: bool) -> Maker | None:
        width = first(setting.config, widths)
        return _drawn(name, setting, (width,)) if width else None

    return rule


def _mask(*lengths: str, always: bool = False) -> Rule:
    """All tokens are valid, which is also what leaving it out means."""

    def rule(setting: Setting, required: bool) -> Maker | None:
        length = setting.text_tokens(*lengths)
        if not (required or always):
            return None
        return lambda batch: torch.ones(len(batch), length, dtype=torch.bool, device=batch.x.device)

    return rule


def _numbers(value: Callable[[Setting], tuple[float, ...] | None]) -> Rule:
    """The same numbers for every sample."""

    def rule(setting: Setting, required: bool) -> Maker | None:
        numbers = value(setting)
        if numbers is None:
            return None
        return lambda batch: batch.x.new_tensor(numbers).repeat(len(batch), 1)

    return rule


def _size(setting: Setting) -> tuple[float, float]:
    """Rows and columns in pixels."""
    sizes = dict(zip(setting.latents.axes, setting.latents.shape, strict=True))
    _, rows, columns = setting.latents.grid
    return PIXELS * sizes.get("H", 2 * rows), PIXELS * sizes.get("W", 2 * columns)


def _guidance(setting: Setting, required: bool) -> Maker | None:
    if not setting.config.get("guidance_embeds"):
        return None
    scale = guidance_scale(setting)
    return lambda batch: batch.x.new_full((len(batch),), scale)


def _class_labels(setting: Setting, required: bool) -> Maker | None:
    classes = first(setting.config, ("num_embeds_ada_norm", "num_classes"))
    if not classes:
        return None
    return lambda batch: batch.ids.to(batch.x.device) % classes


def _position_axes(setting: Setting) -> int:
    return len(setting.config.get("axes_dims_rope") or setting.config.get("axes_dim") or (0, 0, 0))


def _image_ids(setting: Setting, required: bool) -> Maker | None:
    """Positions (T, axes) of packed tokens: frame, row, column, and 0 along any further axis."""
    if "T" not in setting.latents.axes:
        return None
    _, rows, columns = setting.latents.grid
    axes = _position_axes(setting)

    def make(batch: Batch) -> Tensor:
        ids = batch.x.new_zeros(rows, columns, axes)
        ids[..., 1] = torch.arange(rows).to(ids)[:, None]
        ids[..., 2] = torch.arange(columns).to(ids)
        return ids.flatten(0, 1)

    return make


def _text_ids(setting: Setting, required: bool) -> Maker | None:
    """Positions (L, axes) of text: all 0, but counted along the fourth axis where there is one."""
    axes = _position_axes(setting)

    def make(batch: Batch) -> Tensor:
        ids = batch.x.new_zeros(setting.tokens, axes)
        if axes == 4:
            ids[:, 3] = torch.arange(setting.tokens).to(ids)
        return ids

    return make


def _image_shapes(setting: Setting, required: bool) -> Maker | None:
    return lambda batch: [[setting.latents.grid]] * len(batch)


def _along(axis: int) -> Rule:
    """Tokens along frames, rows or columns."""
    return lambda setting, required: lambda batch: setting.latents.grid[axis]


def _added_conditions(setting: Setting, required: bool) -> Maker | None:
    """PixArt's micro-conditions, which its class turns on by itself at 1024 pixels."""
    wanted = setting.config.get("use_additional_conditions")
    if wanted is None:
        wanted = setting.config.get("sample_size") == 128
    if not wanted:
        return lambda batch: {"resolution": None, "aspect_ratio": None}
    size = _size(setting)

    def make(batch: Batch) -> dict[str, Tensor]:
        resolution = batch.x.new_tensor(size).repeat(len(batch), 1)
        return {"resolution": resolution, "aspect_ratio": resolution[:, :1] / resolution[:, 1:]}

    return make


def _style(setting: Setting, required: bool) -> Maker | None:
    if not setting.config.get("use_style_cond_and_image_meta_size"):
        return None
    return lambda batch: torch.zeros(len(batch), dtype=torch.int64, device=batch.x.device)


def _meta_size(setting: Setting) -> tuple[float, ...] | None:
    wanted = setting.config.get("use_style_cond_and_image_meta_size")
    return (*_size(setting), *_size(setting), 0.0, 0.0) if wanted else None


def _text_lengths(setting: Setting, required: bool) -> Maker | None:
    return lambda batch: torch.full((len(batch),), setting.tokens, device=batch.x.device)


def _same_time(setting: Setting, required: bool) -> Maker | None:
    """Models of flow maps go from one time to a second one; equal, they give the velocity."""
    wanted = required or setting.config.get("use_meanflow")
    return (lambda batch: batch.time.to(batch.x.device)) if wanted else None


def _padding_mask(setting: Setting, required: bool) -> Maker | None:
    """No pixel of (1, 1, H, W) is padding."""
    if not setting.config.get("concat_padding_mask"):
        return None
    return lambda batch: batch.x.new_zeros(1, 1, *batch.x.shape[-2:])


def _rope_scale(setting: Setting, required: bool) -> Maker | None:
    """LTX-Video's positions are in seconds and pixels: 8 of 25 frames a second, 32 pixels."""
    return lambda batch: (8 / 25, 32, 32)


# Parameters of a forward beside latents and time.
RULES: dict[str, Rule] = {
    "encoder_hidden_states": _text("encoder_hidden_states", TEXT_WIDTHS, "text_len"),
    "encoder_hidden_states_t5": _text(
        "encoder_hidden_states_t5",
        ("cross_attention_dim_t5", "text_embed_dim_t5"),
        "text_len_t5",
    ),
    "encoder_hidden_states_2": _text("encoder_hidden_states_2", ("text_embed_2_dim",)),
    "encoder_hidden_states_image": _text("encoder_hidden_states_image", ("image_dim",)),
    "image_embeds": _text("image_embeds", ("image_embed_dim", "image_proj_dim")),
    "cap_feats": _text("cap_feats"),
    "text_bth": _text("text_bth"),
    "text_lens": _text_lengths,
    "pooled_projections": _vector("pooled_projections", "pooled_projection_dim", "in_text_dim2"),
    "proj_embedding": _vector("proj_embedding", "embedding_proj_dim", "embedding_dim"),
    "class_labels": _class_labels,
    "encoder_attention_mask": _mask(),
    "encoder_attention_mask_2": _mask(),
    "encoder_hidden_states_mask": _mask(),
    "encoder_mask": _mask(),
    "attention_mask": _mask(),
    "text_embedding_mask": _mask("text_len", always=True),
    "text_embedding_mask_t5": _mask("text_len_t5", always=True),
    "guidance": _guidance,
    "img_ids": _image_ids,
    "txt_ids": _text_ids,
    "img_shapes": _image_shapes,
    "num_frames": _along(0),
    "height": _along(1),
    "width": _along(2),
    "image_rotary_emb": rotary.rule,
    "rope_interpolation_scale": _rope_scale,
    "added_cond_kwargs": _added_conditions,
    "style": _style,
    "image_meta_size": _numbers(_meta_size),
    "original_size": _numbers(_size),
    "target_size": _numbers(_size),
    "crop_coords": _numbers(lambda setting: (0.0, 0.0)),
    "padding_mask": _padding_mask,
    "r_timestep": _same_time,
    "timestep_r": _same_time,
}

DRAWN = {
    "encoder_hidden_states",
    "encoder_hidden_states_t5",
    "encoder_hidden_states_2",
    "encoder_hidden_states_image",
    "image_embeds",
    "cap_feats",
    "text_bth",
    "pooled_projections",
    "proj_embedding",
}
