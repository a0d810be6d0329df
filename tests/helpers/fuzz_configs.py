"""A small valid config of every class of model, and a full one of every class of scheduler."""

from helpers.tiny_pipeline import TEXT, UNET, VAE

SMALL = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
EDM = {
    "img_resolution": 8, "in_channels": 3, "out_channels": 3, "num_blocks": 1, "attn_resolutions": [4],
    "model_channels": 8, "channel_mult": [1, 2], "channel_mult_emb": 3, "label_dim": 5, "augment_dim": 9,
    "dropout": 0.0,
}  # fmt: skip
CLIP = TEXT | {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "projection_dim": 6}
DIT = {
    "num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "in_channels": 4, "out_channels": 8,
    "patch_size": 2, "sample_size": 4, "num_embeds_ada_norm": 5, "norm_type": "ada_norm_zero", "norm_eps": 1e-5,
}  # fmt: skip
MODELS = {
    "AutoencoderKL": VAE | {"sample_size": 8, "scaling_factor": 0.2, "shift_factor": None, "latents_mean": [0.0] * 4,
                            "latents_std": [1.0] * 4, "use_quant_conv": True, "mid_block_add_attention": True},
    "BertModel": {
        "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
        "max_position_embeddings": 8, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "add_pooling_layer": True,
    },
    "CLIPTextModel": CLIP,
    "CLIPTextModelWithProjection": CLIP,
    "CLIPVisionModelWithProjection": {
        "image_size": 8, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 8, "projection_dim": 6, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
    },
    "ControlNetModel": {
        **SMALL, "attention_head_dim": 2, "cross_attention_dim": 8, "conditioning_channels": 3, "in_channels": 4,
        "conditioning_embedding_out_channels": [4, 8], "global_pool_conditions": False, "num_class_embeds": 3,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "mid_block_scale_factor": 1,
        "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0, "only_cross_attention": [False, True],
        "use_linear_projection": True, "transformer_layers_per_block": [1, 2],
    },
    "DhariwalUNet": EDM | {"model_channels": 64},
    "DiTTransformer2DModel": DIT,
    "EDM2UNet": {
        "img_resolution": 8, "img_channels": 4, "label_dim": 7, "model_channels": 64, "channel_mult": [1, 3],
        "channel_mult_noise": 2, "channel_mult_emb": 3, "num_blocks": 1, "attn_resolutions": [4], "clip_act": 256,
        "logvar_channels": 8, "channels_per_head": 32, "label_balance": 0.5, "resample_filter": [1, 1],
        "res_balance": 0.3, "dropout": 0.0,
    },
    "FluxTransformer2DModel": {
        "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "num_single_layers": 2, "in_channels": 16,
        "out_channels": 4, "axes_dims_rope": [2, 2, 4], "joint_attention_dim": 6, "pooled_projection_dim": 5,
        "guidance_embeds": True, "patch_size": 1,
    },
    "SD3Transformer2DModel": {
        "num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 4, "caption_projection_dim": 8,
        "joint_attention_dim": 6, "pooled_projection_dim": 5, "pos_embed_max_size": 4, "sample_size": 8,
        "patch_size": 2, "in_channels": 4, "out_channels": 4, "dual_attention_layers": [0, 1], "qk_norm": "rms_norm",
    },
    "SongUNet": EDM | {
        "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual", "decoder_type": "skip",
        "resample_filter": [1.0, 3.0, 3.0, 1.0],
    },
    "T2IAdapter": {
        "in_channels": 3, "channels": [4, 8], "num_res_blocks": 1, "downscale_factor": 2,
        "adapter_type": "full_adapter",
    },
    "T5EncoderModel": {
        "vocab_size": 9, "d_model": 8, "num_layers": 2, "num_heads": 2, "d_kv": 4, "d_ff": 8,
        "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8, "layer_norm_epsilon": 1e-6,
        "relative_attention_max_distance": 16,
    },
    "Transformer2DModel": DIT | {"norm_num_groups": 32, "attention_type": "default"},
    "UNet1DModel": {
        "block_out_channels": [8, 32, 32], "extra_in_channels": 16, "in_channels": 3, "out_channels": 2,
        "flip_sin_to_cos": False, "sample_size": 64, "time_embedding_dim": None,
        "down_block_types": ["DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"],
        "up_block_types": ["AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"],
    },
    "UNet2DConditionModel": UNET | {
        "transformer_layers_per_block": 1, "num_class_embeds": None, "time_cond_proj_dim": 4, "norm_eps": 1e-5,
        "mid_block_type": "UNetMidBlock2DCrossAttn", "act_fn": "silu", "dropout": 0.0, "freq_shift": 0,
        "use_linear_projection": False, "reverse_transformer_layers_per_block": None, "num_attention_heads": None,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "encoder_hid_dim": 6,
        "projection_class_embeddings_input_dim": 32, "encoder_hid_dim_type": "text_proj", "center_input_sample": True,
        "mid_block_scale_factor": 1, "downsample_padding": 1, "time_embedding_dim": 16, "only_cross_attention": False,
    },
    "UNet2DModel": {
        **SMALL, "in_channels": 3, "out_channels": 3, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "attention_head_dim": 8, "num_class_embeds": 4,
        "time_embedding_dim": 16, "add_attention": True, "sample_size": 8, "norm_eps": 1e-5, "dropout": 0.0,
        "attn_norm_num_groups": None, "resnet_time_scale_shift": "default", "mid_block_scale_factor": 1,
        "downsample_padding": 1, "time_embedding_type": "positional",
    },
    "UNet3DConditionModel": {
        "block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 12,
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"], "time_cond_proj_dim": None, "norm_eps": 1e-5,
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"], "attention_head_dim": 8, "mid_block_scale_factor": 1.3,
        "in_channels": 4, "out_channels": 4, "sample_size": 8,
    },
    "UViT": {
        "img_size": 8, "patch_size": 4, "in_chans": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 4,
        "num_classes": 5, "conv": True, "clip_dim": 6, "num_clip_token": 3, "qkv_bias": False,
    },
    "VQModel": VAE | {"latent_channels": 3, "num_vq_embeddings": 8, "vq_embed_dim": 3, "scaling_factor": 0.2},
}  # fmt: skip
MODELS = {kind: config | {"_class_name": kind} for kind, config in MODELS.items()}

