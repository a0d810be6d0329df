"""The tasks and the rivals of gan.py: what each trains, in which phases, and how it draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jaxdiff as jd
from jaxdiff import data, distill, metrics, networks, train
from jaxdiff.media.classifier import FittedClassifier

PROCESS = jd.processes.Flow()
VELOCITY = jd.parameterize.time_scaled(jd.parameterize.velocity)  # the networks' sinusoids are made for hundreds
EMA = train.ema.warmup(0.999)
CENTRES = np.stack(np.meshgrid(*2 * [np.arange(-2, 3)]), -1).reshape(-1, 2) / 2**0.5  # variance 1 in each coordinate
BATCH = 64
STD = 0.05 / 2 / 2**0.5  # of a mode: the usual 0.05 of a spacing of 2
SIZE, CLASSES, COMPONENTS = 14, 10, 32  # of a picture, of which each channel has 32 principal components


class Task(NamedTuple):
    """Data, networks for it, and what is measured of samples.

    Attributes:
        shape: of one example.
        examples: (key, data) -> a batch.
        measure: (samples, real examples) -> {"covered": modes, "kl": ..., "quality": ..., "recall": ...}.
        modes: number of modes.
        sampler: the grid of diffusion's sampler, its solver, and its evaluations of the network.
        lr: of diffusion, of the student, and of the two players.
        widths: of the network of diffusion; of generator and critic, which together have as many parameters.
        penalty: R3GAN's gamma.
        critic_scale: of the critic's input: between narrow modes a critic of plain coordinates learns nothing.
    """

    shape: tuple[int, ...]
    examples: Callable[[Array, Any], Array]
    measure: Callable[[np.ndarray, np.ndarray], dict]
    modes: int
    sampler: tuple[jd.Level, Any, int]
    lr: tuple[float, float, float]
    widths: tuple[int, int]
    penalty: float
    critic_scale: float = 1.0


class Phase(NamedTuple):
    """A part of a training.

    Attributes:
        share: of the seconds.
        lr: the highest learning rate.
        lr_end: the last one, as a share of the highest.
        start: (key, the last phase's averaged parameters) -> parameters.
        parts: learning rate, which may be traced -> (loss, optimizer, given), as for `train.make_update`.
        averaged: parameters -> those that are averaged.
        frozen: the last phase's averaged parameters -> what the loss uses without training it.
    """

    share: float
    lr: float
    lr_end: float
    start: Callable[[Array, Any], Any]
    parts: Callable[[Any], tuple[Any, Any, Any]]
    averaged: Callable[[Any], Any] | None = None
    frozen: Callable[[Any], Any] = lambda last: None


class Rival(NamedTuple):
    """A method.

    Attributes:
        phases: of its training.
        draw: (averaged parameters, key, number) -> samples.
        evaluations: of the network, for a sample.
        losses: names of the metrics that a user watches.
    """

    phases: tuple[Phase, ...]
    draw: Callable[[Any, Array, int], Array]
    evaluations: int
    losses: tuple[str, ...]


def grid_of_gaussians() -> Task:
    """25 narrow Gaussians on a grid, as measured by Srivastava et al. 2017 (VEEGAN)."""

    def examples(key: Array, _: Any) -> Array:
        mode_key, eps_key = jax.random.split(key)
        mode = jax.random.randint(mode_key, (BATCH,), 0, len(CENTRES))
        return jnp.asarray(CENTRES, jnp.float32)[mode] + STD * jax.random.normal(eps_key, (BATCH, 2))

    return Task(
        shape=(2,),
        examples=examples,
        measure=measure_points,
        modes=len(CENTRES),
        sampler=(jd.grids.by_time(PROCESS, 20), jd.solvers.heun(), 39),
        lr=(2e-3, 1e-3, 1e-3),
        widths=(64, 48),
        penalty=0.01,
        critic_scale=4.0,
    )


def stacked_clothes(components: Components | None = None, classify: FittedClassifier | None = None) -> Task:
    """Three pictures in three channels, 1,000 combinations of classes, like stacked MNIST (Metz et al. 2017).

    The networks see each channel's principal components: they are multilayer perceptrons, which learn in a minute.
    """

    def examples(key: Array, coefficients: Array) -> Array:
        index = jax.random.randint(key, (BATCH, 3), 0, len(coefficients))
        return coefficients[index].reshape(BATCH, 3 * COMPONENTS)

    def measure(samples: np.ndarray, real: np.ndarray) -> dict:
        assert components is not None and classify is not None
        return measure_stacks(components.decode(samples), real, classify)

    return Task(
        shape=(3 * COMPONENTS,),
        examples=examples,
        measure=measure,
        modes=CLASSES**3,
        sampler=(jd.grids.by_time(PROCESS, 16), jd.solvers.heun(), 31),
        lr=(2e-3, 1e-3, 5e-4),
        widths=(192, 144),
        penalty=1.0,
    )


class Components(NamedTuple):
    """Principal components of pictures, all divided by the same number, so that their mean square is 1.

    Attributes:
        mean: picture, [H W].
        basis: [H W, COMPONENTS].
    """

    mean: np.ndarray
    basis: np.ndarray

    @classmethod
    def of(cls, pictures: np.ndarray) -> Components:
        """Those of pictures [N, H, W]."""
        flat = pictures.reshape(len(pictures), -1)
        values, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
        scale = np.sqrt(values[-COMPONENTS:].mean())
        return cls(flat.mean(0), np.float32(scale * vectors[:, -COMPONENTS:]))

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures [N, H, W] as coefficients [N, COMPONENTS]."""
        flat = pictures.reshape(len(pictures), -1) - self.mean
        return flat @ self.basis / np.sum(self.basis**2, 0)

    def decode(self, coefficients: np.ndarray) -> np.ndarray:
        """Coefficients of three channels, [N, 3 COMPONENTS], as pictures [N, H, W, 3], clipped."""
        flat = coefficients.reshape(-1, COMPONENTS) @ self.basis.T + self.mean
        return np.clip(flat, -1, 1).reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)


