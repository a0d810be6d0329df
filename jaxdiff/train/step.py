"""The train step: one pure, donated, sharded function of (state, batch)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiff.sharding import BATCH_AXES, num_batch_shards, use_mesh
from jaxdiff.train import ema as averages
from jaxdiff.train import packing
from jaxdiff.train.state import Averaged, TrainState
from jaxdiff.types import Loss, Metrics, Params

Given = Callable[[TrainState, Any], Any]  # (state, frozen) -> further input of the loss
Update = Callable[..., tuple[TrainState, Metrics]]


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array,
    ema: averages.Decays,
    grad_accum_steps: int = 1,
    steps_per_call: int = 1,
    frozen: Any = None,
    given: Given | None = None,
    averaged: Averaged = None,
) -> Step:
    """Compile the update of `make_update` to `step(state, batch) -> (state, metrics)`, on the mesh of the state.

    The old state is donated: the new state reuses its buffers.

    Args:
        loss: as for `make_update`.
        optimizer: an optax optimizer, clipping and schedule included.
        key: random key of the run.
        ema: as for `make_update`.
        grad_accum_steps: as for `make_update`.
        steps_per_call: number of updates in one call, to save small networks the host's work between them; if greater
            than 1, the step takes stacked batches [steps_per_call, B, ...] and returns stacked metrics.
        frozen: tree of arrays that the loss uses without training them, sharded over the state's mesh. Arrays in the
            closure of the loss would be compiled as constants.
        given: as for `make_update`.
        averaged: as for `make_update`.

    Returns:
        the step.

    Raises:
        ValueError: grad_accum_steps or steps_per_call is less than 1, or (when called) the batch cannot be split, the
            state does not have one average for each decay, or `given` reads averages in the host's memory.
    """
    if steps_per_call < 1:
        raise ValueError(f"steps_per_call must be at least 1, got {steps_per_call}")
    update = make_update(
        loss, optimizer, key=key, ema=ema, grad_accum_steps=grad_accum_steps, given=given, averaged=averaged
    )
    return Step(update, steps_per_call, frozen)


def make_update(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array,
    ema: averages.Decays,
    grad_accum_steps: int = 1,
    given: Given | None = None,
    averaged: Averaged = None,
) -> Update:
    """Build `update(state, batch, frozen=None) -> (state, metrics)`: pure, for `jit`, `vmap` and `scan`.

    The key of the update is `fold_in(key, state.step)`. The update is skipped if the loss, the norm of the gradient or
    the norm of the update is not finite (AdamW's is finite where the gradient's is): then parameters, averages and the
    optimizer's state do not change, and both `step` and `skipped` increase by 1. Schedules, decays of averages, stages
    and turns count updates without the skipped ones: `state.step - state.skipped`.

    Args:
        loss: (params, key, batch) -> (mean over the batch, dict of scalars). With `given` or `frozen`, its first
            argument is the pair (params, given(state, frozen)); `given` returns `frozen` by default.
        optimizer: an optax optimizer, clipping and schedule included.
        key: random key of the run.
        ema: decay of the parameters' average, from `jaxdiff.train.ema`, or a tuple with a decay for each average.
        grad_accum_steps: number of microbatches whose gradients are averaged for one update.
        given: (state before the update, frozen) -> further input of the loss, e.g. the step, an average as its target,
            or the frozen arrays of a teacher. No gradient passes through it.
        averaged: parameters -> the tree to average, as for `init_state`.

    Returns:
        the update. Its metrics are those of the loss, "loss", "grad_norm" (the global norm before clipping), and
        "skipped": 1 for a skipped update, else 0.

    Raises:
        ValueError: grad_accum_steps is less than 1, an argument is of another kind, or (when called) as for
            `make_step`.
    """
    if grad_accum_steps < 1:
        raise ValueError(f"grad_accum_steps must be at least 1, got {grad_accum_steps}")
    _check(loss, optimizer, ema)

    def update(state: TrainState, batch: Any, frozen: Any = None, layout: Any = None) -> tuple[TrainState, Metrics]:
        layout = _Layout() if layout is None else layout
        step_key = jax.random.fold_in(key, state.step)
        context = frozen if given is None else layout.give(given, state, frozen)

        def gradient(params: Params, key: jax.Array, batch: Any) -> tuple[tuple[jax.Array, Metrics], Any]:
            alone = given is None and frozen is None
            loss_of = lambda params: loss(params if alone else (params, context), key, batch)  # noqa: E731
            out, grads = jax.value_and_grad(loss_of, has_aux=True)(params)
            return out, layout.scatter(grads)

        if grad_accum_steps == 1:
            (value, aux), grads = gradient(state.params, step_key, batch)
        else:
            (value, aux), grads = _accumulated(gradient, state.params, step_key, layout.split(batch, grad_accum_steps))
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes, also under strict promotion
            norm = packing.norm(grads)
            updates, opt = optimizer.update(grads, state.opt, state.params)
            params = optax.apply_updates(state.params, updates)
        # With a finite norm, the averages of gradients and of their squares are finite, too.
        good = jnp.isfinite(value) & jnp.isfinite(norm)
        if not packing.is_bounded(optimizer, state.params):
            # It overflows before parameters of less than 1e19 do.
            with jax.numpy_dtype_promotion("standard"):
                good &= jnp.isfinite(packing.norm(updates))
        fresh, old = (params, opt), (state.params, state.opt)
        params, opt = jax.tree.map(lambda new, old: jnp.where(good, new, old), fresh, old)
        decays = jax.tree.map(lambda decay: lambda count: jnp.where(good, decay(count), 1.0), ema)
        part = params if averaged is None else averaged(params)
        average = averages.update_all(state.ema, part, decays, state.step - state.skipped, layout.average)
        bad = 1 - good.astype(jnp.int32)
        metrics = {**aux, "loss": value, "grad_norm": norm, "skipped": bad}
        return TrainState(state.step + 1, params, average, opt, state.skipped + bad), metrics

    return update


def check_microbatches(batch: int, count: int, parts: int) -> None:
    """Raise ValueError unless a batch can be cut into `count` microbatches on a mesh that splits them into parts."""
    if batch % (count * parts):
        raise ValueError(
            f"a batch of {batch} cannot be cut into grad_accum_steps={count} microbatches on {parts} parts of the "
            f"mesh; it must be a multiple of {count * parts}"
        )


def _check(loss: Any, optimizer: Any, ema: Any) -> None:
    if not callable(loss):
        raise ValueError(f"loss must be a function (params, key, batch) -> (value, metrics), got {loss!r:.80}")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer must be an optax optimizer such as train.adamw(1e-3), got {optimizer!r:.80}")
    for decay in ema if isinstance(ema, tuple) else (ema,):
        if not callable(decay):
            raise ValueError(f"ema must be a decay such as train.ema.constant(0.999), or several, got {decay!r:.80}")
        name = getattr(decay, "__name__", "")
        if getattr(averages, name, None) is decay:
            raise ValueError(f"ema is {name}, which makes decays: call train.ema.{name}(...)")


def _accumulated(
    gradient: Callable[..., Any], params: Params, key: jax.Array, parts: Any
) -> tuple[tuple[jax.Array, Metrics], Any]:
    """Average loss, metrics and gradient over microbatches [A, B/A, ...]; the sum is one carry."""
    count = jax.tree.leaves(parts)[0].shape[0]

    def body(total: Any, indexed: tuple[jax.Array, Any]) -> tuple[Any, tuple[jax.Array, Metrics]]:
        index, part = indexed
        out, grads = gradient(params, jax.random.fold_in(key, index), part)
        return jax.tree.map(jnp.add, total, grads), out

    total, outs = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, params), (jnp.arange(count), parts))
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), outs), jax.tree.map(lambda x: x / count, total)


class _Layout(NamedTuple):
    """Shardings of a state as constraints inside the step; without a mesh there are none."""

    mesh: Mesh | None = None
    shardings: Any = None  # a TrainState of NamedSharding

    def waits(self) -> bool:
        """Whether the averages are in the host's memory between updates."""
        return self.mesh is not None and jax.tree.leaves(self.shardings.ema)[0].memory_kind not in (None, "device")

    def give(self, given: Given, state: TrainState, frozen: Any) -> Any:
        """Return the further input of the loss.

        Raises:
            ValueError: it depends on averages in the host's memory.
        """
        if self.waits() and _reads_averages(given, state, frozen):
            raise ValueError("given reads state.ema, which waits in the host's memory; it needs ema_memory='device'")
        return given(state, frozen)

    def average(self, average: Any, params: Params, decay: jax.Array) -> Any:
        """Update an average; arrays in the host's memory are transferred to the devices one at a time."""
        if not self.waits():
            return averages.update(average, params, decay)
        moved: list[Any] = []
        for old, new in zip(jax.tree.leaves(average), jax.tree.leaves(params), strict=True):
            if moved:  # transfer the next array after the return of the last one
                old, moved[-1] = jax.lax.optimization_barrier((old, moved[-1]))
            fresh = averages.update(jax.device_put(old, jax.memory.Space.Device), new, decay)
            moved.append(jax.device_put(fresh, jax.memory.Space.Host))
        return jax.tree.unflatten(jax.tree.structure(average), moved)

    def scatter(self, grads: Any) -> Any:
        """Shard the gradient like the parameters."""
        return grads if self.mesh is None else jax.lax.with_sharding_constraint(grads, self.shardings.params)

    def split(self, batch: Any, count: int) -> Any:
        """Split [B, ...] into [count, B/count, ...] such that each example stays on its device."""
        groups = 1 if self.mesh is None else num_batch_shards(self.mesh)

        def cut(x: jax.Array) -> jax.Array:
            check_microbatches(x.shape[0], count, groups)
            # Each microbatch takes every count-th example: contiguous examples would be on a few devices only.
            x = jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)
            if self.mesh is None:
                return x
            return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(None, BATCH_AXES)))

        return jax.tree.map(cut, batch)


