"""A Stable Diffusion in miniature, written without PyTorch: random weights, a tokenizer of letters."""

import json

import jax

from jaxdiff.interop import Pretrained, architecture, save

LETTERS = "abcdefghijklmnopqrstuvwxyz"
UNET = {
    "_class_name": "UNet2DConditionModel", "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
    "attention_head_dim": 2, "cross_attention_dim": 8, "sample_size": 4, "in_channels": 4, "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
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


def write(directory, **index):
    """Makes the directory; every parameter is random and none is 0."""
    parts = {"unet": UNET, "vae": VAE, "text_encoder": TEXT}
    for number, (name, config) in enumerate(parts.items()):
        built = architecture(config)
        shapes = jax.eval_shape(built.init, jax.random.key(0))
        leaves, tree = jax.tree.flatten(shapes)
        keys = jax.random.split(jax.random.key(number), len(leaves))
        drawn = [0.2 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        save(Pretrained(built.apply, jax.tree.unflatten(tree, drawn), config), directory / name)
    write_tokenizer(directory / "tokenizer")
    files = {
        "scheduler/scheduler_config.json": SCHEDULER,
        "model_index.json": {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None], **index},
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
