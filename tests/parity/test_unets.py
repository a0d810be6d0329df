"""U-Nets loaded from diffusers' directories: equal outputs and gradients, and saved back equal tensors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from parity.checkpoints import close, lift, nchw, nhwc, randomize, roundtrip  # noqa: E402

from jaxdiff.interop.formats.keys import places  # noqa: E402
from jaxdiff.interop.models.conditional_unets import control_config  # noqa: E402
from jaxdiff.networks.configs import sdxl_vector  # noqa: E402
from jaxdiff.networks.controlnet import controlled, copy_encoder  # noqa: E402
from jaxdiff.networks.layers import upsample  # noqa: E402

# What differs between the published layouts: levels with attention, resampling, padding, embedding.
DDPM = {
    "block_out_channels": (16, 32),
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
ADM = {
    "block_out_channels": (16, 32),
    "out_channels": 6,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "num_class_embeds": 10,
    "attn_norm_num_groups": 8,
}
PLAIN = {
    "in_channels": 5,
    "block_out_channels": (16, 24),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "add_attention": False,
}
# The input skips and output skips, the filter, the divided sums; the attention's 32 groups need these widths.
NCSNPP = {
    "block_out_channels": (64, 64, 64),
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "time_embedding_type": "fourier",
    "mid_block_scale_factor": 2**0.5,
    "norm_num_groups": None,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
    "class_embed_type": "timestep",
}
# Fields that don't touch each other: several in one network.
NUMBERED = ADM | {
    "attn_norm_num_groups": None,
    "class_embed_type": "timestep",
    "time_embedding_type": "learned",
    "num_train_timesteps": 800,
    "num_class_embeds": None,
    "center_input_sample": True,
    "mid_block_scale_factor": 1.4,
    "time_embedding_dim": 24,
}
BOTTOMLESS = PLAIN | {"mid_block_type": None, "class_embed_type": "identity", "time_embedding_type": "fourier"}
UNCONDITIONAL = {"ddpm": DDPM, "adm": ADM, "plain": PLAIN}
RARE = {"ncsnpp": NCSNPP, "numbered": NUMBERED, "bottomless": BOTTOMLESS}

# Two levels at most: what matters is that they differ.
SD1 = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 12,
}
SD2 = SD1 | {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "upcast_attention": True,
}
XL = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 3),
    "cross_attention_dim": 20,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 10 + 6 * 8,
}
UPSCALER = SD2 | {"in_channels": 7, "only_cross_attention": (True, False), "num_class_embeds": 10}
# An embedding of a picture and one of the guidance don't touch each other.
DISTILLED_UNCLIP = SD1 | {
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 14,
    "time_cond_proj_dim": 6,
}
# Kolors' projection of the tokens, and SSD-1B's transformers, each of its own depth, without any at the bottom.
PRUNED = XL | {
    "encoder_hid_dim": 14,
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [0, [2]],
    "reverse_transformer_layers_per_block": [[1, 2], 0],
}
# BK-SDM has no bottom; AudioLDM has its vector beside the embedding, and no tokens.
SMALLER = SD1 | {
    "layers_per_block": (1, 2),
    "mid_block_type": None,
    "act_fn": "gelu",
    "class_embed_type": "simple_projection",
    "class_embeddings_concat": True,
    "projection_class_embeddings_input_dim": 14,
    "cross_attention_dim": (16, 32),
    "time_embedding_dim": 24,
    "center_input_sample": True,
}
JOINT = {
    "block_out_channels": (16, 32),
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "attention_head_dim": 8,
    "resnet_time_scale_shift": "scale_shift",
    "cross_attention_dim": 32,
}
# Both stages of DeepFloyd IF in one; Karlo has less.
IF = JOINT | {
    "in_channels": 3,
    "out_channels": 6,
    "act_fn": "gelu",
    "encoder_hid_dim": 24,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "cross_attention_norm": "group_norm",
    "class_embed_type": "timestep",
    "only_cross_attention": (False, True),
    "time_embedding_act_fn": "gelu",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1.4,
    "mid_block_scale_factor": 1.3,
}
KANDINSKY_1 = JOINT | {
    "encoder_hid_dim": 24,
    "encoder_hid_dim_type": "text_image_proj",
    "addition_embed_type": "text_image",
    "time_embedding_type": "fourier",
}
KANDINSKY_2 = JOINT | {"encoder_hid_dim": 24, "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"}
CONDITIONAL = {"sd1": SD1, "xl": XL, "upscaler": UPSCALER, "distilled unclip": DISTILLED_UNCLIP}
RARE |= {
    "pruned": PRUNED, "smaller": SMALLER, "if": IF, "kandinsky 2.1": KANDINSKY_1, "kandinsky 2.2": KANDINSKY_2,
}  # fmt: skip
SMALL = {"layers_per_block": 1, "norm_num_groups": 8}
NOISE = np.array([7.0, 731.0])


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


class Case:
    """A model, an input and a condition, for both sides."""

    def __init__(self, name):
        fields = (UNCONDITIONAL | CONDITIONAL | RARE)[name]
        conditional = "cross_attention_dim" in fields
        kind = diffusers.UNet2DConditionModel if conditional else diffusers.UNet2DModel
        self.model = randomize(kind(**SMALL | fields))
        config = self.model.config
        self.channels = min(config.in_channels, config.out_channels)
        self.learned = config.time_embedding_type == "learned"
        self.x, self.noise, self.cond, self.extra = normal(0, 2, 8, 8, self.channels), NOISE, {}, {}
        if config.num_class_embeds:
            self.cond["label"] = np.array([3, 9], np.int32)
            self.extra["class_labels"] = torch.tensor(self.cond["label"]).long()
        if config.class_embed_type == "identity":
            self.cond["vector"] = normal(4, 2, 64)
            self.extra["class_labels"] = torch.tensor(self.cond["vector"])
        if config.class_embed_type == "timestep":
            self.cond["label"] = np.array([250.0, 3.0])
            self.extra["class_labels"] = torch.tensor(self.cond["label"])
        if config.in_channels > self.channels:
            self.cond["concat"] = normal(1, 2, 8, 8, config.in_channels - self.channels)
        if conditional:
            self.conditions(config)

    def conditions(self, config):
        if not isinstance(config.cross_attention_dim, int):
            self.extra["encoder_hidden_states"] = None
            self.cond["vector"] = normal(4, 2, 14)
            self.extra["class_labels"] = torch.tensor(self.cond["vector"])
            return
        dim = config.encoder_hid_dim or config.cross_attention_dim
        tokens, image = normal(2, 2, 5, dim), normal(6, 2, dim)
        self.extra["encoder_hidden_states"] = torch.tensor(tokens)
        added = config.addition_embed_type
        if added != "image":
            self.cond["tokens"] = tokens
        if added == "text_time":
            pooled, sizes = normal(3, 2, 10), np.array([[64, 48, 0, 8, 64, 64], [512, 9, 1, 0, 32, 16]], np.float64)
            self.cond |= {"pooled": pooled, "sizes": sizes}
            self.extra["added_cond_kwargs"] = {"text_embeds": torch.tensor(pooled), "time_ids": torch.tensor(sizes)}
        if added == "image":
            self.cond["image"] = image
            self.extra["added_cond_kwargs"] = {"image_embeds": torch.tensor(image)}
        if added == "text_image":
            self.cond |= {"image": normal(6, 2, 32), "vector": normal(4, 2, 32)}
            both = {"image_embeds": self.cond["image"], "text_embeds": self.cond["vector"]}
            self.extra["added_cond_kwargs"] = {name: torch.tensor(a) for name, a in both.items()}
        if config.class_embed_type == "projection":
            self.cond["vector"] = normal(4, 2, 14)
            self.extra["class_labels"] = torch.tensor(self.cond["vector"])
        if config.time_cond_proj_dim:
            self.cond["guidance"] = np.array([1.5, 8.0])
            angle = 1000 * (self.cond["guidance"][:, None] - 1) * 10_000.0 ** (-np.arange(3) / 2)
            self.extra["timestep_cond"] = torch.tensor(np.concatenate([np.sin(angle), np.cos(angle)], 1))

    def ours(self, apply, params, dtype=jnp.float32, **more):
        """Our answer."""
        args = self.x, self.noise, self.cond | more
        x, noise, cond = jax.tree.map(lambda a: jnp.asarray(a, dtype if a.dtype == np.float64 else None), args)
        if "pooled" in cond:
            cond["vector"] = sdxl_vector(cond.pop("pooled"), cond.pop("sizes"), 8)
        y = apply(params, x, noise, cond)
        if self.model.config.out_channels == 2 * self.model.config.in_channels:  # F and the place of its variance
            return jnp.concatenate([y[0], 2 * y[1] - 1], -1)
        return y

    def theirs(self, dtype=torch.float32, **more):
        """The reference's, and the input that it saw."""
        parts = [self.x, self.cond["concat"]] if "concat" in self.cond else [self.x]
        image = nchw(np.concatenate(parts, -1)).to(dtype).requires_grad_()
        noise, extra = jax.tree.map(
            lambda a: a.to(dtype) if a.is_floating_point() else a, (torch.tensor(self.noise), self.extra | more)
        )
        if self.learned:  # a table has rows, of the noise and of a label
            noise, extra = jax.tree.map(torch.Tensor.long, (noise, extra))
        return self.model(image, noise, **extra).sample, image


