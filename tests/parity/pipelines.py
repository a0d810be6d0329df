"""Tiny pipelines of diffusers with random weights, for the comparisons of whole pipelines."""

import json

import diffusers
import torch
import transformers
from parity.checkpoints import randomize

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROMPTS = ["a red cat", "the sea at night"]
NEGATIVE = ["blurry", "dark"]
CHANNELS = 4  # of the latents
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# U-Nets of several levels are compared in `test_unets`.
CROSS = {
    "block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",),
    "sample_size": 8, "out_channels": CHANNELS,
}  # fmt: skip
TWO_LEVELS = {
    "block_out_channels": (8, 16), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


def clip_tokenizer(folder, pad="<|endoftext|>"):
    """Of letters, each a token, and a word's last letter another."""
    folder.mkdir()
    words = [*LETTERS, *(f"{a}</w>" for a in LETTERS), "!</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, pad_token=pad, model_max_length=12)


def t5_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    made = Tokenizer(models.Unigram([*special, *((a, -3.0) for a in LETTERS)], 2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )


def clip(seed, width=16, projection=None):
    config = transformers.CLIPTextConfig(
        vocab_size=56, hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=12, projection_dim=projection or 16, bos_token_id=53, eos_token_id=54, pad_token_id=54,
    )  # fmt: skip
    kind = transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection
    return randomize(kind(config), seed)


def t5(width=16):
    config = transformers.T5Config(
        vocab_size=30, d_model=width, d_kv=8, d_ff=20, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return randomize(transformers.T5EncoderModel(config), 7)


def vae(channels=CHANNELS, **more):
    return randomize(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            sample_size=16, **more,
        ),
        3,
    )  # fmt: skip


def stable_diffusion(folder, scheduler, in_channels=CHANNELS, kind=diffusers.StableDiffusionPipeline, **more):
    unet = diffusers.UNet2DConditionModel(**(CROSS | more), in_channels=in_channels, cross_attention_dim=16)
    return kind(
        vae=vae(), text_encoder=clip(1), tokenizer=clip_tokenizer(folder / "words"), unet=randomize(unet, 5),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def xl(folder, scheduler, zeros):
    unet = diffusers.UNet2DConditionModel(
        **CROSS, in_channels=CHANNELS, cross_attention_dim=40, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=12 + 6 * 8,
        transformer_layers_per_block=(2,), use_linear_projection=True,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip(1), text_encoder_2=clip(2, 24, 12), tokenizer=clip_tokenizer(folder / "words"),
        tokenizer_2=clip_tokenizer(folder / "words2", pad="!</w>"), unet=randomize(unet, 5), scheduler=scheduler,
        force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip


def refiner(folder, scheduler):
    """XL's: the second text encoder alone, and an aesthetic score."""
    unet = diffusers.UNet2DConditionModel(
        **CROSS, in_channels=CHANNELS, cross_attention_dim=24, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=12 + 5 * 8, use_linear_projection=True,
    )  # fmt: skip
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=vae(), text_encoder=None, text_encoder_2=clip(2, 24, 12), tokenizer=None,
        tokenizer_2=clip_tokenizer(folder / "words2", pad="!</w>"), unet=randomize(unet, 5), scheduler=scheduler,
        requires_aesthetics_score=True, force_zeros_for_empty_prompt=False, add_watermarker=False,
    )  # fmt: skip


def sd3(folder, scheduler, with_t5, channels=CHANNELS):
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=channels, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        caption_projection_dim=16, joint_attention_dim=32, pooled_projection_dim=20, out_channels=channels,
        pos_embed_max_size=8,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        vae=vae(channels, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5),
        text_encoder=clip(1, projection=8), text_encoder_2=clip(2, 16, 12), text_encoder_3=t5(32) if with_t5 else None,
        tokenizer=clip_tokenizer(folder / "words"), tokenizer_2=clip_tokenizer(folder / "words2", pad="!</w>"),
        tokenizer_3=t5_tokenizer() if with_t5 else None, transformer=randomize(transformer, 5), scheduler=scheduler,
    )  # fmt: skip


def flux(folder, scheduler, told):
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4 * CHANNELS, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=told,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        vae=vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5),
        text_encoder=clip(1), text_encoder_2=t5(32), tokenizer=clip_tokenizer(folder / "words"),
        tokenizer_2=t5_tokenizer(), transformer=randomize(transformer, 5), scheduler=scheduler,
    )  # fmt: skip


def latents(height=8, width=8, channels=CHANNELS):
    return torch.randn((2, channels, height, width), generator=torch.Generator().manual_seed(11))
