"""Where tokens stand: the positions and rotary tables that transformers are handed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dar_probe.models.diffusers.input_context import Cells, Maker, Rule, Setting

HUNYUAN_BASE = 32  # tokens per side at 512 pixels; other grids are fitted into it


def _position_axes(setting: Setting) -> int:
    return len(setting.config.get("axes_dims_rope") or setting.config.get("axes_dim") or (0, 0, 0))


def _image_ids(setting: Setting, required: bool) -> Maker | None:
    """Positions (T, axes) of packed tokens: frame, row, column, and 0 along any further axis."""
    if "T" not in setting.latents.axes:
        return None
    _, rows, columns = setting.latents.grid
    axes = _position_axes(setting)

    def make(batch: Cells) -> Tensor:
        ids = batch.x.new_zeros(rows, columns, axes)
        ids[..., 1] = torch.arange(rows).to(ids)[:, None]
        ids[..., 2] = torch.arange(columns).to(ids)
        return ids.flatten(0, 1)

    return make


def _text_ids(setting: Setting, required: bool) -> Maker | None:
    """Positions (L, axes) of text: all 0, but counted along the fourth axis where there is one."""
    axes = _position_axes(setting)

    def make(batch: Cells) -> Tensor:
        ids = batch.x.new_zeros(setting.tokens, axes)
        if axes == 4:
            ids[:, 3] = torch.arange(setting.tokens).to(ids)
        return ids

    return make


def _image_shapes(setting: Setting, required: bool) -> Maker | None:
    return lambda batch: [[setting.latents.grid]] * len(batch)


def _hunyuan_dit(setting: Setting) -> Maker:
    """The grid is fitted into the base square, in its middle, and gets its coordinates."""
    _, rows, columns = setting.latents.grid
    corners = _fitted((rows, columns), (HUNYUAN_BASE, HUNYUAN_BASE))

    def make(batch: Cells) -> Any:
        return _diffusers("get_2d_rotary_pos_embed")(
            setting.config["attention_head_dim"], corners, (rows, columns),
            device=batch.x.device, output_type="pt",
        )  # fmt: skip

    return make


def _fitted(
    grid: tuple[int, int], base: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the corners of a grid scaled to fill ``base`` along one side, in its middle."""
    scale = min(whole / side for side, whole in zip(grid, base, strict=True))
    sides = [round(scale * side) for side in grid]
    top, left = (round((whole - side) / 2) for side, whole in zip(sides, base, strict=True))
    return (top, left), (top + sides[0], left + sides[1])


def _cogvideox(setting: Setting) -> Maker | None:
    """Version 1.0 fits the grid into the trained one, 1.5 counts from 0."""
    if not setting.config.get("use_rotary_positional_embeddings"):
        return None
    frames, rows, columns = setting.latents.grid
    patch = setting.config["patch_size"]
    base = (setting.config["sample_height"] // patch, setting.config["sample_width"] // patch)

    def make(batch: Cells) -> Any:
        how: dict[str, Any] = {"crops_coords": _fitted((rows, columns), base)}
        if setting.config.get("patch_size_t"):
            how = {"crops_coords": None, "grid_type": "slice", "max_size": base}
        return _diffusers("get_3d_rotary_pos_embed")(
            setting.config["attention_head_dim"], grid_size=(rows, columns),
            temporal_size=frames, device=batch.x.device, **how,
        )  # fmt: skip

    return make


def _allegro(setting: Setting) -> Maker:
    frames, rows, columns = setting.latents.grid
    scale = tuple(setting.config[f"interpolation_scale_{axis}"] for axis in "thw")

    def make(batch: Cells) -> Any:
        *tables, along_t, along_h, along_w = _diffusers("get_3d_rotary_pos_embed_allegro")(
            setting.config["attention_head_dim"], ((0, 0), (rows, columns)), (rows, columns),
            frames, scale, device=batch.x.device,
        )  # fmt: skip
        grid = torch.cartesian_prod(along_t.long(), along_h.long(), along_w.long())
        return tuple(tables), tuple(grid.T.reshape(3, 1, -1).contiguous())

    return make


def _lumina_next(setting: Setting) -> Maker:
    width = setting.config["hidden_size"] // setting.config["num_attention_heads"]

    def make(batch: Cells) -> Any:
        return _diffusers("get_2d_rotary_pos_embed_lumina")(width, 384, 384).to(batch.x.device)

    return make


def _audio(setting: Setting, required: bool) -> Maker | None:
    """Stable Audio puts one token before the sound's own."""
    length = setting.latents.tokens + 1

    def make(batch: Cells) -> Any:
        tables = _diffusers("get_1d_rotary_pos_embed")(
            setting.config["attention_head_dim"] // 2, length, use_real=True,
            repeat_interleave_real=False,
        )  # fmt: skip
        return tuple(table.to(batch.x.device) for table in tables)

    return make


def _joint_ids(setting: Setting, required: bool) -> Maker | None:
    """Positions (L + T, 3) of text, all at the origin, and of the image's tokens after it."""
    image = _image_ids(setting, required)
    if image is None or setting.class_name not in JOINT_POSITIONS:
        return None
    return lambda batch: torch.cat([batch.x.new_zeros(setting.tokens, 3), image(batch)])


def _image_slots(setting: Setting, required: bool) -> Maker | None:
    """Qwen-Image 2.1: after the text, one slot for every 2 by 2 tokens of the image."""
    slots = setting.latents.tokens // 4

    def make(batch: Cells) -> Tensor:
        mask = torch.arange(setting.tokens + slots, device=batch.x.device) >= setting.tokens
        return mask.repeat(len(batch), 1)

    return make


def _text_positions(setting: Setting, required: bool) -> Maker | None:
    return lambda batch: torch.arange(setting.tokens, device=batch.x.device)


def _grid_positions(setting: Setting, required: bool) -> Maker | None:
    """One range for frames, rows and columns each."""
    return lambda batch: [torch.arange(n, device=batch.x.device) for n in setting.latents.grid]


def _rope_scale(setting: Setting, required: bool) -> Maker | None:
    """LTX-Video's positions are in seconds and pixels: 8 of 25 frames a second, 32 pixels."""
    return lambda batch: (8 / 25, 32, 32)


def _diffusers(name: str) -> Any:
    """Return one of the library's functions that make tables."""
    from diffusers.models import embeddings

    return getattr(embeddings, name)


def _rotary(setting: Setting, required: bool) -> Maker | None:
    """Tables of the classes that do not make them themselves."""
    make = ROTARY.get(setting.class_name)
    return make(setting) if make is not None else None


JOINT_POSITIONS = {"Krea2Transformer2DModel"}
ROTARY: dict[str, Callable[[Setting], Maker | None]] = {
    "AllegroTransformer3DModel": _allegro,
    "CogVideoXTransformer3DModel": _cogvideox,
    "ConsisIDTransformer3DModel": _cogvideox,
    "HunyuanDiT2DModel": _hunyuan_dit,
    "LuminaNextDiT2DModel": _lumina_next,
}
RULES: dict[str, Rule] = {
    "image_rotary_emb": _rotary,
    "img_ids": _image_ids,
    "img_mask": _image_slots,
    "img_shapes": _image_shapes,
    "position_ids": _joint_ids,
    "rope_interpolation_scale": _rope_scale,
    "rotary_embedding": _audio,
    "text_rope_pos": _text_positions,
    "txt_ids": _text_ids,
    "visual_rope_pos": _grid_positions,
}
