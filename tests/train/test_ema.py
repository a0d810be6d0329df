import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.train import ema


def test_constant():
    assert float(ema.constant(0.25)(jnp.int32(7))) == 0.25


@pytest.mark.parametrize("step", [0, 1, 89, 90, 10**6])
def test_warmup(step):
    expected = min(0.9, (1 + step) / (10 + step))
    np.testing.assert_allclose(ema.warmup(0.9)(jnp.int32(step)), expected, rtol=1e-6)
    expected = min(0.9, (1 + step) / (2 + step))
    np.testing.assert_allclose(ema.warmup(0.9, offset=2.0)(jnp.int32(step)), expected, rtol=1e-6)


@pytest.mark.parametrize("ratio", [0.05, None])
def test_half_life_is_edms(ratio):
    """ema_beta of its training loop, where cur_nimg is the images before this update's."""
    batch, halflife_nimg = 512, 500_000
    for step in (0, 1, 2, 7, 977, 19_531, 19_532, 10**6):
        nimg = halflife_nimg if ratio is None else min(halflife_nimg, step * batch * ratio)
        got = ema.half_life(halflife_nimg / batch, ratio)(jnp.int32(step))
        np.testing.assert_allclose(got, 0.5 ** (batch / max(nimg, 1e-8)), rtol=1e-6)
        assert got.dtype == jnp.float32
    average, decay = jnp.float32(1), ema.half_life(7.0, None)
    for step in range(14):
        average = ema.update(average, jnp.float32(0), decay(jnp.int32(step)))
    np.testing.assert_allclose(average, 1 / 4, rtol=1e-5)


def test_half_life_out_of_range():
    for updates, ramp_up in ((0, 0.05), (float("nan"), 0.05), (10, 0), (10, -1)):
        with pytest.raises(ValueError, match="half-life must be greater than 0"):
            ema.half_life(updates, ramp_up)


def test_update_against_a_weighted_sum():
    """The average after n updates is d^n e_0 + (1 - d) sum_k d^(n-1-k) p_k."""
    values = np.random.default_rng(0).normal(size=(6, 5))
    average = jnp.asarray(values[0], jnp.float32)
    for value in values[1:]:
        average = ema.update({"w": average}, {"w": jnp.asarray(value, jnp.float32)}, jnp.float32(0.8))["w"]
    expected = 0.8**5 * values[0] + 0.2 * sum(0.8 ** (4 - k) * values[1 + k] for k in range(5))
    np.testing.assert_allclose(average, expected, atol=1e-6)


def test_update_is_float32_and_exact_where_nothing_moves():
    new = jnp.full((3,), 0.1, jnp.bfloat16)
    old = new.astype(jnp.float32)
    moved = ema.update(old, new, jnp.float32(0.9999))
    assert moved.dtype == jnp.float32
    np.testing.assert_array_equal(moved, old)


def test_every_takes_the_parameters_at_the_end_of_each_stage():
    decays = ema.every(3)(jnp.arange(8, dtype=jnp.int32))  # of the first update, the second, ...
    assert decays.tolist() == [1, 1, 0, 1, 1, 0, 1, 1] and decays.dtype == jnp.float32
    with pytest.raises(ValueError, match="at least 1 update, got 0"):
        ema.every(0)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_out_of_range(decay):
    for make in (ema.constant, ema.warmup):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            make(decay)


def test_offset_out_of_range():
    with pytest.raises(ValueError, match="offset"):
        ema.warmup(0.9, offset=1.0)


def quadrature(function, end, points=400_001):
    """The integral over [0, end]; the variable's square root is what is even, for powers between 0 and 1."""
    root = np.linspace(0, np.sqrt(end), points)
    return np.trapezoid(function(root**2) * 2 * root, root)


def profile(std, end):
    """Karras et al. 2024, equation 3, its gamma found by bisection: the standard deviation falls with it."""
    low, high = 0.0, 1e6
    for _ in range(200):
        gamma = (low + high) / 2
        mean = (gamma + 1) / (gamma + 2)
        wide = np.sqrt((gamma + 1) / (gamma + 3) - mean**2) > std
        low, high = (gamma, high) if wide else (low, gamma)
    return gamma, lambda tau: np.where(tau <= end, (gamma + 1) * tau**gamma / end ** (gamma + 1), 0.0)


@pytest.mark.parametrize("std", [0.02, 0.05, 0.1, 0.25])
def test_power_weights_the_path_by_a_power(std):
    """The decays' product gives the parameters at tau the profile's integral over the step that ends at tau."""
    gamma, _ = profile(std, 1.0)
    np.testing.assert_allclose(ema.power(std).gamma, gamma, rtol=1e-9)
    steps = 50
    decays = np.array([ema.power(std)(jnp.int32(step)) for step in range(steps)], np.float64)
    weights = (1 - decays) * np.append(np.cumprod(decays[:0:-1])[::-1], 1.0)
    want = np.diff(np.arange(steps + 1.0) ** (gamma + 1)) / float(steps) ** (gamma + 1)
    np.testing.assert_allclose(weights, want, rtol=1e-4, atol=1e-7)
    tau = np.arange(1, 10_001) / 10_000
    share = np.diff(np.append(0.0, tau) ** (gamma + 1))
    np.testing.assert_allclose(
        np.sqrt(np.average((tau - np.average(tau, weights=share)) ** 2, weights=share)), std, rtol=1e-2
    )


