"""Adapters by PEFT in PyTorch against ours: applied, merged, from files and to files."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from diffusers.loaders import lora_conversion_utils as reference  # noqa: E402
from parity.checkpoints import close, nchw, nhwc, randomize  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import jaxdiff as jd  # noqa: E402
from jaxdiff.networks import lora  # noqa: E402

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
RESNET = [*ATTENTION, "conv1", "time_emb_proj", "conv_shortcut"]


def unet_2d():
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def dit():
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
    )


def sd3():
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
    )


def unet_condition(**changes):
    config = {
        "sample_size": 8,
        "layers_per_block": 2,
        "block_out_channels": (16, 32, 32),
        "norm_num_groups": 8,
        "attention_head_dim": 2,
        "cross_attention_dim": 12,
        "transformer_layers_per_block": (1, 1, 2),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "use_linear_projection": True,
    }
    return diffusers.UNet2DConditionModel(**config | changes)


def small_unet_condition():
    """Transformers of one layer and of two."""
    levels = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
    sizes = {"block_out_channels": (16, 32), "transformer_layers_per_block": (1, 2)}
    return unet_condition(layers_per_block=1, **sizes, **levels)


def answers(model, loaded, params=None, seed=0):
    """(theirs, ours as a function of apply and parameters) on one random input of the model's kind."""
    rng = np.random.default_rng(seed)
    config = model.config
    x = rng.normal(size=(2, 8, 8, config.in_channels)).astype(np.float32)
    noise = np.array([7.0, 451.0], np.float32)
    inputs, cond = {"timestep": torch.from_numpy(noise)}, {}
    if isinstance(model, diffusers.DiTTransformer2DModel):
        cond["label"] = np.array([1, 5], np.int32)
        inputs["class_labels"] = torch.tensor([1, 5])
    if isinstance(model, diffusers.UNet2DConditionModel | diffusers.SD3Transformer2DModel):
        cond["tokens"] = rng.normal(size=(2, 6, 12)).astype(np.float32)
        inputs["encoder_hidden_states"] = torch.from_numpy(cond["tokens"])
    if isinstance(model, diffusers.SD3Transformer2DModel):
        cond["vector"] = rng.normal(size=(2, 10)).astype(np.float32)
        inputs["pooled_projections"] = torch.from_numpy(cond["vector"])
    with torch.no_grad():
        theirs = nhwc(model(nchw(x), **inputs).sample)
    return theirs, lambda apply, params: apply(params, jnp.asarray(x), jnp.asarray(noise), cond)


