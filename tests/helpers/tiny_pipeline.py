"""Stable Diffusion and Flux in miniature, written without PyTorch: random weights, tokenizers of letters."""

import json

import jax
import numpy as np
from safetensors.numpy import save_file

from jaxdiff.interop import Pretrained, architecture, save
from jaxdiff.interop.models.conditional_unets import control_config

LETTERS = "abcdefghijklmnopqrstuvwxyz"
UNET = {
    "_class_name": "UNet2DConditionModel", "block_out_channels": [8], "layers_per_block": 1, "norm_num_groups": 4,
    "attention_head_dim": 2, "cross_attention_dim": 8, "sample_size": 4, "in_channels": 4, "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"],
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 4,
}  # fmt: skip
TEXT = {
    "_class_name": "CLIPTextModel", "architectures": ["CLIPTextModel"], "vocab_size": 54, "hidden_size": 8,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 8,
    "eos_token_id": 53,
}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip

FLUX = {
    "_class_name": "FluxTransformer2DModel", "in_channels": 16, "num_layers": 1, "num_single_layers": 1,
    "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8,
    "axes_dims_rope": [2, 2, 4], "guidance_embeds": True,
}  # fmt: skip
T5 = {
    "_class_name": "T5EncoderModel", "architectures": ["T5EncoderModel"], "vocab_size": 30, "d_model": 8, "d_kv": 4,
    "d_ff": 8, "num_layers": 1, "num_heads": 2, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def write(directory, *, inpainting=False, **index):
    """Makes a directory of Stable Diffusion; every parameter is random and none is 0."""
    parts = {"unet": UNET | {"in_channels": 9} if inpainting else UNET, "vae": VAE, "text_encoder": TEXT}
    return _write(directory, parts, SCHEDULER, {"_class_name": "StableDiffusionPipeline", **index})


def write_flux(directory):
    """Makes a directory of Flux."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vae = VAE | {"shift_factor": 0.06, "scaling_factor": 1.5, "use_quant_conv": False, "use_post_quant_conv": False}
    parts = {"transformer": FLUX, "vae": vae, "text_encoder": TEXT, "text_encoder_2": T5}
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    made = Tokenizer(models.Unigram([*special, *((a, -3.0) for a in LETTERS)], 2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    (directory / "tokenizer_2").mkdir(parents=True)
    made.save(str(directory / "tokenizer_2" / "tokenizer.json"))
    words = {"model_max_length": 16, "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_2" / "tokenizer_config.json").write_text(json.dumps(words))
    return _write(directory, parts, FLOW, {"_class_name": "FluxPipeline"})


def write_control(directory, seed=7):
    """Makes a directory of a ControlNet for `write`'s network."""
    config = control_config(UNET, conditioning_embedding_out_channels=[4, 6])
    _write_model(directory, config, seed)
    return directory


ADAPTER = {
    "_class_name": "T2IAdapter", "adapter_type": "full_adapter", "channels": [8], "downscale_factor": 2,
    "num_res_blocks": 1, "in_channels": 1,
}  # fmt: skip


def write_adapter(directory, seed=11):
    """Makes a directory of a T2I-Adapter for `write`'s network, whose hints are grey."""
    _write_model(directory, ADAPTER, seed)
    return directory


VISION = {
    "_class_name": "CLIPVisionModelWithProjection", "architectures": ["CLIPVisionModelWithProjection"],
    "image_size": 8, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 8, "projection_dim": 6,
}  # fmt: skip


def write_ip_adapter(directory, *, patches=False, seed=9, features=None):
    """Makes an IP-Adapter's file for `write`'s network, with an image encoder."""
    width, given = UNET["cross_attention_dim"], VISION["hidden_size" if patches else "projection_dim"]
    given = given if features is None else features
    if patches:
        shapes = {"latents": (1, 3, 8), **_resampler(8, given, width)}
    else:
        shapes = {"proj.weight": (4 * width, given), "proj.bias": (4 * width,)}
        shapes |= dict.fromkeys(_affine("norm"), (width,))
    shapes = {f"image_proj.{name}": shape for name, shape in shapes.items()}
    # Four attentions of 8 channels: one on the way down, two up, one at the bottom.
    shapes |= {f"ip_adapter.{2 * i + 1}.to_{to}_ip.weight": (8, width) for i in range(4) for to in "kv"}
    rng = np.random.default_rng(seed)
    directory.mkdir()
    save_file({k: 3 * rng.standard_normal(s, np.float32) for k, s in shapes.items()}, directory / "ip.safetensors")
    _write_model(directory / "image_encoder", VISION, seed)
    return directory / "ip.safetensors"


FACE = 5  # features of a face's embedding


def _resampler(inner, given, width):
    shapes = {
        "proj_in.weight": (inner, given),
        "proj_in.bias": (inner,),
        **dict.fromkeys(_affine("norm_out"), (width,)),
    }
    shapes |= {"proj_out.weight": (width, inner), "proj_out.bias": (width,)}
    for i in range(2):
        shapes |= {f"layers.{i}.0.{name}": (inner,) for name in _affine("norm1", "norm2")}
        shapes |= {f"layers.{i}.0.to_q.weight": (64, inner), f"layers.{i}.0.to_kv.weight": (128, inner)}
        shapes |= {f"layers.{i}.0.to_out.weight": (inner, 64), f"layers.{i}.1.1.weight": (12, inner)}
        shapes |= {f"layers.{i}.1.3.weight": (inner, 12)} | {f"layers.{i}.1.{name}": (inner,) for name in _affine("0")}
    return shapes


def write_face_adapter(file, seed=13, *, plus=False):
    """Makes the file of FaceID, or of FaceID Plus, for `write`'s network, in a folder that may be there."""
    width, rank = UNET["cross_attention_dim"], 2
    shapes = {"proj.0.weight": (2 * FACE, FACE), "proj.0.bias": (2 * FACE,), "proj.2.weight": (4 * width, 2 * FACE)}
    shapes |= {"proj.2.bias": (4 * width,), **dict.fromkeys(_affine("norm"), (width,))}
    if plus:
        resampler = _resampler(width, VISION["hidden_size"], width)
        shapes |= {f"perceiver_resampler.{name}": shape for name, shape in resampler.items()}
    shapes = {f"image_proj.{name}": shape for name, shape in shapes.items()}
    shapes |= {f"ip_adapter.{2 * i + 1}.to_{to}_ip.weight": (8, width) for i in range(4) for to in "kv"}
    for i in range(8):
        for to in ("q", "k", "v", "out"):
            shapes[f"ip_adapter.{i}.to_{to}_lora.down.weight"] = (rank, 8)
            shapes[f"ip_adapter.{i}.to_{to}_lora.up.weight"] = (8, rank)
    rng = np.random.default_rng(seed)
    file.parent.mkdir(exist_ok=True)
    save_file({k: rng.standard_normal(s, np.float32) for k, s in shapes.items()}, file)
    return file


def _affine(*norms):
    return [f"{norm}.{name}" for norm in norms for name in ("weight", "bias")]


def _write_model(directory, config, seed):
    built = architecture(config)
    leaves, tree = jax.tree.flatten(jax.eval_shape(built.init, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    drawn = [(0.2 * rng.standard_normal(leaf.shape)).astype(np.float32) for leaf in leaves]
    save(Pretrained(built.apply, jax.tree.unflatten(tree, drawn), config), directory)


def _write(directory, parts, scheduler, index):
    for number, (name, config) in enumerate(parts.items()):
        _write_model(directory / name, config, number)
    write_tokenizer(directory / "tokenizer")
    files = {
        "scheduler/scheduler_config.json": scheduler,
        "model_index.json": {"safety_checker": [None, None], **index},
    }
    for name, value in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(value))
    return directory


def write_tokenizer(directory):
    """Makes the files of a tokenizer of letters."""
    directory.mkdir(exist_ok=True)
    words = [*LETTERS, *(f"{a}</w>" for a in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 8}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
