"""The layouts in which authors and ComfyUI publish transformers that diffusers has as well.

Which class a file is of is told by its names, the settings of the class by its shapes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dar_probe.checkpoints.header import Header
from dar_probe.errors import CheckpointError
from dar_probe.models.diffusers import model as hub_model

# Of rotary positions: (16, 56, 56) in every released Flux, Chroma and Qwen-Image.
FLUX_AXES, Z_IMAGE_AXES = (16, 56, 56), (32, 48, 48)
SD3_HEAD = 64  # channels of a head, in every released SD3
SD3_SAMPLE = 128  # of latents, for images of 1,024 pixels
WAN_HEAD = 128

_AXES = "the rotary axes are {}, as in every released {}"
ASK = (
    "put the config.json of its transformer folder (on the Hugging Face Hub, in diffusers' layout) "
    "beside the file"
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the files of one class are known, and what their shapes tell.

    Attributes:
        marks: names that are all there.
        counts: setting -> the list of blocks that it counts.
        settings: header to the settings that shapes tell, and what they assume. Raises
            CheckpointError where they tell too little; None: they always do.
    """

    marks: tuple[str, ...]
    counts: dict[str, str] = field(default_factory=dict)
    settings: Callable[[Header], tuple[dict[str, Any], list[str]]] | None = None


