"""parameterize: each row against the paper's definition of what the network predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import levels, networks, parameterize
from jaxdiff.processes import EDM, VE, VP, Discrete, Flow, SubVP

T = np.array([0.1, 0.31, 0.9, 0.95])
PROCESSES = {"vp": VP(), "sub_vp": SubVP(), "ve": VE(), "edm": EDM(), "flow": Flow()}
ROWS = {  # row, and its definition in terms of x0, eps, alpha, sigma
    "eps": (parameterize.eps, lambda x0, eps, alpha, sigma: eps),
    "x0": (parameterize.x0, lambda x0, eps, alpha, sigma: x0),
    "v": (parameterize.v, lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0),
    "velocity": (parameterize.velocity, lambda x0, eps, alpha, sigma: eps - x0),
    "score": (parameterize.score, lambda x0, eps, alpha, sigma: -eps / sigma),
}
SIGMA_DATA = 0.6


def _case(name):
    level = PROCESSES[name](jnp.asarray(T))
    x0, eps = np.random.default_rng(0).normal(size=(2, 4, 3, 2))
    alpha, sigma = (np.asarray(f)[:, None, None] for f in (level.alpha, level.sigma))
    return level, x0, eps, alpha, sigma


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("prediction", ROWS)
def test_rows(prediction, name, x64):
    """The target is the definition, and x0_hat of the exact prediction is x_0."""
    level, x0, eps, alpha, sigma = _case(name)
    prediction, definition = ROWS[prediction]
    x, output = jnp.asarray(alpha * x0 + sigma * eps), definition(x0, eps, alpha, sigma)
    np.testing.assert_allclose(parameterize.target(prediction, jnp.asarray(x0), x, level), output, rtol=1e-6, atol=1e-9)
    denoise = parameterize.denoiser(lambda params, x, noise, cond: jnp.asarray(output), {}, prediction)
    np.testing.assert_allclose(denoise(x, level), x0, rtol=1e-6, atol=1e-9)
    s = prediction(level)
    np.testing.assert_array_equal(s.inp, 1)
    np.testing.assert_array_equal(s.noise, T)


def test_edm_is_table_1_of_the_paper(x64):
    """Karras et al. 2022: c_skip, c_out, c_in, c_noise as printed, for alpha = 1."""
    sigma, data = np.array([0.002, 0.3, 5.0, 80.0]), SIGMA_DATA
    s = parameterize.edm(data)(EDM()(jnp.asarray(sigma)))
    np.testing.assert_allclose(s.skip, data**2 / (sigma**2 + data**2), rtol=1e-12)
    np.testing.assert_allclose(s.out, sigma * data / np.sqrt(data**2 + sigma**2), rtol=1e-12)
    np.testing.assert_allclose(s.inp, 1 / np.sqrt(sigma**2 + data**2), rtol=1e-12)
    np.testing.assert_allclose(s.noise, np.log(sigma) / 4, rtol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_edm_in_scaled_processes(name, x64):
    """The paper's preconditioning of x_t / alpha at noise sigma / alpha; unit-variance input and target."""
    level, x0, eps, alpha, sigma = _case(name)
    x, ratio, data = alpha * x0 + sigma * eps, sigma / alpha, SIGMA_DATA
    s = parameterize.edm(data)(level.expand_to(jnp.asarray(x)))
    F = np.random.default_rng(1).normal(size=x.shape)
    published = data**2 / (ratio**2 + data**2) * (x / alpha) + ratio * data / np.sqrt(ratio**2 + data**2) * F
    np.testing.assert_allclose(parameterize.to_x0(s, jnp.asarray(x), jnp.asarray(F)), published, rtol=1e-9)
    np.testing.assert_allclose(s.inp * x, x / alpha / np.sqrt(ratio**2 + data**2), rtol=1e-9)
    np.testing.assert_allclose(s.noise, np.log(ratio) / 4, rtol=1e-9)
    np.testing.assert_allclose(s.inp**2 * (alpha**2 * data**2 + sigma**2), 1, rtol=1e-9)
    target_var = ((1 - s.skip * alpha) ** 2 * data**2 + s.skip**2 * sigma**2) / s.out**2
    np.testing.assert_allclose(target_var, 1, rtol=1e-7)


@pytest.mark.parametrize("prediction", [parameterize.eps, parameterize.score, parameterize.edm(0.5)])
def test_pure_noise_is_refused(prediction):
    noise = Flow()(jnp.array([0.5, 1.0]))
    with pytest.raises(ValueError, match="alpha = 0"):
        prediction(noise)
    with pytest.raises(ValueError, match="alpha = 0"):
        parameterize.denoiser(lambda p, x, n, c: x, {}, prediction)(jnp.ones((2, 1)), noise)


