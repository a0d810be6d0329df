"""exact: log-likelihood by the probability-flow ODE against the analytic density of a mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exact import BLOB, CLUSTERS, Mixture

import jaxdiff as jd
from jaxdiff import Level
from jaxdiff.levels import append_clean
from jaxdiff.likelihood import log_likelihood
from jaxdiff.processes import EDM, VP, Flow

PROCESSES = {"vp": (VP(), 1.0, 1e-3), "edm": (EDM(), 80.0, 2e-3), "flow": (Flow(), 0.999, 2e-3)}
slow = pytest.mark.slow


def _at(levels, i):
    return jax.tree.map(lambda field: field[i], levels)


def _grids(n):
    return [jd.grids.by_lambda(process, n, start=start, end=end) for process, start, end in PROCESSES.values()]


@jax.jit
def exact_trace(levels, x):
    first = _at(levels, 0)
    return log_likelihood(CLUSTERS.denoise, levels, x, prior=lambda x: CLUSTERS.log_density(x, first))


@slow
def test_is_the_mixtures_density_with_one_compilation(x64):
    """On VP, EDM and flow to 1e-4 nats; the latent's own density closes the change of variables."""
    rng = np.random.default_rng(0)
    for name, levels in zip(PROCESSES, _grids(64), strict=True):
        x = jnp.asarray(CLUSTERS.draw(rng, 16, _at(levels, -1)))
        got = exact_trace(levels, x)
        error = abs(got.log_prob - CLUSTERS.log_density(x, _at(levels, -1)))
        print(name, "largest error in nats:", error.max())
        assert error.max() < 1e-4 and np.all(got.standard_error == 0)
    assert exact_trace._cache_size() == 1


@slow
def test_order_is_four(x64):
    rng, errors = np.random.default_rng(0), []
    x = [jnp.asarray(CLUSTERS.draw(rng, 64, _at(levels, -1))) for levels in _grids(1)]
    for n in (40, 160):
        grids = zip(_grids(n), x, strict=True)
        each = [exact_trace(levels, x).log_prob - CLUSTERS.log_density(x, _at(levels, -1)) for levels, x in grids]
        errors.append(np.sqrt(np.mean(np.square(each), axis=1)))
    slopes = np.log(errors[0] / errors[1]) / np.log(4)
    print("slopes on vp, edm, flow:", slopes.round(2))
    np.testing.assert_allclose(slopes, 4, atol=0.3)


@pytest.mark.slow
def test_from_pure_noise_with_the_default_prior(x64):
    """Flow's t = 1 has alpha = 0: N(0, I) is the model's own law there. Gradients are the true ones."""
    levels = Flow()(jnp.append(jnp.linspace(1.0, 0.1, 40), jnp.geomspace(0.1, 0.01, 12)[1:]))
    run = jax.jit(
        jax.value_and_grad(
            lambda a, x, levels: jnp.sum(log_likelihood(lambda x, l: CLUSTERS.denoise(a * x, l), levels, x).log_prob)
        )
    )
    x, last = jnp.asarray(CLUSTERS.draw(np.random.default_rng(1), 8, _at(levels, -1))), _at(levels, -1)
    value, grad = run(1.0, x, levels)
    np.testing.assert_allclose(value, jnp.sum(CLUSTERS.log_density(x, last)), atol=8e-4)
    (up, _), (down, _) = (run(1.0 + h, x, levels) for h in (1e-6, -1e-6))
    np.testing.assert_allclose(grad, (up - down) / 2e-6, rtol=1e-6)


@slow
def test_latent_is_the_flows_and_the_default_prior_its_own(x64):
    levels = jd.grids.by_lambda(EDM(), 48, start=80.0, end=0.01)
    x = jnp.asarray(BLOB.draw(np.random.default_rng(2), 8, _at(levels, -1)))
    got = log_likelihood(BLOB.denoise, levels, x)
    latent = BLOB.flow(x, _at(levels, -1), _at(levels, 0))
    np.testing.assert_allclose(got.latent, latent, rtol=1e-4)
    other = -0.5 * np.sum(np.square(latent / 80.0), axis=1) - 2 * np.log(80.0 * np.sqrt(2 * np.pi))
    shift = BLOB.log_density(latent, _at(levels, 0)) - other  # what the model's prior leaves out
    np.testing.assert_allclose(got.log_prob, BLOB.log_density(x, _at(levels, -1)) - shift, atol=1e-3)


@pytest.mark.slow
def test_the_process_names_the_levels_between(x64):
    """A network that is told t alone is asked at VP's own levels with the process, and beside them without."""
    process = VP()
    levels = process(jnp.linspace(1.0, 0.01, 41))
    x = jnp.asarray(CLUSTERS.draw(np.random.default_rng(3), 8, _at(levels, -1)))

    def error(process_known):
        got = jax.jit(
            lambda x: (
                log_likelihood(
                    lambda x, level: CLUSTERS.denoise(x, process(level.t)),
                    levels,
                    x,
                    process=process if process_known else None,
                    prior=lambda x: CLUSTERS.log_density(x, _at(levels, 0)),
                ).log_prob
            )
        )(x)
        return float(abs(got - CLUSTERS.log_density(x, _at(levels, -1))).max())

    assert error(True) < 5e-3 and error(False) > 5 * error(True)


