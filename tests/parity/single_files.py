"""Tiny models of diffusers and transformers in the names of their authors, as single files have them."""

import diffusers
import numpy as np
import torch
import transformers
from parity.checkpoints import randomize

from jaxdiff.interop.models.blocks import RESNET, WHOLE, unet_blocks
from jaxdiff.interop.models.single_encoders import OPEN_BLOCK, OPEN_WHOLE
from jaxdiff.interop.models.single_networks import EMBEDDINGS, VAE_ATTENTION
from jaxdiff.interop.models.transformer_names import flux_modules, rows, sd3_modules

UNET = {
    "block_out_channels": (64, 128), "layers_per_block": 1, "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
DEEP = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (1, 2), "use_linear_projection": True,
}  # fmt: skip
VECTOR = 12 + 6 * 256


def unet(kind="1", **more):
    fields = {"cross_attention_dim": 64, "attention_head_dim": 8}
    if kind == "2":
        fields = DEEP | {"cross_attention_dim": 1024}
    elif kind == "xl":
        fields = DEEP | {
            "cross_attention_dim": 128, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": VECTOR, "transformer_layers_per_block": (1, 2),
        }  # fmt: skip
    return randomize(diffusers.UNet2DConditionModel(**UNET | fields | more), 5)


def vae(channels=4, scale=0.18215, **more):
    return randomize(
        diffusers.AutoencoderKL(
            block_out_channels=(32, 64), layers_per_block=1, latent_channels=channels, scaling_factor=scale,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **more,
        ),
        3,
    )  # fmt: skip


def clip(seed, projection=None, layers=2, act="quick_gelu"):
    config = transformers.CLIPTextConfig(
        vocab_size=56, hidden_size=64, num_hidden_layers=layers, num_attention_heads=1, intermediate_size=20,
        max_position_embeddings=12, projection_dim=projection or 64, bos_token_id=53, eos_token_id=2, pad_token_id=54,
        hidden_act=act,
    )  # fmt: skip
    kind = transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection
    return randomize(kind(config), seed)


def sd3(channels=4, **more):
    fields = {
        "sample_size": 128, "patch_size": 2, "in_channels": channels, "out_channels": channels, "num_layers": 2,
        "attention_head_dim": 64, "num_attention_heads": 1, "caption_projection_dim": 64, "joint_attention_dim": 128,
        "pooled_projection_dim": 76, "pos_embed_max_size": 8,
    }  # fmt: skip
    return randomize(diffusers.SD3Transformer2DModel(**fields | more), 5)


def flux(channels=4, **more):
    fields = {
        "in_channels": 4 * channels, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 32,
        "num_attention_heads": 2, "joint_attention_dim": 64, "pooled_projection_dim": 64, "axes_dims_rope": (4, 14, 14),
        "guidance_embeds": True,
    }  # fmt: skip
    return randomize(diffusers.FluxTransformer2DModel(**fields | more), 5)


def state(model, prefix=""):
    """A model's tensors; those of transformers' text model as transformers 4 named them."""
    found = {}
    for name, tensor in model.state_dict().items():
        if isinstance(model, transformers.CLIPTextModel) and not name.startswith("text_model."):
            name = f"text_model.{name}"
        if not name.endswith(("position_ids", "embed_tokens.weight")):  # the latter is T5's "shared"
            found[prefix + name] = tensor.contiguous()
    return found


def original_unet(model, prefix="model.diffusion_model."):
    c = model.config
    attending = {i for i, kind in enumerate(c.down_block_types) if kind.startswith("Cross")}
    blocks = unet_blocks(len(c.block_out_channels), c.layers_per_block, attending)
    embedding = {f"add_embedding.{ours}": theirs for theirs, ours in EMBEDDINGS.items()}
    found = {}
    for name, tensor in state(model).items():
        module, leaf = name.rsplit(".", 1)
        theirs = (WHOLE | embedding).get(module)
        if theirs is None:
            block = next(block for block in blocks if module.startswith(f"{block}."))
            part = module.removeprefix(f"{block}.")
            theirs = f"{blocks[block]}." + (RESNET | {"conv": "op" if "down" in block else "conv"}).get(part, part)
        found[f"{prefix}{theirs}.{leaf}"] = tensor
    return found


def original_vae(model, prefix="first_stage_model."):
    last = len(model.config.block_out_channels) - 1
    pairs = [
        *((f"encoder.down_blocks.{i}.", f"encoder.down.{i}.") for i in range(last + 1)),
        *((f"decoder.up_blocks.{i}.", f"decoder.up.{last - i}.") for i in range(last + 1)),
        ("samplers.0", "sample"), ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0", "mid.attn_1"), ("resnets", "block"), ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
        *((f"attn_1.{ours}.", f"attn_1.{theirs}.") for theirs, ours in VAE_ATTENTION.items()),
    ]  # fmt: skip
    found = {}
    for name, tensor in state(model).items():
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        # Attention is of positions, by convolutions.
        found[prefix + name] = tensor[:, :, None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor
    return found


def original_open_clip(model, prefix, more_layers=0):
    held = {name: tensor for name, tensor in state(model).items() if ".self_attn." not in name or "out_proj" in name}
    whole = {ours: theirs for theirs, ours in OPEN_WHOLE.items()}
    block = {ours: theirs for theirs, ours in OPEN_BLOCK.items()}
    found = {}
    for name, tensor in held.items():
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T.contiguous()
        elif name in whole:
            found[whole[name]] = tensor
        else:
            number, rest = name.removeprefix("text_model.encoder.layers.").split(".", 1)
            module, leaf = rest.rsplit(".", 1)
            found[f"transformer.resblocks.{number}.{block[module]}.{leaf}"] = tensor
    for i in range(model.config.num_hidden_layers):
        for leaf in "weight", "bias":
            own = [state(model)[f"text_model.encoder.layers.{i}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            found[f"transformer.resblocks.{i}.attn.in_proj_{leaf}"] = torch.cat(own)
    last = model.config.num_hidden_layers - 1
    for name, tensor in list(found.items()):
        for i in range(more_layers):
            if f".resblocks.{last}." in name:
                found[name.replace(f".{last}.", f".{last + 1 + i}.")] = 2 * tensor
    return {prefix + name: tensor.contiguous() for name, tensor in found.items()} | {
        f"{prefix}logit_scale": torch.ones(())
    }


def original_transformer(model, prefix="model.diffusion_model."):
    is_flux = isinstance(model, diffusers.FluxTransformer2DModel)
    modules = (flux_modules if is_flux else sd3_modules)(model.config)
    held, found = state(model), {}
    for theirs, sharing in modules.items():
        for leaf in "weight", "bias":
            if f"{next(iter(sharing))}.{leaf}" not in held:
                continue
            own = {module: held[f"{module}.{leaf}"] for module in sharing}
            total = sum(len(tensor) for tensor in own.values())
            first = next(iter(own.values()))
            whole = torch.empty(total, *first.shape[1:], device=first.device)
            for module, tensor in own.items():
                whole[torch.from_numpy(rows(total, sharing, module)).to(first.device)] = tensor
            end = "scale" if theirs.endswith(("query_norm", "key_norm")) else leaf
            found[f"{prefix}{theirs}.{end}"] = whole
    return found if is_flux else found | {f"{prefix}pos_embed": held["pos_embed.pos_embed"]}


def equal(got, want):
    """Holds tensors of ours, read, equal to torch's by name and number."""
    assert got.keys() == want.keys(), sorted(got.keys() ^ want.keys())
    for name, tensor in want.items():
        np.testing.assert_array_equal(np.asarray(got[name][()]), tensor.numpy(), err_msg=name)