def _flux(header: Header) -> tuple[dict[str, Any], list[str]]:
    width, channels = header.shape("img_in.weight", 2)
    head = _head(header, "double_blocks.0.img_attn.norm.key_norm.scale")
    out = header.shape("final_layer.linear.weight", 2)[0]
    return {
        "in_channels": channels,
        "out_channels": None if out == channels else out,
        "attention_head_dim": head,
        "num_attention_heads": max(width // head, 1),
        "joint_attention_dim": header.shape("txt_in.weight", 2)[1],
        "pooled_projection_dim": header.shape("vector_in.in_layer.weight", 2)[1],
        "guidance_embeds": "guidance_in.in_layer.weight" in header.shapes,
        "axes_dims_rope": FLUX_AXES,
    }, [_AXES.format(FLUX_AXES, "Flux")]


def _sd3(header: Header) -> tuple[dict[str, Any], list[str]]:
    width, text = header.shape("context_embedder.weight", 2)
    _, channels, patch, _ = header.shape("x_embedder.proj.weight", 4)
    depth = _count(header, "joint_blocks")
    norm = "joint_blocks.0.x_block.attn.ln_q.weight"
    head, said = SD3_HEAD, []
    if norm in header.shapes:
        (head,) = header.shape(norm, 1)
    elif width != SD3_HEAD * depth:
        raise ask(header, f"{depth} blocks of width {width} do not tell their heads")
    else:
        said.append(f"its heads have {SD3_HEAD} channels, as in every released SD3")
    most = math.isqrt(header.shape("pos_embed", 3)[1])
    sample = min(SD3_SAMPLE, most * patch)
    said.append(f"samples of {sample} x {sample}: no shape tells their size")
    dual = (
        k for k in range(depth) if f"joint_blocks.{k}.x_block.attn2.qkv.weight" in header.shapes
    )
    return {
        "sample_size": sample,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": header.shape("final_layer.linear.weight", 2)[0] // patch**2,
        "attention_head_dim": head,
        "num_attention_heads": max(width // head, 1),
        "joint_attention_dim": text,
        "caption_projection_dim": width,
        "pooled_projection_dim": header.shape("y_embedder.mlp.0.weight", 2)[1],
        "pos_embed_max_size": most,
        "dual_attention_layers": tuple(dual),
        "qk_norm": "rms_norm" if norm in header.shapes else None,
    }, said


def _wan(header: Header) -> tuple[dict[str, Any], list[str]]:
    width, channels, *patch = header.shape("patch_embedding.weight", 5)
    found: dict[str, Any] = {
        "patch_size": tuple(patch),
        "in_channels": channels,
        "out_channels": header.shape("head.head.weight", 2)[0] // math.prod(patch),
        "attention_head_dim": WAN_HEAD,
        "num_attention_heads": max(width // WAN_HEAD, 1),
        "text_dim": header.shape("text_embedding.0.weight", 2)[1],
        "freq_dim": header.shape("time_embedding.0.weight", 2)[1],
        "ffn_dim": header.shape("blocks.0.ffn.0.weight", 2)[0],
    }
    if "img_emb.proj.1.weight" in header.shapes:
        found["image_dim"] = header.shape("img_emb.proj.1.weight", 2)[1]
        found["added_kv_proj_dim"] = width
    return found, [f"its heads have {WAN_HEAD} channels, as in every released Wan"]


def _chroma(header: Header) -> tuple[dict[str, Any], list[str]]:
    width, channels = header.shape("img_in.weight", 2)
    head = _head(header, "double_blocks.0.img_attn.norm.key_norm.scale")
    hidden, inputs = header.shape("distilled_guidance_layer.in_proj.weight", 2)
    return {
        "in_channels": channels,
        "attention_head_dim": head,
        "num_attention_heads": max(width // head, 1),
        "joint_attention_dim": header.shape("txt_in.weight", 2)[1],
        "axes_dims_rope": FLUX_AXES,
        "approximator_num_channels": inputs,
        "approximator_hidden_dim": hidden,
    }, [_AXES.format(FLUX_AXES, "Chroma")]


def _qwen(header: Header) -> tuple[dict[str, Any], list[str]]:
    width, channels = header.shape("img_in.weight", 2)
    head = _head(header, "transformer_blocks.0.attn.norm_q.weight")
    return {
        "in_channels": channels,
        "out_channels": header.shape("proj_out.weight", 2)[0] // 4,  # patches of 2 x 2
        "attention_head_dim": head,
        "num_attention_heads": max(width // head, 1),
        "joint_attention_dim": header.shape("txt_in.weight", 2)[1],
        "axes_dims_rope": FLUX_AXES,
    }, [_AXES.format(FLUX_AXES, "Qwen-Image")]


def _z_image(header: Header) -> tuple[dict[str, Any], list[str]]:
    width, channels = header.shape("x_embedder.weight", 2)
    head = _head(header, "layers.0.attention.q_norm.weight")
    heads = max(width // head, 1)
    return {
        "in_channels": channels // 4,  # patches of 2 x 2
        "dim": width,
        "n_heads": heads,
        "n_kv_heads": heads,
        "cap_feat_dim": header.shape("cap_embedder.1.weight", 2)[1],
        "axes_dims": list(Z_IMAGE_AXES),
    }, [_AXES.format(Z_IMAGE_AXES, "Z-Image")]


def _head(header: Header, norm: str) -> int:
    """Return the channels of a head, whose split into rotary axes must be that of all releases."""
    (head,) = header.shape(norm, 1)
    if head != sum(FLUX_AXES):
        raise ask(header, f"heads of {head} channels do not tell their rotary axes")
    return head


# Compared in this order: the names of Flux are in Chroma, too.
LAYOUTS = {
    "ChromaTransformer2DModel": Layout(
        marks=("distilled_guidance_layer.in_proj.weight", "img_in.weight"),
        counts={
            "num_layers": "double_blocks", "num_single_layers": "single_blocks",
            "approximator_layers": "distilled_guidance_layer.layers",
        },
        settings=_chroma,
    ),
    "FluxTransformer2DModel": Layout(
        marks=(
            "double_blocks.0.img_attn.norm.key_norm.scale", "img_in.weight",
            "vector_in.in_layer.weight",
        ),
        counts={"num_layers": "double_blocks", "num_single_layers": "single_blocks"},
        settings=_flux,
    ),
    "SD3Transformer2DModel": Layout(
        marks=("joint_blocks.0.context_block.adaLN_modulation.1.bias", "context_embedder.weight"),
        counts={"num_layers": "joint_blocks"},
        settings=_sd3,
    ),
    "QwenImageTransformer2DModel": Layout(
        marks=("transformer_blocks.0.img_mod.1.weight", "txt_norm.weight"),
        counts={"num_layers": "transformer_blocks"},
        settings=_qwen,
    ),
    "ZImageTransformer2DModel": Layout(
        marks=("layers.0.adaLN_modulation.0.weight", "cap_embedder.1.weight"),
        counts={"n_layers": "layers", "n_refiner_layers": "noise_refiner"},
        settings=_z_image,
    ),
    "WanTransformer3DModel": Layout(
        marks=("head.modulation", "patch_embedding.weight"),
        counts={"num_layers": "blocks"},
        settings=_wan,
    ),
    # Of these the settings are asked for.
    "Flux2Transformer2DModel": Layout(marks=("single_stream_modulation.lin.weight",)),
    "HunyuanVideoTransformer3DModel": Layout(
        marks=("txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias",)
    ),
    "AuraFlowTransformer2DModel": Layout(marks=("double_layers.0.attn.w2q.weight",)),
    "MochiTransformer3DModel": Layout(marks=("blocks.0.attn.qkv_x.weight",)),
    "LTXVideoTransformer3DModel": Layout(marks=("patchify_proj.weight",)),
    "Lumina2Transformer2DModel": Layout(marks=("cap_embedder.0.weight",)),
    "HiDreamImageTransformer2DModel": Layout(
        marks=("double_stream_blocks.0.block.adaLN_modulation.1.bias",)
    ),
}  # fmt: skip


def class_of(header: Header) -> str | None:
    """Return the class of diffusers whose original layout a file has, None for other files."""
    for name, layout in LAYOUTS.items():
        if all(mark in header.shapes for mark in layout.marks):
            return name
    return None


def settings(header: Header, name: str) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of a file of the class called ``name``, and what they assume.

    Raises:
        CheckpointError: the shapes tell too little.
    """
    layout = LAYOUTS[name]
    if layout.settings is None:
        raise ask(header, f"its names are those of {name}, of which the shapes tell too little")
    config, said = layout.settings(header)
    counted = {key: _count(header, blocks) for key, blocks in layout.counts.items()}
    version = hub_model.diffusers().__version__
    said = [
        *said,
        f"what the shapes do not tell is as diffusers {version} has it by default for {name}",
    ]
    return {**config, **counted}, said


def _count(header: Header, blocks: str) -> int:
    start = f"{blocks}."
    found = {
        int(part)
        for key in header.shapes
        if key.startswith(start) and (part := key[len(start) :].partition(".")[0]).isdecimal()
        and len(part) < 5
    }  # fmt: skip
    return 1 + max(found, default=-1)


def ask(header: Header, why: str) -> CheckpointError:
    """Ask for the settings that a file does not tell."""
    return CheckpointError(f"{header.shown} does not tell all of its settings: {why}", hint=ASK)
