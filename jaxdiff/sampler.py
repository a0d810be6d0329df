"""The sampler of a model as one compiled function, for runs and for other projects' pipelines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxdiff.casts import cast_once
from jaxdiff.checks import is_traced
from jaxdiff.conditions import Cond, Condition
from jaxdiff.levels import Level, q_sample
from jaxdiff.media import Medium
from jaxdiff.noise import fold_in, normal_like
from jaxdiff.parameterize import Denoiser, Params, denoiser, drop_variance
from jaxdiff.sample import sample, sample_path
from jaxdiff.sampling import Sampling
from jaxdiff.sharding import constrain_tokens, num_batch_shards, platform, use_mesh
from jaxdiff.solvers import Solver

if TYPE_CHECKING:
    from jaxdiff.experiment import Model

__all__ = ["Begin", "Generate", "cast_for_loop", "check_strength", "conditional", "first_step", "sampler", "solve"]

Image = tuple[Array, Any]  # (x0, strength)
Generate = Callable[..., Any]  # (params, keys, cond, scale, negative=None, *, image=None) -> x
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
        (params, keys [B], cond, scale, negative=None, *, image=None) -> x [B, ...], decoded; or (x, path [steps + 1, B,
        *shape]), not decoded. `cond` is as `condition.spec` describes it, leaves [B, ...], and so is `negative`, what
        guidance leads away from; None is the null condition. params are `model.merge_frozen`'s. Each example depends on
        its own key, conditions and image only. `image` is (x0 [B, *shape] as the network gets it, strength): x0 is
        noised and denoised again (SDEdit, Meng et al. 2021, arXiv:2108.01073) by the last `strength` N of the N steps,
        rounded up. A strength of 0 returns x0, one of 1 keeps nothing of it.

    Raises:
        ValueError: guidance without a null condition, or a solver that needs a learned variance which the network does
            not return; from the sampler, a strength as for `first_step`.
    """
    if sampling is None:
        draw = _direct(model, condition, medium, guided=bool(guided), path=path)
    else:
        draw = _solving(model, sampling, condition, medium, guided=guided, path=path)

    def generate(
        params: Params, keys: Array, cond: Cond, scale: Any, negative: Cond | None = None, *, image: Image | None = None
    ) -> Any:
        if mesh is None:
            return draw(params, keys, cond, scale, negative, image)
        # Pad the batch to a multiple of the number of shards, by drawing some examples twice.
        count = keys.shape[0]
        turns = np.arange(count + -count % num_batch_shards(mesh)) % count
        with use_mesh(mesh):
            cond, negative = jax.tree.map(lambda a: a[turns], (cond, negative))
            image = None if image is None else (image[0][turns], image[1])
            drawn = draw(params, keys[turns], cond, scale, negative, image)
        first = lambda x: jax.tree.map(lambda a: a[:count], x)  # noqa: E731
        return (first(drawn[0]), drawn[1][:, :count]) if path else first(drawn)

    compiled: Any = jax.jit(generate)

    def checked(*args: Any, image: Image | None = None, **options: Any) -> Any:
        if image is not None:  # inside of the compiled function its value is traced
            check_strength(image[1])
        return compiled(*args, image=image, **options)

    vars(checked).update(lower=compiled.lower, _cache_size=compiled._cache_size)
    return checked


def _direct(model: Model, condition: Condition, medium: Medium, *, guided: bool, path: bool) -> Generate:
    """One call of a model that does not denoise."""
    if model.generate is None:
        raise ValueError("a model without generate needs a Sampling, got None")
    if guided:
        condition.check_null()
    if guided or path:
        raise ValueError("a model that makes examples in one call has no guidance, and they have no path")
    made = model.generate

    def draw(params: Params, keys: Array, cond: Cond, scale: Any, negative: Cond | None, image: Image | None) -> Array:
        _check_negative(negative, guided=False)
        if image is not None:
            raise ValueError("a model that makes examples in one call noises no image")
        return medium.decode(params, made(params, keys, condition.encode(params, cond)))

    return draw


def conditional(model: Model, condition: Condition, solver: Solver) -> Callable[[Params, Cond], Denoiser]:
    """Make the denoiser of a condition, as a solver takes it: with its learned variance, or without.

    Args:
        model: the model.
        condition: encodes conditions.
        solver: the solver.

    Returns:
        (params, cond) -> (x_t, level) -> x0_hat, without guidance.

    Raises:
        ValueError: the solver needs a learned variance, which the network does not return.
    """
    if solver.learned_variance and not model.learned_variance:
        raise ValueError("the solver takes a learned variance, which the network does not return: choose another")

    def denoise(params: Params, cond: Cond) -> Denoiser:
        predict = denoiser(model.apply, params, model.prediction, condition.encode(params, cond))
        return drop_variance(predict) if model.learned_variance and not solver.learned_variance else predict

    return denoise


