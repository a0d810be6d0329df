"""`benchmarks/mri.py`: its classical reconstructions against second solutions, what it measures and what it counts."""

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import jaxdiff as jd
from jaxdiff.inverse import operators

FOLDER = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def mri():
    sys.path.insert(0, str(FOLDER / "benchmarks"))
    try:
        yield import_module("mri")
    finally:
        sys.path.remove(str(FOLDER / "benchmarks"))


def test_total_variation_of_two_halves(mri):
    """Each half of a step comes nearer to the other by weight * edge / area, by hand; a flat picture stays."""
    y = jnp.where(jnp.arange(6) < 4, 0.0, 1.0)[None, None, :, None] * jnp.ones((1, 5, 1, 1))
    found = mri.classical.total_variation(operators.mask(jnp.ones((5, 6, 1))), jnp.concatenate([y, 0 * y + 0.3]), 0.1)
    exact = np.where(np.arange(6) < 4, 0.1 / 4, 1 - 0.1 / 2)
    np.testing.assert_allclose(found[0, :, :, 0], np.broadcast_to(exact, (5, 6)), atol=2e-3)
    np.testing.assert_allclose(found[1], 0.3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MRI, 4x", "CT, 20 angles"])
def test_total_variation_is_the_minimum_that_scipy_finds(mri, name):
    """Of the objective in numpy with dense matrices, smoothed by 1e-4; A of either task."""
    size, weight, task = 12, 0.02, mri.TASKS[name]
    p = mri.pictures(size, 1, seed=5)["phantoms"]
    measured = mri.measure(task, p, seed=0)
    a = task.operator(measured.arrays)
    dense = np.asarray(a.apply(jnp.eye(size * size).reshape(-1, size, size, 1))).reshape(size * size, -1).T
    dense, y = (np.concatenate([v.real, v.imag]) for v in (dense, np.asarray(measured.y).ravel()))
    norm = np.linalg.norm(dense, 2) ** 2
    np.testing.assert_allclose(mri.classical.squared_norm(a, p.shape), norm, rtol=0.02)

    def objective(x):
        x = x.reshape(size, size)
        down, right = np.zeros((2, size, size))
        down[:-1], right[:, :-1] = np.diff(x, axis=0), np.diff(x, axis=1)
        length = np.sqrt(down**2 + right**2 + 1e-8)
        off = dense @ x.ravel() - y
        down, right = down / length, right / length
        slope = -down - right
        slope[1:] += down[:-1]
        slope[:, 1:] += right[:, :-1]
        value = 0.5 * off @ off + weight * norm * length.sum()
        return value, off @ dense + weight * norm * slope.ravel()

    found = minimize(objective, np.zeros(size * size), jac=True, method="L-BFGS-B", options={"maxiter": 5000})
    x = mri.classical.total_variation(a, measured.y, weight, steps=2000)
    assert objective(np.asarray(x, np.float64).ravel())[0] <= found.fun * 1.005
    np.testing.assert_allclose(x.ravel(), found.x, atol=0.03)


@pytest.mark.slow
def test_tomography(mri):
    """The ray matrix is the transform, its solve the matrix's; a disc comes back; SIRT fits what it is given."""
    size = 16
    arrays = mri.ray_matrix(1, size)
    a, v = mri.ray_operator(arrays), jax.random.normal(jax.random.key(0), (2, size, mri.ANGLES, 1))
    transform = operators.radon(jnp.linspace(0, 180, mri.ANGLES, endpoint=False), size)
    x = jax.random.normal(jax.random.key(1), (2, size, size, 1))
    np.testing.assert_allclose(a.apply(x), transform.apply(x), atol=1e-4)
    np.testing.assert_allclose(a.adjoint(v), transform.adjoint(v), atol=1e-4)
    dense = np.asarray(arrays[0], np.float64)
    flat = np.asarray(v, np.float64).reshape(2, -1)
    exact = [
        np.linalg.solve(c * dense @ dense.T + 0.5 * np.eye(len(dense)), f)
        for c, f in zip((0.1, 3.0), flat, strict=True)
    ]
    c = jnp.array([0.1, 3.0]).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(a.solve(v, c, 0.5).reshape(2, -1), exact, atol=2e-4)

    disc = jnp.asarray(mri.medical.coverage(mri.medical.Ellipses(*map(np.asarray, ([[0, 0]], [[0.6, 0.6]], [0]))), 48))
    turned = operators.radon(jnp.linspace(0, 180, 90, endpoint=False), 48)
    back = mri.classical.filtered_back_projection(turned, turned.apply(disc[..., None].astype(jnp.float32)))[0, ..., 0]
    at = np.hypot(*np.meshgrid(*[np.arange(48) - 24] * 2))
    assert abs(float(back[at < 10].mean()) - 1) < 0.02 and abs(float(back[(at > 18) & (at < 23)].mean())) < 0.05

    y = a.apply(jnp.abs(x))
    near, far = (jnp.linalg.norm(a.apply(mri.classical.sirt(a, y, n)) - y) for n in (100, 5))
    assert near < 0.3 * far < 0.3 * jnp.linalg.norm(y)


@pytest.mark.slow
def test_a_measurement_does_not_know_the_truth(mri):
    """The unknown gain of a scanner changes nothing but the units; noise is that of each part, where there is any."""
    task = mri.TASKS["MRI, 4x"]
    masks = mri.lines(3, 64)
    columns = masks[:, 0]
    assert np.all(masks == columns[:, None]) and np.all(columns.sum(1) == 16) and np.all(columns[:, 30:35] == 1)
    assert not np.array_equal(columns[0], columns[1])
    p = np.zeros((200, 16, 16, 1))
    plain = mri.measure(task, p, seed=0)
    noise = np.asarray(plain.y)[np.asarray(plain.arrays) == 1]
    np.testing.assert_allclose([noise.real.std(), noise.imag.std()], 0.01, rtol=0.03)
    assert abs(np.mean(noise.real * noise.imag)) < 2e-6 and not np.asarray(plain.y)[np.asarray(plain.arrays) == 0].any()
    p = mri.pictures(16, 2, seed=1)["phantoms"]
    plain, loud = (mri.measure(task, p, seed=0, gain=gain) for gain in (1.0, 250.0))
    np.testing.assert_allclose(loud.scale, 250 * plain.scale, rtol=1e-5)
    assert loud.std == 250 * plain.std
    zero_filled = task.simple[1](task.operator(plain.arrays), plain.y)
    np.testing.assert_allclose(zero_filled.max(axis=(1, 2, 3), keepdims=True), 0.8 * plain.scale, rtol=1e-6)
    assert np.all(mri.measure(mri.TASKS["denoising"], p, seed=0).scale == 1)


def test_what_is_counted(mri):
    """Samples like the truth have it in their range 18 times of 20; deviations that are the errors correlate fully."""
    rng = np.random.default_rng(0)
    mean, spread = rng.uniform(0.4, 0.6, (2, 64, 64, 1)), rng.uniform(0.001, 0.02, (2, 64, 64, 1))
    true, *p = mean + spread * rng.normal(size=(20, 2, 64, 64, 1))
    found = mri.judge(np.stack(p), true)
    assert abs(found["covered"] - 0.9) < 0.01 and 0.2 < found["correlation"] < 0.8
    error = np.mean(np.square(np.mean(p, axis=0) - true), axis=(1, 2, 3))
    np.testing.assert_allclose(found["psnr"], np.mean(-10 * np.log10(error)), rtol=1e-12)
    two = np.stack([true + spread, true + 3 * spread])
    np.testing.assert_allclose(mri.judge(two, true)["correlation"], 1, atol=1e-9)
    assert mri.judge(two, true)["covered"] == 0 and "covered" not in mri.judge(two[:1], true)


@pytest.fixture
def gaussian(mri):
    """An experiment whose data are N(0, PRIOR_STD^2 I), with the exact denoiser for a network."""

    def apply(params, x, t, cond):
        t = t.reshape(-1, 1, 1, 1)
        precision = jnp.square(1 - t) + jnp.square(t / mri.PRIOR_STD)
        return params * (1 - t) * x / precision

    model = SimpleNamespace(apply=apply, process=jd.processes.Flow(), prediction=jd.parameterize.x0)
    return SimpleNamespace(model=model, medium=SimpleNamespace(shape=(16, 16, 1)))


@pytest.mark.slow
def test_from_measurements_to_the_page(mri, gaussian, tmp_path):
    """Samples have the mean and the deviation of a Gaussian posterior, in the units of the measured pictures."""
    bench = mri.Bench(gaussian, jnp.float32(1), steps=12)
    rng = np.random.default_rng(0)
    sets = {"phantoms": (0.5 + 0.25 * rng.normal(size=(2, 16, 16, 1))).astype(np.float32)}
    tasks = ["MRI, 4x", "denoising"]
    found = mri.compare(bench, sets, tmp_path, tasks=tasks, methods=["daps"])
    drawn = np.load(tmp_path / "denoising-daps.npy")
    y = np.asarray(mri.measure(mri.TASKS["denoising"], sets["phantoms"], seed=1).y)
    gain = 0.25**2 / (0.25**2 + 0.1**2)  # of the pictures p = (x + 1) / 2, of std 0.25
    std = np.sqrt(gain) * 0.1
    assert drawn.shape == (19, 2, 16, 16, 1)
    away = drawn.mean(0) - (0.5 + gain * (y - 0.5))
    np.testing.assert_allclose([away.mean(), away.std()], [0, std / np.sqrt(19)], atol=0.1 * std)
    np.testing.assert_allclose(np.sqrt(drawn.var(0, ddof=1).mean()), std, rtol=0.03)
    assert abs(found["denoising"]["daps"]["phantoms"]["covered"] - 0.9) < 0.06
    # With a scale of the scanner's: the samples fit the measurement to its noise, no less and no more.
    measured = mri.measure(mri.TASKS["MRI, 4x"], sets["phantoms"], seed=1)
    a = mri.TASKS["MRI, 4x"].operator(measured.arrays)
    off = [
        np.asarray(a.apply(jnp.asarray(p)) - measured.y)[np.asarray(measured.arrays) == 1]
        for p in np.load(tmp_path / "MRI, 4x-daps.npy")
    ]
    assert 0.006 < np.std(np.real(off)) < 0.018

    again = mri.compare(bench, sets, tmp_path, tasks=tasks, methods=["daps"])  # nothing is left to do
    assert again == found
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- table -->\n<!-- end of table -->\nAfter.\n")
    mri.mri_page.write(page, found, mri.mri_page.picture(found, tmp_path, sets["phantoms"], np.array([1])), 1)
    text = page.read_text()
    assert text.startswith("Before.") and text.endswith("After.\n") and page.with_suffix(".png").stat().st_size > 1000
    for method in ("zero-filled", "total variation", "daps"):
        assert f"| MRI, 4x | phantoms | {method} | {found['MRI, 4x'][method]['phantoms']['psnr']:.1f} |" in text