# Of every field some published value; a class looks at its own. Not of the beta curve, whose quantiles are compiled.
SCHEDULER = {
    "num_train_timesteps": 40, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "trained_betas": None, "clip_sample": False, "clip_sample_range": 1.0, "prediction_type": "epsilon",
    "steps_offset": 1, "timestep_spacing": "leading", "rescale_betas_zero_snr": False, "sigma_min": 0.02,
    "sigma_max": 14.0, "sigma_data": 0.5, "rho": 7.0, "s_noise": 1.0, "solver_order": 2, "thresholding": False,
    "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0, "use_karras_sigmas": False, "shift": 3.0,
    "use_exponential_sigmas": False, "use_flow_sigmas": False, "flow_shift": 1.0,
    "final_sigmas_type": "sigma_min", "lower_order_final": True, "euler_at_final": False, "use_lu_lambdas": False,
    "lambda_min_clipped": -5.1, "predictor_order": 2, "corrector_order": 2, "disable_corrector": [0],
    "original_inference_steps": 20, "timestep_scaling": 10.0, "set_alpha_to_one": False, "skip_prk_steps": True,
    "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096,
    "use_dynamic_shifting": False, "shift_terminal": None, "invert_sigmas": False, "stochastic_sampling": False,
}  # fmt: skip


def scheduler_config(kind):
    """The fields of a scheduler's class, of which one predicts what no other does."""
    own = {"prediction_type": "trigflow"} if kind == "SCMScheduler" else {}
    return SCHEDULER | {"_class_name": kind} | own
