"""Classes of small pictures, each a Gaussian, whose denoiser is exact: an experiment that has nothing to learn."""

import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import conditions, media, train
from jaxdiff.experiment import Experiment, Model, Sampling, Training
from jaxdiff.seeds import example_keys

SHAPE, STD, STEPS, GUIDANCE = (6, 6, 1), 0.3, 8, 1.5
FIRST = 0.96  # time of the first level, which is not noise alone
MEANS = np.linspace(-0.6, 0.6, 4, dtype=np.float32)  # of three classes, and of none


def denoised(x, mean, t):
    """E[x_0 | x_t] of a Gaussian on a flow, alpha = 1 - t and sigma = t."""
    gain = STD**2 * (1 - t) / ((STD * (1 - t)) ** 2 + t**2)
    return mean + gain * (x - (1 - t) * mean)


def experiment(times: float = 1.0, guidance: float = GUIDANCE) -> Experiment:
    """Pictures of one grey, more or less.

    Args:
        times: factor of the classes' means.
        guidance: scale.
    """
    flow = jd.processes.Flow()

    def apply(params, x, noise, cond):
        return denoised(x, params["mean"][cond["label"]][:, None, None, None], noise[:, None, None, None])

    def batches(start, indices=None):
        while True:
            yield {"x": np.zeros((8, *SHAPE), np.float32), "label": np.zeros(8, np.int32)}

    return Experiment(
        Model(lambda key: {"mean": jnp.asarray(times * MEANS, jnp.float32)}, apply, flow, jd.parameterize.x0),
        Training(
            lambda params, key, batch: (jnp.sum(params["mean"]), {}), train.adamw(0.0), train.ema.constant(0.5),
            batches, batch=8, steps=1, preview_every=0,
        ),
        Sampling(lambda n: jd.grids.by_time(flow, n, start=FIRST), jd.solvers.ddim(), steps=STEPS, guidance=guidance),
        conditions.label(3, ("Sneaker", "Ankle boot", "Bag")),
        media.images(SHAPE, preview=4),
        seed=0,
    )  # fmt: skip


def noise(seed, number, shape=SHAPE):
    """The noise that picture `number` begins with: that of example number - 1 of its seed."""
    key = example_keys(seed, number)[number - 1]
    return np.asarray(jd.noise.normal_like(jd.noise.fold_in(key, 0), jnp.zeros(shape)))


def by_hand(label, eps, x0=None, strength=1.0, guidance=GUIDANCE):
    """A picture by the formula of DDIM, in numpy: from x0 that is noised at a strength, or from noise."""
    times = np.linspace(FIRST, 0, STEPS + 1)
    start = STEPS - max(1, int(np.ceil(STEPS * strength - 1e-6)))
    x = FIRST * eps if start == 0 else (1 - times[start]) * x0 + times[start] * eps
    for t, s in zip(times[start:-1], times[start + 1 :], strict=True):
        cond, null = (denoised(x, mean, t) for mean in (MEANS[label], MEANS[3]))
        found = null + guidance * (cond - null)
        x = (1 - s) * found + s * (x - (1 - t) * found) / t
    return x
