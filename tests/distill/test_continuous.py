"""The continuous-time loss: its tangent on Gaussian data, and the paper's algorithm by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.consistency import V, by_time, consistency_function, context, denoise, network, quadrature

from jaxdiff import distill, parameterize
from jaxdiff.processes import EDM, VP, Cosine, Discrete, Flow

KEY = jax.random.key(0)
slow = pytest.mark.slow
HUGE = 1e9  # with this c the tangent is divided by c alone, and stays linear in the data


def times_at(t, weight=1.0):
    def times(key, batch):
        return tuple(jnp.broadcast_to(jnp.asarray(a, jnp.result_type(float)), (batch,)) for a in (t, weight))

    return times


def affine(params, x, level, cond):
    """The consistency function, off by a + b x."""
    return consistency_function(x, level) + params["a"] + params["b"] * x


def both(loss, batch, key=KEY, **options):
    return jax.jit(jax.value_and_grad(lambda p: loss((p, context(**options)), key, batch), has_aux=True))


ZERO = {"a": 0.0, "b": 0.0}
CASES = {
    "cosine": (Cosine(), parameterize.v, 0.6),
    "flow": (Flow(), parameterize.velocity, 0.6),
    "edm": (EDM(), parameterize.edm(0.5), 3.0),
    "vp": (VP(), parameterize.eps, 0.4),
}


@slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("x64")
def test_the_tangent_of_the_consistency_function_is_zero(case):
    """Along the exact teacher's flow, example by example, with a gradient of 0; of another function it is not."""
    process, prediction, t = CASES[case]
    told = by_time(prediction)
    x0, eps, _ = quadrature(3)
    loss = distill.continuous_consistency(
        network(process, told, affine), process, told, teacher=lambda context, cond: denoise,
        times=times_at(t * np.linspace(0.1, 1, 9)), warmup_steps=0,
    )  # fmt: skip
    run = both(loss, {"x": jnp.asarray(x0), "eps": jnp.asarray(eps)})
    (value, metrics), grad = run(jax.tree.map(jnp.asarray, ZERO))
    assert value < 1e-20 and metrics["tangent_norm"] < 1e-10
    np.testing.assert_allclose((grad["a"], grad["b"]), 0, atol=1e-10)
    (_, metrics), grad = run({"a": jnp.asarray(0.0), "b": jnp.asarray(0.1)})
    assert metrics["tangent_norm"] > 1e-2 and abs(grad["b"]) > 1e-3
    # A difference is the derivative up to its square.
    loss = distill.continuous_consistency(
        network(process, told, affine), process, told, teacher=lambda context, cond: denoise,
        times=times_at(t * np.linspace(0.1, 1, 9)), warmup_steps=0, difference=1e-3,
    )  # fmt: skip
    (_, near), slope = both(loss, {"x": jnp.asarray(x0), "eps": jnp.asarray(eps)})(
        {"a": jnp.asarray(0.0), "b": jnp.asarray(0.1)}
    )
    np.testing.assert_allclose(near["tangent_norm"], metrics["tangent_norm"], rtol=1e-4)
    np.testing.assert_allclose(slope["b"], grad["b"], rtol=1e-3)


@pytest.mark.usefixtures("x64")
def test_optima_from_data_before_and_after_warm_up():
    """From data the mean tangent is 0: at the consistency function with r = 1, at E[x_0 | x_t] with r = 0.

    At the former the loss is the variance of g given x_t, cos^2 (V / V_t)^2 with sigma_data = 1 on Cosine. In between,
    the gradient is linear in r.
    """
    t, told = 0.6, by_time(parameterize.v)
    x0, eps, weight = quadrature()

    def f(params, x, level, cond):
        end, mean = consistency_function(x, level), denoise(x, level)
        return mean + params["r"] * (end - mean) + params["a"] + params["b"] * x

    loss = distill.continuous_consistency(
        network(Cosine(), told, f), Cosine(), told, times=times_at(t, weight), sigma_data=1.0, c=HUGE, warmup_steps=1000
    )
    batch = {"x": jnp.asarray(x0), "eps": jnp.asarray(eps)}
    run = jax.jit(jax.value_and_grad(lambda p, k: loss((p, context(k)), KEY, batch)[0]))

    def at(r, k, **moved):
        return run(jax.tree.map(jnp.asarray, {"r": r, **ZERO, **moved}), jnp.asarray(k, jnp.int32))

    cos, sin = np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)
    value, grad = at(1.0, 1000)
    np.testing.assert_allclose([HUGE * grad[name] for name in "ab"], 0, atol=1e-6)
    np.testing.assert_allclose(HUGE**2 * value, cos**2 * (V / (cos**2 * V + sin**2)) ** 2, rtol=1e-9)
    _, grad = at(0.0, 0)
    np.testing.assert_allclose([HUGE * grad[name] for name in "ab"], 0, atol=1e-6)
    assert HUGE * at(0.0, 0, a=0.1)[1]["a"] > 1e-2 and HUGE * at(0.0, 0, a=-0.1)[1]["a"] < -1e-2  # back to the optimum
    grads = {(r, k): HUGE * np.asarray(at(r, k)[1]["b"]) for r in (0.0, 1.0) for k in (0, 250, 1000, 3000)}
    for r in (0.0, 1.0):
        np.testing.assert_allclose(grads[r, 250], 0.75 * grads[r, 0] + 0.25 * grads[r, 1000], rtol=1e-9, atol=1e-6)
        assert grads[r, 3000] == grads[r, 1000]
    assert abs(grads[1.0, 0]) > 1e-2 and abs(grads[0.0, 1000]) > 1e-2


