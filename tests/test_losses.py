"""losses: their minima on Gaussian data, where the exact network is known; equalities; what reaches the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import losses, parameterize, times, weights
from jaxdiff.processes import EDM, VE, VP, Cosine, Discrete, Flow, SubVP

MEAN, STD = 0.4, 0.6
ROWS = {
    "eps": parameterize.eps,
    "x0": parameterize.x0,
    "v": parameterize.v,
    "velocity": parameterize.velocity,
    "score": parameterize.score,
    "edm": parameterize.edm(0.5),
}
KEY = jax.random.key(0)
slow = pytest.mark.slow


def _told_t(prediction):
    return parameterize.with_noise_input(prediction, lambda level: level.t)


def _network(process, prediction):
    """The exact F of N(MEAN, STD^2) data; params = (a, b) add a + b x to its x0_hat."""

    def apply(params, inp_x, t, cond):
        level = process(t).expand_to(inp_x)
        s = prediction(level)
        x = inp_x / s.inp
        gain = level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)
        x0 = MEAN + gain * (x - level.alpha * MEAN) + params[0] + params[1] * x
        return (x0 - s.skip * x) / s.out

    return apply


def _data(seed=0, n=512, d=4):
    return {"x": MEAN + STD * jax.random.normal(jax.random.key(seed), (n, d))}


ZERO = (jnp.zeros(()), jnp.zeros(()))


def _many(loss, params, n=64):
    """Mean and its standard error of loss and gradient over n keys and batches."""

    def one(key):
        data_key, key = jax.random.split(key)
        return jax.value_and_grad(lambda p: loss(p, key, {"x": MEAN + STD * jax.random.normal(data_key, (128, 4))})[0])(
            params
        )

    values = jax.jit(jax.vmap(one))(jax.random.split(KEY, n))
    return [(np.mean(v), np.std(v, ddof=1) / np.sqrt(n)) for v in map(np.asarray, jax.tree.leaves(values))]


def _variance(process, t):
    """Var[x_0 | x_t] of the Gaussian data, and the level in numpy."""
    level = process(jnp.asarray(t))
    alpha, sigma = np.asarray(level.alpha, np.float64), np.asarray(level.sigma, np.float64)
    return STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2), alpha, sigma


MIDPOINTS = (0.05 + 0.9 * (np.arange(2000) + 0.5) / 2000).astype(np.float32)


@pytest.mark.parametrize(
    ("process", "prediction"),
    [
        (VE(), "edm"),
        (Flow(), "velocity"),
        *(pytest.param(VP(), prediction, marks=slow) for prediction in ("eps", "score")),
        *(pytest.param(*case, marks=slow) for case in ((SubVP(), "v"), (Cosine(), "x0"))),
    ],
)  # fmt: skip
def test_the_exact_network_is_the_minimum(process, prediction):
    """The loss is the mean over t of Var[x_0 | x_t] / out^2, the gradient vanishes, and any change costs more."""
    variance, alpha, sigma = _variance(process, MIDPOINTS)
    out2 = {  # the error of F in terms of the error of x_0, each by its own definition
        "eps": (sigma / alpha) ** 2,
        "x0": 1.0,
        "v": (sigma / (alpha**2 + sigma**2)) ** 2,
        "velocity": (sigma / (alpha + sigma)) ** 2,
        "score": (sigma**2 / alpha) ** 2,
        "edm": sigma**2 * 0.25 / (sigma**2 + 0.25),
    }[prediction]
    exact = np.mean(variance / out2)
    told = _told_t(ROWS[prediction])
    loss = losses.denoising_loss(_network(process, told), process, told, times=times.stratified(0.05, 0.95))
    (value, error), *grads = _many(loss, ZERO)
    assert abs(value - exact) < 4 * error + 1e-4 * exact and error < 0.03 * exact
    for grad, grad_error in grads:
        assert abs(grad) < 4 * grad_error
    changes = 0.05 * jnp.array([[0.0, 1, -1, 0, 0], [0.0, 0, 0, 1, -1]])
    least, *worse = jax.jit(jax.vmap(lambda a, b: loss((a, b), KEY, _data())[0]))(*changes)
    assert all(value > least for value in worse)


def test_metrics_and_types():
    told = _told_t(parameterize.v)
    twice = lambda level: 2 * weights.snr_plus_one(level)  # noqa: E731
    loss = losses.denoising_loss(_network(VP(), told), VP(), told, weight=twice)
    value, metrics = jax.jit(loss)(ZERO, KEY, _data())
    assert value.shape == metrics["mse"].shape == () and value.dtype == jnp.float32
    np.testing.assert_allclose(value, 2 * metrics["mse"], rtol=1e-5)


@pytest.mark.slow
def test_one_denoiser_has_one_loss_whatever_the_network_predicts(x64):
    """With a weight of the error of x_0, networks that encode the same (imperfect) denoiser lose the same."""
    params, batch = (0.1, 0.2), jax.tree.map(lambda x: x.astype(float), _data(n=16))
    made = (weights.min_snr(), weights.likelihood(SubVP()))

    def all_weights(prediction):
        apply = _network(SubVP(), prediction)
        return [losses.denoising_loss(apply, SubVP(), prediction, weight=w)(params, KEY, batch)[0] for w in made]

    values = np.array(
        [jax.jit(lambda prediction=prediction: all_weights(prediction))() for prediction in map(_told_t, ROWS.values())]
    )
    np.testing.assert_allclose(values, np.broadcast_to(values[0], values.shape), rtol=1e-8)
    assert len(set(values[0])) == len(made)


@pytest.mark.parametrize(
    ("prediction", "weight"),
    [
        ("eps", weights.simple),
        ("v", weights.snr_plus_one),
        pytest.param("x0", lambda level: 1 + 0 * level.alpha, marks=slow),
        pytest.param("edm", weights.edm(0.5), marks=slow),
    ],
)
def test_unweighted_is_the_simple_loss_of_the_paper(prediction, weight, x64):
    told, batch = _told_t(ROWS[prediction]), jax.tree.map(lambda x: x.astype(float), _data(n=16))
    apply = _network(VP(), told)
    plain, weighted = (
        jax.jit(losses.denoising_loss(apply, VP(), told, weight=w))((0.1, 0.2), KEY, batch)[0] for w in (None, weight)
    )
    np.testing.assert_allclose(plain, weighted, rtol=1e-8)


def _fixed(t):
    """A distribution of t that is one value, or one value per example."""
    return lambda key, batch: (jnp.broadcast_to(jnp.asarray(t, jnp.float32), (batch,)), jnp.ones(batch))


@pytest.mark.parametrize(
    ("prediction", "expected"), [("eps", lambda snr: min(snr, 5) / snr), ("v", lambda snr: min(snr, 5) / (snr + 1))]
)
@pytest.mark.parametrize("t", [0.05, 0.9])
def test_min_snr_multiplies_the_error_of_the_prediction(prediction, expected, t):
    """Hang et al. 2023: min(SNR, g) / SNR on eps, min(SNR, g) / (SNR + 1) on v."""
    snr = float(VP()(jnp.float32(t)).snr)
    apply = lambda p, x, noise, cond: 0.3 * x  # noqa: E731
    loss = losses.denoising_loss(apply, VP(), ROWS[prediction], weight=weights.min_snr(5.0), times=_fixed(t))
    value, metrics = jax.jit(loss)({}, KEY, _data())
    np.testing.assert_allclose(value / metrics["mse"], expected(snr), rtol=1e-4)


def test_x_t_is_noised_as_the_level_says():
    """Regressing what the network sees on x_0 gives alpha, and leaves sigma; it is told its own t."""
    seen = {}

    def apply(params, x, noise, cond):
        seen.update(x=x, noise=noise)
        return x

    x0 = jnp.repeat(jnp.array([[-1.0], [2.0]]), 4000, 1)
    t = jnp.array([0.3, 0.7])
    losses.denoising_loss(apply, VP(), parameterize.eps, times=_fixed(t))({}, KEY, {"x": x0})
    level = VP()(t)
    np.testing.assert_allclose(jnp.mean(seen["x"], 1), level.alpha * x0[:, 0], atol=4 / np.sqrt(4000))
    np.testing.assert_allclose(jnp.std(seen["x"], 1), level.sigma, rtol=4 / np.sqrt(8000))
    np.testing.assert_array_equal(seen["noise"], t)


def test_likelihood_weight_integrates_to_the_variational_bound():
    """For Gaussian data: int -SNR' Var[x_0 | x_t] / 2 dt = log((1 + c^2 SNR_0) / (1 + c^2 SNR_1)) / 2."""
    process, low, told = VP(), 0.01, _told_t(parameterize.v)
    loss = losses.denoising_loss(
        _network(process, told), process, told, weight=weights.likelihood(process), times=times.stratified(low, 1.0)
    )
    (value, error), *_ = _many(loss, ZERO)
    snr = np.asarray(process(jnp.array([low, 1.0])).snr, np.float64)
    exact = np.log((1 + STD**2 * snr[0]) / (1 + STD**2 * snr[1])) / 2
    assert abs(value * (1 - low) - exact) < 4 * error + 1e-3 * exact and error < 0.03 * exact