def adapt(model, targets=ATTENTION, rank=3, alpha=6, **options):
    """Gives a model PEFT's adapters with random numbers in both halves."""
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, **options)
    peft.inject_adapter_in_model(config, model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return peft.get_peft_model_state_dict(model), config


def plain(model, directory):
    randomize(model).save_pretrained(directory)
    return jd.interop.load(directory)


SD3 = [*ATTENTION, "add_q_proj", "to_add_out", "ff.net.0.proj", "proj_out"]
CASES = [
    pytest.param(dit, "transformer", [*ATTENTION, "proj_out_1", "ff.net.2"], id="dit"),
    pytest.param(sd3, "transformer", SD3, id="sd3", marks=pytest.mark.slow),
    pytest.param(unet_2d, "unet", RESNET, id="unet_2d", marks=pytest.mark.slow),
    pytest.param(
        small_unet_condition, "unet", [*RESNET, "ff.net.2", "proj_in"], id="unet_condition", marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("make", "name", "targets"), CASES)
def test_outputs_with_adapters(make, name, targets, tmp_path):
    model = make()
    loaded = plain(model, tmp_path / "base")
    before, ours = answers(model, loaded)
    state, _ = adapt(model, targets)
    theirs, _ = answers(model, loaded)
    assert np.abs(theirs - before).max() > 0.01
    # alpha 6, rank 3; named as diffusers' pipelines name them.
    held = {f"{name}.{key}": value.contiguous() for key, value in state.items()}
    modules = {key.removesuffix(".lora_A.weight") for key in held if key.endswith("lora_A.weight")}
    save_file(held | {f"{module}.alpha": torch.tensor(6.0) for module in modules}, tmp_path / "lora.safetensors")
    adapters = jd.interop.load_lora(tmp_path / "lora.safetensors", {name: loaded})[name]

    apply = jax.jit(loaded.apply)  # one program for all but the adapters beside the parameters
    merged = lora.merge(loaded.params, adapters)
    close(ours(apply, loaded.params), before, 5e-5)
    close(ours(apply, merged), theirs, 5e-5)
    close(ours(apply, lora.unmerge(merged, adapters)), before, 5e-5)
    close(ours(jax.jit(lora.adapted(loaded.apply)), (adapters, loaded.params)), theirs, 5e-5)

    # Ours again, in a file that PyTorch loads into a fresh model.
    jd.interop.save_lora(tmp_path / "ours", {name: adapters}, {name: loaded})
    fresh = type(model).from_pretrained(tmp_path / "base")
    tensors = load_file(tmp_path / "ours" / "pytorch_lora_weights.safetensors")
    if hasattr(fresh, "load_lora_adapter"):
        fresh.load_lora_adapter(tensors, prefix=name)
    else:
        peft.inject_adapter_in_model(peft.LoraConfig(r=3, lora_alpha=3, target_modules=targets), fresh)
        stripped = {key.removeprefix(f"{name}."): value for key, value in tensors.items()}
        result = peft.set_peft_model_state_dict(fresh, stripped)
        assert not result.unexpected_keys
    again, _ = answers(fresh.eval(), loaded)
    close(again, theirs, 5e-5)


def test_peft_directory_with_ranks_and_alphas_by_module(tmp_path):
    model = dit()
    loaded = plain(model, tmp_path / "base")
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["to_q", "to_v"],
        rank_pattern={"transformer_blocks.1.attn1.to_q": 5},
        alpha_pattern={"transformer_blocks.1.attn1.to_q": 2, "0.attn1.to_v": 7},
        use_rslora=True,
        layers_to_transform=[0, 1],
        layers_pattern="transformer_blocks",
    )
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for key, p in wrapped.named_parameters():
            if "lora_" in key:
                p.normal_(std=0.3)
    wrapped.save_pretrained(tmp_path / "adapters")
    theirs, ours = answers(model, loaded)
    adapters = jd.interop.load_lora(tmp_path / "adapters", {"transformer": loaded})["transformer"]
    # The third layer has no adapter; stacked layers give it zeros.
    pair = adapters["transformer_blocks.*"]["attn1.to_q"]["kernel"]
    assert pair["down"].shape == (3, 16, 5) and not pair["down"][2].any()
    close(ours(jax.jit(loaded.apply), lora.merge(loaded.params, adapters)), theirs, 5e-5)


def test_diffusers_own_file_with_metadata(tmp_path):
    model = sd3()
    loaded = plain(model, tmp_path / "base")
    _, config = adapt(model, ATTENTION, rank=2, alpha=5)
    model.peft_config = {"default": config}
    model._hf_peft_config_loaded = True
    model.save_lora_adapter(tmp_path / "lora")
    theirs, ours = answers(model, loaded)
    adapters = jd.interop.load_lora(tmp_path / "lora", {"transformer": loaded})["transformer"]
    close(ours(jax.jit(loaded.apply), lora.merge(loaded.params, adapters)), theirs, 5e-5)

    # The same by a pipeline, whose metadata has names.
    tensors = peft.get_peft_model_state_dict(model)
    metadata = {
        "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in {"r": 2, "lora_alpha": 5}.items()})
    }
    held = {f"transformer.{key}": value.contiguous() for key, value in tensors.items()}
    save_file(held, tmp_path / "named.safetensors", metadata)
    named = jd.interop.load_lora(tmp_path / "named.safetensors", {"transformer": loaded})["transformer"]
    jax.tree.map(np.testing.assert_array_equal, named, adapters)


def kohya(module):
    return f"lora_unet_{module.replace('.', '_')}"


# Modules of a U-Net with 2 layers a block, and how the original code names them.
MODULES = {
    "down_blocks.1.attentions.1.transformer_blocks.0.attn1.to_q": "input_blocks.5.1.transformer_blocks.0.attn1.to_q",
    "down_blocks.2.attentions.0.proj_in": "input_blocks.7.1.proj_in",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "mid_block.attentions.0.transformer_blocks.1.attn2.to_out.0": "middle_block.1.transformer_blocks.1.attn2.to_out.0",
    "mid_block.resnets.1.conv1": "middle_block.2.in_layers.2",
    "up_blocks.0.attentions.2.transformer_blocks.1.ff.net.2": "output_blocks.2.1.transformer_blocks.1.ff.net.2",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "up_blocks.2.resnets.0.conv_shortcut": "output_blocks.6.0.skip_connection",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
}


@pytest.fixture(scope="module")
def shapes():
    """A conditional U-Net without its parameters."""
    config = {**unet_condition().config, "_class_name": "UNet2DConditionModel"}
    return jd.interop.Pretrained(None, jax.eval_shape(jd.interop.architecture(config).init, jax.random.key(0)), config)


@pytest.mark.parametrize("style", ["kohya", "kohya, original names"])
def test_kohya_files_against_diffusers_converter(style, shapes, tmp_path):
    model, loaded = unet_condition(), shapes
    adapt(model, list(MODULES), rank=4)
    state = peft.get_peft_model_state_dict(model)
    held = {}
    for module in MODULES:
        name = kohya(module if style == "kohya" else MODULES[module])
        held[f"{name}.lora_down.weight"] = state[f"{module}.lora_A.weight"].contiguous()
        held[f"{name}.lora_up.weight"] = state[f"{module}.lora_B.weight"].contiguous()
        held[f"{name}.alpha"] = torch.tensor(3.0)
    save_file(held, tmp_path / "kohya.safetensors")
    adapters = jd.interop.load_lora(tmp_path / "kohya.safetensors", {"unet": loaded})
    jd.interop.save_lora(tmp_path, adapters, {"unet": loaded})
    ours = load_file(tmp_path / "pytorch_lora_weights.safetensors")

    renamed = reference._maybe_map_sgm_blocks_to_diffusers(dict(held), model.config)
    theirs, alphas = reference._convert_non_diffusers_lora_to_diffusers(renamed)
    fresh = unet_condition()
    fresh.load_lora_adapter(theirs, prefix="unet", network_alphas=alphas)
    scales = {name: m.scaling["default_0"] for name, m in fresh.named_modules() if hasattr(m, "scaling")}
    theirs = peft.get_peft_model_state_dict(fresh, adapter_name="default_0")
    assert {f"unet.{key}" for key in theirs} == set(ours) and len(ours) == 2 * len(MODULES)
    for key, value in theirs.items():
        scale = scales[key.split(".lora_")[0]] if "lora_B" in key else 1
        np.testing.assert_allclose(ours[f"unet.{key}"], value * scale, rtol=1e-6)


def test_older_names_of_diffusers(shapes, tmp_path):
    model, loaded = unet_condition(), shapes
    adapt(model, ATTENTION, rank=4)
    state = {key: value.contiguous() for key, value in peft.get_peft_model_state_dict(model).items()}
    old = {}
    for key, value in state.items():
        name = key.replace(".to_out.0.", ".to_out.").replace(".lora_A.", "_lora.down.").replace(".lora_B.", "_lora.up.")
        old["unet." + name.replace(".to_", ".processor.to_")] = value
    save_file(old, tmp_path / "old.safetensors")
    middle = {key.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): v for key, v in state.items()}
    save_file({f"unet.{key}": value for key, value in middle.items()}, tmp_path / "middle.safetensors")
    save_file(state, tmp_path / "new.safetensors")
    new, *others = (
        jd.interop.load_lora(tmp_path / f"{name}.safetensors", {"unet": loaded}) for name in ("new", "old", "middle")
    )
    assert len(jax.tree.leaves(new)) > 20
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, other, new)
    # And back, bit for bit.
    jd.interop.save_lora(tmp_path / "back", new, {"unet": loaded})
    back = load_file(tmp_path / "back" / "pytorch_lora_weights.safetensors")
    assert set(back) == {f"unet.{key}" for key in state}
    assert all(torch.equal(back[f"unet.{key}"], value) for key, value in state.items())


