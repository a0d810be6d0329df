"""Predictions: what a network's output means, and the denoiser that follows from it.

A prediction is a function `Level -> Scalings`. For a network F,

    x0_hat = skip x + out F(inp x, noise)        (Karras et al. 2022, arXiv:2206.00364, eq. 7)

so the regression target is (x_0 - skip x) / out. No other code depends on the kind of prediction.

`noise` is the input of the network's time embedding (EDM's c_noise): by default the process's time, changed by
`time_scaled`, `zero_based` and `with_noise_input`. Most networks of `jaxdiff.networks` expect times in the hundreds: of
processes whose time lies in [0, 1], such as Flow and VP, `models.of` gives them 1000 t, like `time_scaled(velocity)`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import check_function, check_inexact, describe, factory, is_traced
from jaxdiff.levels import Level
from jaxdiff.types import Apply, Cond, Denoiser, Params, Prediction, Scalings

__all__ = [
    "Scalings",
    "check_network_time",
    "consistency_model",
    "denoiser",
    "drop_variance",
    "edm",
    "eps",
    "mean_output",
    "network_output",
    "noise_input",
    "scalings",
    "score",
    "target",
    "time_scaled",
    "to_x0",
    "v",
    "velocity",
    "with_network_time",
    "with_next_noise",
    "with_noise_input",
    "x0",
    "zero_based",
]


def eps(level: Level) -> Scalings:
    """F = eps (Ho et al. 2020, arXiv:2006.11239, eq. 14). Undefined at alpha = 0, pure noise.

    Raises:
        ValueError: a concrete level has alpha = 0.
    """
    _check_alpha(level, "eps")
    return _plain(level, 1 / level.alpha, -level.sigma / level.alpha)


def x0(level: Level) -> Scalings:
    """F = x_0."""
    return _plain(level, jnp.zeros_like(level.alpha), jnp.ones_like(level.alpha))


def v(level: Level) -> Scalings:
    """F = alpha eps - sigma x_0 (Salimans and Ho 2022, arXiv:2202.00512, sec. 4)."""
    norm = jnp.square(level.alpha) + jnp.square(level.sigma)
    return _plain(level, level.alpha / norm, -level.sigma / norm)


def velocity(level: Level) -> Scalings:
    """F = eps - x_0, the flow-matching velocity (Lipman et al. 2022, arXiv:2210.02747, eq. 23 with noise at t = 1)."""
    norm = level.alpha + level.sigma
    return _plain(level, 1 / norm, -level.sigma / norm)


def score(level: Level) -> Scalings:
    """F = grad log q(x_t) = -eps / sigma (Song et al. 2020, arXiv:2011.13456). Undefined at alpha = 0.

    Raises:
        ValueError: a concrete level has alpha = 0.
    """
    _check_alpha(level, "score")
    return _plain(level, 1 / level.alpha, jnp.square(level.sigma) / level.alpha)


@factory
def edm(sigma_data: float | Array = 0.5) -> Prediction:
    """EDM's preconditioning, for any process (Karras et al. 2022, table 1, in sigma / alpha).

    Args:
        sigma_data: standard deviation of the data.

    Returns:
        a prediction, whose noise input is log(sigma / alpha) / 4.

    Raises:
        ValueError: a concrete level has alpha = 0.
    """

    def prediction(level: Level) -> Scalings:
        _check_alpha(level, "edm")
        # In x = alpha (x_0 + s eps), s = sigma / alpha, with alpha kept out of the quotients until the end.
        var = jnp.square(level.alpha * sigma_data) + jnp.square(level.sigma)
        return Scalings(
            skip=level.alpha * jnp.square(sigma_data) / var,
            out=level.sigma * sigma_data / jnp.sqrt(var),
            inp=1 / jnp.sqrt(var),
            noise=-level.lam / 4,
        )

    return prediction


@factory
def consistency_model(sigma_data: float | Array = 0.5, sigma_min: float | Array = 0.002) -> Prediction:
    """The scales of consistency models, EDM's moved to sigma_min, for any process (Song et al. 2023, appendix C).

    arXiv:2303.01469. For any network f(x, t) = x / alpha where sigma / alpha is sigma_min, or less. As in the paper,
    `out` has sigma - sigma_min as a factor, but sigma itself in its root.

    Args:
        sigma_data: standard deviation of the data.
        sigma_min: the paper's epsilon, in sigma / alpha.

    Returns:
        a prediction, whose noise input is 250 log(sigma / alpha), as in the authors' code.

    Raises:
        ValueError: a concrete level has alpha = 0.
    """
    inner = edm(sigma_data)

    def prediction(level: Level) -> Scalings:
        _, _, inp, noise = inner(level)
        above = jnp.maximum(level.sigma - level.alpha * sigma_min, 0)
        var = jnp.square(level.alpha * sigma_data) + jnp.square(above)
        return Scalings(
            skip=level.alpha * jnp.square(sigma_data) / var,
            out=above * sigma_data * inp,
            inp=inp,
            noise=1000 * noise,
        )

    return prediction


@factory
def with_noise_input(prediction: Prediction, noise: Callable[[Level], Array]) -> Prediction:
    """The same prediction, with `noise(level)` as the network's noise input (EDM's c_noise).

    Args:
        prediction: e.g. `eps`.
        noise: level -> the network's noise input, e.g. `lambda level: -level.lam / 4`.

    Raises:
        ValueError: `prediction` or `noise` is no function of the level.
    """
    check_function("prediction", prediction, "(level) -> Scalings")
    check_function("noise", noise, "(level) -> the network's noise input")
    return lambda level: prediction(level)._replace(noise=noise(level))


@factory
def time_scaled(prediction: Prediction, scale: float = 1000.0) -> Prediction:
    """The same prediction, with scale * t as the network's noise input, for a process whose time lies in [0, 1].

    The networks of `jaxdiff.networks` embed time by sinusoids whose frequencies suit the 1,000 steps of a DDPM (Ho et
    al. 2020), like the published networks. Most of these sinusoids are almost constant over [0, 1], the times of Flow
    or VP.

    Args:
        prediction: e.g. `eps`.
        scale: factor of t.
    """
    return with_noise_input(prediction, lambda level: scale * level.t)


def with_network_time(prediction: Prediction, process: Any, apply: Apply) -> Prediction:
    """The prediction with the noise input that a network was made for, where the prediction says nothing of it.

    Args:
        prediction: e.g. `velocity`.
        process: what noises the data.
        apply: the network.

    Returns:
        `time_scaled(prediction)` if the prediction is `eps`, `x0`, `v`, `velocity` or `score` itself, the network of
        `networks.as_apply` expects times in the hundreds, and the process's time lies in [0, 1]; else the prediction.
    """
    t_max = getattr(process, "t_max", None)
    expected = getattr(apply, "expects_hundreds", False) and t_max is not None and t_max <= 1
    return time_scaled(prediction) if expected and prediction in (eps, x0, v, velocity, score) else prediction


def check_network_time(apply: Apply, process: Any, prediction: Prediction) -> None:
    """Raise ValueError if a network that expects times in the hundreds would be given those of [0, 1] in silence.

    Args:
        apply, process, prediction: as for `with_network_time`.
    """
    if with_network_time(prediction, process, apply) is not prediction:
        name = describe(prediction)
        raise ValueError(
            f"the network expects times in the hundreds, and {type(process).__name__}'s lie in [0, 1]: pass the "
            f"model.prediction of models.of, or time_scaled({name}) for 1000 t; a network that was trained on t itself "
            f"is given it by time_scaled({name}, 1), in its model, too"
        )


@factory
def zero_based(prediction: Prediction) -> Prediction:
    """The same prediction, for a network that counts a beta table's steps from 0 to T-1, like the published DDPMs."""
    return with_noise_input(prediction, lambda level: level.t - 1)


