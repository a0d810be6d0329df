"""The loss of an autoencoder, its critic, LPIPS, and folders of new networks, against PyTorch and diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import random_weights

from jaxdiff import first_stage, interop, networks
from jaxdiff.distill import Context
from jaxdiff.first_stage.losses import Latents

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from parity.checkpoints import close, nchw, nhwc, randomize, roundtrip  # noqa: E402
from torch import nn  # noqa: E402


def tensors(tree):
    """A tree's arrays by PyTorch's names, in its layout."""
    return dict(interop.flatten(tree, lambda name: name))


TINY = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


class Patches(nn.Module):
    """PatchGAN as published, with group norms."""

    def __init__(self, inputs, channels, layers, groups):
        super().__init__()
        parts, width = [nn.Conv2d(inputs, channels, 4, 2, 1), nn.LeakyReLU(0.2)], channels
        for i in range(1, layers + 1):
            wider = channels * min(2**i, 8)
            parts += [nn.Conv2d(width, wider, 4, 2 if i < layers else 1, 1, bias=False)]
            parts += [nn.GroupNorm(groups, wider), nn.LeakyReLU(0.2)]
            width = wider
        self.main = nn.Sequential(*parts, nn.Conv2d(width, 1, 4, 1, 1))

    def forward(self, x):
        return self.main(x)


def test_the_loss_with_its_adaptive_weight(tmp_path, x64):
    """The whole gradient: of the likelihood with its log-variance, the divergence, and the critic's weighted term."""
    model = randomize(diffusers.AutoencoderKL(**TINY)).double()
    loaded = roundtrip(model, tmp_path, np.float64)
    rng = np.random.default_rng(0)
    x, s, kl_weight = rng.uniform(-1, 1, (2, 16, 16, 3)), -0.7, 0.3
    ours = networks.PatchCritic(channels=4, layers=2, groups=4, dtype=jnp.float64)
    params = jax.eval_shape(lambda key: networks.init(ours, key, x), jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape)), params)
    theirs = Patches(3, 4, 2, 4).double()
    theirs.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in tensors(params).items()})

    codec = loaded.apply

    def latents(network, x, key):  # without noise
        mean = codec.encode(network, x)[0]
        return Latents(mean, first_stage.kl_latents(codec, kl_weight)(network, x, key).penalty, {})

    losses = first_stage.autoencoder_losses(
        codec.decode,
        latents,
        lambda frozen, a, b: jnp.mean(jnp.abs(a - b), axis=(1, 2, 3)),
        critic=networks.as_apply(ours),
    )

    def loss(own):
        players = {"autoencoder": own, "critic": params}
        return losses["autoencoder"]((players, Context(jnp.int32(0), None, None)), jax.random.key(0), {"x": x})

    own = {"network": loaded.params, "log_variance": jnp.asarray(s)}

    @jax.jit
    def both(own):
        players = {"autoencoder": own, "critic": params}
        hinge, _ = losses["critic"]((players, Context(jnp.int32(0), None, None)), jax.random.key(0), {"x": x})
        return jax.value_and_grad(loss, has_aux=True)(own), hinge

    ((value, metrics), grads), ours_hinge = both(own)

    log_variance = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    posterior = model.encode(nchw(x)).latent_dist
    made = model.decode(posterior.mean).sample
    likelihood = (torch.abs(made - nchw(x)) / torch.exp(log_variance) + log_variance).sum() / len(x)
    term = -theirs(made).mean()
    kernel = model.decoder.conv_out.weight
    a, b = (torch.autograd.grad(part, kernel, retain_graph=True)[0] for part in (likelihood, term))
    weight = 0.5 * torch.clamp(a.norm() / (b.norm() + 1e-4), 0, 1e4).detach()
    total = likelihood + kl_weight * posterior.kl().sum() / len(x) + weight * term
    total.backward()
    np.testing.assert_allclose(metrics["weight"], weight.item(), rtol=1e-9)
    np.testing.assert_allclose(value, total.item(), rtol=1e-9)
    np.testing.assert_allclose(grads["log_variance"], log_variance.grad.item(), rtol=1e-9)
    expected = {name: p.grad.numpy() for name, p in model.named_parameters()}
    found = tensors(grads["network"])
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        np.testing.assert_allclose(grad, expected[name], rtol=1e-6, atol=1e-9 * np.abs(expected[name]).max() + 1e-12)

    # The critic's own loss, hinge.
    fake, real = theirs(made.detach()), theirs(nchw(x))
    hinge = (torch.relu(1 - real)).mean() + (torch.relu(1 + fake)).mean()
    np.testing.assert_allclose(ours_hinge, hinge.item(), rtol=1e-9)


