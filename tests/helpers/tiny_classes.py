"""Classes of small pictures, each a Gaussian, whose denoiser is exact: an experiment that needs no training."""

import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import conditions, media, train
from jaxdiff.experiment import Experiment, Model, Sampling, Training
from jaxdiff.seeds import example_keys

SHAPE, STD, STEPS, GUIDANCE = (6, 6, 1), 0.3, 8, 1.5
MEANS = np.linspace(-0.6, 0.6, 4, dtype=np.float32)  # of three classes, and of none


def denoised(x, mean, t, xp=jnp):
    """E[x_0 | x_t] of a Gaussian on a flow, alpha = 1 - t and sigma = t."""
    gain = STD**2 * (1 - t) / ((STD * (1 - t)) ** 2 + t**2)
    return mean + gain * (x - (1 - t) * mean)


def experiment(steps=STEPS, guidance=GUIDANCE):
    flow = jd.processes.Flow()

    def apply(params, x, noise, cond):
        return denoised(x, params["mean"][cond["label"]][:, None, None, None], noise[:, None, None, None])

    return Experiment(
        Model(lambda key: {"mean": jnp.asarray(MEANS)}, apply, flow, jd.parameterize.x0),
        Training(
            lambda params, key, batch: (jnp.sum(params["mean"]), {}), train.adamw(0.0), train.ema.constant(0.5),
            lambda start, indices=None: iter(()), batch=1, steps=1, preview_every=0,
        ),
        Sampling(lambda n: jd.grids.by_time(flow, n), jd.solvers.ddim(), steps=steps, guidance=guidance),
        conditions.label(3, ("low", "middle", "high")),
        media.images(SHAPE, preview=4),
        seed=0,
    )  # fmt: skip


def noise(seed, number):
    """The first noise of the picture of a number: that of example number - 1."""
    return np.asarray(jd.noise.normal_like(jd.noise.fold_in(example_keys(seed, number)[number - 1], 0), jnp.zeros(SHAPE)))


def by_hand(label, eps, x0=None, strength=1.0, steps=STEPS, guidance=GUIDANCE):
    """The picture by DDIM's formula in numpy, from x0 at a strength or from noise."""
    times = np.linspace(1, 0, steps + 1)
    start = steps - max(1, int(np.ceil(steps * strength - 1e-6)))
    x = eps if start == 0 else (1 - times[start]) * x0 + times[start] * eps
    for t, s in zip(times[start:-1], times[start + 1 :], strict=True):
        cond, null = (denoised(x, mean, t, np) for mean in (MEANS[label], MEANS[3]))
        found = null + guidance * (cond - null)
        x = (1 - s) * found + s * (x - (1 - t) * found) / t
    return x
