"""Tiny random diffusers transformers with every gate open, saved in the official layout."""

import json

import torch

FLOW = "FlowMatchEulerDiscreteScheduler"

# name of the instance: class, settings, scheduler, its settings
MODELS = {
    "dit": (
        "DiTTransformer2DModel",
        dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8,
             num_layers=3, sample_size=8, patch_size=2, num_embeds_ada_norm=10, norm_num_groups=2),
        "DDIMScheduler", {},
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8,
             num_layers=3, sample_size=8, patch_size=2, cross_attention_dim=16,
             caption_channels=12, norm_num_groups=2, use_additional_conditions=False),
        "DPMSolverMultistepScheduler", {},
    ),
    "sana": (
        "SanaTransformer2DModel",
        dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8,
             num_layers=3, num_cross_attention_heads=2, cross_attention_head_dim=8,
             cross_attention_dim=16, caption_channels=12, sample_size=8, patch_size=1),
        "DPMSolverMultistepScheduler",
        dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ),
    "sd3": (
        "SD3Transformer2DModel",
        dict(sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8,
             num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16,
             pooled_projection_dim=10, out_channels=4, pos_embed_max_size=12),
        FLOW, dict(shift=3.0),
    ),
    "sd3-dual": (
        "SD3Transformer2DModel",
        dict(sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8,
             num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16,
             pooled_projection_dim=10, out_channels=4, pos_embed_max_size=12,
             dual_attention_layers=(0, 1), qk_norm="rms_norm"),
        FLOW, dict(shift=3.0),
    ),
    "flux": (
        "FluxTransformer2DModel",
        dict(patch_size=1, in_channels=16, num_layers=2, num_single_layers=2,
             attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12,
             pooled_projection_dim=10, guidance_embeds=True, axes_dims_rope=(2, 2, 4)),
        FLOW, dict(use_dynamic_shifting=True, shift=3.0),
    ),
    "hunyuan-dit": (
        "HunyuanDiT2DModel",
        dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2,
             sample_size=8, hidden_size=16, num_layers=6, mlp_ratio=2.0, learn_sigma=True,
             cross_attention_dim=12, cross_attention_dim_t5=16, pooled_projection_dim=14,
             text_len=5, text_len_t5=6),
        "DDPMScheduler",
        dict(beta_start=0.00085, beta_end=0.03, beta_schedule="scaled_linear",
             prediction_type="v_prediction", steps_offset=1, clip_sample=False),
    ),
    "qwen-image": (
        "QwenImageTransformer2DModel",
        dict(patch_size=2, in_channels=16, out_channels=4, num_layers=3, attention_head_dim=8,
             num_attention_heads=2, joint_attention_dim=12, axes_dims_rope=(2, 2, 4)),
        FLOW, dict(use_dynamic_shifting=True, shift_terminal=0.02, base_shift=0.5, max_shift=0.9,
                   max_image_seq_len=8192, time_shift_type="exponential"),
    ),
    "lumina2": (
        "Lumina2Transformer2DModel",
        dict(sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=3,
             num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=16,
             axes_dim_rope=(4, 2, 2), axes_lens=(64, 32, 32), cap_feat_dim=12),
        FLOW, dict(shift=6.0),
    ),
    "z-image": (
        "ZImageTransformer2DModel",
        dict(all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=16, n_layers=3,
             n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=12, axes_dims=[4, 2, 2],
             axes_lens=[128, 32, 32]),
        FLOW, dict(shift=3.0),
    ),
    "hunyuan-video": (
        "HunyuanVideoTransformer3DModel",
        dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8,
             num_layers=2, num_single_layers=2, num_refiner_layers=1, mlp_ratio=2.0, patch_size=2,
             patch_size_t=1, text_embed_dim=12, pooled_projection_dim=10, rope_axes_dim=(2, 2, 4)),
        FLOW, dict(shift=7.0),
    ),
    "ltx-video": (
        "LTXVideoTransformer3DModel",
        dict(in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8,
             cross_attention_dim=16, num_layers=3, caption_channels=12),
        FLOW, dict(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05,
                   base_image_seq_len=1024, max_image_seq_len=4096, shift_terminal=0.1),
    ),
    "wan": (
        "WanTransformer3DModel",
        dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
             out_channels=4, text_dim=12, freq_dim=16, ffn_dim=32, num_layers=3,
             rope_max_seq_len=32),
        "UniPCMultistepScheduler",
        dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ),
}  # fmt: skip

# Sizes that keep the tests quick: few tokens, yet more than one along every axis.
SHAPES = {
    "flux": (12, 16),
    "qwen-image": (12, 16),
    "z-image": (4, 6, 4),
    "lumina2": (4, 8, 4),
    "hunyuan-video": (4, 2, 4, 6),
    "ltx-video": (12, 8),
    "wan": (4, 2, 4, 6),
}


def build(name, *, seed=0):
    """Return one of ``MODELS``, every weight random and of ordinary size."""
    import diffusers

    kind, settings, _, _ = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomise(getattr(diffusers, kind)(**settings)).eval()


def randomise(model):
    """Draw every parameter anew: norms near 1, gates near a half, matrices keep the scale."""
    for name, parameter in model.named_parameters():
        if parameter.numel() == 0:
            continue
        if parameter.ndim >= 2 and "table" not in name and "token" not in name:
            fan_in = parameter[0].numel()
            torch.nn.init.normal_(parameter, std=fan_in**-0.5)
        else:
            is_norm_weight = "norm" in name and name.endswith("weight") and parameter.ndim == 1
            torch.nn.init.normal_(parameter, mean=float(is_norm_weight), std=0.3)
    return model


def save(name, folder, *, seed=0, scheduler=True, **options):
    """Write one of ``MODELS`` to ``folder`` as a pipeline's root; return the folder."""
    import diffusers

    kind, _, scheduler_kind, scheduler_settings = MODELS[name]
    build(name, seed=seed).save_pretrained(folder / "transformer", **options)
    index = {"_class_name": "SomePipeline", "transformer": ["diffusers", kind]}
    if scheduler:
        made = getattr(diffusers, scheduler_kind)(**scheduler_settings)
        made.save_pretrained(folder / "scheduler")
        index["scheduler"] = ["diffusers", scheduler_kind]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