def _network(params, x, noise, cond, key=None):
    F = jnp.sin(params[0] * x + params[1] * noise[:, None]) + params[2] * jnp.flip(x, -1)
    return F if key is None else F * jax.random.bernoulli(key, 0.5, x.shape).astype(x.dtype)


PARAMS = [0.7, 1.3, 0.4]
DATA = np.random.default_rng(0).normal(size=(2, 5, 3))
ANGLE = np.array([0.1, 0.4, 0.8, 1.2, 1.5])


def published(f, x0, z, r, sd, c=0.1):
    """Algorithm 1 of Lu and Song 2024 with F = (cos x - f) / (sd sin), for x = cos x_0 + sin z: g / (|g| + c)."""
    theta, h = ANGLE[:, None], 1e-5
    x = lambda theta: np.cos(theta) * x0 + np.sin(theta) * z  # noqa: E731
    F = lambda x, theta: (np.cos(theta) * x - f(x, theta)) / (sd * np.sin(theta))  # noqa: E731
    dx = -np.sin(theta) * x0 + np.cos(theta) * z
    dF = (F(x(theta + h), theta + h) - F(x(theta - h), theta - h)) / (2 * h)
    g = -(np.cos(theta) ** 2) * (sd * F(x(theta), theta) - dx)
    g = g - r * np.cos(theta) * np.sin(theta) * (x(theta) + sd * dF)
    return g / (np.sqrt(np.mean(g**2, 1, keepdims=True)) + c), F(x(theta), theta)


@slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("process", "prediction", "sd"),
    [
        (Cosine(), parameterize.v, 1.0),
        (Flow(), parameterize.velocity, 0.5),
        (EDM(), parameterize.edm(0.5), 0.5),
    ],
    ids=["cosine", "flow", "edm"],
)
def test_it_is_the_papers_algorithm(process, prediction, sd):
    """Value and gradient, on any process: its x at angle theta is the paper's, scaled."""
    told, r, params = by_time(prediction), 0.3, jnp.asarray(PARAMS)
    t = process.time(jnp.asarray(-np.log(sd * np.tan(ANGLE))))
    x0, eps = DATA
    loss = distill.continuous_consistency(
        _network, process, told, times=times_at(t), sigma_data=sd, warmup_steps=1000,
    )  # fmt: skip
    (value, _), grad = both(loss, {"x": jnp.asarray(x0), "eps": jnp.asarray(eps)}, step=300)(params)

    @jax.jit
    def end(params, x, theta):  # x = cos x_0 + sin sd eps, divided by cos is x_t / alpha
        level = process(process.time(-jnp.log(sd * jnp.tan(theta[:, 0]))))
        return parameterize.denoiser(_network, params, told)(x * level.alpha[:, None] / jnp.cos(theta), level)

    def f_of(params):
        return lambda x, theta: np.asarray(end(params, x, theta))

    g, _ = published(f_of(params), x0, sd * eps, r, sd)
    np.testing.assert_allclose(value, np.mean(g**2), rtol=1e-6)
    h = 1e-5
    for i in range(3):  # dF/dparams by differences; the gradient of |F - sg F - g|^2 is -2 g dF
        F = [published(f_of(params.at[i].add(sign * h)), x0, sd * eps, r, sd)[1] for sign in (1, -1)]
        np.testing.assert_allclose(grad[i], np.mean(-2 * g * (F[0] - F[1]) / (2 * h)), rtol=1e-5)


BATCH = {name: jnp.asarray(a, jnp.float32) for name, a in zip(("x", "eps"), DATA, strict=True)}
FLOW, TIMES = by_time(parameterize.velocity), np.array([0.1, 0.3, 0.5, 0.7, 0.9])


def flow(apply=_network, **options):
    options = {"times": times_at(TIMES), "warmup_steps": 0} | options
    return distill.continuous_consistency(apply, Flow(), FLOW, **options)


def test_all_evaluations_have_the_same_dropout_mask():
    keys = []

    def apply(params, x, noise, cond, key=None):
        keys.append(key)
        return _network(params, x, noise, cond, key)

    for dropout in (True, False):
        loss = flow(apply, dropout=dropout)
        jax.eval_shape(
            jax.grad(lambda p, key, loss=loss: loss((p, context()), key, BATCH)[0]), jnp.float32(PARAMS), KEY
        )
    # The same object in the trace: one key, made of the loss's.
    assert len(keys) == 4 and keys[0] is keys[1] is not None and keys[2] is keys[3] is None


