"""One run of gan.py: a rival is trained for so many CPU seconds, drawn and measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gan_rivals as rivals
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import train
from jaxdiff.media.classifier import load_classifier

SECONDS = {"gaussians": 20.0, "stacked": 30.0}  # of training
FACTORS = (0.3, 1.0, 3.0)  # of the learning rate
SEEDS = 5
OTHER_SEEDS = {"gaussians": 2, "stacked": 1}  # of learning rates other than the usual
SAMPLES, DRAWN = 10_000, 1000  # samples that are measured; in one call
UPDATES = 20  # in one call
WATCHED = 10  # times that a training is measured on its way
WARMUP = 0.05  # share of a phase in which the learning rate rises


class Program:
    """A rival's compiled programs, for any seed and learning rate.

    Attributes:
        seconds: CPU seconds of their compilation.
        trained, drawn: number of parameters that are trained, and of those that make samples.
    """

    def __init__(self, task: rivals.Task, rival: rivals.Rival, data: Any):
        begun = time.process_time()
        self.task, self.rival, self.data = task, rival, data
        self.starts, self.steps, key, last = [], [], jax.random.key(0), None
        for phase in rival.phases:
            start = jax.jit(lambda key, last, phase=phase: _state(phase, key, last))
            state = jax.eval_shape(start, key, last)
            step = jax.jit(_step(task, phase), donate_argnums=0)
            self.steps.append(step.lower(state, np.float32(0), key, data, phase.frozen(last)).compile())
            self.starts.append(start)
            last, self.trained = state.ema, _count(state.params)
        self.drawn = _count(last)
        self.draw = jax.jit(lambda params, key: rival.draw(params, key, DRAWN)).lower(last, key).compile()
        self.seconds = time.process_time() - begun

    def samples(self, params: Any, count: int, seed: int) -> tuple[np.ndarray, float]:
        """Samples, and the fewest CPU seconds of a call."""
        drawn, took = [], []
        for i in range(-(-count // DRAWN)):
            begun = time.process_time()
            drawn.append(np.asarray(self.draw(params, jax.random.key(1000 * seed + i))))
            took.append(time.process_time() - begun)
        return np.concatenate(drawn)[:count], min(took)

    def run(self, seconds: float, seed: int, factor: float, watch: Callable[[Any], float] | None) -> dict:
        """Train, with a learning rate that is multiplied by a factor: (parameters, what was seen on the way)."""
        out: dict = {"seconds": 0.0, "updates": 0, "skipped": 0, "curve": []}
        key, last = jax.random.key(seed), None
        for i, (phase, start, step) in enumerate(zip(self.rival.phases, self.starts, self.steps, strict=True)):
            state = start(jax.random.fold_in(key, i), last)
            frozen, given = phase.frozen(last), phase.share * seconds
            spent, losses = 0.0, []
            while spent < given:
                lr = np.float32(factor * phase.lr * _rate(spent / given, phase.lr_end))
                begun = time.process_time()
                state, seen = jax.block_until_ready(step(state, lr, key, self.data, frozen))
                spent += time.process_time() - begun
                losses.append([np.nanmean(seen[name]) for name in self.rival.losses])
                if watch and i + 1 == len(self.steps) and spent / given > (len(out["curve"]) + 1) / WATCHED:
                    out["curve"].append([*np.nanmean(losses, 0).tolist(), watch(state.ema)])
                    losses = []
            last = state.ema
            out["seconds"] += spent
            out["updates"] += int(state.step)
            out["skipped"] += int(state.skipped)
        return out | {"params": last}


def _count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _state(phase: rivals.Phase, key: Any, last: Any) -> train.TrainState:
    params = phase.start(key, last)
    return train.new_state(params, phase.parts(0.0)[1], ema=rivals.EMA, averaged=phase.averaged)


def _step(task: rivals.Task, phase: rivals.Phase) -> Callable[..., Any]:
    def step(state: Any, lr: Any, key: Any, data: Any, frozen: Any) -> Any:
        loss, optimizer, given = phase.parts(lr)
        keys = jax.random.split(key)
        update = train.make_update(loss, optimizer, key=keys[0], ema=rivals.EMA, given=given, averaged=phase.averaged)

        def body(state: Any, _: Any) -> Any:
            return update(state, {"x": task.examples(jax.random.fold_in(keys[1], state.step), data)}, frozen)

        return jax.lax.scan(body, state, length=UPDATES)

    return step


def _rate(share: float, end: float) -> float:
    """A linear rise, then a cosine to the end, as a share of the highest rate."""
    return min(1.0, share / WARMUP + 0.01) * (end + (1 - end) * 0.5 * (1 + np.cos(np.pi * min(1.0, share))))


class Prepared(NamedTuple):
    """A task, its training data, real examples as pictures or points, and samples as these."""

    task: rivals.Task
    data: Any
    real: np.ndarray
    decode: Callable[[np.ndarray], np.ndarray]


@cache
def _prepared(name: str, folder: Path) -> Prepared:
    if name == "gaussians":
        task = rivals.grid_of_gaussians()
        return Prepared(task, None, _examples(task, None, 10**6), lambda x: x)
    pictures, held_out = (rivals.clothes(split)[0] for split in ("train", "test"))
    components = rivals.Components.of(pictures)
    task = rivals.stacked_clothes(components, load_classifier(folder / "judge.npz"))
    index = np.random.default_rng(0).integers(0, len(held_out), (SAMPLES, 3))
    return Prepared(
        task, jnp.asarray(components.encode(pictures)), held_out[index].transpose(0, 2, 3, 1), components.decode
    )


def _examples(task: rivals.Task, data: Any, seed: int) -> np.ndarray:
    """As many real examples as samples are measured."""
    keys = jax.random.split(jax.random.key(seed), -(-SAMPLES // rivals.BATCH))
    return np.concatenate([task.examples(key, data) for key in keys])[:SAMPLES]


@cache
def _program(name: str, rival: str, folder: Path) -> Program:
    task, data, *_ = _prepared(name, folder)
    return Program(task, rivals.RIVALS[rival](task), data)


def of_real(name: str, folder: Path) -> dict:
    """What is measured of real training examples, as many as samples: the best that these can reach."""
    task, data, real, decode = _prepared(name, folder)
    x = _examples(task, data, 0)
    np.save(folder / f"{name}-real.npy", decode(x[:2000]))
    return task.measure(x, real)


def run(name: str, rival: str, factor: float, seed: int, *, seconds: float, folder: Path) -> dict:
    """Train a rival and measure it; the first 2,000 samples of seed 0 are kept for the picture."""
    fresh = _program.cache_info().misses
    program = _program(name, rival, folder)
    compiled = program.seconds if _program.cache_info().misses > fresh else 0.0
    task, _, real, decode = _prepared(name, folder)

    def watch(params: Any) -> float:
        return rivals.misplaced(program.samples(params, 2000, 10**4)[0])

    out = program.run(seconds, seed, factor, watch if name == "gaussians" else None)
    params = out.pop("params")
    x, took = program.samples(params, SAMPLES, seed)
    finite = bool(np.isfinite(x).all())
    out |= {"compile": compiled, "draw": took / DRAWN * 1000} | (task.measure(x, real) if finite else {})
    out["failed"] = not finite or out["covered"] < task.modes / 2 or out["recall"] < 0.2
    if seed == 0 and factor == 1 and finite:
        np.save(folder / f"{name}-{rival}.npy", decode(x[:2000]))
    return out | {"trained": program.trained, "drawn": program.drawn}
