"""Forward and gradient of the U-Net against diffusers' UNet2DModel, weights mapped by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

# What differs between the published layouts: levels with attention, resampling, padding, embedding.
DDPM = {
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
ADM = {
    "block_out_channels": (16, 32),
    "out_channels": 6,
    "layers_per_block": 1,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "attention_head_dim": 8,
    "resnet_time_scale_shift": "scale_shift",
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "num_class_embeds": 10,
    "attn_norm_num_groups": 8,
}
PLAIN = {
    "block_out_channels": (16, 24),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
    "add_attention": False,
}
CASES = {
    "ddpm": (DDPM, networks.ddpm_cifar10(widths=(16, 32, 32), blocks=1, groups=8)),
    "adm": (
        ADM,
        networks.adm_imagenet64(widths=(16, 32), blocks=1, attention=(1,), head_dim=8, groups=8, num_classes=10),
    ),
    "plain": (PLAIN, networks.UNet(widths=(16, 24), blocks=1, mid_attention=False, groups=8)),
}


def to_torch(path, value):
    """The key and value of a parameter in the reference checkpoint."""
    *segments, leaf = (entry.key for entry in path)
    if leaf == "kernel":
        value = np.moveaxis(value, (-1, -2), (0, 1))
    if leaf == "embedding":
        value = value[:-1]  # the null class
    return ".".join([*segments, "bias" if leaf == "bias" else "weight"]), value


class DoubleEmbedding(torch.nn.Module):
    """The reference rounds the embedding of the time to float32; here it keeps double precision."""

    def __init__(self, proj):
        super().__init__()
        self.proj = proj

    def forward(self, t):
        half = self.proj.num_channels // 2
        steps = torch.arange(half, dtype=torch.float64) / (half - self.proj.downscale_freq_shift)
        angle = t.double()[:, None] * 10_000.0**-steps
        parts = [angle.cos(), angle.sin()] if self.proj.flip_sin_to_cos else [angle.sin(), angle.cos()]
        return torch.cat(parts, 1)


def reference(config, tree, dtype):
    config = {"in_channels": 3, "out_channels": 3, "norm_num_groups": 8} | config
    model = diffusers.UNet2DModel(**config).to(dtype)
    mapped = dict(to_torch(path, value) for path, value in jax.tree_util.tree_leaves_with_path(tree))
    model.load_state_dict({key: torch.tensor(value, dtype=dtype) for key, value in mapped.items()})
    if dtype == torch.float64:
        model.time_proj = DoubleEmbedding(model.time_proj)
    return model


def random_params(module, cond, rng):
    """Weights with no zeros left, as numpy float64."""
    x = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    cond = {k: jax.ShapeDtypeStruct((1,), v.dtype) for k, v in cond.items()}
    shapes = jax.eval_shape(lambda key: networks.init(module, key, x, cond), jax.random.key(0))

    def draw(path, shape):
        fan = np.prod(shape.shape[:-1]) if len(shape.shape) > 1 else 100
        return (path[-1].key == "scale") + rng.standard_normal(shape.shape) / np.sqrt(fan)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def compare(name, dtype, tolerance):
    config, module = CASES[name]
    module = module.clone(dtype=dtype)
    rng = np.random.default_rng(0)
    cond = {"label": np.array([3, 9], np.int32)} if module.num_classes else {}
    tree = random_params(module, cond, rng)
    x, weight = rng.standard_normal((2, 16, 16, 3)), rng.standard_normal((2, 16, 16, config.get("out_channels", 3)))
    noise = np.array([7.0, 731.0])
    apply = networks.as_apply(module)

    def value(params, x):
        y = apply(params, x, jnp.asarray(noise, dtype), cond)
        if module.learned_variance:
            y = jnp.concatenate([y[0], 2 * y[1] - 1], axis=-1)
        return (y * jnp.asarray(weight, dtype)).mean(), y

    cast = jax.tree.map(lambda a: jnp.asarray(a, dtype), (tree, x))
    (_, y), (param_grad, x_grad) = jax.jit(
        jax.value_and_grad(value, (0, 1), has_aux=True), compiler_options={"xla_backend_optimization_level": 0}
    )(*cast)

    kind = getattr(torch, jnp.dtype(dtype).name)
    model = reference(config, tree, kind)
    image = torch.tensor(x.transpose(0, 3, 1, 2), dtype=kind, requires_grad=True)
    label = {"class_labels": torch.tensor(cond["label"]).long()} if cond else {}
    want = model(image, torch.tensor(noise, dtype=kind), **label).sample
    (want * torch.tensor(weight.transpose(0, 3, 1, 2), dtype=kind)).mean().backward()

    got = dict(to_torch(path, np.asarray(g)) for path, g in jax.tree_util.tree_leaves_with_path(param_grad))
    wanted = {key: p.grad.numpy() for key, p in model.named_parameters()}
    assert got.keys() == wanted.keys()
    got |= {"output": y, "input gradient": x_grad}
    wanted |= {"output": want.detach().numpy().transpose(0, 2, 3, 1)}
    wanted |= {"input gradient": image.grad.numpy().transpose(0, 2, 3, 1)}
    # Relative to each array's largest element; some gradients are zero but for rounding (the keys' bias: softmax
    # doesn't see it), hence a floor for what counts as large.
    floor = 0.1 * np.median([np.abs(value).max() for value in wanted.values()])
    for key, value in wanted.items():
        error = np.abs(np.asarray(got[key]) - value).max() / max(floor, np.abs(value).max())
        assert error < tolerance, (key, error)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_float32(name):
    compare(name, jnp.float32, 5e-5)


@pytest.mark.parametrize("name", ["ddpm", *(pytest.param(n, marks=pytest.mark.slow) for n in ("adm", "plain"))])
def test_float64(name, x64):
    compare(name, jnp.float64, 1e-9)


def test_the_published_cifar10_network_has_the_reference_checkpoint_s_shapes():
    module = networks.ddpm_cifar10()
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    tree = jax.eval_shape(lambda key: networks.init(module, key, x, {}), jax.random.key(0))
    got = dict(to_torch(path, np.broadcast_to(0, a.shape)) for path, a in jax.tree_util.tree_leaves_with_path(tree))
    full = {
        "block_out_channels": (128, 256, 256, 256),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    }
    with torch.device("meta"):
        model = diffusers.UNet2DModel(**(DDPM | full))
    assert {k: v.shape for k, v in got.items()} == {k: tuple(v.shape) for k, v in model.state_dict().items()}
