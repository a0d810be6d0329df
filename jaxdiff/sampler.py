"""The sampler of a model: one compiled function, for runs and for other projects' pipelines."""

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

Generate = Callable[[Params, Array, Cond, Any], Any]
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
    """Draw x from noise to data with a denoiser that knows its condition.

    Args:
        denoise: (x_t, level) -> x0_hat, guided but not clipped.
        sampling: gives the initial noise, and clips.
        keys: one key, or [B] keys; each example depends on its own key alone. fold_in(key, 0) is that of the initial
            noise, fold_in(key, 1) the solver's.
        shape: of x, [B, ...].
        prepared: levels and solver, `sampling.prepare()`.
        dtype: of x.
        noise: like x, standard normal, in place of the key's.
        begin: begins with other x than noise, e.g. with a noised image, or at a later level.
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
    sampling: Sampling,
    condition: Condition,
    medium: Medium,
    *,
    guided: bool | None = None,
    mesh: Mesh | None = None,
    path: bool = False,
) -> Generate:
    """Make the sampler of a model as one compiled function.

    Args:
        model: what denoises.
        sampling: schedule, solver and guidance.
        condition: what may be asked for.
        medium: how x is decoded.
        guided: whether there is guidance; without it `scale` is not used, and the network is evaluated half as often.
            None: where `sampling.guidance` is not 1.
        mesh: where the parameters lie; examples, and where it says so rows or tokens, are split over it.
        path: also return x before each step and at the end.

    Returns:
        (params, keys [B], cond, scale) -> x [B, ...], decoded; or (x, path [steps + 1, B, *shape]), not decoded. `cond`
        is as `condition.spec` describes it, leaves [B, ...]; params are `model.merge_frozen`'s. Each example depends on
        its own key and condition alone.

    Raises:
        ValueError: guidance of a model without a null condition, or a solver that needs a learned variance which the
            network does not return.
    """
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

    def draw(params: Params, keys: Array, cond: Cond, scale: Any) -> Any:
        predict = denoise(params, cond)
        if guided:
            predict = sampling.guide(predict, denoise(params, condition.without(cond)), scale)
        shape = keys.shape[0], *medium.shape
        if not path:
            return medium.decode(params, solve(predict, sampling, keys, shape, prepared=prepared))
        x, steps = solve(predict, sampling, keys, shape, prepared=prepared, path=True)
        return medium.decode(params, x), steps

    def generate(params: Params, keys: Array, cond: Cond, scale: Any) -> Any:
        if mesh is None:
            return draw(params, keys, cond, scale)
        # As many examples as the devices can share out evenly; some are drawn twice.
        count = keys.shape[0]
        turns = np.arange(count + -count % num_batch_shards(mesh)) % count
        with use_mesh(mesh):
            drawn = draw(params, keys[turns], jax.tree.map(lambda a: a[turns], cond), scale)
        return (drawn[0][:count], drawn[1][:, :count]) if path else drawn[:count]

    return jax.jit(generate)