def test_power_at_a_late_step():
    gamma = ema.power(0.05).gamma
    np.testing.assert_allclose(1 - ema.power(0.05)(jnp.int32(10**6 - 1)), (gamma + 1) / 1e6, rtol=5e-3)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.2887, 1.0, float("nan")])
def test_std_out_of_range(std):
    with pytest.raises(ValueError, match=r"between 0 and 0\.2886"):
        ema.power(std)


def solve_posthoc_coefficients(stored, wanted):
    """EDM2's phema.py, written out: the profiles' inner products (eq. 151), the solution, its division by its sum.

    Returns:
        (the weights, what was their sum).
    """

    def inner(a, b):
        (s, g), (t, d) = a, b
        return (g + 1) * (d + 1) * (s / t) ** (d if s < t else -g) / ((g + d + 1) * max(s, t))

    matrix = np.array([[inner(a, b) for b in stored] for a in stored])
    solution = np.linalg.solve(matrix, [inner(a, wanted) for a in stored])
    return solution / solution.sum(), solution.sum()


def test_posthoc_is_edm2s_and_leaves_constant_parameters_alone():
    for std, end in ((0.07, 100), (0.15, 100), (0.02, 70)):
        stored = [(t, s) for t in (40, 60, 70, 100) for s in (0.05, 0.1)]
        weights, _ = ema.posthoc([(t, ema.power(s)) for t, s in stored], (end, ema.power(std)))
        want, total = solve_posthoc_coefficients(
            [(t, profile(s, t)[0]) for t, s in stored], (end, profile(std, end)[0])
        )
        np.testing.assert_allclose(weights, want, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
        assert abs(total - 1) > 1e-4  # what the division changes


def test_posthoc_against_numerical_integration():
    """Up to the division by their sum, the weights make the distance between profiles least; the error is after it.

    So a multiple of the weights' profile has the wanted one's inner products with all that are stored, by quadrature.
    """
    stored = [(t, std) for t in (40, 60, 100) for std in (0.05, 0.1)]
    weights, error = ema.posthoc([(t, ema.power(std)) for t, std in stored], (100, ema.power(0.07)))
    own = [profile(std, t)[1] for t, std in stored]
    wanted = profile(0.07, 100)[1]
    total = lambda tau: sum(w * p(tau) for w, p in zip(weights, own, strict=True))  # noqa: E731
    norm = np.sqrt(quadrature(lambda tau: wanted(tau) ** 2, 100))
    projected = [quadrature(lambda tau: total(tau) * p(tau), t) for p, (t, _) in zip(own, stored, strict=True)]  # noqa: B023
    asked = [quadrature(lambda tau: wanted(tau) * p(tau), t) for p, (t, _) in zip(own, stored, strict=True)]  # noqa: B023
    scale = asked[0] / projected[0]
    np.testing.assert_allclose(np.multiply(scale, projected), asked, rtol=1e-4, atol=1e-6 * norm**2)
    rest = quadrature(lambda tau: (total(tau) - wanted(tau)) ** 2, 100)
    np.testing.assert_allclose(error, np.sqrt(rest) / norm, rtol=1e-3)
    assert 0.01 < error < 0.1


def test_posthoc_of_what_is_stored_is_exact():
    stored = [(t, ema.power(std)) for t in range(1000, 17_000, 1000) for std in (0.05, 0.1)]
    weights, error = ema.posthoc(stored, stored[25])
    np.testing.assert_allclose(weights, np.eye(len(stored))[25], atol=1e-9)
    assert error < 1e-6
    with pytest.raises(ValueError, match="none is stored"):
        ema.posthoc([], stored[0])


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_posthoc_average_of_a_path_that_grows_as_a_power(power):
    """Of theta(t) = t^k the average at t is (g + 1) / (g + k + 1) t^k, of the stored ones and of the wanted one."""
    of = lambda t, p: (p.gamma + 1) / (p.gamma + power + 1) * (t / 1000) ** power  # noqa: E731
    stored = [(t, ema.power(std)) for t in range(125, 1001, 125) for std in (0.05, 0.1)]
    wanted = (1000, ema.power(0.08))
    weights, error = ema.posthoc(stored, wanted)
    got, want = weights @ [of(*each) for each in stored], of(*wanted)
    assert error < 0.02 and abs(got - want) < 1e-3 * want
    assert abs(of(*stored[-1]) - want) > 1e-2 * want  # than the nearest one stored


def test_several_averages_at_once():
    decays = (ema.constant(0.5), ema.power(0.1))
    params = {"w": jnp.array([1.0, 3.0])}
    first = ema.init({"w": jnp.zeros(2)}, decays)
    after = ema.update_all(first, params, decays, jnp.int32(0))
    np.testing.assert_array_equal(after[0]["w"], [0.5, 1.5])
    np.testing.assert_array_equal(after[1]["w"], params["w"])  # the first update leaves nothing of the start
    for wrong in (first[:1], first[0]):
        with pytest.raises(ValueError, match="tuple of 2 averages, but the state holds"):
            ema.update_all(wrong, params, decays, jnp.int32(0))
