"""The sampler of a model as one compiled function, for runs and for other projects' pipelines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxdiff.conditions import Cond, Condition
from jaxdiff.levels import Level
from jaxdiff.media import Medium
from jaxdiff.noise import fold_in, normal_like
from jaxdiff.parameterize import Denoiser, Params, denoiser, drop_variance
from jaxdiff.sample import sample, sample_path
from jaxdiff.sampling import Sampling
from jaxdiff.sharding import constrain_tokens, num_batch_shards, use_mesh
from jaxdiff.solvers import Solver

if TYPE_CHECKING:
    from jaxdiff.experiment import Model

__all__ = ["Begin", "Generate", "sampler", "solve"]

Generate = Callable[..., Any]  # (params, keys, cond, scale, negative=None) -> x
# (x of noise alone, the noise, levels, solver) -> (x to begin with, index of the first step, solver)
Begin = Callable[[Array, Array, Level, Solver], tuple[Array, Array, Solver]]


def solve(
    denoise: Denoiser,
    sampling: Sampling,
    keys: Array,
    shape: tuple[int, ...],
    *,
    prepared: tuple[Level, Solver],
    dtype: Any = jnp.float32,
    noise: Array | None = None,
    begin: Begin | None = None,
    path: bool = False,
    progress: Callable[[Array], None] | None = None,
) -> Any:
    """Draw noise and integrate it to data, with a denoiser that includes its condition.

    Args:
        denoise: (x_t, level) -> x0_hat, with guidance, without clipping.
        sampling: settings; `init_noise_std` and `clip` are used here.
        keys: one key, or [B] keys, so that each example depends on its own key only. The initial noise uses
            fold_in(key, 0), the solver fold_in(key, 1).
        shape: of x, [B, ...].
        prepared: (levels, solver) of `sampling.prepare()`.
        dtype: of x.
        noise: standard normal, like x; None draws it from the keys.
        begin: changes the start, e.g. to a noised image at a later level.
        path: also return x before each step and at the end.
        progress: called on the host with the number of steps done, after each step.

    Returns:
        x, not decoded; or (x, path [steps + 1, *shape]).
    """
    levels, solver = prepared
    prior_keys, path_keys = (fold_in(keys, i) for i in range(2))
    noise = normal_like(prior_keys, jnp.zeros(shape, dtype)) if noise is None else noise.astype(dtype)
    x, start = constrain_tokens(jnp.asarray(sampling.init_noise_std(levels), dtype) * noise), None
    if begin is not None:
        x, start, solver = begin(x, noise, levels, solver)
    predict = sampling.clip(denoise)
    options: dict[str, Any] = {"start": start, "progress": progress}
    if not path:
        return sample(predict, solver, levels, x, path_keys, **options)
    last, steps = sample_path(predict, solver, levels, x, path_keys, **options)
    return last, jnp.concatenate([x[None], steps])


def sampler(
    model: Model,
    sampling: Sampling | None,
    condition: Condition,
    medium: Medium,
    *,
    guided: bool | None = None,
    mesh: Mesh | None = None,
    path: bool = False,
) -> Generate:
    """Make the sampler of a model as one compiled function.

    Args:
        model: the model.
        sampling: grid, solver and guidance; None for a model with `generate`.
        condition: augments and encodes conditions, and gives the null condition.
        medium: gives the shape of x and decodes it.
        guided: whether to use guidance; without it `scale` is ignored, and the network is evaluated half as often. None
            is `sampling.guidance != 1`.
        mesh: the mesh of the parameters. Splits examples, and rows or tokens over its axis `sequence`.
        path: also return x before each step and at the end.

    Returns:
        (params, keys [B], cond, scale, negative=None) -> x [B, ...], decoded; or (x, path [steps + 1, B, *shape]), not
        decoded. `cond` is as `condition.spec` describes it, leaves [B, ...], and so is `negative`, what guidance leads
        away from; None is the null condition. params are `model.merge_frozen`'s. Each example depends on its own key
        and conditions only.

    Raises:
        ValueError: guidance without a null condition, or a solver that needs a learned variance which the network does
            not return.
    """
    if sampling is None:
        draw = _direct(model, condition, medium, guided=bool(guided), path=path)
    else:
        draw = _solving(model, sampling, condition, medium, guided=guided, path=path)

    def generate(params: Params, keys: Array, cond: Cond, scale: Any, negative: Cond | None = None) -> Any:
        if mesh is None:
            return draw(params, keys, cond, scale, negative)
        # Pad the batch to a multiple of the number of shards, by drawing some examples twice.
        count = keys.shape[0]
        turns = np.arange(count + -count % num_batch_shards(mesh)) % count
        with use_mesh(mesh):
            cond, negative = jax.tree.map(lambda a: a[turns], (cond, negative))
            drawn = draw(params, keys[turns], cond, scale, negative)
        return (drawn[0][:count], drawn[1][:, :count]) if path else drawn[:count]

    return jax.jit(generate)


def _direct(model: Model, condition: Condition, medium: Medium, *, guided: bool, path: bool) -> Generate:
    """One call of a model that does not denoise."""
    if model.generate is None:
        raise ValueError("a model without generate needs a Sampling, got None")
    if guided:
        condition.check_null()
    if guided or path:
        raise ValueError("a model that makes examples in one call has no guidance, and they have no path")
    made = model.generate

    def draw(params: Params, keys: Array, cond: Cond, scale: Any, negative: Cond | None) -> Array:
        _check_negative(negative, guided=False)
        return medium.decode(params, made(params, keys, condition.encode(params, cond)))

    return draw


def _solving(
    model: Model, sampling: Sampling, condition: Condition, medium: Medium, *, guided: bool | None, path: bool
) -> Generate:
    """The samples of a denoiser."""
    guided = sampling.guidance != 1 if guided is None else guided
    if guided:
        condition.check_null()
    prepared = sampling.prepare()
    solver = prepared[1]
    if solver.learned_variance and not model.learned_variance:
        raise ValueError("the solver takes a learned variance, which the network does not return: choose another")

    def denoise(params: Params, cond: Cond) -> Denoiser:
        predict = denoiser(model.apply, params, model.prediction, condition.encode(params, cond))
        return drop_variance(predict) if model.learned_variance and not solver.learned_variance else predict

    def draw(params: Params, keys: Array, cond: Cond, scale: Any, negative: Cond | None) -> Any:
        _check_negative(negative, guided=guided)
        # Both of guidance get the same noise. `solve` folds 0 and 1 into the keys.
        random = fold_in(keys, 2)
        cond = condition.augment(random, cond)
        predict = denoise(params, cond)
        if guided:
            away = condition.without(cond) if negative is None else condition.augment(random, negative)
            predict = sampling.guide(predict, denoise(params, away), scale)
        shape = keys.shape[0], *medium.shape
        if not path:
            return medium.decode(params, solve(predict, sampling, keys, shape, prepared=prepared))
        x, steps = solve(predict, sampling, keys, shape, prepared=prepared, path=True)
        return medium.decode(params, x), steps

    return draw


def _check_negative(negative: Cond | None, *, guided: bool) -> None:
    if negative is not None and not guided:
        raise ValueError("a negative condition needs guidance")