def target(prediction: Prediction, x0: Array, x: Array, level: Level) -> Array:
    """The regression target of F: (x_0 - skip x) / out.

    Args:
        prediction: e.g. `eps`.
        x0: clean data, [B, ...].
        x: x_t, like x0.
        level: scalar or [B]; sigma > 0.

    Returns:
        the target of F, like x0.
    """
    s = scalings(prediction, level, x)
    return (x0 - s.skip * x) / s.out


def scalings(prediction: Prediction, level: Level, x: Array) -> Scalings:
    """The scales of a prediction at the level of x; a plain number holds for all examples.

    Args:
        prediction: e.g. `eps`.
        level: scalar or [B].
        x: x_t, [B, ...].

    Returns:
        arrays that broadcast against x.

    Raises:
        ValueError: the prediction does not return Scalings.
    """
    level = level.expand_to(x)
    s = prediction(level)
    if not isinstance(s, Scalings):
        raise ValueError(
            f"a prediction is a function (level) -> Scalings(skip, out, inp, noise), got {describe(prediction)}, "
            f"which returns {describe(s)}"
        )
    return Scalings(*(_like(field, level.alpha) for field in s))


def denoiser(
    apply: Apply, params: Params, prediction: Prediction, cond: Cond = None, *, key: Array | None = None
) -> Denoiser:
    """Make the denoiser x0_hat(x_t, level) of a network.

    The network may compute in any precision; its output is cast to the dtype of x. If the network returns a learned
    variance, (F, frac), the denoiser returns (x0_hat, frac), as `solvers.ddpm("learned")` needs.

    Args:
        apply: (params, x, noise[B], cond) -> F, like x; or (F, frac).
        params: the network's parameters.
        prediction: what F is: `eps`, `v`, `edm(0.5)`, ...
        cond: the condition, a pytree with leading axis B; None means {}.
        key: passed to the network in training, for dropout.

    Returns:
        (x, level) -> x0_hat, like x. Called with a third argument, the level at which a step ends, the denoiser tells
        the network its noise input as cond["next_noise"]; see `solvers.flow_map`.

    Raises:
        ValueError: `apply` or `prediction` is not a function with this signature; from the denoiser, x has an integer
            dtype.
    """
    check_function("apply", apply, "(params, x, noise, cond) -> F")
    check_function("prediction", prediction, "(level) -> Scalings")

    def denoise(x: Array, level: Level, nxt: Level | None = None) -> Any:
        check_inexact("x", x)
        s = scalings(prediction, level, x)
        entries = cond if nxt is None else with_next_noise(cond, prediction, nxt, x)
        F, *frac = network_output(apply, params, s, x, entries, key=key)
        x0 = to_x0(s, x, F)
        return (x0, *frac) if frac else x0

    return denoise