def _solving(
    model: Model, sampling: Sampling, condition: Condition, medium: Medium, *, guided: bool | None, path: bool
) -> Generate:
    """The samples of a denoiser."""
    guided = sampling.guidance != 1 if guided is None else guided
    if guided:
        condition.check_null()
    levels, solver = prepared = sampling.prepare()
    ends = (levels.at(0), levels.at(1)) if solver.next_level else (levels.at(0),)
    denoise = conditional(model, condition, solver)

    def draw(params: Params, keys: Array, cond: Cond, scale: Any, negative: Cond | None, image: Image | None) -> Any:
        _check_negative(negative, guided=guided)
        # Both of guidance get the same noise. `solve` folds 0 and 1 into the keys.
        random = fold_in(keys, 2)
        cond = condition.augment(random, cond)
        conds = [cond]
        if guided:
            conds.append(condition.without(cond) if negative is None else condition.augment(random, negative))
        shape = keys.shape[0], *medium.shape
        denoisers = lambda params: [denoise(params, cond) for cond in conds]  # noqa: E731
        cast = cast_for_loop(denoisers, params, jnp.zeros(shape), *ends)
        predict, *away = (denoise(cast, cond) for cond in conds)
        if guided:
            predict = sampling.guide(predict, away[0], scale)
        options: dict[str, Any] = {"prepared": prepared, "begin": None if image is None else _noised(*image)}
        if not path:
            return medium.decode(params, solve(predict, sampling, keys, shape, **options))
        x, steps = solve(predict, sampling, keys, shape, path=True, **options)
        return medium.decode(params, x), steps

    return draw


def cast_for_loop(
    denoisers: Callable[[Params], Sequence[Callable[..., Any]]], params: Params, x: Array, *ends: Level
) -> Params:
    """Cast parameters as the steps of a sampler use them, on an accelerator; see `casts.cast_once`.

    Args:
        denoisers: what a step evaluates, of the parameters.
        params: the parameters.
        x: like x of the steps; its values don't matter.
        *ends: likewise, the level of a step, or the levels at both ends.
    """
    if platform() == "cpu":
        return params
    return cast_once(lambda params: [denoise(x, *ends) for denoise in denoisers(params)], params)


def _check_negative(negative: Cond | None, *, guided: bool) -> None:
    if negative is not None and not guided:
        raise ValueError("a negative condition needs guidance")


def first_step(n: int, strength: float | Array, *, round_up: bool) -> Array:
    """The first step of image-to-image sampling, of which the last `strength` n of n steps are taken.

    Args:
        n: number of steps.
        strength: in [0, 1]; may be traced.
        round_up: take a part of a step as a step; else as none.

    Returns:
        int32; n where no step is taken.

    Raises:
        ValueError: a strength outside [0, 1], or more than one number.
    """
    check_strength(strength)
    # Whole numbers of steps as they are meant: 0.58 of 50 is 29, whatever the product in float32 or float64.
    taken = jnp.ceil(n * strength - 1e-3) if round_up else jnp.floor(n * strength + 1e-3)
    return jnp.clip(n - taken.astype(jnp.int32), 0, n)


def check_strength(strength: float | Array) -> None:
    """Raise ValueError unless a strength is one number, in [0, 1] if it is concrete."""
    if jnp.ndim(strength):
        raise ValueError(f"strength must be one number for all images, got shape {jnp.shape(strength)}")
    if not is_traced(strength) and not 0 <= np.asarray(strength) <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")


def _noised(x0: Array, strength: float | Array) -> Begin:
    """Begin with x0, noised to a later level."""

    def begin(x: Array, noise: Array, levels: Level, solver: Solver) -> tuple[Array, Array, Solver]:
        n, known = len(levels.t) - 1, x0.astype(x.dtype)
        start = first_step(n, strength, round_up=True)
        level = levels.at(start)
        level = level._replace(alpha=level.alpha.astype(x.dtype), sigma=level.sigma.astype(x.dtype))
        noised = jnp.where(start == n, known, q_sample(known, noise, level))
        return jnp.where(start == 0, x, noised), start, solver

    return begin
