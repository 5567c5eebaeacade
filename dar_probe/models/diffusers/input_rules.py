"""What a parameter of a transformer's forward takes, by its name and the settings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dar_probe.models.diffusers import conditioning, positions
from dar_probe.models.diffusers.input_context import Cells, Maker, Rule, Setting
from dar_probe.models.diffusers.latents import first

PIXELS = 8  # per latent, of the usual autoencoders


# What the names of parameters cannot tell.
SINGLE_FRAME = {"ZImageTransformer2DModel"}  # lists of (C, 1, h, w), one for each sample
TIME_LIKE_LATENTS = {"HunyuanDiT2DModel"}  # its embedding takes the type of the time
TIME_PER_FRAME = {"AnyFlowTransformer3DModel"}
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
    "embedding_dim",
)


def model_time(setting: Setting, batch: Cells) -> Tensor:
    """Return the time as the class takes it, (N,) or (N, frames)."""
    time = batch.time.to(batch.x.device)
    if setting.class_name in TIME_LIKE_LATENTS:
        return time.to(batch.x.dtype)
    if setting.class_name in TIME_PER_FRAME:
        return time[:, None].repeat(1, setting.latents.grid[0])
    return time


def guidance_scale(setting: Setting) -> float:
    """Return the guidance scale that a model distilled for it is told."""
    scale = GUIDANCE * float(setting.config.get("guidance_embeds_scale", 1))
    return 1000 * scale if setting.class_name in GUIDANCE_IN_THOUSANDTHS else scale


def _drawn(name: str, setting: Setting, shape: tuple[int, ...]) -> Maker:
    def make(batch: Cells) -> Any:
        values = conditioning.normal(name, batch.ids, shape, seed=setting.seed)
        values = values.to(batch.x.device, batch.x.dtype)
        return list(values) if name in LISTS else values

    return make


def _text(name: str, widths: tuple[str, ...] = TEXT_WIDTHS, *lengths: str) -> Rule:
    """Tokens of text, left out where the settings give them no width."""

    def rule(setting: Setting, required: bool) -> Maker | None:
        width = first(setting.config, widths)
        if not width:
            return None
        shape: tuple[int, ...] = (setting.text_tokens(*lengths), width)
        if layers := first(setting.config, ("num_text_layers",)):  # Krea 2: several at once
            shape = (shape[0], layers, width)
        if injected := setting.config.get("injection_layer_ids"):  # FIBO 2: one, and theirs
            shape = (1 + len(injected), *shape)
        return _drawn(name, setting, shape)

    return rule


def _vector(name: str, *widths: str) -> Rule:
    """One vector per sample, left out where the settings give it no width."""

    def rule(setting: Setting, required: bool) -> Maker | None:
        width = first(setting.config, widths)
        return _drawn(name, setting, (width,)) if width else None

    return rule


def _global(setting: Setting, required: bool) -> Maker | None:
    """One vector of Stable Audio 3, or one token of Stable Audio."""
    name = "global_hidden_states"
    width = first(setting.config, ("global_states_input_dim",))
    if width:
        return _drawn(name, setting, (1, width))
    return _vector(name, "global_cond_dim")(setting, required)


def _mask(*lengths: str, always: bool = False) -> Rule:
    """All tokens are valid, which is also what leaving it out means."""

    def rule(setting: Setting, required: bool) -> Maker | None:
        length = setting.text_tokens(*lengths)
        if not (required or always):
            return None
        return lambda batch: torch.ones(len(batch), length, dtype=torch.bool, device=batch.x.device)

    return rule


def _second_mask(setting: Setting, required: bool) -> Maker | None:
    return _mask()(setting, bool(setting.config.get("text_embed_2_dim")))


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


def classes(setting: Setting) -> int | None:
    """Return the number of classes in the settings."""
    return first(setting.config, ("num_embeds_ada_norm", "num_classes"))


def _class_labels(setting: Setting, required: bool) -> Maker | None:
    count = classes(setting)
    if not count:
        return None
    return lambda batch: batch.ids.to(batch.x.device) % count


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

    def make(batch: Cells) -> dict[str, Tensor]:
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
    return (lambda batch: model_time(setting, batch)) if wanted else None


def _no_settings(setting: Setting, required: bool) -> Maker | None:
    """Lumina-Next unpacks what other classes look into."""
    return (lambda batch: {}) if setting.class_name == "LuminaNextDiT2DModel" else None


def _padding_mask(setting: Setting, required: bool) -> Maker | None:
    """No pixel of (1, 1, H, W) is padding."""
    if not setting.config.get("concat_padding_mask"):
        return None
    return lambda batch: batch.x.new_zeros(1, 1, *batch.x.shape[-2:])


def _zeros(*channels: str) -> Rule:
    """A condition like the latents, and none is given: (N, C, ...) of zeros."""

    def rule(setting: Setting, required: bool) -> Maker | None:
        width = first(setting.config, channels)
        if not width:
            return None
        sizes = dict(zip(setting.latents.axes, setting.latents.shape, strict=True))
        shape = [width if axis == "C" else sizes[axis] for axis in setting.latents.axes]
        return lambda batch: batch.x.new_zeros(len(batch), *shape)

    return rule


def _no_image(setting: Setting, required: bool) -> Maker | None:
    """Tokens of an image, all zero, which tells the model that there is none."""
    width = first(setting.config, ("image_embed_dim", "image_proj_dim"))
    if not width:
        return None
    return lambda batch: batch.x.new_zeros(len(batch), setting.tokens, width)


def _layered_text(setting: Setting, required: bool) -> Maker | None:
    """Text as the layers of its encoder have it, a list of (N, L, width), one for each block."""
    width = first(setting.config, ("text_encoder_dim",))
    if not width:
        return None
    blocks = setting.config["num_layers"] + setting.config["num_single_layers"]
    makers = [
        _drawn(f"text_encoder_layers.{i}", setting, (setting.tokens, width)) for i in range(blocks)
    ]
    return lambda batch: [make(batch) for make in makers]


def _hidream_text(name: str, which: int) -> Rule:
    """HiDream's widths are a list, and of its second text it takes some of the layers."""

    def rule(setting: Setting, required: bool) -> Maker | None:
        widths = setting.config.get("caption_channels")
        if not isinstance(widths, list | tuple) or len(widths) <= which:
            return None
        layers = setting.config.get("llama_layers") or []
        if which == 0 or not layers:
            return _drawn(name, setting, (setting.tokens, widths[which]))
        makers = [
            _drawn(f"{name}.{i}", setting, (setting.tokens, widths[which]))
            for i in range(max(layers) + 1)
        ]
        return lambda batch: torch.stack([make(batch) for make in makers])

    return rule


