"""Operators against dense matrices; transforms against numpy, scipy and known integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, signal

from jaxdiff.inverse import operators
from jaxdiff.inverse.operators.base import conjugate_gradients, conjugate_residuals

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("x64")


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape))


def binary(*shape):
    return jnp.asarray(RNG.integers(0, 2, size=shape), jnp.float64)


def complex_normal(*shape):
    return jax.lax.complex(normal(*shape), normal(*shape))


# name -> (operator, shape of an example); sides differ and are odd where they may be.
with jax.enable_x64(True):
    CASES = {
        "mask": (operators.mask(binary(3, 4, 1)), (3, 4, 2)),
        "average": (operators.average(2), (4, 6, 2)),
        "blur": (operators.blur(normal(3, 5)), (5, 6, 1)),
        "blur, of which frequencies are lost": (operators.blur(jnp.ones((3, 3)) / 9), (15, 4, 1)),
        "fourier": (operators.fourier(binary(5, 4)), (5, 4, 2)),
        "fourier real": (operators.fourier(binary(5, 4), real=True), (5, 4, 1)),
        "fourier coils": (operators.fourier(binary(4, 3), complex_normal(3, 4, 3)), (4, 3, 2)),
        "radon": (operators.radon(jnp.array([0.0, 35.0, 90.0]), 6, 2, iterations=80), (6, 6, 2)),
        "matrix": (operators.matrix(normal(4, 6)), (6,)),
        "matrix, tall, rank 2": (operators.matrix(normal(7, 2) @ normal(2, 6), (2, 3)), (2, 3)),
        "linear": (
            operators.linear(lambda x: jax.lax.complex(jnp.cumsum(x, 1), 2 * jnp.cumsum(x, 1) + x[:, ::-1]), (5,)),
            (5,),
        ),
    }


def parts(v):
    """Measurements as real vectors: [B, M]."""
    v = np.asarray(v).reshape(len(v), -1)
    return np.concatenate([v.real, v.imag], axis=1) if np.iscomplexobj(v) else v


QUICK = "mask", "average", "matrix, tall, rank 2"


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES])
def test_adjoint_solve_and_decomposition_are_those_of_the_dense_matrix(name):
    op, shape = CASES[name]
    n = int(np.prod(shape))

    @jax.jit
    def run(v, x):
        # One batch with a level of noise for each: examples alone, and batched.
        d = jnp.array([0.0, 0.3, 2.0, 0.0]).reshape(-1, *(1,) * (v.ndim - 1))
        dense = op.apply(jnp.eye(n).reshape(n, *shape))
        some = None if op.spectral is None else op.spectral(lambda s: 1 / (jnp.square(s) + 0.3), x)
        solved = op.solve(v, 1.0 + d, d)
        return dense, op.adjoint(v), solved, (op.adjoint(solved), op.pseudoinverse(v)), some

    x = normal(4, *shape)
    ax = op.apply(x)
    v = complex_normal(*ax.shape) if jnp.iscomplexobj(ax) else normal(*ax.shape)
    v = v.at[0].set(ax[0])  # where d = 0 the pseudo-inverse is tested in the range
    dense, back, solved, inverted, some = run(v, x)
    a, flat = parts(dense).T, parts(v)
    np.testing.assert_allclose(parts(back), flat @ a, atol=1e-12)
    for i, d in enumerate((0.0, 0.3, 2.0)):
        exact = np.linalg.pinv((1 + d) * a @ a.T + d * np.eye(len(a)), rcond=1e-12) @ flat[i]
        np.testing.assert_allclose(parts(solved)[i], exact, atol=1e-8 * np.abs(exact).max())
    exact = np.linalg.pinv(a, rcond=1e-12) @ flat[3]  # the last has noise that is not in the range
    for found in inverted:
        np.testing.assert_allclose(parts(found)[3], exact, atol=1e-8 * np.abs(exact).max())
    if op.spectral is not None:
        exact = np.linalg.solve(a.T @ a + 0.3 * np.eye(n), parts(x).T).T
        np.testing.assert_allclose(parts(some), exact, atol=1e-10)


def test_the_pseudo_inverse_of_noise_that_is_not_in_the_range():
    """Steps that divide by a curvature of 0 give 1e8 where 2 is right; in float32, too, and in many iterations."""
    real, imag = RNG.normal(size=(2, 5, 4)).astype(np.float32)
    a = np.concatenate([real, imag])
    y = (RNG.normal(size=(2, 4)) @ a.T + [[0.0], [1.0]] * RNG.normal(size=(2, 10))).astype(np.float32)
    op = operators.linear(lambda x: jax.lax.complex(x @ real.T, x @ imag.T), (4,))
    v = jax.lax.complex(y[:, :5], y[:, 5:])
    found = jax.jit(lambda v: op.adjoint(op.solve(v, 1.0, 0.0)))(v)
    np.testing.assert_allclose(found, y @ np.linalg.pinv(a).T, atol=1e-4)


@pytest.mark.slow
def test_float32_adjoints():
    for name in ("fourier coils", "blur"):
        op, shape = CASES[name]
        x = normal(2, *shape).astype(jnp.float32)
        v = jnp.asarray(RNG.normal(size=jax.eval_shape(op.apply, x).shape), jax.eval_shape(op.apply, x).dtype)
        ax, back = jax.jit(lambda x, v, op=op: (op.apply(x), op.adjoint(v)))(x, v)
        assert ax.real.dtype == back.dtype == jnp.float32
        left, right = np.sum((np.conj(v) * ax).real), np.sum(np.asarray(x) * back)
        assert abs(left - right) <= 1e-6 * np.linalg.norm(ax) * np.linalg.norm(v)


def test_the_fourier_transform_is_numpys_centred_and_keeps_the_norm():
    x, m = normal(1, 5, 4, 2), np.asarray(binary(5, 4))
    z = np.asarray(x)[0, ..., 0] + 1j * np.asarray(x)[0, ..., 1]
    # As a sum: index n // 2 is the origin of both.
    at = [np.arange(n) - n // 2 for n in z.shape]
    waves = [np.exp(-2j * np.pi * np.outer(k, k) / len(k)) / np.sqrt(len(k)) for k in at]
    np.testing.assert_allclose(operators.fourier(m).apply(x)[0], m * (waves[0] @ z @ waves[1].T), atol=1e-12)
    everything = operators.fourier(jnp.ones((5, 4)))
    v = everything.apply(x)
    np.testing.assert_allclose(np.sum(np.abs(v) ** 2), np.sum(np.square(x)), rtol=1e-12)
    np.testing.assert_allclose(everything.adjoint(v), x, atol=1e-12)


@pytest.mark.slow
def test_blur_is_scipys_convolution_on_a_torus():
    kernel, x = RNG.normal(size=(3, 5)), RNG.normal(size=(7, 6))
    exact = signal.convolve2d(np.pad(x, ((1, 1), (2, 2)), mode="wrap"), kernel, mode="valid")
    blurred = operators.blur(jnp.asarray(kernel)).apply(jnp.asarray(x)[None, ..., None])
    np.testing.assert_allclose(blurred[0, ..., 0], exact, atol=1e-12)


@pytest.mark.slow
def test_radon():
    """Rotation and sum by scipy; the integral along chords of a disc; and the Fourier slice theorem."""
    n, angles = 65, np.array([0.0, 20.0, 45.0, 90.0, 133.0])
    at = np.arange(n) - n // 2
    disc = np.clip(20.5 - np.hypot(*np.meshgrid(at - 3, at + 5, indexing="ij")), 0, 1)
    smooth = ndimage.gaussian_filter(disc + RNG.uniform(size=(n, n)) * (np.hypot(*np.meshgrid(at, at)) < 20), 2.0)
    pictures = np.stack([disc, smooth])
    sinograms = np.asarray(operators.radon(jnp.asarray(angles), n).apply(jnp.asarray(pictures)[..., None]))[..., 0]
    for i, angle in enumerate(np.deg2rad(angles)):
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, -sin], [sin, cos]])
        for picture, sinogram in zip(pictures, sinograms, strict=True):
            turned = ndimage.affine_transform(
                picture, turn, (n // 2) * (1 - turn.sum(1)), order=1, mode="grid-constant"
            )
            np.testing.assert_allclose(sinogram[:, i], turned.sum(0), atol=1e-9)
        # The disc's middle, 3 rows down and 5 columns to the left, is seen at u = 0.
        u = at - (-5 * cos - 3 * sin)
        chords = 2 * np.sqrt(np.maximum(20.0**2 - u**2, 0))
        assert np.abs(sinograms[0][:, i] - chords)[np.abs(u) < 18].max() < 0.5
        # The 1-D transform of a projection is the 2-D transform on a line through the origin.
        k = np.arange(1, 4) / n
        slice_ = [np.sum(smooth * np.exp(-2j * np.pi * f * (cos * at - sin * at[:, None]))) for f in k]
        line = [np.sum(sinograms[1][:, i] * np.exp(-2j * np.pi * f * at)) for f in k]
        assert np.abs(np.subtract(slice_, line)).max() < 0.01 * np.abs(smooth.sum())


@pytest.mark.slow
@pytest.mark.parametrize("solve", [conjugate_gradients, conjugate_residuals])
def test_conjugate_gradients_and_residuals_leave_an_example_alone(solve):
    """Whatever the others need: the first is solved after one iteration, the second needs all, the third is 0."""
    a = jnp.stack([2 * jnp.eye(4), jnp.diag(jnp.array([1.0, 10.0, 100.0, 1000.0])), jnp.zeros((4, 4))])
    matvec = lambda v, a=a: jnp.einsum("bij,bj->bi", a, v)  # noqa: E731
    v = normal(3, 4)
    solved, alone = jax.jit(lambda v: (solve(matvec, v, 6), solve(lambda v: matvec(v, a[:1]), v[:1], 1)))(v)
    np.testing.assert_allclose(solved[:2], np.linalg.solve(a[:2], v[:2, :, None])[..., 0], rtol=1e-8)
    assert np.all(np.asarray(solved[2]) == 0)
    np.testing.assert_array_equal(solved[:1], alone)


def test_a_matrix_is_multiplied_in_full_precision():
    """Accelerators round the factors to half precision otherwise, and A x = y would hold to 1 %."""
    a = operators.matrix(jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32))
    assert a.spectral is not None
    x, v = jnp.ones((2, 5), jnp.float32), jnp.ones((2, 3), jnp.float32)
    for part in (
        lambda: a.apply(x),
        lambda: a.adjoint(v),
        lambda: a.solve(v, 1.0, 0.5),
        lambda: a.spectral(jnp.exp, x),
    ):
        text = str(jax.make_jaxpr(part)())
        assert text.count("dot_general") == text.count("Precision.HIGHEST, Precision.HIGHEST") > 0


def test_bad_operators():
    x = jnp.ones((2, 4, 4, 1))
    for make, words in {
        lambda: operators.mask(jnp.array([0.5])): "1 where there is a measurement",
        lambda: operators.mask(jnp.ones((4, 4))).apply(x): "shape of an example",
        lambda: operators.mask(jnp.ones((3, 4, 1))).apply(x): "shape of an example",
        lambda: operators.average(0): "at least 1, got 0",
        lambda: operators.average(3).apply(x): "not divided into blocks of 3",
        lambda: operators.blur(jnp.ones((2, 3))): "odd sides",
        lambda: operators.blur(jnp.ones((5, 3))).apply(x): "larger than a picture",
        lambda: operators.fourier(jnp.ones(4)): r"\[H, W\]",
        lambda: operators.fourier(jnp.ones((4, 4)), jnp.ones((2, 4, 4))): "maps must be complex",
        lambda: operators.fourier(jnp.ones((4, 4))).apply(x): "pictures must have shape",
        lambda: operators.matrix(jnp.ones((2, 3)), (2, 2)): "3 numbers",
        lambda: operators.matrix(jnp.ones(3)): "real matrix",
        lambda: operators.radon(jnp.ones((2, 2)), 4): r"\[K\]",
        lambda: operators.radon(jnp.ones(2), 4).apply(jnp.ones((4, 2, 2, 1))): r"shape \[B, 4, 4, 1\], got",
        lambda: operators.radon(jnp.ones(2), 4, 2).apply(x): r"shape \[B, 4, 4, 2\], got",
        lambda: operators.linear(lambda x: x, (4,), iterations=0): "at least 1",
    }.items():
        with pytest.raises(ValueError, match=words):
            make()