def _wide(d=12):
    rng = np.random.default_rng(4)
    roots = rng.normal(size=(2, d, d)) / np.sqrt(d)
    return Mixture.of(
        [0.4, 0.6], rng.normal(size=(2, d)) * 0.5, np.einsum("kij,klj->kil", roots, roots) + 0.05 * np.eye(d)
    )


@pytest.mark.slow
def test_hutchinsons_estimate_is_unbiased_and_its_error_honest(x64):
    """For many keys: within four of its standard errors, which cover as a normal's would, and shrink with probes."""
    mixture, levels = _wide(), jd.grids.by_lambda(EDM(), 12, start=20.0, end=0.1)
    one = jnp.asarray(mixture.draw(np.random.default_rng(5), 1, _at(levels, -1)))
    n = 200
    x, keys = jnp.broadcast_to(one, (n, 12)), jax.random.split(jax.random.key(6), n)
    exact = jax.jit(lambda x: log_likelihood(mixture.denoise, levels, x))(one)
    got = jax.jit(lambda x, keys: log_likelihood(mixture.denoise, levels, x, keys, probes=3))(x, keys)
    np.testing.assert_allclose(got.latent, jnp.broadcast_to(exact.latent, (n, 12)), rtol=1e-10)
    away = np.asarray(got.log_prob - exact.log_prob)
    z = away / np.asarray(got.standard_error)
    print("rms z:", np.sqrt(np.mean(z**2)), "share within one:", np.mean(abs(z) < 1), "error:", away.std())
    assert abs(away.mean()) < 4 * away.std() / np.sqrt(n)
    assert np.mean(abs(z) < 4) > 0.98 and 0.6 < np.mean(abs(z) < 1) < 0.76 and 0.85 < np.sqrt(np.mean(z**2)) < 1.25


@slow
def test_probes_shrink_the_error_as_their_root_and_one_knows_none(x64):
    mixture, levels = _wide(), jd.grids.by_lambda(EDM(), 12, start=20.0, end=0.1)
    x = jnp.asarray(mixture.draw(np.random.default_rng(5), 64, _at(levels, -1)))
    run = lambda probes: log_likelihood(mixture.denoise, levels, x, jax.random.key(7), probes=probes)  # noqa: E731
    few, many = (np.sqrt(np.mean(np.square(jax.jit(run, static_argnums=0)(p).standard_error))) for p in (4, 16))
    np.testing.assert_allclose(few / many, 2, rtol=0.15)
    assert np.all(np.isinf(run(1).standard_error)) and np.all(np.isfinite(run(1).log_prob))


@pytest.mark.slow
def test_an_example_is_its_keys_alone_in_any_shape_eager_or_compiled():
    levels = jd.grids.by_lambda(Flow(), 6, start=0.95, end=0.02)
    x, keys = jax.random.normal(jax.random.key(0), (4, 2, 3, 1)), jax.random.split(jax.random.key(1), 4)
    denoise = lambda x, level: jnp.tanh(x) * (1 - level.sigma)  # noqa: E731
    run = jax.jit(lambda x, keys: log_likelihood(denoise, levels, x, keys, probes=2))
    got, order = run(x, keys), np.array([2, 0, 3, 1])
    moved = run(x[order], keys[order])
    for part, other in zip(got, moved, strict=True):
        np.testing.assert_allclose(other, part[order], rtol=1e-5)
    assert got.log_prob.shape == got.standard_error.shape == (4,) and got.latent.shape == x.shape
    # This Jacobian is diagonal, so that signs see its trace exactly.
    exact = jax.jit(lambda x: log_likelihood(denoise, levels, x))(x)
    np.testing.assert_allclose(got.log_prob, exact.log_prob, rtol=1e-5)
    assert np.all(got.standard_error < 1e-5)


def test_wrong_arguments():
    levels, x = jd.grids.by_lambda(Flow(), 3, start=0.9, end=0.1), jnp.zeros((2, 3))
    run = lambda levels=levels, key=None, **kw: log_likelihood(lambda x, level: x, levels, x, key, **kw)  # noqa: E731
    with pytest.raises(ValueError, match="end the grid at a small sigma > 0"):
        run(append_clean(levels))
    with pytest.raises(ValueError, match="falls from its first level"):
        run(Level(*(field[::-1] for field in levels)))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        run(key=jax.random.key(0), probes=0)
    with pytest.raises(ValueError, match="pass a key"):
        run(probes=1)
    with pytest.raises(ValueError, match=r"jax\.random\.key"):
        run(key=0, probes=1)
    for denoise, match in ((lambda x, level: x[:, :1], "shape of x"), (lambda x, level: (x, x), "drop_variance")):
        with pytest.raises(ValueError, match=match):
            log_likelihood(denoise, levels, x)
    noise = jd.denoiser(lambda params, x, t, cond: x, {}, jd.parameterize.eps)
    with pytest.raises(ValueError, match="cannot denoise pure noise"):
        log_likelihood(noise, Flow()(jnp.array([1.0, 0.5, 0.1])), x)