@pytest.mark.parametrize("prediction", [parameterize.x0, parameterize.v, parameterize.velocity])
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_the_others_are_finite_at_both_ends(prediction, end):
    level = Flow()(jnp.float32(end))
    x0, eps = jnp.array([[0.5, -1.0]]), jnp.array([[0.3, 2.0]])
    v = level.alpha * eps - level.sigma * x0
    F = {parameterize.x0: x0, parameterize.v: v, parameterize.velocity: eps - x0}[prediction]
    denoise = parameterize.denoiser(lambda F, x, n, c: F, F, prediction)
    np.testing.assert_allclose(denoise(levels.q_sample(x0, eps, level), level), x0, atol=1e-6)
    grads = jax.grad(lambda level: jnp.sum(denoise(x0, level)))(level)
    assert all(np.isfinite(g).all() for g in grads)


def _spy(seen, answer=None):
    def apply(params, x, noise, cond, **kwargs):
        seen.append((x, noise, cond, kwargs))
        return x if answer is None else answer

    return apply


def test_network_is_told_the_level_of_each_example():
    seen, x = [], jnp.ones((3, 2, 2, 1))
    denoise = parameterize.denoiser(_spy(seen), {}, parameterize.v)
    denoise(x, VP()(jnp.float32(0.25)))
    denoise(x, VP()(jnp.array([0.1, 0.2, 0.3])))
    np.testing.assert_array_equal(seen[0][1], jnp.full(3, 0.25))
    np.testing.assert_array_equal(seen[1][1], jnp.array([0.1, 0.2, 0.3]))
    assert seen[0][2] == {} and seen[0][3] == {}


def test_zero_based_counts_from_zero():
    """The published DDPMs' networks are given 0..T-1 for t = 1..T, as floats."""
    seen = []
    denoise = parameterize.denoiser(_spy(seen), {}, parameterize.zero_based(parameterize.eps))
    denoise(jnp.ones((3, 1)), Discrete.linear()(jnp.array([1, 500, 1000])))
    np.testing.assert_array_equal(seen[0][1], [0.0, 499.0, 999.0])
    assert seen[0][1].dtype == jnp.float32
    level = VP()(jnp.float32(0.5))
    assert parameterize.eps(level)[:3] == parameterize.zero_based(parameterize.eps)(level)[:3]


def test_the_noise_input_alone_is_replaced():
    level = Flow()(jnp.float32(0.25))
    for prediction, noise in (
        (parameterize.time_scaled(parameterize.velocity), 250),
        (parameterize.time_scaled(parameterize.velocity, 8), 2),
        (parameterize.with_noise_input(parameterize.velocity, lambda level: level.sigma + 1), 1.25),
    ):
        assert prediction(level).noise == noise and prediction(level)[:3] == parameterize.velocity(level)[:3]


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_library_network_is_given_the_time_it_was_made_for(name):
    """Sinusoids that are made for hundreds get 1000 t of a time in [0, 1]; whatever was said otherwise stays."""
    prediction, level = ROWS[name][0], Flow()(jnp.float32(0.25))
    hundreds, unit = (
        networks.as_apply(networks.MLP(time=time)) for time in (networks.Sinusoidal(), networks.Fourier())
    )
    scaled = parameterize.with_network_time(prediction, Flow(), hundreds)
    assert scaled(level).noise == 250 and scaled(level)[:3] == prediction(level)[:3]
    for process, apply in ((Flow(), unit), (Flow(), _spy([])), (Discrete.linear(), hundreds), (EDM(), hundreds)):
        assert parameterize.with_network_time(prediction, process, apply) is prediction
    for said in (parameterize.time_scaled(prediction, 1), parameterize.edm(0.5)):
        assert parameterize.with_network_time(said, Flow(), hundreds) is said


def test_input_is_scaled_and_condition_and_key_are_passed():
    seen, x, key = [], jnp.ones((2, 3)), jax.random.key(0)
    level = EDM()(jnp.float32(2.0))
    cond = {"label": jnp.array([1, 2])}
    parameterize.denoiser(_spy(seen), {}, parameterize.edm(0.5), cond, key=key)(x, level)
    np.testing.assert_allclose(seen[0][0], x / np.sqrt(4.25), rtol=1e-6)
    assert seen[0][2] is cond and seen[0][3]["key"] is key