def _reads_averages(given: Given, state: TrainState, frozen: Any) -> bool:
    jaxpr = jax.make_jaxpr(given)(state, frozen).jaxpr
    is_average = jax.tree.leaves(
        jax.tree.map(lambda _: False, state)._replace(ema=jax.tree.map(lambda _: True, state.ema))
    )
    used = {id(x) for x in itertools.chain(jaxpr.outvars, *(equation.invars for equation in jaxpr.eqns))}
    return any(id(x) in used for x, flag in zip(jaxpr.invars, is_average, strict=False) if flag)


class Step:
    """The step of `make_step`, compiled once for each mesh; the new state has the shardings of the old one, and the
    layouts of the first one.

    Attributes:
        steps_per_call: updates in one call.
    """

    def __init__(self, update: Update, steps_per_call: int, frozen: Any):
        self.steps_per_call = steps_per_call
        self._update, self._frozen = update, frozen
        self._jitted: dict[Any, Any] = {}

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        return self._for(state)(state, batch, self._frozen)

    def lower(self, state: TrainState, batch: Any) -> jax.stages.Lowered:
        """Lower the step for arrays or for `jax.ShapeDtypeStruct`s with shardings, like `jax.jit(...).lower`."""
        return self._for(state).lower(state, batch, self._frozen)

    def cache_size(self) -> int:
        """Count the programs compiled so far."""
        return sum(jitted._cache_size() for jitted in self._jitted.values())

    def _for(self, state: TrainState) -> Any:
        if isinstance(state.step, jax.core.Tracer):
            raise ValueError("make_step is not for traced states: make_update is, inside of jit, vmap or scan")
        # The sharding of the scalar identifies the mesh: comparing all leaves would cost time at each step.
        place = state.step.sharding
        if place not in self._jitted:
            self._jitted[place] = self._jit(state)
        return self._jitted[place]

    def _jit(self, state: TrainState) -> Any:
        shardings = jax.tree.map(lambda x: x.sharding, state)
        place = state.step.sharding
        mesh = place.mesh if isinstance(place, NamedSharding) and isinstance(place.mesh, Mesh) else None
        layout = _Layout(mesh, shardings)
        out = None if mesh is None else (jax.tree.map(lambda x: x.format, state), NamedSharding(mesh, P()))

        def step(state: TrainState, batch: Any, frozen: Any) -> tuple[TrainState, Metrics]:
            with use_mesh(mesh):
                if self.steps_per_call == 1:
                    return self._update(state, batch, frozen, layout)
                body = lambda state, batch: self._update(state, batch, frozen, layout)  # noqa: E731
                return jax.lax.scan(body, state, batch, length=self.steps_per_call)

        return jax.jit(step, donate_argnums=0, out_shardings=out)