def test_text_encoder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, eos_token_id=49
    )
    model = randomize(transformers.CLIPTextModel(config))
    model.save_pretrained(tmp_path / "base")
    loaded = jd.interop.load(tmp_path / "base")
    state, _ = adapt(model, ["q_proj", "v_proj", "fc1"], rank=2, alpha=2)
    ids = np.array([[0, 5, 7, 49], [0, 11, 49, 49]], np.int32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids).long()).last_hidden_state.numpy()
    kohya, named = {}, {}
    for key, value in state.items():
        module, end = key.removeprefix("text_model.").split(".lora_")
        half = "down" if end.startswith("A") else "up"
        kohya[f"lora_te_text_model_{module.replace('.', '_')}.lora_{half}.weight"] = value.contiguous()
        old = (
            module.replace("q_proj", "to_q_lora").replace("v_proj", "to_v_lora").replace("fc1", "fc1.lora_linear_layer")
        )
        named[f"text_encoder.text_model.{old}.{half}.weight"] = value.contiguous()
    for held in (kohya, named):
        save_file(held, tmp_path / "x.safetensors")
        adapters = jd.interop.load_lora(tmp_path / "x.safetensors", {"text_encoder": loaded})["text_encoder"]
        ours = loaded.apply(lora.merge(loaded.params, adapters), jnp.asarray(ids))
        close(ours[0], theirs, 5e-5)