def test_answers_in_bfloat16_are_cast_to_the_type_of_x():
    x = jax.random.normal(jax.random.key(0), (2, 3))
    denoise = parameterize.denoiser(_spy([], jnp.ones((2, 3), jnp.bfloat16)), {}, parameterize.x0)
    assert denoise(x, VP()(jnp.float32(0.5))).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_noise_is_never_told_in_bfloat16(dtype, x64):
    """bfloat16 would round step 998 to 1000; x0_hat stays in the type of x."""
    seen = []
    prediction = parameterize.zero_based(parameterize.v)
    out = parameterize.denoiser(_spy(seen), {}, prediction)(
        jnp.ones((1, 2), dtype), Discrete.linear()(jnp.array([999]))
    )
    assert float(seen[0][1][0]) == 998 and seen[0][0].dtype == out.dtype == dtype


def test_learned_variance_travels_beside_x0():
    x, frac = jnp.ones((2, 3)), jnp.full((2, 3), 0.25, jnp.bfloat16)
    level = VP()(jnp.float32(0.5))
    denoise = parameterize.denoiser(lambda p, x, n, c: (x, frac), {}, parameterize.v)
    x0, got = denoise(x, level)
    np.testing.assert_allclose(x0, (level.alpha - level.sigma) * x, rtol=1e-6)  # v = x
    np.testing.assert_array_equal(got, jnp.full((2, 3), 0.25))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(parameterize.drop_variance(denoise)(x, level), x0)


@pytest.mark.parametrize("prediction", [*(prediction for prediction, _ in ROWS.values()), parameterize.edm(0.5)])
def test_jit_and_a_level_per_example(prediction):
    apply = lambda p, x, noise, cond: p * x + noise[:, None]  # noqa: E731
    x, level = jax.random.normal(jax.random.key(0), (4, 2)), PROCESSES["vp"](jnp.asarray(T, jnp.float32))
    denoise = parameterize.denoiser(apply, jnp.float32(0.3), prediction)
    batched = denoise(x, level)
    np.testing.assert_allclose(jax.jit(denoise)(x, level), batched, rtol=1e-4, atol=1e-5)
    for i in range(4):
        one = denoise(x[i : i + 1], level.at(i))
        np.testing.assert_allclose(one[0], batched[i], rtol=1e-4, atol=1e-5)


def test_every_row_is_tested():
    others = {
        "consistency_model",
        "edm",
        "mean_output",
        "Scalings",
        "denoiser",
        "drop_variance",
        "network_output",
        "scalings",
        "target",
        "to_x0",
    }
    others |= {
        "check_network_time",
        "time_scaled",
        "with_network_time",
        "with_noise_input",
        "zero_based",
        "with_next_noise",
        "noise_input",
    }
    assert {*ROWS} | others == set(parameterize.__all__)


@pytest.mark.parametrize("wrong", [lambda params, x, noise, cond: x[:, :1], lambda params, x, noise, cond: noise])
def test_a_network_of_another_shape_is_refused(wrong):
    """Where its output broadcasts, it would train and sample without a word."""
    x = jnp.ones((2, 2))
    with pytest.raises(ValueError, match=r"must return F of the shape of x, \(2, 2\), got \(2,"):
        jax.jit(parameterize.denoiser(wrong, {}, parameterize.velocity))(x, Flow()(jnp.float32(0.5)))


@pytest.mark.parametrize("name", ["edm", "flow"])
def test_consistency_model_is_that_of_the_paper(name, x64):
    """Song et al. 2023, appendix C: the scales as printed for x_t / alpha, and their boundary at sigma_min."""
    level, x0, eps, alpha, sigma = _case(name)
    x, ratio, data, least = alpha * x0 + sigma * eps, sigma / alpha, SIGMA_DATA, 0.002
    s = parameterize.consistency_model(data, least)(level.expand_to(jnp.asarray(x)))
    F = np.random.default_rng(1).normal(size=x.shape)
    skip = data**2 / ((ratio - least) ** 2 + data**2)
    out = data * (ratio - least) / np.sqrt(data**2 + ratio**2)
    np.testing.assert_allclose(s.skip * x + s.out * F, skip * (x / alpha) + out * F, rtol=1e-9)
    np.testing.assert_allclose(s.inp * x, x / alpha / np.sqrt(ratio**2 + data**2), rtol=1e-9)
    np.testing.assert_allclose(s.noise, 250 * np.log(ratio), rtol=1e-9)
    process = PROCESSES[name]
    low = process(process.time(-jnp.log(jnp.asarray([least, least / 9]))))
    end = parameterize.consistency_model(data, least)(low)
    np.testing.assert_allclose(end.skip, 1 / low.alpha, rtol=1e-12)
    np.testing.assert_allclose(end.out, 0, atol=1e-12)
