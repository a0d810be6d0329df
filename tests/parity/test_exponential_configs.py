"""Parity with diffusers' exponential integrators over a product of their options, in float64 and to 1e-8.

Where theirs ends in NaN or in an error that is not meant, one of the reasons in `BROKEN` says so.
"""

from collections import Counter
from functools import partial
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from parity.common import in_double, network, noises, start  # noqa: E402
from parity.exponential_options import BROKEN, OPTIONS, STEPS, walk  # noqa: E402
from parity.exponential_options import LIMITS as OPTION_LIMITS  # noqa: E402

import jaxdiff as jd  # noqa: E402
from jaxdiff.sampling import identity  # noqa: E402

pytestmark = pytest.mark.usefixtures("x64")

MODULES = (
    "dpmsolver_multistep", "dpmsolver_singlestep", "dpmsolver_multistep_inverse", "sasolver", "edm_dpmsolver_multistep",
)  # fmt: skip
Z = noises(max(STEPS) + 1)


@pytest.fixture(autouse=True)
def double():
    """Diffusers in float64, without its warnings; a key of ours is a step's number, which draws Z there."""
    diffusers.utils.logging.set_verbosity_error()
    with in_double() as patch:
        patch.setattr(import_module("jaxdiff.noise"), "_normal", lambda i, shape, dtype: jnp.asarray(Z)[i])
        yield


def theirs(scheduler, first=0):
    """x after the steps from `first` on."""
    drawn = iter(Z[first:])
    for name in MODULES:
        module = import_module(f"diffusers.schedulers.scheduling_{name}")
        module.randn_tensor = lambda shape, **options: torch.from_numpy(next(drawn)).reshape(shape)
    if first:
        scheduler.set_begin_index(first)
    x = torch.from_numpy(start()) * scheduler.init_noise_sigma
    x = x.reshape(4, 3, 2) if scheduler.config.thresholding else x  # which asks for more axes
    for t in scheduler.timesteps[first:]:
        x = scheduler.step(network(None, scheduler.scale_model_input(x, t), t), t, x).prev_sample
    return x.numpy().reshape(4, 6)


def ours(kind, config, n, first=0):
    """The same, by one program for all configs whose solvers share a step."""
    made = jd.interop.scheduler({"_class_name": kind, **config}, tokens=1024)
    solver, last = made.sampling.solver(n), len(made.sampling.grid(n).t) - 1
    levels = jax.tree.map(pad, made.sampling.grid(n))
    x = jnp.asarray(start()) * made.sampling.init_noise_std(levels)
    state = solver.init(x)
    padded = state._replace(**{name: pad(getattr(state, name)) for name in ("table", "fresh", "alpha", "sigma")})
    # Of limits that say the same, the first stands for all; and one that is not used, for none.
    limited = made.sampling.clip is not identity
    limit = LIMITS.setdefault((made.sampling.clip.__qualname__, str(config.get("thresholding"))), made.sampling.clip)
    limit = limit if limited else THRESHOLDED
    return np.asarray(run(solver.step, limit, (x, padded), levels, made.prediction(levels), (first, last, limited)))


THRESHOLDED = jd.interop.scheduler({"_class_name": "DPMSolverMultistepScheduler", **OPTION_LIMITS[-1]}).sampling.clip
LIMITS = {(THRESHOLDED.__qualname__, "True"): THRESHOLDED}


def pad(field):
    """To one shape for all numbers of steps, by numpy, which compiles nothing."""
    field = np.asarray(field)
    rest = np.full((max(STEPS) + 2 - len(field), *field.shape[1:]), 0.5).astype(field.dtype)
    return jnp.asarray(np.concatenate([field, rest]))


@partial(jax.jit, static_argnums=(0, 1))
def run(step, limit, carry, levels, scalings, steps):
    first, last, limited = steps

    def body(i, carry):
        s, cur = (jax.tree.map(lambda field: field[i], tree) for tree in (scalings, levels))
        nxt = jax.tree.map(lambda field: field[i + 1], levels)

        def plain(x, level):
            return s.skip * x + s.out * network(None, s.inp * x, jnp.full((4, 1), s.noise))

        def denoise(x, level):
            return jnp.where(limited, limit(plain)(x, level), plain(x, level))

        return step(denoise, i, *carry, cur, nxt)

    return jax.lax.fori_loop(first, last, body, carry)[0]


def mu(kind, config):
    """What a pipeline passes for the shift of 1,024 tokens, to those that take it."""
    if not config.get("use_dynamic_shifting") or "Inverse" in kind or kind[:2] == "SA":
        return {}
    low, most = config.get("base_shift", 0.5), config.get("max_image_seq_len", 4096)
    return {"mu": low + (1.15 - low) * (1024 - 256) / (most - 256)}


def compare(kind, config, n, first=0):
    """ "same", or which of both says no."""
    try:
        scheduler = getattr(diffusers, kind).from_config(config)
        scheduler.set_timesteps(n, **mu(kind, config))
        want = theirs(scheduler, first)
    except (ValueError, NotImplementedError):
        with pytest.raises(ValueError):
            ours(kind, config, n, first)
        return "refused"
    except Exception:  # of theirs, whatever it is
        want = np.full((4, 6), np.nan)
    if not np.all(np.isfinite(want)):
        assert any(is_so(kind, config, scheduler.timesteps) for is_so in BROKEN.values()), (kind, config, n)
        return "broken"
    # On the cosine table sigma / alpha is up to 20,000, and DEIS takes differences of its integrals there. Levels that
    # are changed by 1e-15 move SA-Solver's answer by 2.5e-7 there, where it integrates the noise.
    cosine = config.get("beta_schedule") == "squaredcos_cap_v2"
    scale = max(1, np.abs(want).max()) * (10 if cosine else 1)
    scale *= 10 if cosine and config.get("algorithm_type") == "noise_prediction" else 1
    np.testing.assert_allclose(ours(kind, config, n, first), want, rtol=0, atol=1e-8 * scale, err_msg=f"{config} {n}")
    return "same"


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_product_of_options(kind):
    counts = Counter(compare(kind, config, n) for config, n in walk(kind, 40))
    print(kind, dict(counts))
    assert counts["same"] >= 12


@pytest.mark.parametrize("kind", [kind for kind in OPTIONS if "Inverse" not in kind])
def test_beginning_in_the_middle(kind):
    """As from an image: the history is empty there, and the end is as far as it is."""
    starts = ((config, n, first) for config, n in walk(kind, 20, seed=1) for first in (1, n // 2) if 0 < first < n)
    counts = Counter(compare(kind, config, n, first) for config, n, first in starts)
    print(kind, dict(counts))
    assert counts["same"] >= 10