def with_next_noise(cond: Cond, prediction: Prediction, nxt: Level, x: Array) -> Cond:
    """The condition with "next_noise", [B]: the noise input of the level at which a step ends.

    Where that is infinite, as EDM's at the clean level, it is the one at sigma = 1e-4 alpha.

    Args:
        cond: a dict; None means {}.
        prediction: e.g. `velocity`.
        nxt: scalar or [B].
        x: x_t, [B, ...].
    """
    least = nxt._replace(sigma=jnp.maximum(nxt.sigma, 1e-4 * nxt.alpha))
    noise, finite = (noise_input(scalings(prediction, level, x), x) for level in (nxt, least))
    return {**({} if cond is None else cond), "next_noise": jnp.where(jnp.isfinite(noise), noise, finite)}


def noise_input(s: Scalings, x: Array) -> Array:
    """The network's noise input, [B]."""
    # At least float32, whatever x is: 999 and 1000 are the same number in bfloat16.
    noise = s.noise.astype(jnp.float32 if jnp.finfo(x.dtype).bits < 32 else x.dtype)
    return jnp.broadcast_to(noise.reshape(-1), x.shape[:1])


def network_output(
    apply: Apply, params: Params, s: Scalings, x: Array, cond: Cond = None, *, key: Array | None = None
) -> tuple[Array, ...]:
    """Evaluate the network: (F(inp x, noise),), or (F, frac) with a learned variance, in the dtype of x.

    Raises:
        ValueError: F does not have the shape of x.
    """
    extra = {} if key is None else {"key": key}
    network: Callable[..., Any] = apply  # those with dropout take a key
    output = network(params, s.inp.astype(x.dtype) * x, noise_input(s, x), {} if cond is None else cond, **extra)
    outputs = output if isinstance(output, tuple) else (output,)
    if jnp.shape(outputs[0]) != x.shape:  # where it broadcasts, it would train without a word
        raise ValueError(f"apply must return F of the shape of x, {x.shape}, got {jnp.shape(outputs[0])}")
    return tuple(a.astype(x.dtype) for a in outputs)


def to_x0(s: Scalings, x: Array, F: Array) -> Array:
    """x0_hat = skip x + out F."""
    return s.skip.astype(x.dtype) * x + s.out.astype(x.dtype) * F


def mean_output(apply: Apply) -> Apply:
    """The network without the learned variance that it returns, e.g. to distil it."""
    return wraps(apply)(lambda *args, **options: apply(*args, **options)[0])


def drop_variance(denoise: Denoiser) -> Denoiser:
    """The denoiser of a network with learned variance, without the variance; see `Solver.learned_variance`."""
    return lambda x, level: denoise(x, level)[0]


def _like(field: Any, alpha: Array) -> Array:
    if jnp.ndim(field) or (hasattr(field, "dtype") and alpha.ndim == 0):
        return field
    return jnp.full_like(alpha, field, dtype=getattr(field, "dtype", None))


def _plain(level: Level, skip: Array, out: Array) -> Scalings:
    return Scalings(skip, out, jnp.ones_like(level.alpha), level.t)


def _check_alpha(level: Level, name: str) -> None:
    if not is_traced(level.alpha) and np.any(np.asarray(level.alpha) == 0):
        raise ValueError(
            f"a network that predicts {name} cannot denoise pure noise (alpha = 0): start at a level with alpha > 0, "
            "or use a network that predicts x0, v or velocity"
        )
