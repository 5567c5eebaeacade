"""Tiny settings of more of diffusers' transformers, which the same rules carry."""

HEADS = dict(num_attention_heads=2, attention_head_dim=8)

# fmt: off
OTHERS = {
    "AllegroTransformer3DModel": dict(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        num_layers=2, cross_attention_dim=24, sample_height=8, sample_width=8,
        sample_frames=2, caption_channels=12
    ),
    "AnyFlowTransformer3DModel": dict(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=12, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32
    ),
    "AuraFlowTransformer2DModel": dict(
        sample_size=8, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12,
        caption_projection_dim=16, out_channels=4, pos_embed_max_size=256
    ),
    "BriaFibo2Transformer2DModel": dict(
        in_channels=4, dim=24, n_layers=2, n_refiner_layers=1, n_heads=2,
        cap_feat_dim=12, injection_layer_ids=(1,), perceiver_num_layers=1,
        min_num_gist_tokens=4, max_num_gist_tokens=8, gist_step=4, gist_min_text_len=4,
        gist_max_text_len=32, axes_dims=(4, 4, 4), axes_lens=(64, 32, 32)
    ),
    "BriaFiboTransformer2DModel": dict(
        in_channels=16, num_layers=1, num_single_layers=2, joint_attention_dim=12,
        axes_dims_rope=[2, 2, 4], text_encoder_dim=8, **HEADS
    ),
    "BriaTransformer2DModel": dict(
        in_channels=16, num_layers=1, num_single_layers=2, joint_attention_dim=12,
        axes_dims_rope=[2, 2, 4], **HEADS
    ),
    "ChromaTransformer2DModel": dict(
        in_channels=16, num_layers=1, num_single_layers=2, joint_attention_dim=12,
        axes_dims_rope=(2, 2, 4), approximator_num_channels=16,
        approximator_hidden_dim=16, approximator_layers=1, **HEADS
    ),
    "ChronoEditTransformer3DModel": dict(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=12, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32
    ),
    "CogVideoXTransformer3DModel": dict(
        in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=12,
        num_layers=2, sample_width=8, sample_height=8, sample_frames=9,
        max_text_seq_length=16, use_rotary_positional_embeddings=True,
        num_attention_heads=2, attention_head_dim=16
    ),
    "CogView3PlusTransformer2DModel": dict(
        in_channels=4, out_channels=4, num_layers=2, text_embed_dim=12,
        time_embed_dim=8, condition_dim=4, pos_embed_max_size=8, sample_size=8, **HEADS
    ),
    "CogView4Transformer2DModel": dict(
        in_channels=4, out_channels=4, num_layers=2, text_embed_dim=12,
        time_embed_dim=8, condition_dim=4, sample_size=8, rope_axes_dim=(8, 8), **HEADS
    ),
    "ConsisIDTransformer3DModel": dict(
        in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=12,
        num_layers=2, sample_width=8, sample_height=8, sample_frames=9,
        max_text_seq_length=16, use_rotary_positional_embeddings=True,
        num_attention_heads=2, attention_head_dim=16
    ),
    "EasyAnimateTransformer3DModel": dict(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        patch_size=2, num_layers=2, mmdit_layers=2, time_embed_dim=8, text_embed_dim=12
    ),
    "ErnieImageTransformer2DModel": dict(
        hidden_size=16, num_attention_heads=2, num_layers=2, ffn_hidden_size=32,
        in_channels=8, out_channels=8, text_in_dim=12, rope_axes_dim=(4, 2, 2)
    ),
    "Flux2Transformer2DModel": dict(
        in_channels=16, num_layers=1, num_single_layers=2, joint_attention_dim=12,
        timestep_guidance_channels=16, axes_dims_rope=(2, 2, 2, 2), **HEADS
    ),
    "Flux3Transformer2DModel": dict(
        in_channels=16, cond_in_channels=16, num_layers=1, num_single_layers=2,
        joint_attention_dim=12, timestep_channels=16, axes_dims_rope=(2, 2, 2, 2), **HEADS
    ),
    "GlmImageTransformer2DModel": dict(
        in_channels=4, out_channels=4, num_layers=2, text_embed_dim=12,
        time_embed_dim=8, condition_dim=4, prior_vq_quantizer_codebook_size=16, **HEADS
    ),
    "HeliosTransformer3DModel": dict(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=12, freq_dim=16, ffn_dim=32, num_layers=2, rope_dim=(4, 4, 4)
    ),
    "HiDreamImageTransformer2DModel": dict(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1,
        attention_head_dim=8, num_attention_heads=2, caption_channels=[12, 10],
        text_emb_dim=14, num_routed_experts=2, num_activated_experts=1,
        axes_dims_rope=(4, 2, 2), max_resolution=(32, 32), llama_layers=[0, 1]
    ),
    "HunyuanImageTransformer2DModel": dict(
        in_channels=4, out_channels=4, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, text_embed_dim=12, text_embed_2_dim=10, rope_axes_dim=(4,
        4), **HEADS
    ),
    "HunyuanVideo15Transformer3DModel": dict(
        in_channels=9, out_channels=4, num_layers=2, num_refiner_layers=1,
        text_embed_dim=12, text_embed_2_dim=10, image_embed_dim=8, rope_axes_dim=(2, 2,
        4), **HEADS
    ),
    "JoyImageEditTransformer3DModel": dict(
        in_channels=4, hidden_size=16, num_attention_heads=2, text_dim=12, num_layers=2,
        rope_dim_list=[2, 2, 4]
    ),
    "Kandinsky5Transformer3DModel": dict(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=12, in_text_dim2=10, time_dim=8,
        model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(2,
        2, 4)
    ),
    "Kandinsky6Transformer3DModel": dict(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=12, in_text_dim2=10, time_dim=8,
        model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(2,
        2, 4), in_audio_dim=4, out_audio_dim=4
    ),
    "Krea2Transformer2DModel": dict(
        in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=32, timestep_embed_dim=16,
        text_hidden_dim=12, num_text_layers=2, text_num_attention_heads=2,
        text_num_key_value_heads=2, text_intermediate_size=16,
        num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 2, 2)
    ),
    "LatteTransformer3DModel": dict(
        in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=16,
        sample_size=8, patch_size=2, attention_bias=True,
        activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False, caption_channels=12, video_length=2, **HEADS
    ),
    "LongCatAudioDiTTransformer": dict(
        dit_dim=16, dit_depth=2, dit_heads=2, dit_text_dim=12, latent_dim=4
    ),
    "LongCatImageTransformer2DModel": dict(
        in_channels=16, num_layers=1, num_single_layers=2, joint_attention_dim=12,
        pooled_projection_dim=12, axes_dims_rope=[2, 2, 4], **HEADS
    ),
    "LuminaNextDiT2DModel": dict(
        sample_size=8, in_channels=4, hidden_size=16, num_layers=2,
        num_attention_heads=2, num_kv_heads=2, multiple_of=16, cross_attention_dim=12
    ),
    "MiniMaxMusic3Transformer1DModel": dict(
        in_channels=4, condition_dim=12, num_layers=2, num_attention_heads=2,
        attention_head_dim=8, ff_inner_dim=32, rotary_dim=4, fourier_embedding_dim=16
    ),
    "MochiTransformer3DModel": dict(
        num_attention_heads=2, attention_head_dim=8, num_layers=2,
        pooled_projection_dim=16, in_channels=4, text_embed_dim=16, time_embed_dim=4
    ),
    "MotifVideoTransformer3DModel": dict(
        in_channels=9, out_channels=4, num_layers=1, num_single_layers=1,
        text_embed_dim=12, rope_axes_dim=(2, 2, 4), **HEADS
    ),
    "NucleusMoEImageTransformer2DModel": dict(
        in_channels=16, out_channels=4, num_layers=4, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, axes_dims_rope=(2, 2, 4),
        moe_enabled=False, mlp_ratio=12.0
    ),
    "OvisImageTransformer2DModel": dict(
        in_channels=16, out_channels=16, num_layers=1, num_single_layers=2,
        joint_attention_dim=12, axes_dims_rope=(2, 2, 4), **HEADS
    ),
    "PRXTransformer2DModel": dict(
        in_channels=4, context_in_dim=12, hidden_size=16, num_heads=2, depth=2,
        axes_dim=(4, 4)
    ),
    "PriorTransformer": dict(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=8,
        num_embeddings=12, additional_embeddings=4
    ),
    "QwenImage21Transformer2DModel": dict(
        in_channels=16, out_channels=16, num_layers=2, context_in_dim=12,
        axes_dims_rope=(2, 2, 4), **HEADS
    ),
    "SanaVideoTransformer3DModel": dict(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12,
        num_layers=2, num_cross_attention_heads=2, cross_attention_head_dim=12,
        cross_attention_dim=24, caption_channels=12, sample_size=8, rope_max_seq_len=32
    ),
    "SkyReelsV2Transformer3DModel": dict(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=12, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32
    ),
    "StableAudio3DiTModel": dict(
        io_channels=4, embed_dim=64, depth=2, num_heads=2, cond_token_dim=12,
        global_cond_dim=10, local_add_cond_dim=5, timestep_features_dim=16,
        num_memory_tokens=2
    ),
    "StableAudioDiTModel": dict(
        sample_size=16, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, num_key_value_attention_heads=1, out_channels=4,
        cross_attention_dim=8, time_proj_dim=8, global_states_input_dim=16,
        cross_attention_input_dim=8
    ),
    "WanVACETransformer3DModel": dict(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=12, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
        vace_layers=[0], vace_in_channels=12
    ),
}
# fmt: on
