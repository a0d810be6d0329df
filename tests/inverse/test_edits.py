"""Edits without a measurement: FlowEdit of Gaussians, and canvases of windows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.exact import gaussian

import jaxdiff as jd
from jaxdiff import inverse

COV = np.array([[0.5, 0.2], [0.2, 0.3]])
SOURCE_MEAN = np.array([[1.0, -1.0]])
SOURCE, TARGET = gaussian([1.0, -1.0], COV), gaussian([-0.5, 2.0], COV)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process", [jd.processes.VP(), jd.processes.Flow()], ids=["vp", "flow"])
@pytest.mark.parametrize("solver", [jd.solvers.ddim(), jd.solvers.dpmpp_2m()], ids=["ddim", "dpmpp_2m"])
def test_flow_edit_of_two_gaussians_of_one_covariance_is_their_difference(process, solver):
    """Exact in any number of steps from pure noise: the noise cancels."""
    rng = np.random.default_rng(0)
    x0, noise = (jnp.asarray(rng.normal(size=(3, 2))) for _ in range(2))
    for n in (1, 3):
        denoise = inverse.flow_edit(TARGET.denoise, SOURCE.denoise, x0, noise)
        levels = jd.grids.by_time(process, n)
        levels = levels._replace(alpha=levels.alpha.at[0].set(0.0), sigma=levels.sigma.at[0].set(1.0))
        d = jd.sample(denoise, solver, levels, jnp.zeros_like(x0), jax.random.key(0))
        np.testing.assert_allclose(d, np.broadcast_to([-1.5, 3.0], (3, 2)), atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_edit_friendly_inversion_gives_the_picture_again_and_its_edit():
    """Bit-near with the picture's denoiser, from any step; of Gaussians of one covariance exactly their difference."""
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))
    keys = jax.random.split(jax.random.key(1), 3)

    @jax.jit
    def edited(levels, keys, x0, target, start):
        x, solver = inverse.edit_friendly(SOURCE.denoise, levels, x0, keys, start=start)
        denoise = jd.guidance.cfg(TARGET.denoise, SOURCE.denoise, target)
        return jd.sample(denoise, solver, levels, x, jax.random.key(2), start=start)

    for n in (2, 7):
        levels = jd.grids.by_time(jd.processes.VP(), n)
        levels = levels._replace(alpha=levels.alpha.at[0].set(0.0), sigma=levels.sigma.at[0].set(1.0))
        for start in range(n):
            np.testing.assert_allclose(edited(levels, keys, x0, 0.0, start), x0, atol=1e-12)
        moved = [edited(levels, keys, x0, 1.0, start) - x0 for start in range(n)]
        np.testing.assert_allclose(moved[0], np.broadcast_to([-1.5, 3.0], (3, 2)), atol=1e-12)
        sizes = [np.linalg.norm(d) for d in moved]
        assert sorted(sizes, reverse=True) == sizes and sizes[-1] < sizes[0] - 0.05
    # Noise at two levels is independent, and an example's depends on its own key only.
    x = [inverse.edit_friendly(SOURCE.denoise, levels, jnp.zeros((3, 2)), keys, start=i)[0] for i in (2, 3)]
    z = [a / s for a, s in zip(x, levels.sigma[2:4], strict=True)]
    assert np.abs(z[0] - z[1]).min() > 1e-3
    np.testing.assert_allclose(edited(levels, keys[1:], x0[1:], 1.0, 3), moved[3][1:] + x0[1:], atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_null_text_inversion_finds_the_condition_with_which_guidance_changes_nothing():
    """Of Gaussians whose mean is the condition: guidance is right where the null condition is that of the picture."""
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))
    levels = jd.grids.karras(jd.processes.VP(), 6, sigma_min=0.05, sigma_max=20.0)

    def denoise(at):
        return lambda x, level: SOURCE.denoise(x - level.alpha * (at - SOURCE_MEAN), level) + at - SOURCE_MEAN

    @jax.jit
    def again(x0, mean, other):
        path = jd.invert_path(SOURCE.denoise, levels, x0, iterations=3)
        guided = lambda cond: lambda null: jd.guidance.cfg(denoise(cond), denoise(null), 5.0)  # noqa: E731
        null = jnp.zeros_like(x0)
        start = guided(mean)(null)
        plain = jd.sample(start, jd.solvers.ddim(), levels, path[0], jax.random.key(0))
        null_at, found = inverse.null_text(guided(mean), levels, path, null, optax.adam(0.1), iterations=200)
        drawn = lambda x, level: guided(other)(null_at(level))(x, level)  # noqa: E731
        edited = jd.sample(drawn, jd.solvers.ddim(), levels, path[0], jax.random.key(0))
        return path, plain, found, edited, null_at(levels.at(3))

    with jax.numpy_dtype_promotion("standard"):  # as optax's optimizers take it
        path, plain, found, edited, null = again(x0, SOURCE_MEAN, SOURCE_MEAN)
    np.testing.assert_allclose(path[0], jd.invert(SOURCE.denoise, levels, x0, iterations=3), atol=1e-12)
    assert np.abs(plain - x0).max() > 1
    np.testing.assert_allclose(found, x0, atol=1e-5)
    np.testing.assert_allclose(edited, found, atol=1e-12)
    # Up to what six steps of the inversion are off by.
    np.testing.assert_allclose(null, np.broadcast_to(SOURCE_MEAN, null.shape), atol=0.15)
    levels_of_others = jd.grids.karras(jd.processes.VP(), 5, sigma_min=0.05, sigma_max=20.0)
    with pytest.raises(ValueError, match="at each of the 6 levels, got 7"):
        inverse.null_text(lambda null: SOURCE.denoise, levels_of_others, path, null, optax.sgd(0.1))