def compiled(function):
    """Jitted without LLVM's optimizations: what runs here is tiny."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def fast(names, *chosen):
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]


def test_forward_and_saved_back_in_float32(tmp_path):
    case = Case("adm")
    loaded = roundtrip(case.model, tmp_path / "theirs")
    got = compiled(lambda params: case.ours(loaded.apply, params))(loaded.params)
    close(got, nhwc(case.theirs()[0]), 5e-5)
    saved(loaded, case.model, tmp_path / "ours")


def saved(loaded, model, directory):
    """Holds that the directory that we write gives the reference back, bit for bit."""
    jd.interop.save(loaded, directory)
    back = type(model).from_pretrained(directory)
    ours, theirs = (json.loads(m.to_json_string()) for m in (back, model))
    assert ours | {"_name_or_path": None} == theirs | {"_name_or_path": None}
    theirs = model.state_dict()
    assert theirs.keys() == back.state_dict().keys()
    for key, value in back.state_dict().items():
        assert torch.equal(value, theirs[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", RARE)
def test_rare_ones_in_float64(name, tmp_path, x64, monkeypatch):
    lift(monkeypatch)
    case = Case(name)
    case.model.double()
    case.model.save_pretrained(tmp_path / "theirs")
    loaded = jd.interop.load(tmp_path / "theirs", dtype=jnp.float64)
    got = compiled(lambda params: case.ours(loaded.apply, params, jnp.float64))(loaded.params)
    with torch.no_grad():
        close(got, nhwc(case.theirs(torch.float64)[0]), 1e-12)
    saved(loaded, case.model, tmp_path / "ours")


# "sd1" is "distilled unclip" but for inputs, and Stable Diffusion 2 so "upscaler".
@pytest.mark.parametrize("name", fast([*UNCONDITIONAL, "xl", "upscaler", "distilled unclip"], "ddpm"))
def test_forward_gradients_and_saved_back_in_float64(name, tmp_path, x64, monkeypatch):
    lift(monkeypatch)
    case = Case(name)
    loaded = compare_gradients(case, case.model.double(), tmp_path / "theirs", jnp.float64, 1e-12)
    saved(loaded, case.model, tmp_path / "ours")


@pytest.mark.slow
def test_forward_gradients_and_saved_back_in_float32(tmp_path):
    case = Case("xl")
    loaded = compare_gradients(case, case.model, tmp_path / "theirs", jnp.float32, 5e-5)
    saved(loaded, case.model, tmp_path / "ours")


def compare_gradients(case, model, directory, dtype, tolerance):
    model.save_pretrained(directory)
    loaded = jd.interop.load(directory, dtype=dtype, param_dtype=dtype)
    weight = normal(9, 2, 8, 8, case.model.config.out_channels)

    def loss(params):
        y = case.ours(loaded.apply, params, dtype)
        return (y * jnp.asarray(weight, dtype)).mean(), y

    grads, y = compiled(jax.grad(loss, has_aux=True))(loaded.params)
    want, _ = case.theirs(getattr(torch, jnp.dtype(dtype).name))
    (want * nchw(weight).to(want.dtype)).mean().backward()
    close(y, nhwc(want), tolerance)
    same_gradients(loaded, grads, model, tolerance)
    return loaded


def same_gradients(loaded, grads, model, tolerance):
    got = dict(jd.interop.flatten(grads, jd.interop.architecture(loaded.config).rename))
    wanted = {key: p.grad.numpy() for key, p in model.named_parameters()}
    assert got.keys() == wanted.keys()
    # Relative to each array's largest element; some gradients are zero but for rounding (a key's bias: softmax
    # doesn't see it), hence a floor for what counts as large.
    floor = 0.1 * np.median([np.abs(value).max() for value in wanted.values()])
    for key, value in wanted.items():
        if key.endswith("to_k.bias") and value.dtype == np.float32:
            continue  # nothing but rounding: double precision tells
        error = np.abs(got[key] - value).max() / max(floor, np.abs(value).max())
        assert error < tolerance, (key, error)


def control_case(name, **changes):
    """A case, a ControlNet for its U-Net, and a hint."""
    case = Case(name)
    config = {k: v for k, v in case.model.config.items() if not k.startswith("_")}
    config = json.loads(json.dumps(control_config(config, conditioning_channels=2, **changes)))
    kind = config.pop("_class_name")
    net = randomize(getattr(diffusers, kind)(**config, conditioning_embedding_out_channels=(4, 6)), seed=1)
    return case, net, normal(5, 2, 16, 16, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pooled"), [("xl", False), ("sd1", True)])
def test_controlnet(name, pooled, tmp_path):
    case, control, hint = control_case(name, global_pool_conditions=pooled)
    unet, ours = (roundtrip(m, tmp_path / p) for m, p in ((case.model, "unet"), (control, "control")))
    scale = np.linspace(0.3, 1, 5, dtype=np.float32) if name == "xl" else np.float32(0.7)
    weight = normal(9, 2, 8, 8, 4)

    def loss(params):
        apply = controlled(ours.apply, unet.apply, scale)
        y = case.ours(apply, {"controlnet": params, "unet": unet.params}, hint=hint)
        return (y * jnp.asarray(weight, jnp.float32)).mean(), y

    grads, y = compiled(jax.grad(loss, has_aux=True))(ours.params)

    extra = jax.tree.map(lambda a: a.float() if a.is_floating_point() else a, case.extra)
    noise = torch.tensor(NOISE).float()
    residuals = control(nchw(case.x).float(), noise, controlnet_cond=nchw(hint).float(), **extra)
    values = [*residuals.down_block_res_samples, residuals.mid_block_res_sample]
    *down, mid = (r * float(s) for r, s in zip(values, np.broadcast_to(scale, len(values)), strict=True))
    steered, _ = case.theirs(down_block_additional_residuals=down, mid_block_additional_residual=mid)
    (steered * nchw(weight).float()).mean().backward()
    close(y, nhwc(steered), 5e-5)
    assert np.abs(nhwc(steered) - nhwc(case.theirs()[0])).max() > 0.1
    same_gradients(ours, grads, control, 5e-5)
    saved(ours, control, tmp_path / "ours")


def test_a_new_controlnet_starts_as_the_reference_s(tmp_path):
    model = Case("xl").model
    unet = roundtrip(model, tmp_path / "unet")
    config = control_config(unet.config, conditioning_embedding_out_channels=[4, 6])
    built = jd.interop.architecture(config)
    drawn = jax.tree.map(lambda a: jnp.full(a.shape, 7.0), jax.eval_shape(built.init, jax.random.key(0)))
    ours = jd.interop.Pretrained(built.apply, copy_encoder(drawn, unet.params), config)
    jd.interop.save(ours, tmp_path / "control")
    got = diffusers.ControlNetModel.from_pretrained(tmp_path / "control")
    want = diffusers.ControlNetModel.from_unet(model, conditioning_embedding_out_channels=(4, 6))
    same = [json.loads(m.to_json_string()) | {"_name_or_path": None} for m in (got, want)]
    assert same[0] == same[1]
    for key, value in want.state_dict().items():
        copied = torch.equal(got.state_dict()[key], value)
        assert copied == (not key.startswith("controlnet_")), key


def test_the_published_cifar10_network_has_the_reference_checkpoint_s_shapes():
    full = DDPM | {
        "block_out_channels": (128, 256, 256, 256),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    }
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    tree = jax.eval_shape(lambda key: jd.networks.init(jd.networks.ddpm_cifar10(), key, x, {}), jax.random.key(0))
    got = {key: place.shape for key, place in places(tree, lambda key: key).items()}
    with torch.device("meta"):
        model = diffusers.UNet2DModel(**full)
    assert got == {k: tuple(v.shape) for k, v in model.state_dict().items()}


def test_the_nearest_neighbour_of_any_size():
    for n, m in ((3, 5), (3, 6), (8, 17), (1, 1), (4, 3)):
        x = torch.arange(2.0 * n).reshape(1, 2, n)
        want = torch.nn.functional.interpolate(x, size=m, mode="nearest")
        np.testing.assert_array_equal(upsample(jnp.asarray(nhwc(x)), (m,)), nhwc(want))


def test_sizes_that_no_level_halves(tmp_path):
    """The way up goes to the sizes of the way down: 17 x 15, 9 x 8, 5 x 4."""
    config = SD1 | {"block_out_channels": (8, 16, 16), "norm_num_groups": 4, "layers_per_block": 1}
    config |= {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
    model = diffusers.UNet2DConditionModel(**config)
    ours = roundtrip(randomize(model, 5), tmp_path)
    x = torch.randn((2, 4, 17, 15), generator=torch.Generator().manual_seed(1))
    tokens = torch.randn((2, 3, 12), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        want = model(x, torch.tensor([3, 500]), tokens).sample
    noise, cond = jnp.array([3.0, 500.0]), {"tokens": jnp.asarray(tokens.numpy())}
    close(jax.jit(ours.apply)(ours.params, jnp.asarray(nhwc(x)), noise, cond), nhwc(want), 1e-5)


@pytest.mark.slow
def test_dance_diffusion_in_float64(tmp_path, x64):
    fields = {"block_out_channels": (8, 32, 32), "extra_in_channels": 16, "in_channels": 3, "flip_sin_to_cos": False}
    model = randomize(diffusers.UNet1DModel(**fields)).double()
    loaded = roundtrip(model, tmp_path / "theirs", jnp.float64)
    x, noise = normal(0, 2, 64, 3), np.array([0.3, 0.9])
    with torch.no_grad():
        want = nhwc(model(nchw(x), torch.tensor(noise)).sample)
    close(compiled(loaded.apply)(loaded.params, x, noise), want, 1e-12)
    saved(loaded, model, tmp_path / "ours")
