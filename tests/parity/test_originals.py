"""EDM's, EDM2's and OpenAI's checkpoints against PyTorch: formulas of the papers written out, and diffusers."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from parity.checkpoints import close, nchw, nhwc, randomize  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from jaxdiff.interop.formats.keys import places  # noqa: E402
from jaxdiff.networks.edm2 import log_variance  # noqa: E402


class Weights:
    """The tensors of a network by name, which notes those that were used."""

    def __init__(self, tensors, prefix):
        self.tensors, self.prefix, self.used = tensors, prefix, set()

    def __contains__(self, name):
        return self.prefix + name in self.tensors

    def __getitem__(self, name):
        self.used.add(self.prefix + name)
        return self.tensors[self.prefix + name]

    def get(self, name):
        return None if self.prefix + name not in self.tensors else self[name]


def random_tensors(config, dtype):
    """Weights without zeros for every parameter of a config, by their names in its checkpoint."""
    built = jd.interop.architecture(config)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, place in places(jax.eval_shape(built.init, jax.random.key(0)), built.rename).items():
        fan = math.prod(place.shape[1:]) if len(place.shape) > 1 else 25
        noise = torch.randn(place.shape, generator=generator, dtype=dtype) / fan**0.5
        tensors[name] = noise + ("norm" in name and name.endswith("weight"))
    return tensors


def filtered(x, resample_filter, direction):
    """The outer product of the taps with itself, of sum 1 on the way down and 4 on the way up."""
    if direction is None:
        return x
    resample_filter = torch.tensor(resample_filter, dtype=x.dtype) / sum(resample_filter)
    kernel = torch.outer(resample_filter, resample_filter).expand(x.shape[1], 1, -1, -1)
    pad = len(resample_filter) // 2 - 1
    if direction == "down":
        return F.conv2d(x, kernel, stride=2, padding=pad, groups=x.shape[1])
    return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=pad, groups=x.shape[1])


def conv(w, name, x, pad=None):
    kernel = w[f"{name}.weight"]
    return F.conv2d(x, kernel, w[f"{name}.bias"], padding=kernel.shape[-1] // 2 if pad is None else pad)


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def norm(w, name, x, eps):
    return F.group_norm(x, min(32, x.shape[1] // 4), w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attended(qkv, num_heads, change=lambda a: a):
    """softmax(q k / sqrt(d)) v; a channel's q, k and v lie side by side."""
    batch, channels, *size = qkv.shape
    q, k, v = (
        change(qkv.reshape(batch, num_heads, channels // (3 * num_heads), 3, -1)[:, :, :, i]).transpose(2, 3)
        for i in range(3)
    )
    y = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1) @ v
    return y.transpose(2, 3).reshape(batch, channels // 3, *size)


def edm_block(w, name, x, emb, direction, c):
    """Karras et al. 2022, table 7 and fig. 6; c.adm: the right column."""
    adm, silu = c["adm"], F.silu
    eps, scale, num_heads = (1e-5, 1.0, x.shape[1] // 64) if adm else (1e-6, 0.5**0.5, 1)
    h = conv(w, f"{name}.conv0", filtered(silu(norm(w, f"{name}.norm0", x, eps)), c["resample_filter"], direction))
    e = linear(w, f"{name}.affine", emb)[:, :, None, None]
    if adm:
        gamma, beta = e.chunk(2, 1)
        h = norm(w, f"{name}.norm1", h, eps) * (1 + gamma) + beta
    else:
        h = norm(w, f"{name}.norm1", h + e, eps)
    h = conv(w, f"{name}.conv1", silu(h))
    x = filtered(x, c["resample_filter"], direction)
    if f"{name}.skip.weight" in w:
        x = conv(w, f"{name}.skip", x)
    x = (x + h) * scale
    if f"{name}.qkv.weight" in w:
        num_heads = x.shape[1] // 64 if adm else 1
        y = attended(conv(w, f"{name}.qkv", norm(w, f"{name}.norm2", x, eps)), num_heads)
        x = (x + conv(w, f"{name}.proj", y)) * scale
    return x


def edm_network(w, x, noise, label, augment, c):
    """Karras et al. 2022, app. F.3, with two levels of one block."""
    silu = F.silu
    width = c["features"]
    if c["fourier"]:
        angle = noise[:, None] * 2 * math.pi * w["map_noise.freqs"]
    else:
        half = torch.arange(width // 2, dtype=x.dtype)
        angle = noise[:, None] * 10_000 ** (-half / (width // 2 - (0 if c["adm"] else 1)))
    emb = torch.cat([angle.cos(), angle.sin()] if c["adm"] else [angle.sin(), angle.cos()], 1)
    one_hot = None if label is None else F.one_hot(label, c["classes"]).to(x.dtype)
    if augment is not None:
        emb = emb + linear(w, "map_augment", augment)
    if c["adm"]:
        emb = linear(w, "map_layer1", silu(linear(w, "map_layer0", emb))) + linear(w, "map_label", one_hot)
    else:
        emb = emb if label is None else emb + linear(w, "map_label", one_hot * c["classes"] ** 0.5)
        emb = linear(w, "map_layer1", silu(linear(w, "map_layer0", emb)))
    emb = silu(emb)

    def block(name, x, direction=None):
        return edm_block(w, name, x, emb, direction, c)

    aux, skips = x, [conv(w, "enc.16x16_conv", x)]
    skips.append(block("enc.16x16_block0", skips[-1]))
    h = block("enc.8x8_down", skips[-1], "down")
    if c["encoder"] == "skip":
        h = h + conv(w, "enc.8x8_aux_skip", filtered(aux, c["resample_filter"], "down"))
    if c["encoder"] == "residual":
        # The filter, without padding, after a convolution that is padded for both.
        pad = len(c["resample_filter"]) // 2 - 1
        wide = conv(w, "enc.8x8_aux_residual", aux, 1 + pad)
        resample_filter = torch.tensor(c["resample_filter"], dtype=x.dtype) / sum(c["resample_filter"])
        kernel = torch.outer(resample_filter, resample_filter).expand(wide.shape[1], 1, -1, -1)
        h = (h + F.conv2d(wide, kernel, stride=2, groups=wide.shape[1])) / 2**0.5
    skips += [h, block("enc.8x8_block0", h)]
    h = block("dec.8x8_in1", block("dec.8x8_in0", skips[-1]))
    out = 0
    for size in (8, 16):
        if size == 16:
            h = block("dec.16x16_up", h, "up")
        for i in range(2):
            h = block(f"dec.{size}x{size}_block{i}", torch.cat([h, skips.pop()], 1))
        name = f"dec.{size}x{size}_aux"
        if f"{name}_conv.weight" in w:
            out = out if size == 8 else filtered(out, c["resample_filter"], "up") if c["decoder"] == "skip" else 0
            out = out + conv(w, f"{name}_conv", silu(norm(w, f"{name}_norm", h, 1e-6)))
    return conv(w, "out_conv", silu(norm(w, "out_norm", h, 1e-5))) if c["adm"] else out


BASE = {"img_resolution": 16, "in_channels": 3, "out_channels": 3, "num_blocks": 1, "attn_resolutions": [8]}
SONG = BASE | {"_class_name": "SongUNet", "model_channels": 16, "channel_mult": [1, 2], "dropout": 0.0}
EDM = {
    "ddpm++": SONG | {"label_dim": 5, "augment_dim": 9},
    "ncsn++": SONG
    | {
        "embedding_type": "fourier",
        "channel_mult_noise": 2,
        "encoder_type": "residual",
        "resample_filter": [1.0, 3.0, 3.0, 1.0],
    },
    "skip": SONG | {"encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1.0, 3.0, 3.0, 1.0]},
    "adm": BASE
    | {"_class_name": "DhariwalUNet", "model_channels": 64, "channel_mult": [1, 2], "label_dim": 5, "dropout": 0.0},
}


def edm_case(config, dtype):
    """(file's tensors, inputs, reference): the reference is a function of the weights."""
    tensors = random_tensors(config, dtype)
    resample_filter = config.get("resample_filter", [1, 1])
    c = {
        "adm": config["_class_name"] == "DhariwalUNet",
        "features": config["model_channels"] * config.get("channel_mult_noise", 1),
        "fourier": config.get("embedding_type") == "fourier",
        "encoder": config.get("encoder_type", "standard"),
        "decoder": config.get("decoder_type", "standard"),
        "classes": config.get("label_dim", 0),
        "resample_filter": resample_filter,
    }
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 16, 16, 3)), np.array([-0.3, 0.6])
    cond = {}
    if c["classes"]:
        cond["label"] = np.array([1, 4], np.int32)
    if "augment_dim" in config:
        cond["augment"] = rng.standard_normal((2, 9))

    def reference(w):
        label = torch.from_numpy(cond["label"]).long() if "label" in cond else None
        augment = torch.from_numpy(cond["augment"]).to(dtype) if "augment" in cond else None
        return edm_network(w, nchw(x).to(dtype), torch.from_numpy(noise).to(dtype), label, augment, c)

    kernel = (
        torch.outer(torch.tensor(resample_filter), torch.tensor(resample_filter)).float() / sum(resample_filter) ** 2
    )
    buffers = {"model.enc.8x8_down.conv0.resample_filter": kernel[None, None]}
    return tensors, buffers, (x, noise, cond), reference


def run(loaded, inputs, dtype):
    x, noise, cond = inputs
    cond = {k: jnp.asarray(v, None if v.dtype == np.int32 else dtype) for k, v in cond.items()}
    return lambda params: loaded.apply(params, jnp.asarray(x, dtype), jnp.asarray(noise, dtype), cond)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n == "skip" else []) for n in EDM])
def test_edm(name, tmp_path):
    tensors, buffers, inputs, reference = edm_case(EDM[name], torch.float32)
    save_file(tensors | (buffers if name != "adm" else {}), tmp_path / "network.safetensors")
    loaded = jd.interop.load_original(tmp_path / "network.safetensors", "edm")
    w = Weights(tensors, "model.")
    close(jax.jit(run(loaded, inputs, jnp.float32))(loaded.params), nhwc(reference(w)), 5e-5)
    assert w.used == set(tensors)
    if name == "ddpm++":
        saved_equals(loaded, tensors, tmp_path / "again")


def saved_equals(loaded, tensors, directory):
    jd.interop.save(loaded, directory)
    again = load_file(directory / "diffusion_pytorch_model.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[k], tensors[k]) for k in tensors)
    config = jd.interop.architecture(json.loads((directory / "config.json").read_text()))
    assert jax.tree.structure(jax.eval_shape(config.init, jax.random.key(0))) == jax.tree.structure(loaded.params)


def test_edm_in_float64_with_gradients(tmp_path, x64):
    tensors, buffers, inputs, reference = edm_case(EDM["ncsn++"], torch.float64)
    save_file(tensors | buffers, tmp_path / "network.safetensors")
    loaded = jd.interop.load_original(tmp_path, "edm", dtype=jnp.float64)
    gradients_agree(loaded, tensors, "model.", reference, run(loaded, inputs, jnp.float64))


def gradients_agree(loaded, tensors, prefix, reference, ours):
    """Output and the gradient of its weighted mean, by parameter, to double precision."""
    for a in tensors.values():
        a.requires_grad_(True)
    y = reference(Weights(tensors, prefix))
    weight = np.random.default_rng(3).standard_normal(nhwc(y).shape)
    (y * nchw(weight)).sum().backward()
    got, grads = jax.jit(jax.value_and_grad(lambda p: (lambda y: ((y * weight).sum(), y))(ours(p)), has_aux=True))(
        loaded.params
    )
    close(got[1], nhwc(y), 1e-9)
    built = jd.interop.architecture(loaded.config)
    constants = {name for name in tensors if name.endswith((".freqs", ".phases"))}
    for name, grad in jd.interop.flatten(grads, built.rename):
        if name in constants:
            np.testing.assert_array_equal(grad, 0)
        elif tensors[name].grad is None:
            assert name.startswith("logvar_") and not np.any(grad)
        else:
            np.testing.assert_allclose(grad, tensors[name].grad.numpy(), rtol=1e-8, atol=1e-9, err_msg=name)


def unit(a, dims):
    return a / (a.square().mean(dims, keepdim=True).sqrt() + 1e-4)


def mp_linear(w, name, x, gain=1.0):
    """Karras et al. 2024, eq. 47: weights of unit magnitude, divided by the root of their number."""
    kernel = unit(w[f"{name}.weight"], tuple(range(1, w[f"{name}.weight"].ndim)))
    kernel = kernel * gain / math.prod(kernel.shape[1:]) ** 0.5
    return F.linear(x, kernel) if kernel.ndim == 2 else F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)


def mp_silu(x):
    return F.silu(x) / 0.596


def mp_sum(a, b, t):
    return ((1 - t) * a + t * b) / ((1 - t) ** 2 + t**2) ** 0.5


def mp_cat(a, b, t):
    n, m = a.shape[1], b.shape[1]
    scale = ((n + m) / ((1 - t) ** 2 + t**2)) ** 0.5
    return scale * torch.cat([(1 - t) / n**0.5 * a, t / m**0.5 * b], 1)


def mp_block(w, name, x, emb, direction, c):
    """Karras et al. 2024, fig. 21."""
    x = filtered(x, c["resample_filter"], direction)
    skip = f"{name}.conv_skip"
    if name.startswith("enc"):
        x = unit(mp_linear(w, skip, x) if f"{skip}.weight" in w else x, 1)
    h = mp_linear(w, f"{name}.conv_res0", mp_silu(x))
    e = mp_linear(w, f"{name}.emb_linear", emb, w[f"{name}.emb_gain"]) + 1
    h = mp_linear(w, f"{name}.conv_res1", mp_silu(h * e[:, :, None, None]))
    if name.startswith("dec") and f"{skip}.weight" in w:
        x = mp_linear(w, skip, x)
    x = mp_sum(x, h, c["res_balance"])
    if f"{name}.attn_qkv.weight" in w:
        qkv = mp_linear(w, f"{name}.attn_qkv", x)
        y = attended(qkv, x.shape[1] // c["channels_per_head"], lambda a: unit(a, 2))
        x = mp_sum(x, mp_linear(w, f"{name}.attn_proj", y), c["attn_balance"])
    return x.clamp(-c["clip_act"], c["clip_act"])


def mp_fourier(w, name, noise):
    return 2**0.5 * torch.cos(noise[:, None] * w[f"{name}.freqs"] + w[f"{name}.phases"])


def edm2_network(w, x, noise, label, c):
    emb = mp_linear(w, "emb_noise", mp_fourier(w, "emb_fourier", noise))
    one_hot = F.one_hot(label, c["label_dim"]).to(x.dtype) * c["label_dim"] ** 0.5
    emb = mp_silu(mp_sum(emb, mp_linear(w, "emb_label", one_hot), c["label_balance"]))

    def block(name, x, direction=None):
        return mp_block(w, name, x, emb, direction, c)

    skips = [mp_linear(w, "enc.16x16_conv", torch.cat([x, torch.ones_like(x[:, :1])], 1))]
    for name, direction in (("16x16_block0", None), ("8x8_down", "down"), ("8x8_block0", None)):
        skips.append(block(f"enc.{name}", skips[-1], direction))
    h = block("dec.8x8_in1", block("dec.8x8_in0", skips[-1]))
    for size in (8, 16):
        h = h if size == 8 else block("dec.16x16_up", h, "up")
        for i in range(2):
            h = block(f"dec.{size}x{size}_block{i}", mp_cat(h, skips.pop(), c["concat_balance"]))
    return mp_linear(w, "out_conv", h, w["out_gain"])


# What leaves no trace in the tensors, with values that differ from the published ones.
HIDDEN = {
    "channels_per_head": 16,
    "resample_filter": [1.0, 3.0, 3.0, 1.0],
    "label_balance": 0.7,
    "concat_balance": 0.4,
    "res_balance": 0.35,
    "attn_balance": 0.25,
    "clip_act": 2.0,
}
MP = BASE | HIDDEN | {"_class_name": "EDM2UNet", "img_channels": 3, "label_dim": 5, "logvar_channels": 6}
MP |= {"model_channels": 32, "channel_mult": [1, 2]}
MP = {k: v for k, v in MP.items() if k not in ("in_channels", "out_channels")}


def edm2_case(dtype):
    tensors = random_tensors(MP, dtype)
    rng = np.random.default_rng(0)
    x, noise, label = rng.standard_normal((2, 16, 16, 3)), np.array([-0.3, 0.6]), np.array([1, 4], np.int32)

    def reference(w):
        args = nchw(x).to(dtype), torch.from_numpy(noise).to(dtype), torch.from_numpy(label).long()
        return 10 * edm2_network(w, *args, MP)

    return tensors, (x, noise, {"label": label}), reference


def test_edm2(tmp_path):
    tensors, inputs, reference = edm2_case(torch.float32)
    save_file(tensors, tmp_path / "network.safetensors")
    loaded = jd.interop.load_original(tmp_path, "edm2", HIDDEN)
    w = Weights(tensors, "unet.")
    close(10 * jax.jit(run(loaded, inputs, jnp.float32))(loaded.params), nhwc(reference(w)), 5e-5)
    head = Weights(tensors, "")
    noise = torch.tensor(inputs[1], dtype=torch.float32)
    want = mp_linear(head, "logvar_linear", mp_fourier(head, "logvar_fourier", noise))[:, 0]
    close(log_variance(loaded.params, jnp.asarray(inputs[1], jnp.float32)), want.numpy(), 1e-5)
    assert w.used | head.used == set(tensors)
    saved_equals(loaded, tensors, tmp_path / "again")


@pytest.mark.slow
def test_edm2_in_float64_with_gradients(tmp_path, x64):
    tensors, inputs, reference = edm2_case(torch.float64)
    save_file(tensors, tmp_path / "network.safetensors")
    loaded = jd.interop.load_original(tmp_path, "edm2", HIDDEN, dtype=jnp.float64)
    ours = run(loaded, inputs, jnp.float64)
    gradients_agree(loaded, tensors, "unet.", reference, lambda params: 10 * ours(params))


# diffusers' ADM and OpenAI's, which are one network: names of the blocks for two levels of one block.
BLOCKS = {
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0": "input_blocks.2.0",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0": "output_blocks.1.2",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
}
INNER = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection", "group_norm": "norm", "to_out.0": "proj_out",
}  # fmt: skip
OUTER = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb", "conv_norm_out": "out.0", "conv_out": "out.2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
}  # fmt: skip


def openai_layout(state, num_heads, new_order):
    """diffusers' state dict of such a network in OpenAI's layout."""
    found = {}
    for name, tensor in state.items():
        whole, leaf = name.rsplit(".", 1)
        if whole in OUTER:
            found[f"{OUTER[whole]}.{leaf}"] = tensor
            continue
        block = next(b for b in BLOCKS if name.startswith(f"{b}."))
        inner = whole[len(block) + 1 :]
        if inner in INNER:
            value = tensor[..., None] if inner == "to_out.0" and leaf == "weight" else tensor
            found[f"{BLOCKS[block]}.{INNER[inner]}.{leaf}"] = value.contiguous()
        elif inner == "to_q":
            parts = [state[f"{block}.to_{part}.{leaf}"] for part in "qkv"]
            if not new_order:  # by head: its q, its k, its v
                parts = [p for head in zip(*(a.chunk(num_heads) for a in parts), strict=True) for p in head]
            fused = torch.cat(parts)
            found[f"{BLOCKS[block]}.qkv.{leaf}"] = fused[..., None] if leaf == "weight" else fused
    return found


ADM = {
    "in_channels": 3,
    "out_channels": 6,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "attention_head_dim": 16,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "num_class_embeds": 10,
    "attn_norm_num_groups": 32,
}
PLAIN = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "attention_head_dim": 16,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


@pytest.mark.parametrize(
    "config, given",
    [(ADM, {"num_head_channels": 16}), (PLAIN, {"num_heads": 4, "use_new_attention_order": True})],
    ids=["old-order", "new-order"],
)
def test_openai(config, given, tmp_path):
    model = randomize(diffusers.UNet2DModel(**config))
    state = model.state_dict()
    theirs = openai_layout(state, 4, given.get("use_new_attention_order", False))
    save_file(theirs, tmp_path / "network.safetensors")
    loaded = jd.interop.load_original(tmp_path, "openai", given)

    x, noise, label = np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32), [7.0, 731.0], [3, 9]
    learned = config["out_channels"] == 6
    cond = {"label": jnp.array(label)} if learned else {}
    answer = jax.jit(loaded.apply)(loaded.params, x, jnp.array(noise), cond)
    got = jnp.concatenate([answer[0], 2 * answer[1] - 1], -1) if learned else answer
    with torch.no_grad():
        labels = torch.tensor(label) if learned else None
        want = model(nchw(x), torch.tensor(noise), class_labels=labels).sample
    close(got, nhwc(want), 5e-5)

    jd.interop.save(loaded, tmp_path / "again")
    reread = jax.eval_shape(jd.interop.load(tmp_path / "again").apply, loaded.params, x, jnp.array(noise), cond)
    assert jax.tree.map(jnp.shape, reread) == jax.tree.map(jnp.shape, answer), "the same function, as its config says"
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "again").state_dict()
    assert again.keys() == state.keys() and all(torch.equal(again[k], state[k]) for k in state)
