"""Autoencoders against diffusers' AutoencoderKL and VQModel: encode, decode, tiles, gradients, both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import autoencoders
from jaxdiff.interop.formats.keys import places

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from parity.checkpoints import close, gradients, nchw, nhwc, randomize, roundtrip  # noqa: E402

TINY = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
FLUX = TINY | {
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}
KL = {
    "stable diffusion": TINY | {"layers_per_block": 2},
    "flux": FLUX,
    "no attention": TINY | {"mid_block_add_attention": False},
    "more attention": FLUX
    | {
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    },
}
VQ = TINY | {"num_vq_embeddings": 40, "vq_embed_dim": 5, "latent_channels": 3}


def images(size=(16, 24), dtype=np.float32):
    return np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(dtype)


def load(kind, config, directory, dtype=np.float32):
    """The same model with random weights, theirs and ours."""
    model = randomize(getattr(diffusers, kind)(**config)).to(getattr(torch, np.dtype(dtype).name))
    return model, roundtrip(model, directory, dtype)


def run(function, *args):
    return np.asarray(jax.jit(function)(*args))


def compare_kl(model, loaded, x, tolerance):
    posterior = model.encode(nchw(x)).latent_dist
    for got, want in zip(jax.jit(loaded.apply.encode)(loaded.params, x), (posterior.mean, posterior.std), strict=True):
        close(got, nhwc(want), tolerance)
    z = posterior.mean
    close(run(loaded.apply.decode, loaded.params, nhwc(z)), nhwc(model.decode(z).sample), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KL if name != "flux"])  # "more attention" has its fields
def test_kl_in_float32(name, tmp_path):
    compare_kl(*load("AutoencoderKL", KL[name], tmp_path), images(), 5e-5)


def test_kl_in_float64(tmp_path, x64):
    compare_kl(*load("AutoencoderKL", KL["more attention"], tmp_path, np.float64), images(dtype=np.float64), 1e-12)


@pytest.mark.slow
def test_the_kl_term_and_its_gradient(tmp_path, x64):
    model, loaded = load("AutoencoderKL", TINY, tmp_path, np.float64)
    x = images(dtype=np.float64)
    posterior = model.encode(nchw(x)).latent_dist
    (posterior.kl().mean() + model.decode(posterior.mean).sample.square().mean()).backward()

    def loss(params):
        mean, std = loaded.apply.encode(params, x)
        return autoencoders.kl_loss(mean, std) + jnp.square(loaded.apply.decode(params, mean)).mean()

    got = gradients(loaded, loss)
    wanted = {name: p.grad.numpy() for name, p in model.named_parameters()}
    assert got.keys() == wanted.keys()
    floor = np.median([np.abs(g).max() for g in wanted.values()])  # some are zero but for rounding
    for name, want in wanted.items():
        assert np.abs(got[name] - want).max() < 1e-9 * max(floor, np.abs(want).max()), name


@pytest.mark.parametrize("kind", ["AutoencoderKL", "VQModel"])
def test_saved_it_is_theirs_again(kind, tmp_path):
    model, loaded = load(kind, VQ if kind == "VQModel" else FLUX, tmp_path / "theirs")
    jd.interop.save(loaded, tmp_path / "ours")
    again = getattr(diffusers, kind).from_pretrained(tmp_path / "ours")
    configs = [{k: v for k, v in m.config.items() if not k.startswith("_")} for m in (again, model)]
    assert configs[0] == configs[1]
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_old_names_of_the_attention(tmp_path):
    model, loaded = load("AutoencoderKL", TINY, tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in new.items():
            name = name.replace(f"attentions.0.{ours}", f"attentions.0.{theirs}")
        old[name] = tensor
    assert sum("proj_attn" in name for name in old) == 4
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(old, file)
    again = jd.interop.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


@pytest.mark.slow
def test_half_precision_stays_near(tmp_path):
    model, _ = load("AutoencoderKL", TINY, tmp_path / "single")
    x = images()
    want = nhwc(model.encode(nchw(x)).latent_dist.mean)
    half = roundtrip(model.to(torch.bfloat16), tmp_path / "half", jnp.bfloat16)
    assert {jnp.dtype(a.dtype) for a in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
    mean, std = jax.jit(half.apply.encode)(half.params, x)
    assert mean.dtype == std.dtype == jnp.float32
    close(mean, want, 0.1)


def test_vq(tmp_path):
    model, loaded = load("VQModel", VQ, tmp_path)
    x = images()
    h = model.encode(nchw(x)).latents
    close(run(loaded.apply.encode, loaded.params, x), nhwc(h), 5e-5)
    z = nhwc(h)
    latents, loss, (_, _, index) = model.quantize(h)
    got = jax.jit(loaded.apply.quantize)(loaded.params, z)
    assert len(np.unique(index)) > 5
    np.testing.assert_array_equal(np.ravel(got.indices), np.ravel(index))
    close(got.latents, nhwc(latents), 5e-5)
    np.testing.assert_array_equal(loaded.apply.lookup(loaded.params, got.indices), got.codes)
    # Their beta weighs the codebook's term, by an error that they keep; the paper's weighs the commitment.
    ours = autoencoders.commitment_loss(z, got.codes) + 0.25 * autoencoders.codebook_loss(z, got.codes)
    close(ours, loss.detach().numpy(), 5e-5)
    close(run(loaded.apply.decode, loaded.params, z), nhwc(model.decode(h).sample), 5e-5)


@pytest.mark.slow
def test_the_gradient_passes_the_codebook(tmp_path, x64):
    model, loaded = load("VQModel", VQ, tmp_path, np.float64)
    x = images(dtype=np.float64)
    h = model.encode(nchw(x)).latents
    decoded = model.decode(h).sample
    (decoded.square().mean() + model.quantize(h)[1]).backward()

    def loss(params):
        h = loaded.apply.encode(params, x)
        codes = loaded.apply.quantize(params, h).codes
        terms = autoencoders.commitment_loss(h, codes) + 0.25 * autoencoders.codebook_loss(h, codes)
        y = loaded.apply.decode(params, h)
        return jnp.square(y).mean() + terms, (h, y)

    grads, (ours, y) = jax.jit(jax.grad(loss, has_aux=True))(loaded.params)
    got = dict(jd.interop.flatten(grads, jd.interop.architecture(loaded.config).rename))
    close(ours, nhwc(h), 1e-12)
    close(y, nhwc(decoded), 1e-12)
    for name, p in model.named_parameters():
        want = p.grad.numpy()
        if name == "quantize.embedding.weight" or name.startswith("encoder.conv_in"):
            assert np.abs(want).max() > 1e-3, name
        assert np.abs(got[name] - want).max() < 1e-9 * max(1, np.abs(want).max()), name


# Tiles of 8 latents, 16 pixels, that begin every 6 latents, 12 pixels.
TILES = TINY | {"sample_size": 16}


def outside_the_corners(size, step, overlap, edge):
    """Where theirs is made of whole tiles, and faded once: not at the last, short tiles, not where four meet."""
    at = np.arange(size)
    seam = (at >= step) & (at % step < overlap)
    return (at < edge)[:, None] & (at < edge)[None] & ~(seam[:, None] & seam[None])


def test_tiles_of_the_decoder(tmp_path):
    model, loaded = load("AutoencoderKL", TILES, tmp_path)
    model.enable_tiling()
    z = np.random.default_rng(0).standard_normal((1, 20, 20, 4), np.float32)
    codec = autoencoders.tiled(loaded.apply, tile=8, overlap=2)
    got, want = run(codec.decode, loaded.params, z), nhwc(model.decode(nchw(z)).sample)
    where = outside_the_corners(40, 12, 4, 36)
    assert where.mean() > 0.75
    close(got[:, where], want[:, where], 5e-5)
    plain = run(loaded.apply.decode, loaded.params, z)
    assert np.abs(plain - want)[:, where].max() > 0.01, "tiles don't matter here"


@pytest.mark.slow
def test_tiles_of_the_encoder(tmp_path):
    model, loaded = load("AutoencoderKL", TILES, tmp_path)
    model.enable_tiling()
    x = images((40, 40))
    codec = autoencoders.tiled(loaded.apply, tile=8, overlap=2)
    posterior = model.encode(nchw(x)).latent_dist
    where = outside_the_corners(20, 6, 2, 18)
    for got, want in zip(jax.jit(codec.encode)(loaded.params, x), (posterior.mean, posterior.std), strict=True):
        close(got[:, where], nhwc(want)[:, where], 5e-5)


@pytest.mark.slow
def test_tiles_without_overlap_are_all_theirs(tmp_path):
    model, loaded = load("AutoencoderKL", TILES, tmp_path)
    model.enable_tiling()
    model.tile_overlap_factor = 0
    z = np.random.default_rng(0).standard_normal((2, 16, 24, 4), np.float32)
    codec = autoencoders.tiled(loaded.apply, tile=8, overlap=0)
    close(run(codec.decode, loaded.params, z), nhwc(model.decode(nchw(z)).sample), 5e-5)


@pytest.mark.slow
def test_the_shapes_of_the_codebook_model_of_latent_diffusion():
    config = {
        "block_out_channels": [128, 256, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 2,
        "num_vq_embeddings": 8192,
        "vq_embed_dim": 3,
    }
    with torch.device("meta"):
        model = diffusers.VQModel(**config)
    shapes = jax.eval_shape(jd.interop.architecture(config | {"_class_name": "VQModel"}).init, jax.random.key(0))
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert {name: place.shape for name, place in places(shapes, lambda key: key).items()} == wanted
