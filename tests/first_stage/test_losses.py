"""The losses of an autoencoder and its critic: against plain differentiation, limits and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import first_stage
from jaxdiff.autoencoders import Codec, VQCodec, quantize
from jaxdiff.distill import Context
from jaxdiff.first_stage.losses import Latents

KEY, START, WEIGHT, GAP = jax.random.key(0), 3, 0.7, 0.4
COUNT = 16


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def encode(network, x):
    return (x.reshape(-1, COUNT) @ network["encoder"])[:, None, None]


def decode(network, z):
    decoder = network["decoder"]
    return (jnp.tanh(z[:, 0, 0] @ decoder["first"]) @ decoder["conv_out"]["kernel"]).reshape(-1, 4, 4, 1)


def critic(params, x, noise):
    return jnp.tanh(x.reshape(-1, COUNT) @ params)  # three logits an image


def distance(frozen, a, b):
    return jnp.mean(jnp.abs(a - b) * frozen, axis=(1, 2, 3))


def latents(network, x, key):
    z = encode(network, x)
    return Latents(z, 0.01 * jnp.sum(jnp.square(z)), {})


def of(params, step):
    return params, Context(jnp.int32(step), None, jnp.float64(1.3))


@pytest.fixture
def params(x64):
    network = {
        "encoder": draw(0, COUNT, 3),
        "decoder": {"first": draw(1, 3, 5), "conv_out": {"kernel": draw(2, 5, COUNT)}},
    }
    own = {"network": network, "log_variance": np.array(0.3)}
    return jax.tree.map(jnp.asarray, {"autoencoder": own, "critic": draw(3, COUNT, 3)})


def plain(own, params, batch, *, on, trained_variance):
    """The same loss, each term differentiated on its own: for the weight by the last kernel, and then by everything."""
    network, x = own["network"], batch["x"]
    s = own["log_variance"] if trained_variance else 0.0
    count = COUNT if trained_variance else 1
    drawn = latents(network, x, None)

    def terms(network):
        x_hat = decode(network, drawn.z)
        nll = jnp.mean(distance(1.3, x_hat, x)) * jnp.exp(-s) * count + s * count
        return nll, -jnp.mean(critic(params["critic"], x_hat, None))

    def of_kernel(kernel, i):
        inner = {**network, "decoder": {**network["decoder"], "conv_out": {"kernel": kernel}}}
        return terms(inner)[i]

    a, b = (jax.grad(of_kernel)(network["decoder"]["conv_out"]["kernel"], i) for i in range(2))
    weight = jax.lax.stop_gradient(jnp.minimum(jnp.linalg.norm(a) / (jnp.linalg.norm(b) + 1e-4), 1e4))
    nll, term = terms(network)
    gap = jnp.mean(distance(1.3, decode(network, drawn.z), jnp.zeros_like(x)))
    return nll + drawn.penalty + on * WEIGHT * weight * term + GAP * count * jax.lax.stop_gradient(jnp.exp(-s)) * gap


@pytest.mark.slow
@pytest.mark.parametrize("trained_variance", [True, False])
def test_the_loss_and_its_gradient_are_those_of_plain_differentiation(params, trained_variance, monkeypatch):
    monkeypatch.setattr("jaxdiff.first_stage.losses.transform_pair", lambda key, z, x: (z, jnp.zeros_like(x)))
    if not trained_variance:
        del params["autoencoder"]["log_variance"]
    options = {"start": START, "critic_weight": WEIGHT, "equivariance": GAP}
    losses, others = (
        first_stage.autoencoder_losses(decode, latents, distance, critic=network, **options)
        for network in (critic, None)
    )
    batch = {"x": jnp.asarray(draw(4, 6, 4, 4, 1))}

    @jax.jit
    def values(params, step):
        given = lambda own: of({**params, "autoencoder": own}, step)  # noqa: E731
        ours = lambda own: losses["autoencoder"](given(own), KEY, batch)[0]  # noqa: E731
        without = lambda own: others["autoencoder"](given(own), KEY, batch)[0]  # noqa: E731
        on, own = jnp.where(step >= START, 1.0, 0.0), params["autoencoder"]
        expected = lambda own: plain(own, params, batch, on=on, trained_variance=trained_variance)  # noqa: E731
        return [jax.value_and_grad(loss)(own) for loss in (ours, expected, without)]

    found = [values(params, step) for step in (START - 1, START)]
    for ours, expected, _ in found:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), ours, expected)
    assert abs(found[0][0][0] - found[1][0][0]) > 1e-3  # the critic's term is there
    jax.tree.map(np.testing.assert_array_equal, found[0][0], found[0][2])  # and before its start no bit of it


def test_the_weight_is_clipped():
    a, b = jnp.array([[3.0, 4.0]]), jnp.array([0.6, 0.8])
    np.testing.assert_allclose(first_stage.adaptive_weight(a, b), 5 / 1.0001, rtol=1e-6)
    assert first_stage.adaptive_weight(a, 0 * b) == 1e4  # 5 / 1e-4 is more
    assert first_stage.adaptive_weight(0 * a, b) == 0


@pytest.mark.slow
def test_the_critics_loss_is_the_hinge_and_moves_the_critic_alone(params):
    losses = first_stage.autoencoder_losses(decode, latents, distance, critic=critic)
    batch = {"x": jnp.asarray(draw(4, 6, 4, 4, 1))}
    loss = lambda params: losses["critic"](of(params, 0), KEY, batch)[0]  # noqa: E731
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    network, w = params["autoencoder"]["network"], np.asarray(params["critic"])
    made = np.asarray(decode(network, encode(network, batch["x"])))
    real, fake = (np.tanh(np.asarray(image).reshape(6, COUNT) @ w) for image in (batch["x"], made))
    np.testing.assert_allclose(value, np.mean(np.maximum(0, 1 - real) + np.maximum(0, 1 + fake)), rtol=1e-12)
    assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(grads["autoencoder"]))
    assert float(jnp.abs(grads["critic"]).max()) > 0
    assert first_stage.autoencoder_losses(decode, latents, distance).keys() == {"autoencoder"}


@pytest.mark.slow
def test_latents_of_a_posterior_and_of_a_codebook(x64):
    mean, std = jnp.array([[0.5, -1.0]]), jnp.array([[0.2, 3.0]])
    codec = Codec(lambda params, x: (jnp.repeat(mean, 4000, 0), jnp.repeat(std, 4000, 0)), None, 1, 2)
    drawn = jax.jit(first_stage.kl_latents(codec, 0.1))(None, None, KEY)
    mean, std = np.asarray(mean), np.asarray(std)
    np.testing.assert_allclose((np.asarray(drawn.z) - mean).mean(0) / std[0], 0, atol=5 / 4000**0.5)
    np.testing.assert_allclose(np.asarray(drawn.z).std(0), std[0], rtol=0.06)
    divergence = np.sum(0.5 * (np.square(mean) + np.square(std) - 1) - np.log(std))
    np.testing.assert_allclose(drawn.metrics["kl"], divergence, rtol=1e-12)
    np.testing.assert_allclose(drawn.penalty, 0.1 * divergence, rtol=1e-12)

    book = jnp.array([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]])
    z = jnp.array([[[0.1, 0.2], [0.9, 1.1]]])
    table = lambda params: params["quantize.embedding"]["embedding"]  # noqa: E731
    codec = VQCodec(lambda params, x: x, lambda params, z: quantize(table(params), z), None, None, 1, 2)

    def penalty(params, z):
        drawn = first_stage.vq_latents(codec)(params, z, KEY)
        return drawn.penalty, drawn

    params = {"quantize.embedding": {"embedding": book}}
    (moved, pulled), drawn = jax.jit(jax.grad(penalty, (0, 1), has_aux=True))(params, z)
    gaps = np.array([[0.1, 0.2], [-0.1, 0.1]])
    np.testing.assert_allclose(drawn.penalty, 1.25 * np.mean(gaps**2), rtol=1e-12)
    np.testing.assert_allclose(drawn.metrics["perplexity"], 2.0, rtol=1e-12)  # two of three codes, equally often
    np.testing.assert_allclose(table(moved), [*(-2 * gaps / 4), [0, 0]], atol=1e-12)  # the codes go to the latents
    np.testing.assert_allclose(pulled[0], 0.25 * 2 * gaps / 4, atol=1e-12)  # and a quarter as fast the other way


@pytest.mark.slow
def test_transforms_are_those_of_images_and_latents_alike():
    """A latent is the mean of its pixels: it stays so of smooth images. Constants stay, and corners turn."""
    factor, edge = 4, 16
    grid = (np.arange(factor * edge) + 0.5) / (factor * edge)
    rng = np.random.default_rng(0)
    wave = lambda: np.sin(np.add.outer(rng.uniform(1, 3) * grid, rng.uniform(1, 3) * grid) + rng.uniform(0, 6))  # noqa: E731
    x = np.stack([wave() for _ in range(16)])[..., None].astype(np.float32)
    pool = lambda x: x.reshape(len(x), -1, factor, x.shape[2] // factor, factor, 1).mean((2, 4))  # noqa: E731
    z, y = jax.jit(first_stage.transform_pair)(KEY, pool(x), x)
    assert z.shape == (16, 8, 8, 1) and y.shape == (16, 32, 32, 1)
    y = np.asarray(y)
    assert np.abs(z - pool(y)).mean() < 0.01 < np.abs(y - x[:, :32, :32]).mean()
    same = first_stage.transform_pair(KEY, np.ones((2, 4, 6, 1), np.float32), np.ones((2, 8, 12, 3), np.float32))
    for array, shape in zip(same, [(2, 2, 2, 1), (2, 4, 4, 3)], strict=True):
        assert array.shape == shape
        np.testing.assert_allclose(array, 1, rtol=1e-5)
    with pytest.raises(ValueError, match="multiple of the latents"):
        first_stage.transform_pair(KEY, z, x[:, :31])


def test_turns_are_numpys():
    from jaxdiff.first_stage.equivariance import _turned

    x = jnp.arange(18.0).reshape(3, 3, 2)
    for turn in range(4):
        np.testing.assert_array_equal(_turned(x, jnp.int32(turn)), np.rot90(x, turn))
