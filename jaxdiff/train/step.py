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

from jaxdiff import sharding
from jaxdiff.sharding import BATCH_AXES, num_batch_shards, use_mesh
from jaxdiff.train import ema as averages
from jaxdiff.train.state import Averaged, TrainState

Metrics = dict[str, jax.Array]
Loss = Callable[[Any, jax.Array, Any], tuple[jax.Array, Metrics]]
Given = Callable[[TrainState, Any], Any]  # (state, frozen) -> what the loss gets besides the parameters
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
    """Compile `make_update`'s update into `step(state, batch) -> (state, metrics)`, on the mesh that the state lies on.

    The old state is donated: its buffers become the new state's.

    Args:
        loss: as for `make_update`.
        optimizer: an optax optimizer, clipping and schedule included.
        key: random key of the whole run.
        ema: as for `make_update`.
        grad_accum_steps: as for `make_update`.
        steps_per_call: updates in one call, to spare small networks the host's work between them; with more than one
            the step takes as many batches stacked, [steps_per_call, B, ...], and returns its metrics stacked.
        frozen: tree of arrays that the loss needs and nobody trains, laid out as the state is. An array that the loss
            closed over would be compiled in as a constant.
        given: as for `make_update`.
        averaged: as for `make_update`.

    Returns:
        The step.

    Raises:
        ValueError: accumulate or steps_per_call is less than 1, or (when called) the batch is not a multiple of what it
            needs, the state does not hold an average for each decay, or `given` reads averages that wait in the host's
            memory.
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

    The update's key is `fold_in(key, state.step)`. An update is made if the loss, the gradient and the parameters that
    it leads to are finite. Otherwise parameters, averages and the optimizer's state stay as they are, `step` goes on to
    the next batch, and `skipped` counts. What counts updates, as optax's schedules, the averages' decays, stages and
    turns do, counts those that were made: `state.step - state.skipped`.

    Args:
        loss: (params, key, batch) -> (mean over the batch, dict of scalars). Where there is `given` or `frozen`, the
            loss gets the pair (params, given(state, frozen)) in place of params; `given` returns `frozen` by default.
        optimizer: an optax optimizer, clipping and schedule included.
        key: random key of the whole run.
        ema: decay of the parameters' average, from `jaxdiff.train.ema`, or a tuple of decays: one for each average.
        grad_accum_steps: number of microbatches whose gradients are averaged before one update.
        given: (state before the update, frozen) -> what the loss gets besides the parameters: the step, an average as
            its target, the frozen arrays of a teacher. No gradient passes through it.
        averaged: parameters -> the tree that is averaged, as for `create`.

    Returns:
        The update. Its metrics are the loss's own, "loss", "grad_norm" (the global norm before clipping), and
        "skipped": 1 for an update that was not made, else 0.

    Raises:
        ValueError: accumulate is less than 1, or (when called) as by `make_step`.
    """
    if grad_accum_steps < 1:
        raise ValueError(f"accumulate must be at least 1, got {grad_accum_steps}")

    def update(state: TrainState, batch: Any, frozen: Any = None, layout: Any = None) -> tuple[TrainState, Metrics]:
        layout = _Layout() if layout is None else layout
        step_key = jax.random.fold_in(key, state.step)
        context = frozen if given is None else layout.give(given, state, frozen)

        def gradient(params: Any, key: jax.Array, batch: Any) -> tuple[tuple[jax.Array, Metrics], Any]:
            alone = given is None and frozen is None
            loss_of = lambda params: loss(params if alone else (params, context), key, batch)  # noqa: E731
            out, grads = jax.value_and_grad(loss_of, has_aux=True)(params)
            return out, layout.scatter(grads)

        if grad_accum_steps == 1:
            (value, aux), grads = gradient(state.params, step_key, batch)
        else:
            (value, aux), grads = _accumulated(gradient, state.params, step_key, layout.split(batch, grad_accum_steps))
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes, whatever the caller allows
            norm = optax.tree.norm(grads)
            updates, opt = optimizer.update(grads, state.opt, state.params)
            params = optax.apply_updates(state.params, updates)
        # A finite norm bounds what an optimizer averages of gradients and their squares: its state is finite, too.
        good = jnp.isfinite(value) & jnp.isfinite(norm) & _finite(params)
        fresh, old = (params, opt), (state.params, state.opt)
        params, opt = jax.tree.map(lambda new, old: jnp.where(good, new, old), fresh, old)
        decays = jax.tree.map(lambda decay: lambda count: jnp.where(good, decay(count), 1.0), ema)
        part = params if averaged is None else averaged(params)
        average = averages.update_all(state.ema, part, decays, state.step - state.skipped, layout.average)
        bad = 1 - good.astype(jnp.int32)
        metrics = {**aux, "loss": value, "grad_norm": norm, "skipped": bad}
        return TrainState(state.step + 1, params, average, opt, state.skipped + bad), metrics

    return update