@pytest.mark.parametrize("t_weight", [pytest.param(1.0, marks=slow), 3.0])
@pytest.mark.slow
def test_learned_uncertainty_is_least_at_the_log_of_the_loss(t_weight):
    """EDM2, eq. 14-15: L exp(-u) + u is least at u = log L, where it is 1 + log L, under importance weights too."""
    apply = lambda params, x, noise, cond: 0.3 * x  # noqa: E731

    def fixed(key, batch):
        return jnp.full(batch, 0.5), jnp.full(batch, t_weight)

    def make(uncertainty):
        return losses.denoising_loss(
            apply, VP(), parameterize.v, weight=weights.simple, times=fixed, log_variance=uncertainty
        )

    plain = make(None)({}, KEY, _data())[0] / t_weight
    learned = make(lambda u, noise: u + 0 * noise)
    value, grad = jax.value_and_grad(lambda u: learned(u, KEY, _data())[0])(jnp.log(plain))
    np.testing.assert_allclose(value, t_weight * (1 + jnp.log(plain)), rtol=1e-5)
    np.testing.assert_allclose(grad, 0, atol=1e-5)
    other = learned(jnp.float32(0.7), KEY, _data())[0]
    np.testing.assert_allclose(other, t_weight * (plain * np.exp(-0.7) + 0.7), rtol=1e-5)


