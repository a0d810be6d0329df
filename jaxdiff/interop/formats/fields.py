"""Types, ranges and lengths of the fields of other projects' configs, by name.

The bounds are at least ten times what any published model has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxdiff.schema import FLAG, WORD, Kind, choice, each, either, number, optional, whole_number

__all__ = ["COUNT", "DEPTH", "FIELDS", "NONE_OR_MORE", "PER_LEVEL", "SIDE", "SIZE", "SIZES", "TIMES", "check_layers"]

FACTOR, SHARE = number(1e-9, 1e9), number(0.0, 1.0)  # a positive factor; a part of one
SIZE = whole_number(1, 2**20)  # channels, features, ids
COUNT = whole_number(1, 10_000)  # heads and groups, and what else is a few
SIDE = whole_number(1, 2**14)  # of pictures and latents
DEPTH, LAYERS = whole_number(1, 100), whole_number(1, 1000)  # layers in a block; layers in a row
VOCABULARY = whole_number(1, 10**7)
SIZES, LEVELS = each(SIZE, 16), each(WORD, 16)  # by level of resolution
NONE_OR_MORE = whole_number(0, 2**20)
TIMES = whole_number(1, 100_000)  # of a schedule, of a text
PER_LEVEL = {kind: either(kind, each(kind, 16)) for kind in (SIZE, COUNT, DEPTH)}
DEPTHS = whole_number(0, 100)  # of a block that may be left out
NESTED = either(DEPTHS, each(either(DEPTHS, each(DEPTHS, 100)), 16))

# Numbers of layers that have tensors; those of the second set are numbers per level of resolution.
ROWS = {"depth", "num_hidden_layers", "num_layers", "num_single_layers"}
BLOCKS = {"layers_per_block", "num_blocks", "num_res_blocks"}


def _named(kind: Kind, names: str) -> dict[str, Kind]:
    return dict.fromkeys(names.split(), kind)


FIELDS: dict[str, Kind] = {
    # Networks, autoencoders and text encoders.
    **_named(
        FLAG,
        "add_attention add_pooling_layer center_input_sample class_embeddings_concat conv conv_resample "
        "flip_sin_to_cos global_pool_conditions guidance_embeds mid_block_add_attention "
        "mid_block_only_cross_attention resblock_updown resnet_skip_time_act use_linear_projection "
        "use_new_attention_order use_post_quant_conv use_quant_conv use_scale_shift_norm",
    ),
    **_named(
        optional(WORD),
        "act_fn addition_embed_type beta_schedule class_embed_type decoder_type embedding_type encoder_hid_dim_type "
        "encoder_type final_sigmas_type mid_block_type norm_type prediction_type sigma_schedule time_embedding_act_fn "
        "time_embedding_type",
    ),
    **_named(
        SIZE,
        "attention_head_dim caption_projection_dim channels_per_head conditioning_channels cross_attention_dim d_ff "
        "d_kv d_model embed_dim hidden_size img_channels in_channels in_chans intermediate_size joint_attention_dim "
        "latent_channels model_channels num_channels num_vq_embeddings out_channels pooled_projection_dim "
        "projection_dim",
    ),
    **_named(
        optional(SIZE),
        "addition_time_embed_dim clip_dim encoder_hid_dim num_class_embeds projection_class_embeddings_input_dim "
        "time_cond_proj_dim time_embedding_dim vq_embed_dim",
    ),
    **_named(NONE_OR_MORE, "augment_dim concat_channels extra_in_channels label_dim logvar_channels"),
    **_named(VOCABULARY, "vocab_size"),
    **_named(
        COUNT,
        "addition_embed_type_num_heads channel_mult_emb channel_mult_noise downscale_factor norm_num_groups "
        "num_attention_heads num_heads patch_size relative_attention_num_buckets type_vocab_size",
    ),
    **_named(whole_number(-1, 2**20), "num_classes"),
    **_named(either(choice(-1), SIZE), "num_head_channels"),  # -1: as many as make the heads that are given
    **_named(LAYERS, " ".join(ROWS)),
    **_named(DEPTH, " ".join(BLOCKS)),
    **_named(NESTED, "transformer_layers_per_block"),
    **_named(optional(NESTED), "reverse_transformer_layers_per_block"),
    **_named(SIZES, "block_out_channels channels conditioning_embedding_out_channels axes_dims_rope"),
    **_named(each(SIZE, 16, 0), "attn_resolutions"),
    **_named(each(whole_number(0, 15), 16, 0), "attention_levels"),
    **_named(each(whole_number(0, 999), 1000, 0), "dual_attention_layers"),
    **_named(LEVELS, "down_block_types up_block_types"),
    **_named(either(FLAG, each(FLAG, 16)), "only_cross_attention"),
    **_named(SIDE, "image_size img_resolution img_size pos_embed_max_size"),
    **_named(optional(either(SIDE, each(SIDE, 2, 2))), "sample_size"),
    **_named(TIMES, "max_position_embeddings num_clip_token num_embeds_ada_norm relative_attention_max_distance"),
    **_named(whole_number(0, 10**7), "eos_token_id"),
    **_named(whole_number(0, 1000), "freq_shift"),
    **_named(SHARE, "attn_balance concat_balance dropout label_balance res_balance"),
    **_named(SHARE, "layer_norm_eps layer_norm_epsilon norm_eps"),
    **_named(FACTOR, "clip_act mid_block_scale_factor resnet_out_scale_factor scaling_factor"),
    **_named(number(1, 1000), "mlp_ratio"),
    **_named(optional(number(-1e9, 1e9)), "shift_factor"),
    **_named(optional(each(number(-1e9, 1e9), 2**20)), "latents_mean"),
    **_named(optional(each(FACTOR, 2**20)), "latents_std"),
    **_named(each(number(1e-3, 1000), 16), "channel_mult"),
    **_named(each(FACTOR, 64), "resample_filter"),
    # Schedulers.
    **_named(
        FLAG,
        "clip_denoised clip_sample euler_at_final invert_sigmas lower_order_final predict_x0 rescale_betas_zero_snr "
        "set_alpha_to_one set_alpha_to_zero skip_prk_steps stochastic_sampling thresholding use_beta_sigmas "
        "use_dynamic_shifting use_exponential_sigmas use_flow_sigmas use_karras_sigmas use_lu_lambdas",
    ),
    **_named(TIMES, "base_image_seq_len max_image_seq_len num_train_timesteps original_inference_steps"),
    **_named(whole_number(-100_000, 100_000), "steps_offset"),
    **_named(each(SHARE, 100_000), "trained_betas"),
    **_named(SHARE, "beta_end beta_start dynamic_thresholding_ratio"),
    **_named(FACTOR, "clip_sample_range rho sample_max_value sigma_data timestep_scaling"),
    **_named(number(1e-3, 1e3), "flow_shift shift"),
    **_named(number(-10.0, 10.0), "base_shift max_shift"),
    **_named(number(0.0, 0.999), "shift_terminal"),
    **_named(number(0.0, 1e9), "s_noise sigma_max sigma_min"),
    **_named(number(-math.inf, 1e9), "lambda_min_clipped"),
    **_named(whole_number(1, 30), "corrector_order predictor_order solver_order"),
    **_named(each(whole_number(0, 100_000), 100_000, 0), "disable_corrector"),
}


def check_layers(config: Mapping[str, Any], tensors: int) -> None:
    """Check that a config has no more layers than there are tensors, before the network is traced layer by layer.

    Args:
        config: the fields.
        tensors: number of tensors in the file, which bounds the time of tracing.

    Raises:
        ValueError: there are more layers.
    """
    widths = config.get("block_out_channels") or config.get("channel_mult")
    levels = len(widths) if isinstance(widths, list | tuple) else 1
    total = 0
    for name in ROWS | BLOCKS:
        value = config.get(name)
        if isinstance(value, list | tuple):
            total += sum(n for n in value if isinstance(n, int))
        elif isinstance(value, int):
            total += value * (levels if name in BLOCKS else 1)
    if total > tensors:
        raise ValueError(f"the config asks for {total} layers, and there are {tensors} tensors")
