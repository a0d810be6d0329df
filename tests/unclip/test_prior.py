"""Paths on the sphere, the scale of what a prior learns, and a prior of known Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_unclip import PICTURES, D, embedder, pairs, unit

import jaxdiff as jd
from jaxdiff import networks, parameterize, unclip
from jaxdiff.conditions import Condition
from jaxdiff.experiment import Model, Sampling
from jaxdiff.noise import normal_like
from jaxdiff.seeds import example_keys


def test_slerp_is_the_great_circle():
    share = np.linspace(0, 1, 5)
    path = unclip.slerp([2, 0, 0], [0, 0, 5], share)
    want = 2 * np.stack([np.cos(np.pi / 2 * share), 0 * share, np.sin(np.pi / 2 * share)], -1)
    np.testing.assert_allclose(path, want, atol=1e-6)
    a, b = np.random.default_rng(0).normal(size=(2, 6))
    path = unclip.slerp(a, b, share)
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), np.linalg.norm(a), rtol=1e-6)
    np.testing.assert_allclose(path[-1], b * np.linalg.norm(a) / np.linalg.norm(b), rtol=1e-5)
    cosine = np.sum(path[:-1] * path[1:], -1) / np.sum(a * a)
    np.testing.assert_allclose(cosine, cosine[0], rtol=1e-5)  # in equal steps
    np.testing.assert_allclose(unclip.slerp(a, 3 * a, share), np.tile(a, (5, 1)), rtol=1e-6)


def test_slerp_refuses_what_has_no_path():
    with pytest.raises(ValueError, match="opposite"):
        unclip.slerp([1, 0], [-2, 0], [0.5])
    with pytest.raises(ValueError, match="of some length"):
        unclip.slerp([1, 0], [0, 0], [0.5])
    with pytest.raises(ValueError, match=r"\(2,\), \(3,\)"):
        unclip.slerp([1, 0], [1, 0, 0], [0.5])


def test_a_prior_is_given_the_time_of_its_network():
    model = unclip.prior(networks.MLP(width=8), jd.processes.Flow(), embedder())
    assert float(model.prediction(jd.processes.Flow()(jnp.array(0.25))).noise) == 250
    with pytest.raises(ValueError, match=r"pass the model\.prediction of models\.of"):
        jd.losses.denoising_loss(model.apply, jd.processes.Flow(), parameterize.x0)


def test_a_text_difference_leads_from_the_first_text_to_the_second():
    image, before, after = np.eye(3) * 2
    path = unclip.text_difference(image, before, after, np.array([0, 0.5, 1]))
    start, goal = np.eye(3)[0], np.array([0, -1, 1]) / np.sqrt(2)
    np.testing.assert_allclose(path, 2 * np.stack([start, (start + goal) / np.sqrt(2), goal]), atol=1e-6)
    with pytest.raises(ValueError, match="same embedding"):
        unclip.text_difference(image, after, after, [0.5])


@pytest.mark.slow
def test_embeddings_are_as_long_as_noise_is():
    """sqrt(D), of pictures and texts, on the host and in the loss, with the parameters that the loss is given."""
    x, model = PICTURES, embedder()
    np.testing.assert_allclose(np.linalg.norm(model.embed_pictures(x), axis=1), D**0.5, rtol=1e-6)
    np.testing.assert_allclose(model.embed_texts(["b", "d"]), D**0.5 * np.eye(D)[[1, 3]], rtol=1e-6)
    seen = {}

    def loss(params, key, batch):
        seen.update(batch)
        return jnp.zeros(()), {}

    made = unclip.embedded_loss(loss, model, into="x")
    made((None, {"image_text": jnp.float32(3)}), jax.random.key(0), {"x": jnp.asarray(x), "ids": jnp.zeros(3)})
    np.testing.assert_allclose(seen["x"], 3 * D**0.5 * np.asarray(unit(x[:, 0, 0])), rtol=1e-5)
    assert seen["ids"].shape == (3,)
    unclip.embedded_loss(loss, model, into="embedding")((None, {"image_text": 1.0}), None, {"x": jnp.asarray(x)})
    assert seen["x"].shape == x.shape and seen["embedding"].shape == (3, D)
    with pytest.raises(ValueError, match="pictures must be"):
        model.embed_pictures(x[:, :, :, :3])


@pytest.mark.slow
def test_a_prior_of_known_gaussians_is_drawn_as_it_is():
    """Embeddings N(m, s^2 I) of two texts, whose exact E[x_0 | x_t] is the network: the directions' moments."""
    means, s = np.array([[3.0, 1.0], [0.0, -2.0]], np.float32), 0.7

    def apply(params, x, noise, cond):
        sigma = noise[:, None] / 1000  # the network gets 1000 t
        alpha = 1 - sigma
        gain = alpha * s**2 / (alpha**2 * s**2 + sigma**2)
        return cond["m"] + gain * (x - alpha * cond["m"])

    process = jd.processes.Flow()
    model = Model(lambda key: {}, apply, process, parameterize.time_scaled(parameterize.x0))
    condition = Condition({}, lambda index: {}, lambda words: {}, encode=lambda params, cond: {"m": params[cond["i"]]})
    sampling = Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.dpmpp_2m(), steps=32)
    draw = jax.jit(unclip.prior_sampler(model, sampling, condition))
    n = 4000
    which = np.arange(2 * n) % 2
    noise = normal_like(example_keys(0, 2 * n), jnp.zeros((2 * n, 2)))
    z = np.asarray(draw(jnp.asarray(means), noise, {"i": jnp.asarray(which)}))
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 2**0.5, rtol=1e-5)
    rng = np.random.default_rng(1)
    for i, m in enumerate(means):
        true = m + s * rng.normal(size=(200_000, 2))
        true *= 2**0.5 / np.linalg.norm(true, axis=1, keepdims=True)
        drawn = z[which == i]
        np.testing.assert_allclose(drawn.mean(0), true.mean(0), atol=5 * true.std(0).max() / n**0.5)
        np.testing.assert_allclose(np.cov(drawn.T), np.cov(true.T), atol=0.02)


@pytest.mark.slow
def test_a_direct_prior_is_the_mean_and_has_no_noise():
    """The loss is the squared error of embeddings, 1 at the start, where the network is zero."""
    encoders = embedder()
    condition = unclip.of_texts(encoders, pairs())
    model, loss = unclip.direct_prior(networks.MLP(width=8, num_blocks=1, pooled_dim=D), condition, encoders)
    params = (model.init(jax.random.key(0)), {"image_text": jnp.ones(())})
    tokens = {name: jnp.asarray(a) for name, a in encoders.model.vocabulary.tokenize(["a", "b"]).items()}
    z = encoders.embed_pictures(PICTURES[:2])
    start, _ = loss(params, jax.random.key(0), {"x": jnp.asarray(z), **tokens})
    np.testing.assert_allclose(start, 1, rtol=1e-6)
    moved = jax.tree.map(lambda a: a + 0.3, params[0]), params[1]
    draw = unclip.prior_sampler(model, None, condition)
    answer = np.asarray(model.generate(moved, None, condition.encode(moved, tokens)))
    value, _ = loss(moved, jax.random.key(1), {"x": jnp.asarray(z), **tokens})
    np.testing.assert_allclose(value, np.mean((answer - z) ** 2), rtol=1e-5)
    drawn = [np.asarray(draw(moved, jnp.full((2, D), noise), tokens)) for noise in (0.0, 1.0)]
    np.testing.assert_array_equal(*drawn)
    np.testing.assert_allclose(drawn[0], D**0.5 * answer / np.linalg.norm(answer, axis=1, keepdims=True), rtol=1e-5)