def test_flow_edit_checks_its_arguments():
    x = jnp.zeros((2, 2))
    with pytest.raises(ValueError, match="source must be a denoiser"):
        inverse.flow_edit(TARGET.denoise, None, x, x)
    with pytest.raises(ValueError, match=r"the noise has the shape of the picture, \[2, 2\], got \[1, 2\]"):
        inverse.flow_edit(TARGET.denoise, SOURCE.denoise, x, x[:1])


def ramp(params, x, noise, cond):
    """Depends on the place within a window, the picture, the level and the condition."""
    place = jnp.arange(1.0 * x.shape[1])[:, None] + 10 * jnp.arange(1.0 * x.shape[2])[None]
    numbers = (noise + cond["label"])[:, None, None, None]
    return jnp.concatenate([x * numbers, x + place[None, :, :, None]], axis=-1)


def test_windows_are_a_mean_over_those_that_see_a_pixel():
    rng = np.random.default_rng(0)
    x, noise = np.float32(rng.normal(size=(2, 7, 5, 1))), np.float32([2.0, 3.0])
    cond = {"label": np.float32([5.0, 7.0])}
    wide = inverse.windows(ramp, (4, 3), (2, 2))
    out = jax.jit(lambda x: wide({}, x, noise, cond))(x)
    total, count = np.zeros((2, 7, 5, 2)), np.zeros((7, 5, 1))
    for i in (0, 2, 3):
        for j in (0, 2):
            part = ramp({}, jnp.asarray(x[:, i : i + 4, j : j + 3]), noise, cond)
            total[:, i : i + 4, j : j + 3] += part
            count[i : i + 4, j : j + 3] += 1
    np.testing.assert_allclose(out, total / count, rtol=1e-6)
    # What looks at one pixel is not changed by windows, and one window is the network itself.
    np.testing.assert_allclose(out[..., :1], x * (noise + cond["label"])[:, None, None, None], rtol=1e-6)
    np.testing.assert_array_equal(wide({}, x[:, :4, :3], noise, cond), ramp({}, x[:, :4, :3], noise, cond))


def test_windows_see_their_part_of_a_concatenated_picture():
    """A network of one pixel of x and of the picture that is concatenated to it is not changed by windows."""
    rng = np.random.default_rng(1)
    x, picture = (np.float32(rng.normal(size=(2, 7, 5, n))) for n in (1, 3))

    def network(params, x, noise, cond):
        return x * cond["concat"].sum(-1, keepdims=True) + cond["label"][:, None, None, None]

    cond = {"label": np.float32([5.0, 7.0]), "concat": picture}
    wide = inverse.windows(network, (4, 3))({}, x, jnp.ones(2), cond)
    np.testing.assert_allclose(wide, network({}, x, None, cond), rtol=1e-5)


def test_windows_of_a_learned_variance_are_two_means():
    two = lambda params, x, noise, cond: (x, jnp.square(x))  # noqa: E731
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 5, 1)), jnp.float32)
    F, frac = inverse.windows(two, (4, 3))({}, x, jnp.ones(2), {})
    np.testing.assert_allclose(F, x, rtol=1e-6)  # what looks at one pixel is not changed by windows
    np.testing.assert_allclose(frac, jnp.square(x), rtol=1e-6)


def test_windows_check_their_sizes():
    for stride in ((0, 1), (5, 1)):
        with pytest.raises(ValueError, match="stride must lie between 1 and the window's size"):
            inverse.windows(ramp, (4, 3), stride)
    for sizes in (((4, 4), 2), (4,), ((4, 4, 1), (2, 2))):
        with pytest.raises(ValueError, match="must be a pair, of height and width"):
            inverse.windows(ramp, *sizes)
    with pytest.raises(ValueError, match=r"a canvas is at least as large as a window, \(4, 3\), got \(3, 3\)"):
        inverse.windows(ramp, (4, 3))({}, jnp.zeros((1, 3, 3, 1)), jnp.ones(1), {"label": jnp.ones(1)})