def test_uncertainty_is_asked_at_each_examples_noise():
    seen = []

    def uncertainty(params, noise):
        seen.append(noise)
        return 0 * noise

    t = jnp.array([0.2, 0.4])
    loss = losses.denoising_loss(lambda p, x, n, c: x, VP(), parameterize.v, times=_fixed(t), log_variance=uncertainty)
    loss({}, KEY, {"x": jnp.ones((2, 3, 3, 1))})
    np.testing.assert_array_equal(seen[0], t)


@pytest.mark.slow
@pytest.mark.parametrize("make", ["denoising", "hybrid"])
def test_condition_dropout_reaches_the_network(make):
    """The share of examples that see the null condition is cond_dropout, all leaves of one together."""
    seen = {}

    def apply(params, x, noise, cond):
        seen.update(cond)
        return (x, jnp.zeros_like(x)) if make == "hybrid" else x

    n, rate = 4000, 0.3
    batch = {"x": jnp.zeros((n, 1)), "label": jnp.arange(n) % 10, "vector": jnp.ones((n, 2))}
    null = {"label": jnp.array([10]), "vector": jnp.zeros((1, 2))}
    factory, process = {
        "denoising": (losses.denoising_loss, VP()), "hybrid": (losses.hybrid_loss, Discrete.linear()),
    }[make]  # fmt: skip
    factory(apply, process, parameterize.v, null_cond=null, cond_dropout=rate)({}, KEY, batch)
    dropped = np.asarray(seen["label"]) == 10
    assert abs(dropped.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_array_equal(np.asarray(seen["label"])[~dropped], np.asarray(batch["label"])[~dropped])
    np.testing.assert_array_equal(np.asarray(seen["vector"])[:, 0] == 0, dropped)
    factory(apply, process, parameterize.v)({}, KEY, batch)
    np.testing.assert_array_equal(seen["label"], batch["label"])


@pytest.mark.slow
def test_dropout_key_is_passed_only_when_asked():
    keys = []

    def apply(params, x, noise, cond, **kwargs):
        keys.append(kwargs)
        return (x, x) if params else x

    for dropout in (False, True):
        losses.denoising_loss(apply, VP(), parameterize.v, dropout=dropout)(False, KEY, _data(n=2))
        losses.hybrid_loss(apply, Discrete.linear(), parameterize.v, dropout=dropout)(True, KEY, _data(n=2))
    assert keys[0] == keys[1] == {} and set(keys[2]) == set(keys[3]) == {"key"}
    losses.denoising_loss(apply, VP(), parameterize.v, dropout=True)(False, jax.random.key(1), _data(n=2))
    assert keys[2]["key"] != keys[4]["key"]


@pytest.mark.parametrize(
    "arguments",
    [{"cond_dropout": 0.1}, {"cond_dropout": 1.5, "null_cond": {}}, {"cond_dropout": -0.1, "null_cond": {}}],
)
@pytest.mark.parametrize("factory", [losses.denoising_loss, losses.hybrid_loss])
def test_bad_drop_rate(factory, arguments):
    with pytest.raises(ValueError, match="cond_dropout"):
        factory(lambda p, x, n, c: x, Discrete.linear(), parameterize.v, **arguments)


@pytest.mark.parametrize("factory", [losses.denoising_loss, losses.vlb_loss, losses.hybrid_loss])
def test_batch_without_data(factory):
    loss = factory(lambda p, x, n, c: (x, x), Discrete.linear(), parameterize.v)
    with pytest.raises(ValueError, match=r'"x".*image'):
        loss({}, KEY, {"image": jnp.ones((2, 2))})


@pytest.mark.parametrize("factory", [losses.vlb_loss, losses.hybrid_loss])
@pytest.mark.parametrize("process", [VP(), Discrete.from_betas([0.5])])
def test_bound_needs_a_table(factory, process):
    with pytest.raises(ValueError, match="table"):
        factory(lambda p, x, n, c: (x, x), process, parameterize.v)


@pytest.mark.parametrize("factory", [losses.denoising_loss, losses.vlb_loss, losses.hybrid_loss])
def test_a_prediction_that_a_tables_last_time_does_not_determine(factory):
    apply, table = lambda p, x, n, c: (x, x), Discrete.linear(20).zero_terminal_snr()
    with pytest.raises(ValueError, match=r"pure noise \(alpha = 0\)"):
        factory(apply, table, parameterize.zero_based(parameterize.eps))
    factory(apply, table, parameterize.zero_based(parameterize.v))
    jax.jit(lambda table: (factory(apply, table, parameterize.eps), 0)[1])(table)  # traced: cannot be known


def test_unknown_variance():
    with pytest.raises(ValueError, match="small, large, learned"):
        losses.vlb_loss(lambda p, x, n, c: x, Discrete.linear(), parameterize.v, variance="fixed")


@pytest.mark.slow
def test_default_times():
    """Uniform over (0, 1], over 1..T for a table, and EDM's log-normal for EDM, whose time is sigma."""
    seen = []

    def apply(params, x, noise, cond):
        seen.append(np.asarray(noise))
        return x

    for process in (VP(), Discrete.linear(50), EDM()):
        losses.denoising_loss(apply, process, parameterize.v)({}, KEY, {"x": jnp.ones((4000, 1))})
    uniform, table, edm = seen
    assert 0 < uniform.min() < 0.002 and 0.998 < uniform.max() <= 1
    assert set(table.tolist()) == set(range(1, 51))
    assert abs(np.log(edm).mean() + 1.2) < 4 * 1.2 / np.sqrt(4000) and abs(np.log(edm).std() - 1.2) < 0.06


@pytest.mark.slow
def test_under_jit_in_any_shape():
    told = _told_t(parameterize.velocity)
    loss = losses.denoising_loss(_network(Flow(), told), Flow(), told)
    x = jax.random.normal(KEY, (8, 12))
    eager, _ = loss(ZERO, KEY, {"x": x})
    for shape in ((8, 2, 2, 3), (8, 2, 2, 3, 1)):
        # The same noise in the same order whatever the shape: a mean over all dimensions gives the same loss.
        value, grads = jax.jit(jax.value_and_grad(lambda p, batch: loss(p, KEY, batch)[0]))(
            ZERO, {"x": x.reshape(shape)}
        )
        np.testing.assert_allclose(value, eager, rtol=1e-5)
        assert all(np.isfinite(grads))
    assert np.isfinite(jax.jit(loss)(ZERO, KEY, {"x": x[:, 0]})[0])  # [B]: no dimensions to average over


BETAS = np.array([0.02, 0.1, 0.3, 0.5])
TABLE = Discrete.from_betas(BETAS)
TABLE_BATCH = {"x": jnp.asarray(np.linspace(-1, 1, 256)[np.array([[0, 100, 255], [30, 31, 32]] * 2)], jnp.float32)}


def _all_steps(key, batch):
    return jnp.arange(1, 5), jnp.ones(batch)


@pytest.mark.slow
def test_bound_is_t_times_the_mean_of_its_terms():
    """With t = 1..4 once each, T * mean(L) is the whole sum, KL by KL (Ho et al. 2020, eq. 7), in bits."""
    x0_hat, x0 = 0.2, np.asarray(TABLE_BATCH["x"], np.float64)
    abar = np.concatenate([[1.0], np.cumprod(1 - BETAS)])
    total = 0.0
    for t in (2, 3, 4):
        small = (1 - abar[t - 1]) / (1 - abar[t]) * BETAS[t - 1]
        gap = np.sqrt(abar[t - 1]) * BETAS[t - 1] / (1 - abar[t]) * (x0[t - 1] - x0_hat)
        var = np.sqrt(small * BETAS[t - 1])  # frac = 1/2
        total += np.mean(0.5 * (np.log(var / small) + (small + gap**2) / var - 1)) / np.log(2)

    apply = lambda p, x, noise, cond: (jnp.full_like(x, x0_hat), jnp.full_like(x, 0.5))  # noqa: E731

    def bound(weight_of_first):
        def draw(key, batch):
            return jnp.arange(1, 5), jnp.array([weight_of_first, 1.0, 1.0, 1.0])

        return losses.vlb_loss(apply, TABLE, parameterize.x0, times=draw)({}, KEY, TABLE_BATCH)[0]

    np.testing.assert_allclose(bound(0.0), total, rtol=1e-4)
    assert bound(1.0) > bound(0.0)  # the decoder's share, which tests/likelihood computes


@pytest.mark.slow
@pytest.mark.parametrize(("variance", "frac"), [("small", 0.0), ("large", 1.0)])
def test_learned_variance_reaches_from_small_to_large(variance, frac):
    def value(apply, **options):
        # At t = 1 the large one is the posterior's of t = 2, and the learned one reaches to beta_1.
        times = lambda key, batch: (jnp.arange(1, 5), jnp.array([float(variance == "small"), 1.0, 1.0, 1.0]))  # noqa: E731
        return losses.vlb_loss(apply, TABLE, parameterize.x0, times=times, **options)({}, KEY, TABLE_BATCH)[0]

    learned = value(lambda p, x, n, c: (0.5 * x, jnp.full_like(x, frac)))
    np.testing.assert_allclose(learned, value(lambda p, x, n, c: 0.5 * x, variance=variance), rtol=1e-6)


def test_bound_of_a_network_that_learns_its_variance_with_a_fixed_one():
    apply = lambda p, x, n, c: (0.5 * x, jnp.full_like(x, 0.7))  # noqa: E731
    plain = losses.vlb_loss(lambda p, x, n, c: 0.5 * x, TABLE, parameterize.x0, variance="large", times=_all_steps)
    both = losses.vlb_loss(apply, TABLE, parameterize.x0, variance="large", times=_all_steps)
    assert both({}, KEY, TABLE_BATCH)[0] == plain({}, KEY, TABLE_BATCH)[0]


def _hybrid(vlb_weight):
    def apply(params, x, noise, cond):
        return params["F"] * x, jax.nn.sigmoid(params["frac"]) + 0 * x

    prediction = parameterize.zero_based(parameterize.eps)
    return losses.hybrid_loss(apply, TABLE, prediction, vlb_weight=vlb_weight, times=_all_steps)


def test_hybrid_is_simple_plus_the_weighted_bound():
    params = {"F": jnp.float32(0.3), "frac": jnp.float32(0.2)}
    value, metrics = _hybrid(0.25)(params, KEY, TABLE_BATCH)
    np.testing.assert_allclose(value, metrics["mse"] + 0.25 * metrics["vlb"], rtol=1e-6)
    apply = lambda p, x, n, c: (p["F"] * x, jax.nn.sigmoid(p["frac"]) + 0 * x)  # noqa: E731
    prediction = parameterize.zero_based(parameterize.eps)
    vlb = losses.vlb_loss(apply, TABLE, prediction, times=_all_steps)(params, KEY, TABLE_BATCH)[0]
    np.testing.assert_allclose(metrics["vlb"], vlb, rtol=1e-5)
    simple = losses.denoising_loss(apply, TABLE, prediction, times=_all_steps)(params, KEY, TABLE_BATCH)[0]
    np.testing.assert_allclose(metrics["mse"], simple, rtol=1e-5)


def test_the_bound_inside_hybrid_teaches_the_variance_only():
    params = {"F": jnp.float32(0.3), "frac": jnp.float32(0.2)}
    grad_at = jax.jit(jax.grad(lambda p, w: _hybrid(w)(p, KEY, TABLE_BATCH)[0]))
    grad = {w: grad_at(params, w) for w in (0.0, 0.1, 1.0)}
    assert grad[0.0]["F"] == grad[0.1]["F"] == grad[1.0]["F"] != 0
    assert grad[0.0]["frac"] == 0 and grad[1.0]["frac"] != 0
    np.testing.assert_allclose(grad[1.0]["frac"], 10 * grad[0.1]["frac"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("process", [pytest.param(Discrete.linear(), marks=slow), Discrete.cosine()])
def test_gradients_are_finite_at_both_ends_of_a_table(process):
    def ends(key, batch):
        return jnp.array([1, 2, process.T - 1, process.T]), jnp.ones(batch)

    def apply(params, x, noise, cond):
        return params * x, jax.nn.sigmoid(params * x)

    for factory in (losses.vlb_loss, losses.hybrid_loss):
        loss = factory(apply, process, parameterize.eps, times=ends)
        value, grad = jax.jit(jax.value_and_grad(lambda p, loss=loss: loss(p, KEY, TABLE_BATCH)[0]))(jnp.float32(0.5))
        assert np.isfinite(value) and np.isfinite(grad) and grad != 0


@pytest.mark.parametrize(
    "prediction",
    [
        parameterize.v,
        *(pytest.param(prediction, marks=slow) for prediction in (parameterize.velocity, parameterize.x0)),
    ],
)
def test_gradients_are_finite_at_pure_noise(prediction):
    """Flow at t = 1 and zero terminal SNR at t = T, with a network that may be asked there."""
    apply = lambda p, x, noise, cond: p * x  # noqa: E731
    for process, t in ((Flow(), 1.0), (Discrete.linear().zero_terminal_snr(), 1000)):
        draw = lambda key, batch, t=t: (jnp.full(batch, t), jnp.ones(batch))  # noqa: E731
        loss = losses.denoising_loss(apply, process, prediction, weight=weights.min_snr(), times=draw)
        plain = losses.denoising_loss(apply, process, prediction, times=draw)
        for each in (loss, plain) if prediction is parameterize.v else (plain,):
            value, grad = jax.jit(jax.value_and_grad(lambda p, each=each: each(p, KEY, _data(n=4))[0]))(
                jnp.float32(0.5)
            )
            assert np.isfinite(value) and np.isfinite(grad)


def test_latents_are_drawn_anew_in_each_step():
    """The loss sees mean + std eps: of the posterior's moments, another at each key, and all else as it was."""
    seen = lambda params, key, batch: (batch["x"], {"cond": batch["label"], "key": jax.random.key_data(key)})  # noqa: E731
    loss = jax.jit(losses.latent_loss(seen))
    mean = jnp.broadcast_to(jnp.array([-3.0, 0.5])[None], (20_000, 2)).astype(jnp.float16)
    std = jnp.broadcast_to(jnp.array([2.0, 0.0])[None], mean.shape).astype(jnp.float16)
    batch = {"mean": mean, "std": std, "label": jnp.arange(20_000)}
    (x, told), (other, _) = (loss(None, jax.random.key(i), batch) for i in range(2))
    assert x.dtype == jnp.float32 and told["cond"].shape == (20_000,)
    np.testing.assert_allclose(x[:, 0].mean(), -3, atol=5 * 2 / 20_000**0.5)
    np.testing.assert_allclose(x[:, 0].std(), 2, rtol=5 / 40_000**0.5)
    np.testing.assert_array_equal(x[:, 1], 0.5)
    assert abs(np.corrcoef(x[:, 0], other[:, 0])[0, 1]) < 5 / 20_000**0.5
    # The noise of the latents is not that of the diffusion, whose key is another.
    assert not np.array_equal(told["key"], jax.random.key_data(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"\"mean\" and \"std\", got the entries \['x'\]"):
        loss(None, jax.random.key(0), {"x": x})