def small_unet():
    """Dense layers and convolutions, little of each."""
    return diffusers.UNet2DModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


TARGETS = ["to_q", "to_out.0", "conv1", "conv_shortcut", "downsamplers.0.conv"]
KINDS = {
    "loha": lambda: peft.LoHaConfig(r=3, alpha=6, target_modules=TARGETS),
    "loha, cores": lambda: peft.LoHaConfig(r=2, alpha=3, target_modules=TARGETS, use_effective_conv2d=True),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=6, target_modules=TARGETS, rank_pattern={"conv1": 3}),
    "lokr, whole": lambda: peft.LoKrConfig(r=99, alpha=3, target_modules=TARGETS),
    "lokr, both": lambda: peft.LoKrConfig(
        r=1, alpha=2, target_modules=TARGETS, decompose_both=True, use_effective_conv2d=True
    ),
    "dora": lambda: peft.LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, use_dora=True),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return plain(small_unet(), tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize("kind", KINDS)
def test_changes_of_no_low_rank(kind, small, tmp_path):
    """PEFT's LoHa, LoKr and DoRA, saved by it: each kernel's change, of dense layers and convolutions."""
    model = randomize(small_unet())
    wrapped = peft.get_peft_model(model, KINDS[kind]())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if any(part in name for part in ("lora_", "hada_", "lokr_")):
                p.copy_(torch.rand(p.shape, generator=generator) + 0.5 if "magnitude" in name else
                        torch.randn(p.shape, generator=generator))  # fmt: skip
    wrapped.save_pretrained(tmp_path)
    adapted = {name: m for name, m in wrapped.base_model.model.named_modules() if hasattr(m, "get_base_layer")}
    before = {name: m.get_base_layer().weight.detach().clone() for name, m in adapted.items()}
    for m in adapted.values():
        m.merge()
    want = {name: (m.get_base_layer().weight - before[name]).detach().numpy() for name, m in adapted.items()}
    assert len(want) > 8 and {change.ndim for change in want.values()} == {2, 4}

    adapters = jd.interop.load_lora(tmp_path, {"unet": small})["unet"]
    built = jd.interop.architecture(small.config)
    merged = dict(jd.interop.flatten(lora.merge(small.params, adapters), built.rename))
    plain_weights = dict(jd.interop.flatten(small.params, built.rename))
    for key, weight in plain_weights.items():
        change = want.get(key.removesuffix(".weight"))
        if change is None:
            np.testing.assert_array_equal(merged[key], weight)
        else:
            assert np.abs(change).max() > 0.01
            np.testing.assert_allclose(merged[key] - weight, change, rtol=1e-4, atol=2e-5, err_msg=key)


def converted_flux(held):
    """The reference's converter of kohya's names for Flux, in which the published width is written."""
    source = inspect.getsource(reference._convert_kohya_flux_lora_to_diffusers)
    assert source.count("[3072, 3072, 3072, 12288]") == 1
    space = dict(vars(reference))
    exec(source.replace("[3072, 3072, 3072, 12288]", "[32, 32, 32, 128]"), space)
    return space["_convert_kohya_flux_lora_to_diffusers"](dict(held))


def test_kohya_files_for_flux_against_diffusers_converter(tmp_path):
    config = {
        "_class_name": "FluxTransformer2DModel", "in_channels": 16, "num_layers": 2, "num_single_layers": 2,
        "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 8,
        "axes_dims_rope": [4, 4, 8], "guidance_embeds": True,
    }  # fmt: skip
    shapes = jax.eval_shape(jd.interop.architecture(config).init, jax.random.key(0))
    loaded, generator, held = jd.interop.Pretrained(None, shapes, config), torch.Generator().manual_seed(0), {}
    sizes = {
        "img_in": (32, 16), "txt_in": (32, 24), "time_in_in_layer": (32, 256), "vector_in_out_layer": (32, 32),
        "guidance_in_in_layer": (32, 256), "final_layer_linear": (16, 32), "final_layer_adaLN_modulation_1": (64, 32),
    }  # fmt: skip
    for i in range(2):
        for side in "img", "txt":
            parts = {"attn_qkv": (96, 32), "attn_proj": (32, 32), "mlp_0": (128, 32), "mlp_2": (32, 128)}
            parts |= {"mod_lin": (192, 32)}
            sizes |= {f"double_blocks_{i}_{side}_{part}": size for part, size in parts.items()}
        singles = {"linear1": (224, 32), "linear2": (32, 160), "modulation_lin": (96, 32)}
        sizes |= {f"single_blocks_{i}_{part}": size for part, size in singles.items()}
    for name, (out, inside) in sizes.items():
        held[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, inside, generator=generator)
        held[f"lora_unet_{name}.lora_up.weight"] = torch.randn(out, 4, generator=generator)
        if "final_layer" not in name:  # there the reference leaves alpha out
            held[f"lora_unet_{name}.alpha"] = torch.tensor(6.0)
    save_file(held, tmp_path / "kohya.safetensors")
    adapters = jd.interop.load_lora(tmp_path / "kohya.safetensors", {"transformer": loaded})
    jd.interop.save_lora(tmp_path, adapters, {"transformer": loaded})
    ours = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    theirs = {f"transformer.{key.removeprefix('transformer.')}": v for key, v in converted_flux(held).items()}
    assert ours.keys() == theirs.keys() and len(ours) == 2 * 47
    for key in (key for key in ours if "lora_B" in key):
        down = key.replace("lora_B", "lora_A")
        np.testing.assert_allclose(ours[key] @ ours[down], theirs[key] @ theirs[down], atol=1e-4, err_msg=key)