def clothes(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST, halved in size: pictures float32[N, 14, 14] in [-1, 1], and labels."""
    arrays = data.load_arrays(data.open_dataset("fashion_mnist", split))
    x = data.to_float(arrays["x"])
    return x.reshape(-1, SIZE, 2, SIZE, 2).mean((2, 4)), arrays["label"]


def measure_points(samples: np.ndarray, real: np.ndarray) -> dict:
    """Modes with at least 20 of 10,000 samples within 3 std, and the share of such samples."""
    mode, good = nearest_modes(samples)
    least = max(1, len(samples) // 500)
    return {
        "covered": metrics.mode_coverage(mode[good], len(CENTRES), at_least=least).covered if good.any() else 0,
        "kl": metrics.mode_coverage(mode, len(CENTRES)).kl,
        "quality": float(good.mean()),
        "misplaced": misplaced(samples),
        "recall": metrics.precision_recall(real[:2000], samples[:2000]).recall,
    }


def misplaced(samples: np.ndarray) -> float:
    """The share of samples that would have to move for each mode to have its 25th within 3 std."""
    mode, good = nearest_modes(samples)
    share = np.bincount(mode[good], minlength=len(CENTRES)) / len(samples)
    return float(1 - np.sum(np.minimum(share, 1 / len(CENTRES))))


def nearest_modes(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest mode of each sample, and whether it is within 3 std."""
    squares = np.sum((samples[:, None] - CENTRES) ** 2, -1)
    return squares.argmin(1), squares.min(1) < (3 * STD) ** 2


def measure_stacks(samples: np.ndarray, real: np.ndarray, classify: FittedClassifier) -> dict:
    """Combinations of classes that the classifier sees in at least one of the pictures [N, H, W, 3]."""

    def seen(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, features = classify(x.transpose(0, 3, 1, 2).reshape(-1, SIZE, SIZE, 1))
        return logits.argmax(1).reshape(-1, 3) @ [CLASSES**2, CLASSES, 1], features.reshape(len(x), -1)

    labels, features = seen(samples)
    precision, recall = metrics.precision_recall(seen(real[:2000])[1], features[:2000])
    covered, kl = metrics.mode_coverage(labels, CLASSES**3)
    return {"covered": covered, "kl": kl, "quality": precision, "recall": recall}


def flow_matching(task: Task, share: float = 1.0) -> Rival:
    """Conditional flow matching (Lipman et al. 2022)."""
    network = networks.MLP(width=task.widths[0])
    apply = networks.as_apply(network)
    levels, solver, evaluations = task.sampler

    def parts(lr: Any) -> tuple[Any, Any, Any]:
        loss = jd.losses.denoising_loss(apply, PROCESS, VELOCITY, times=jd.times.stratified())
        return loss, train.adamw(lr), None

    def draw(params: Any, key: Array, n: int) -> Array:
        denoise = jd.denoiser(apply, params, VELOCITY, {})
        return jd.sample(denoise, solver, levels, jd.noise.prior(levels, key, (n, *task.shape)), key)

    start = lambda key, last: networks.init(network, key, jnp.zeros((1, *task.shape)))  # noqa: E731
    return Rival((Phase(share, task.lr[0], 0.0, start, parts),), draw, evaluations, ("loss",))


def consistency(task: Task) -> Rival:
    """Flow matching for half of the seconds, then consistency distillation to one step (Song et al. 2023)."""
    first = flow_matching(task, 0.5)
    apply = networks.as_apply(networks.MLP(width=task.widths[0]))

    def parts(lr: Any) -> tuple[Any, Any, Any]:
        loss = distill.consistency(
            apply,
            PROCESS,
            VELOCITY,
            pairs=distill.grid_pairs(PROCESS, task.sampler[0]),
            teacher=distill.teacher(apply, VELOCITY),
            solver=jd.solvers.ddim(),
        )
        return loss, train.adamw(lr), distill.context()

    copy = lambda key, last: jax.tree.map(jnp.copy, last)  # noqa: E731
    second = Phase(0.5, task.lr[1], 0.0, copy, parts, frozen=lambda last: {"teacher": last})
    return Rival((*first.phases, second), one_step(task, apply, VELOCITY), 1, ("loss",))


def gan(task: Task, penalty: float) -> Rival:
    """R3GAN (Huang et al. 2024): a generator, the network of diffusion at pure noise, and a critic, in turns."""
    generator, critic = (network(width=task.widths[1]) for network in (networks.MLP, networks.MLPCritic))
    apply, like = networks.as_apply(generator), jnp.zeros((1, *task.shape))
    generate = distill.few_step_generator(apply, VELOCITY, jd.grids.by_time(PROCESS, 1))
    critic_apply = networks.as_apply(critic)

    def logits(params: Any, x: Array, t: Array, cond: Any) -> Array:
        return critic_apply(params, task.critic_scale * x, t, cond)

    losses = distill.gan(generate, logits, r1=penalty, r2=penalty)
    turn = distill.alternate({"critic": 1, "generator": 1})

    def parts(lr: Any) -> tuple[Any, Any, Any]:
        adam = train.adamw(lr, b1=0.0, b2=0.99, clip_norm=None)
        return train.players({name: train.Player(loss, adam) for name, loss in losses.items()}, turn)

    def start(key: Array, last: Any) -> dict:
        keys = jax.random.split(key)
        return {"generator": networks.init(generator, keys[0], like), "critic": networks.init(critic, keys[1], like)}

    draw = one_step(task, apply, VELOCITY)
    phase = Phase(1.0, task.lr[2], 0.1, start, parts, averaged=lambda params: {"generator": params["generator"]})
    return Rival(
        (phase,), lambda params, key, n: draw(params["generator"], key, n), 1, ("generator/loss", "critic/loss")
    )


def one_step(task: Task, apply: Any, prediction: Any) -> Callable[[Any, Array, int], Array]:
    """Samples of a network that is evaluated once, at pure noise."""
    levels = jd.grids.by_time(PROCESS, 1)

    def draw(params: Any, key: Array, n: int) -> Array:
        x = jd.noise.prior(levels, key, (n, *task.shape))
        return jd.sample(jd.denoiser(apply, params, prediction, {}), jd.solvers.consistency(), levels, x, key)

    return draw


TASKS = {"gaussians": grid_of_gaussians, "stacked": stacked_clothes}
RIVALS: dict[str, Callable[[Task], Rival]] = {
    "flow matching": flow_matching,
    "consistency": consistency,
    "R3GAN": lambda task: gan(task, task.penalty),
    "R3GAN, no penalty": lambda task: gan(task, 0.0),
}
