"""Tables of rotary positions that some transformers are handed from outside."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dar_probe.hub.rules import Batch, Maker, Setting

HUNYUAN_BASE = 32  # tokens per side at 512 pixels; larger grids are fitted into it


def rule(setting: "Setting", required: bool) -> "Maker | None":
    """Return the tables of classes that need them."""
    make = _TABLES.get(setting.class_name)
    return make(setting) if make is not None else None


def _hunyuan_dit(setting: "Setting") -> "Maker":
    """The grid is fitted into the base square, in its middle, and gets its coordinates."""
    _, rows, columns = setting.latents.grid
    longer = max(rows, columns)
    fitted = (round(HUNYUAN_BASE * rows / longer), round(HUNYUAN_BASE * columns / longer))
    start = tuple(round((HUNYUAN_BASE - side) / 2) for side in fitted)
    stop = tuple(s + side for s, side in zip(start, fitted, strict=True))

    def make(batch: "Batch") -> Any:
        from diffusers.models.embeddings import get_2d_rotary_pos_embed

        return get_2d_rotary_pos_embed(
            setting.config["attention_head_dim"], (start, stop), (rows, columns),
            device=batch.x.device, output_type="pt",
        )  # fmt: skip

    return make


_TABLES = {"HunyuanDiT2DModel": _hunyuan_dit}