@slow
def test_an_example_does_not_depend_on_its_size():
    """A picture that is repeated has the same loss: the norm is a mean over the dimensions."""
    twice = {name: jnp.stack([value] * 4, axis=1) for name, value in BATCH.items()}
    apply = lambda params, x, noise, cond: jnp.tanh(params[0] * x)  # noqa: E731
    values = [jax.jit(flow(apply))((jnp.float32(PARAMS), context()), KEY, batch)[0] for batch in (BATCH, twice)]
    np.testing.assert_allclose(*values, rtol=1e-5)


@slow
def test_learned_log_variance():
    """L exp(-u) + u, and u is given the network's noise input: example by example, in the loss of each."""

    def u(params, noise):
        return params[3] + params[4] * noise

    params, each = jnp.float32([*PARAMS, 0.7, 0.5]), 0.7 + 0.5 * TIMES
    losses = flow(times=times_at(TIMES, np.exp(-each))), flow(log_variance=u)
    weighted, learned = (jax.jit(loss)((params, context()), KEY, BATCH)[0] for loss in losses)
    np.testing.assert_allclose(learned, weighted + np.mean(each), rtol=1e-5)


@slow
def test_the_derivative_in_float32_of_a_network_in_bfloat16():
    low = lambda params, x, noise, cond: _network(params.astype(jnp.bfloat16), *(  # noqa: E731
        a.astype(jnp.bfloat16) for a in (x, noise)), cond)  # fmt: skip
    exact, mixed, coarse = (
        both(loss, BATCH)(jnp.float32(PARAMS)) for loss in (flow(), flow(low, jvp_apply=_network), flow(low))
    )
    np.testing.assert_array_equal(exact[0][1]["tangent_norm"], mixed[0][1]["tangent_norm"])
    np.testing.assert_allclose(exact[1], mixed[1], rtol=0.03)
    assert exact[0][1]["tangent_norm"] != coarse[0][1]["tangent_norm"]
    assert mixed[0][0].dtype == mixed[1].dtype == jnp.float32


@slow
def test_finite_from_nearly_clean_to_pure_noise_in_one_program():
    """In float32; no second compile when the warm-up goes on; a beta table's integer times are fractional here."""
    for process, prediction, t in (
        (Flow(), parameterize.velocity, [1e-4, 0.01, 0.5, 0.99, 1.0]),
        (Cosine(), parameterize.v, [1e-4, 0.01, 0.5, 0.99, 1.0]),
        (EDM(), parameterize.edm(0.5), [1e-3, 0.1, 1.0, 80.0, 200.0]),
        (Discrete.linear(50), parameterize.eps, [1, 2, 10, 49, 50]),
    ):
        times = lambda key, batch, t=t: (jnp.asarray(t), jnp.ones(batch))  # noqa: E731
        loss = distill.continuous_consistency(_network, process, prediction, times=times)
        run = jax.jit(jax.value_and_grad(lambda p, k, loss=loss: loss((p, context(k)), KEY, BATCH)[0]))
        values = [run(jnp.float32(PARAMS), jnp.int32(k)) for k in (0, 5_000, 10_000)]
        assert all(np.isfinite(value) and np.isfinite(grad).all() and grad.any() for value, grad in values)
        assert len({float(value) for value, _ in values}) == 3 and run._cache_size() == 1
        eager, _ = loss((jnp.float32(PARAMS), context(5_000)), KEY, BATCH)
        np.testing.assert_allclose(eager, values[1][0], rtol=1e-4)


@slow
def test_default_times_are_log_normal():
    seen = []

    def u(params, noise):
        seen.append(np.log(noise))
        return 0 * noise

    loss = distill.continuous_consistency(_network, EDM(), by_time(parameterize.edm(0.5)), log_variance=u)
    loss((jnp.float32(PARAMS), context()), KEY, {"x": jnp.zeros((4000, 1))})
    assert abs(seen[0].mean() + 1) < 5 * 1.4 / 4000**0.5 and abs(seen[0].std() - 1.4) < 0.08


def test_mistakes():
    for options, message in (
        ({"sigma_data": 0.0}, "sigma_data must be positive"),
        ({"c": -0.1}, "c must be positive"),
        ({"warmup_steps": -1}, "warmup_steps must be a finite number .* got -1"),
        ({"warmup_steps": "a"}, "warmup_steps must be a finite number .* got 'a'"),
        ({"warmup_steps": np.nan}, "warmup_steps must be a finite number .* got nan"),
        ({"jvp_apply": lambda x: x}, "jvp_apply must be a function"),
    ):
        with pytest.raises(ValueError, match=message):
            flow(**options)
    with pytest.raises(ValueError, match=r"f\(x, 0\) = x"):
        distill.continuous_consistency(_network, Flow(), parameterize.x0)