def _t5(setting: Setting, required: bool) -> Maker | None:
    name = "encoder_hidden_states_t5"
    plain = _text(name, ("cross_attention_dim_t5", "text_embed_dim_t5"), "text_len_t5")
    return plain(setting, required) or _hidream_text(name, 0)(setting, required)


def _prior_tokens(setting: Setting, required: bool) -> Maker | None:
    """Tokens of a first model, one for each of the image's, and all of them dropped."""
    count = setting.latents.tokens
    return lambda batch: torch.zeros(len(batch), count, dtype=torch.int64, device=batch.x.device)


def _prior_dropped(setting: Setting, required: bool) -> Maker | None:
    count = setting.latents.tokens
    return lambda batch: torch.ones(len(batch), count, dtype=torch.bool, device=batch.x.device)


# Parameters of a forward beside latents and time.
RULES: dict[str, Rule] = {
    "encoder_hidden_states": _text(
        "encoder_hidden_states", TEXT_WIDTHS, "text_len", "num_embeddings"
    ),
    "encoder_hidden_states_t5": _t5,
    "encoder_hidden_states_2": _text("encoder_hidden_states_2", ("text_embed_2_dim",)),
    "encoder_hidden_states_image": _text("encoder_hidden_states_image", ("image_dim",)),
    "image_embeds": _no_image,
    "cap_feats": _text("cap_feats"),
    "text_bth": _text("text_bth"),
    "text_lens": _text_lengths,
    "pooled_projections": _vector("pooled_projections", "pooled_projection_dim", "in_text_dim2"),
    "global_hidden_states": _global,
    "proj_embedding": _vector("proj_embedding", "embedding_proj_dim", "embedding_dim"),
    "pooled_embeds": _vector("pooled_embeds", "text_emb_dim"),
    "encoder_hidden_states_llama3": _hidream_text("encoder_hidden_states_llama3", 1),
    "text_encoder_layers": _layered_text,
    "prior_token_id": _prior_tokens,
    "prior_token_drop": _prior_dropped,
    "control_hidden_states": _zeros("vace_in_channels"),
    "class_labels": _class_labels,
    "encoder_attention_mask": _mask(),
    "encoder_attention_mask_2": _second_mask,
    "encoder_hidden_states_mask": _mask(),
    "encoder_mask": _mask(),
    "attention_mask": _mask(),
    "text_embedding_mask": _mask("text_len", always=True),
    "text_embedding_mask_t5": _mask("text_len_t5", always=True),
    "guidance": _guidance,
    "num_frames": _along(0),
    "height": _along(1),
    "width": _along(2),
    "added_cond_kwargs": _added_conditions,
    "style": _style,
    "image_meta_size": _numbers(_meta_size),
    "original_size": _numbers(_size),
    "target_size": _numbers(_size),
    "crop_coords": _numbers(lambda setting: (0.0, 0.0)),
    "cross_attention_kwargs": _no_settings,
    "padding_mask": _padding_mask,
    "r_timestep": _same_time,
    "timestep_r": _same_time,
    **positions.RULES,
}

DRAWN = {
    "encoder_hidden_states",
    "encoder_hidden_states_t5",
    "encoder_hidden_states_2",
    "encoder_hidden_states_image",
    "encoder_hidden_states_llama3",
    "text_encoder_layers",
    "cap_feats",
    "text_bth",
    "pooled_projections",
    "pooled_embeds",
    "global_hidden_states",
    "proj_embedding",
}