PLACES = (0, 2, "pool", 5, 7, "pool", 10, 12, 14, "pool", 17, 19, 21, "pool", 24, 26, 28)
WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def lpips(state, a, b):
    """The published distance: features of five layers, of unit length, weighted, summed over layers."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]

    def features(x):
        h, found = (x - shift) / scale, []
        for place in PLACES:
            if place == "pool":
                found.append(h)
                h = nn.functional.max_pool2d(h, 2)
            else:
                h = torch.relu(
                    nn.functional.conv2d(
                        h, state[f"features.{place}.weight"], state[f"features.{place}.bias"], padding=1
                    )
                )
        return [*found, h]

    total = 0
    for i, (f, g) in enumerate(zip(features(a), features(b), strict=True)):
        f, g = (h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10) for h in (f, g))
        total = total + nn.functional.conv2d((f - g).square(), state[f"lin{i}.model.1.weight"]).mean((1, 2, 3))
    return total


def test_lpips(tmp_path):
    """With made weights, in the two files' names; the gradient, too."""
    generator = torch.Generator().manual_seed(0)
    before, state = 3, {}
    for place, width in zip([p for p in PLACES if p != "pool"], WIDTHS, strict=True):
        normal = torch.randn(width, before, 3, 3, generator=generator)
        state[f"features.{place}.weight"] = normal * (2 / (9 * before)) ** 0.5
        state[f"features.{place}.bias"] = 0.1 * torch.randn(width, generator=generator)
        before = width
    linear = {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for i, width in enumerate((64, 128, 256, 512, 512))
    }
    classifier = {"classifier.0.weight": torch.zeros(2, 3), "classifier.0.bias": torch.zeros(2)}
    for name, saved in (("vgg16.pth", state | classifier), ("lin.pth", linear)):
        torch.save(saved, tmp_path / name, _use_new_zipfile_serialization=False)
    loaded = interop.lpips(tmp_path / "vgg16.pth", tmp_path / "lin.pth")
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-1, 1, (1, 18, 17, 3)).astype(np.float32) for _ in range(2))

    def value(a, params):
        each = loaded.apply(params, a, b)
        return each.sum(), each

    (_, ours), grad = jax.jit(jax.value_and_grad(value, has_aux=True))(a, loaded.params)
    image = nchw(a).requires_grad_()
    theirs = lpips(state | linear, image, nchw(b))
    theirs.sum().backward()
    assert theirs.min() > 0.1
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4)
    largest = np.abs(grad).max()
    close(grad / largest, nhwc(image.grad) / largest, 1e-4)
    torch.save(classifier, tmp_path / "none.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"missing: lin0.model.1.weight"):
        interop.lpips(tmp_path / "vgg16.pth", tmp_path / "none.pth")


@pytest.mark.parametrize("form", ["kl", "vq"])
def test_a_new_network_is_a_folder_for_diffusers(form, tmp_path):
    codes = {"codes": 20} if form == "vq" else {}
    architecture = first_stage.Architecture(form=form, widths=(8, 16), latent_channels=3, groups=4, **codes)
    origin = first_stage.open_origin(architecture, (12, 16, 1))
    params = jax.tree.map(lambda a: a + np.float32(0.1), random_weights(origin.init, 0))
    origin.save(params, tmp_path, scale=0.5)
    model = getattr(diffusers, {"kl": "AutoencoderKL", "vq": "VQModel"}[form]).from_pretrained(tmp_path)
    assert model.config.scaling_factor == 0.5 and model.config.sample_size == 12
    x = np.random.default_rng(0).uniform(-1, 1, (2, 12, 16, 1)).astype(np.float32)

    @jax.jit
    def reconstruct(params, x):
        encoded = origin.codec.encode(params, x)
        return origin.codec.decode(params, encoded[0] if form == "kl" else encoded)

    close(reconstruct(params, x), nhwc(model(nchw(x)).sample), 1e-4)
