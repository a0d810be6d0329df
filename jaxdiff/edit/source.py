"""A picture moved from what it shows to another prompt: `--source`, by one of METHODS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import inverse, networks, solvers
from jaxdiff.conditions import Cond
from jaxdiff.experiment import UserError
from jaxdiff.imagine import Stage
from jaxdiff.levels import Level
from jaxdiff.noise import fold_in, normal_like
from jaxdiff.parameterize import Denoiser
from jaxdiff.sample import sample
from jaxdiff.sampler import conditional, first_step
from jaxdiff.types import Params

__all__ = ["Method", "align_tokens", "editor", "target_of"]

Method = Literal["flow_edit", "edit_friendly", "prompt_to_prompt"]

# Shares of the steps in which attention maps are the source's (Hertz et al. 2022, sec. 4).
SELF, CROSS = 0.4, 0.8

# (params, keys, x0, conditions of prompt and source and how their tokens align, scale, strength) -> the edited x0
Move = Callable[..., Array]


def editor(stage: Stage, method: Method, *, guided: bool) -> Callable[..., Array]:
    """A function of (params, keys, x0, conditions, scale, strength) that draws the edited pictures.

    Args:
        stage: draws pictures.
        method: "flow_edit" moves the picture by the difference of the two denoisers (`inverse.flow_edit`),
            "edit_friendly" draws the prompt with the noise that gives the picture for the source
            (`inverse.edit_friendly`), and "prompt_to_prompt" does so with the source's attention maps
            (`networks.prompt_to_prompt`).
        guided: whether the prompt is guided; the source is not.

    Returns:
        the function. Its conditions are (of the prompt, of the source, `align_tokens` of both).

    Raises:
        ValueError: another method.
        UserError: a solver with a learned variance, or one that is no method of an ODE, for "flow_edit".
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    solver = stage.sampling.prepare()[1]
    if solver.learned_variance and method == "flow_edit":
        raise UserError("this solver takes a learned variance, and a difference of pictures has none: choose another")
    if (solver.stochastic or solver.next_level) and method == "flow_edit":
        raise UserError(
            "flow_edit follows an ODE, and this solver draws noise or jumps: choose another solver, as ddim, or "
            "edit_friendly"
        )
    move = METHODS[method](stage, guided=guided)

    def draw(params: Params, keys: Array, x0: Array, *, conditions: Any, scale: Any, strength: Any) -> Array:
        *both, align = conditions
        conditions = (*(stage.condition.augment(fold_in(keys, 2), cond) for cond in both), align)
        return stage.medium.decode(
            params, move(params, keys, x0, conditions=conditions, scale=scale, strength=strength)
        )

    return draw


def align_tokens(source: Cond, cond: Cond) -> np.ndarray | None:
    """Which of the source's tokens each token of the prompt replaces or repeats; -1 for one that is new.

    Args:
        source, cond: conditions of the source and the prompt, leaves [1, ...].

    Returns:
        int [L]; None for conditions that hold no numbers of tokens.
    """
    for name, numbers in cond.items():
        if numbers.ndim != 2 or numbers.shape[1] < 2 or not np.issubdtype(numbers.dtype, np.integer):
            continue
        places = np.full(numbers.shape[1], -1)
        matcher = SequenceMatcher(a=source[name][0].tolist(), b=numbers[0].tolist(), autojunk=False)
        for _, i, i_end, j, j_end in matcher.get_opcodes():
            if i_end - i == j_end - j:  # as it was, or words for as many others
                places[j:j_end] = np.arange(i, i_end)
        return places
    return None


def target_of(stage: Stage, params: Params, cond: Cond, scale: Any, *, guided: bool) -> Denoiser:
    """The denoiser of a prompt.

    Args:
        stage: draws pictures.
        params: its parameters.
        cond: of the prompt, leaves [B, ...].
        scale: of the guidance.
        guided: whether there is guidance by the null condition; else `scale` is ignored.
    """
    denoise = conditional(stage.model, stage.condition, stage.sampling.prepare()[1])
    target = denoise(params, cond)
    if guided:
        target = stage.sampling.guide(target, denoise(params, stage.condition.without(cond)), scale)
    return stage.sampling.clip(target)


