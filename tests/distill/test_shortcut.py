"""Shortcut models: what training reaches is known, the Euler steps of the smallest size, one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.few_step import M, V, context, named, nodes, student

import jaxdiff as jd
from jaxdiff import distill

FLOW, VELOCITY = jd.processes.Flow(), named(jd.parameterize.velocity)
KEY = jax.random.key(0)
slow = pytest.mark.slow


def place(t, s, dtype=jnp.float64):
    """k and i of a step from i / 2^k of size 2^-k; NaN where it is none."""
    k = -jnp.log2(t - s)
    i = t * jnp.exp2(jnp.round(k))
    true = (jnp.abs(k - jnp.round(k)) < 1e-6) & (jnp.abs(i - jnp.round(i)) < 1e-6)
    return jnp.round(k).astype(int), jnp.round(i).astype(int) - 1, jnp.where(true, 1.0, jnp.nan).astype(dtype)


def table(params, x, noise, cond, *, key=None):
    """u = A + B x with a pair of numbers for each step, in the rows of each label."""
    k, i, true = place(noise, cond["next_noise"])
    label = cond.get("label", jnp.zeros(noise.shape, int))
    a, b = (jnp.asarray(params[name])[label, k, i] * true for name in "AB")
    return a[:, None] + b[:, None] * x


def numbers(N):
    return {name: np.zeros((2, N.bit_length(), N)) for name in "AB"}


def velocities(N, m):
    """A, B of u = -m + a (x - (1 - t) m), a = (t - (1 - t) v) / V_t, at t = i / N."""
    t = np.arange(1, N + 1) / N
    a = (t - (1 - t) * V) / ((1 - t) ** 2 * V + t**2)
    return -m - a * (1 - t) * m, a


def composed(params, label, N, guided=None):
    """Fill the table of a label from its smallest steps, by x - d u of each half; from `guided` at the smallest."""
    finest = N.bit_length() - 1
    for k in reversed(range(finest)):
        A, B = guided if guided is not None and k == finest - 1 else (params[n][label, k + 1] for n in "AB")
        d = 2.0 ** -(k + 1)
        for i in range(2**k):
            late, early = 2 * i + 1, 2 * i  # the half from t, and the one that ends at s
            # x - d (A1 + B1 x), then - d (A2 + B2 (...)): u of both is a mean
            shift, gain = -d * A[late], 1 - d * B[late]
            params["A"][label, k, i] = (A[late] + A[early] + B[early] * shift) / 2
            params["B"][label, k, i] = (B[late] + B[early] * gain) / 2
    return params


def optimum(N):
    params = numbers(N)
    params["A"][:, -1, :N], params["B"][:, -1, :N] = velocities(N, M)
    return composed(composed(params, 0, N), 1, N)


def run(loss, params, ema=None, batch=None):
    of = lambda p, ema: loss((p, context(ema=ema)), KEY, nodes(512) if batch is None else batch)  # noqa: E731
    return jax.jit(jax.value_and_grad(of, has_aux=True))(params, params if ema is None else ema)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("N", "std"), [(2, 0.2000), (4, 0.3405), (8, 0.4148)])
@slow
def test_a_shortcut_is_the_smallest_euler_steps(N, std):
    params = optimum(N)
    loss = distill.shortcut(table, FLOW, VELOCITY, steps=N, share=0.75)
    (value, metrics), grad = run(loss, params)
    jax.tree.map(lambda g: np.testing.assert_allclose(g, 0, atol=1e-10), grad)
    # Its floor: the data's scatter V / V_t at the smallest steps, drawn at random, and 0 elsewhere.
    np.testing.assert_allclose(metrics["shortcut_mse"], 0, atol=1e-20)
    scatter = V / ((1 - np.arange(1, N + 1) / N) ** 2 * V + (np.arange(1, N + 1) / N) ** 2)
    assert abs(metrics["flow_mse"] - scatter.mean()) < 4 * scatter.std() / np.sqrt(100)
    assert abs(value - 0.25 * metrics["flow_mse"]) < 0.1
    # Each number of the table has a gradient: every size and every place is drawn.
    grad = run(loss, jax.tree.map(lambda a: a + 0.1, params))[1]
    for k in range(N.bit_length()):
        assert np.all(np.abs(grad["A"][0, k, : 2**k]) > 1e-4) and not grad["A"][0, k, 2**k :].any()
    denoiser, x = jd.denoiser(table, params, VELOCITY), jnp.asarray([[1.0], [-1.0]])
    draw = jax.jit(lambda t: jd.sample(denoiser, jd.solvers.flow_map(), FLOW(t), x, KEY))
    out = draw(jnp.asarray([1.0, 0.0]))
    assert abs(np.std(out) - std) < 5e-5
    np.testing.assert_allclose(out, draw(jnp.linspace(1, 0, N + 1)), rtol=1e-10)


@slow
@pytest.mark.usefixtures("x64")
def test_the_average_is_the_target_without_a_gradient():
    params = optimum(4)
    loss = distill.shortcut(table, FLOW, VELOCITY, steps=4, share=1.0)
    other = jax.tree.map(lambda a: a + 0.1, params)
    assert run(loss, params)[0][0] < 1e-20 < 1e-4 < run(loss, params, ema=other)[0][0]
    # The student's own halves move nothing: the smallest steps have no gradient in a bootstrapped example.
    grad = run(loss, other, ema=params)[1]
    assert not grad["A"][0, -1].any() and grad["A"][0, 0, 0] != 0
    with pytest.raises(ValueError, match=r"distill.context\(ema=True\)"):
        loss((params, context()), KEY, nodes(4))
    with pytest.raises(ValueError, match="got 2"):
        loss((params, context(ema=(params, params))), KEY, nodes(4))


@slow
@pytest.mark.usefixtures("x64")
def test_guidance_enters_at_the_smallest_steps_only():
    N, scale, null = 4, 2.5, {"label": jnp.asarray([1])}
    params = numbers(N)
    for label, m in ((0, M), (1, -0.2)):
        params["A"][label, -1, :N], params["B"][label, -1, :N] = velocities(N, m)
    guided = [params[n][1, -1] + scale * (params[n][0, -1] - params[n][1, -1]) for n in "AB"]
    params = composed(params, 0, N, guided)
    batch = nodes(512) | {"label": jnp.zeros(512, int)}
    guide = lambda c, u: jd.guidance.cfg(c, u, scale)  # noqa: E731
    loss = distill.shortcut(table, FLOW, VELOCITY, steps=N, share=0.75, null_cond=null, guide=guide)
    jax.tree.map(lambda g: np.testing.assert_allclose(g, 0, atol=1e-10), run(loss, params, batch=batch)[1])
    plain = distill.shortcut(table, FLOW, VELOCITY, steps=N, share=0.75)
    assert np.abs(run(plain, params, batch=batch)[1]["A"]).max() > 1e-2
    # With condition dropout the null class learns the smallest steps, and those alone.
    dropped = distill.shortcut(table, FLOW, VELOCITY, steps=N, share=0.5, null_cond=null, guide=guide, cond_dropout=0.5)
    grad = run(dropped, jax.tree.map(lambda a: a + 0.1, params), batch=batch)[1]
    assert np.all(grad["A"][1, -1, :N] != 0) and not grad["A"][1, :-1].any() and np.all(grad["A"][0, -1, :N] != 0)


@slow
@pytest.mark.usefixtures("x64")
def test_a_small_batch_sees_every_size():
    """Each example is drawn on its own: in batches of 2, each size appears."""
    params, loss = optimum(4), distill.shortcut(table, FLOW, VELOCITY, steps=4, share=0.25)
    given, off = context(ema=params), jax.tree.map(lambda a: a + 0.1, params)
    grad = lambda key: jax.grad(lambda p: loss((p, given), key, nodes(2))[0])(off)  # noqa: E731
    grads = jax.jit(jax.vmap(grad))(jax.random.split(KEY, 400))["A"][:, 0]
    sizes = (np.abs(grads) > 0).any(-1)  # [keys, k]
    # An example is of size k < 2 with probability 1/8 each, of the smallest with 3/4.
    seen = 1 - (1 - np.array([0.125, 0.125, 0.75])) ** 2
    assert np.all(np.abs(sizes.mean(0) - seen) < 4 * np.sqrt(seen * (1 - seen) / 400))


@slow
@pytest.mark.usefixtures("x64")
def test_on_another_process_the_exact_denoiser_and_exact_halves_are_a_minimum():
    """Cosine with `v`: of a teacher's exact map as the average, the map is the minimum of all larger steps."""
    process, prediction = jd.processes.Cosine(), named(jd.parameterize.v)
    apply = student(process, prediction)
    loss = distill.shortcut(apply, process, prediction, steps=8, share=1.0)
    value, grad = jax.jit(jax.value_and_grad(lambda p: loss((p, context(ema=np.zeros(6))), KEY, nodes(64))[0]))(
        np.zeros(6)
    )
    np.testing.assert_allclose(value, 0, atol=1e-20)
    np.testing.assert_allclose(grad, 0, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 6}, "power of 2, at least 2, .* got 6"),
        ({"steps": 1}, "got 1"),
        ({"share": 1.5}, "share must be a finite number in"),
        ({"guide": lambda cond, uncond: cond}, "need null_cond"),
        ({"cond_dropout": 0.1}, "need null_cond"),
        ({"cond_dropout": -0.1}, "cond_dropout must be"),
    ],
)
def test_mistakes(options, match):
    with pytest.raises(ValueError, match=match):
        distill.shortcut(table, FLOW, VELOCITY, **options)
    with pytest.raises(ValueError, match="EDM has no noisiest time"):
        distill.shortcut(table, jd.processes.EDM(), VELOCITY)