def _finite(tree: Any) -> jax.Array:
    """Whether every number of a tree is finite: 0 times a number is 0, of NaN and infinity NaN."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    # Small arrays, which every device has whole, as one: a sum for each took as long to compile as all else in a step.
    small = [x.astype(jnp.float32).ravel() for x in floats if x.size < sharding.MIN_SHARDED_SIZE]
    large = [x for x in floats if x.size >= sharding.MIN_SHARDED_SIZE]
    parts = [*large, jnp.concatenate(small)] if small else large
    return jnp.isfinite(sum(jnp.sum(0 * x, dtype=jnp.float32) for x in parts))


def _accumulated(
    gradient: Callable[..., Any], params: Any, key: jax.Array, parts: Any
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
    """Where a state's arrays lie, as constraints inside the step; without a mesh they are no constraints."""

    mesh: Mesh | None = None
    shardings: Any = None  # a TrainState of NamedSharding

    def waits(self) -> bool:
        """Whether the averages lie in the host's memory between two updates."""
        return self.mesh is not None and jax.tree.leaves(self.shardings.ema)[0].memory_kind not in (None, "device")

    def give(self, given: Given, state: TrainState, frozen: Any) -> Any:
        """Return what the loss gets besides the parameters.

        Raises:
            ValueError: it is made of averages that wait in the host's memory.
        """
        if self.waits() and _reads_averages(given, state, frozen):
            raise ValueError("given reads state.ema, which waits in the host's memory; it needs ema_memory='device'")
        return given(state, frozen)

    def average(self, average: Any, params: Any, decay: jax.Array) -> Any:
        """Update an average; of one that waits in the host's memory one array after the other is on the devices."""
        if not self.waits():
            return averages.update(average, params, decay)
        moved: list[Any] = []
        for old, new in zip(jax.tree.leaves(average), jax.tree.leaves(params), strict=True):
            if moved:  # the next one is fetched when the last one is back
                old, moved[-1] = jax.lax.optimization_barrier((old, moved[-1]))
            fresh = averages.update(jax.device_put(old, jax.memory.Space.Device), new, decay)
            moved.append(jax.device_put(fresh, jax.memory.Space.Host))
        return jax.tree.unflatten(jax.tree.structure(average), moved)

    def scatter(self, grads: Any) -> Any:
        """Leave to each device the part of the gradient whose parameters it holds."""
        return grads if self.mesh is None else jax.lax.with_sharding_constraint(grads, self.shardings.params)

    def split(self, batch: Any, count: int) -> Any:
        """Cut [B, ...] into [count, B/count, ...] such that no example leaves its device."""
        groups = 1 if self.mesh is None else num_batch_shards(self.mesh)

        def cut(x: jax.Array) -> jax.Array:
            if x.shape[0] % (count * groups):
                raise ValueError(
                    f"a batch of {x.shape[0]} cannot be cut into grad_accum_steps={count} microbatches on "
                    f"{groups} parts of the mesh; it must be a multiple of {count * groups}"
                )
            # Each microbatch takes every count-th example: contiguous ones would sit on a few devices only.
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
    """What `make_step` returns, compiled once for each mesh that it meets; a new state lies where the old one did.

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
        """Lower for arrays or for `jax.ShapeDtypeStruct`s with shardings, as `jax.jit(...).lower` does."""
        return self._for(state).lower(state, batch, self._frozen)

    def cache_size(self) -> int:
        """Count the programs compiled so far."""
        return sum(jitted._cache_size() for jitted in self._jitted.values())

    def _for(self, state: TrainState) -> Any:
        # The scalar's place stands for the mesh: comparing that of every leaf would cost time at each step.
        place = state.step.sharding
        if place not in self._jitted:
            self._jitted[place] = self._jit(state)
        return self._jitted[place]

    def _jit(self, state: TrainState) -> Any:
        shardings = jax.tree.map(lambda x: x.sharding, state)
        place = state.step.sharding
        mesh = place.mesh if isinstance(place, NamedSharding) and isinstance(place.mesh, Mesh) else None
        layout = _Layout(mesh, shardings)
        out = None if mesh is None else (shardings, NamedSharding(mesh, P()))

        def step(state: TrainState, batch: Any, frozen: Any) -> tuple[TrainState, Metrics]:
            with use_mesh(mesh):
                if self.steps_per_call == 1:
                    return self._update(state, batch, frozen, layout)
                body = lambda state, batch: self._update(state, batch, frozen, layout)  # noqa: E731
                return jax.lax.scan(body, state, batch, length=self.steps_per_call)

        return jax.jit(step, donate_argnums=0, out_shardings=out)