def _flow_edit(stage: Stage, *, guided: bool) -> Move:
    levels, solver = stage.sampling.prepare()

    def move(params: Params, keys: Array, x0: Array, *, conditions: Any, scale: Any, strength: Any) -> Array:
        cond, source, _ = conditions
        noise = normal_like(fold_in(keys, 0), x0)
        target = target_of(stage, params, cond, scale, guided=guided)
        change = inverse.flow_edit(target, target_of(stage, params, source, 1.0, guided=False), x0, noise)
        start = first_step(len(levels.t) - 1, strength, round_up=True)
        return x0 + sample(change, solver, levels, jnp.zeros_like(x0), fold_in(keys, 1), start=start)

    return move


def _levels_of_ddpm(stage: Stage) -> Level:
    """The levels of the sampler's own solver, which may repeat one (PNDM), without repetition."""
    return replace(stage.sampling, solver=solvers.ddim(1.0)).prepare()[0]


def _edit_friendly(stage: Stage, *, guided: bool) -> Move:
    levels = _levels_of_ddpm(stage)

    def move(params: Params, keys: Array, x0: Array, *, conditions: Any, scale: Any, strength: Any) -> Array:
        cond, source, _ = conditions
        start = first_step(len(levels.t) - 1, strength, round_up=True)
        of_source = target_of(stage, params, source, 1.0, guided=False)
        x, replay = inverse.edit_friendly(of_source, levels, x0, fold_in(keys, 0), start=start)
        target = target_of(stage, params, cond, scale, guided=guided)
        return sample(target, replay, levels, x, fold_in(keys, 1), start=start)

    return move


def _prompt_to_prompt(stage: Stage, *, guided: bool) -> Move:
    """Edit-friendly inversion, and the attention maps of the source, which is drawn again beside it."""
    levels, solver = _levels_of_ddpm(stage), stage.sampling.prepare()[1]
    condition, sampling = stage.condition, stage.sampling
    predict = lambda model: conditional(model, condition, solver)  # noqa: E731
    twice = lambda a: jnp.concatenate([a, a])  # noqa: E731

    def move(params: Params, keys: Array, x0: Array, *, conditions: Any, scale: Any, strength: Any) -> Array:
        cond, source, align = conditions
        n, half = len(levels.t) - 1, len(x0)
        start = first_step(n, strength, round_up=True)
        ends = [
            levels.at(start + jnp.round(share * (n - start).astype(jnp.float32)).astype(jnp.int32))
            for share in (SELF, CROSS)
        ]
        both = jax.tree.map(lambda *parts: jnp.concatenate(parts), source, cond)
        of_source = target_of(stage, params, source, 1.0, guided=False)

        def denoise(x: Array, level: Level) -> Array:
            active = [level.lam < end.lam for end in ends]
            control = networks.prompt_to_prompt(self_attention=active[0], cross_attention=active[1], align=align)
            model = replace(stage.model, apply=networks.control_attention(stage.model.apply, control))
            old, new = jnp.split(predict(model)(params, both)(x, level), 2)
            if guided:
                without = predict(stage.model)(params, condition.without(cond))
                new = sampling.guide(lambda x, level: new, without, scale)(x[half:], level)
            return jnp.concatenate([old, new])

        def of_both(x: Array, level: Level) -> Array:
            return twice(of_source(x[:half], level))

        x, replay = inverse.edit_friendly(of_both, levels, twice(x0), twice(fold_in(keys, 0)), start=start)
        return sample(sampling.clip(denoise), replay, levels, x, twice(fold_in(keys, 1)), start=start)[half:]

    return move


METHODS: dict[Method, Callable[..., Move]] = {
    "flow_edit": _flow_edit,
    "edit_friendly": _edit_friendly,
    "prompt_to_prompt": _prompt_to_prompt,
}
