"""Methods with several players: distribution matching, adversarial diffusion, and a GAN as their rival."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import distill, networks, solvers, trees
from jaxdiff.experiment import UserError
from jaxdiff.few_steps.method import Method, method_of
from jaxdiff.few_steps.teacher import Teacher
from jaxdiff.levels import clean_level
from jaxdiff.options import Run
from jaxdiff.times import default_times
from jaxdiff.types import Params

__all__ = ["adversarial", "distribution_matching", "gan", "latent_adversarial"]

# The layers whose outputs a critic gets: blocks of U-Nets on the way down and at the bottom, of MLPs and transformers.
LAYERS = re.compile(r"((?:down_blocks|mid_block)\.?\d*\.resnets\.\d+|blocks\.\d+\.linear_2|\w+\.\*)/")

BLOCKS = 4  # of a transformer's loop, at the ends of the quarters of its depth

# A student that moves faster than its critic learns finds what the critic does not see: stripes and checkerboards.
STUDENT_RATE = 0.05

SEEN = "label", "vector"  # what a GAN's critic is given of a condition

PENALTY = 0.05  # weight of a GAN's penalties, Huang et al. 2024's for CIFAR-10


def distribution_matching(teacher: Teacher, run: Run, steps: int) -> Method:
    """Yin et al. 2024: the difference of the scores of the student's samples and of the teacher's, without guidance.

    Matching the scores of a guided teacher collapses to its modes.
    """
    losses = distill.distribution_matching(
        _generator(teacher, steps),
        teacher.denoiser(guided=False),
        teacher.process,
        apply=teacher.apply(),
        prediction=teacher.prediction,
        times=distill.grid_times(teacher.experiment.sampling.grid(1000)),
    )
    turn = distill.alternate({"fake": 2, "student": 1})
    others = lambda key, student: {"fake": jax.tree.map(jnp.copy, student)}  # noqa: E731
    return method_of(teacher, teacher.network, losses, solvers.consistency(), others=others, turn=turn)


def adversarial(teacher: Teacher, run: Run, steps: int) -> Method:
    """Sauer et al. 2023, ADD: a critic of the teacher's features of clean examples, and the teacher's own estimate."""
    features, critic = _features(teacher)

    def clean(params: Params, context: distill.Context, cond: Any) -> Any:
        inner = features(params, context, cond)
        return lambda x, level: inner(x, clean_level(level))

    losses = distill.adversarial_diffusion(
        _generator(teacher, steps),
        teacher.denoiser(),
        teacher.process,
        features=clean,
        critic=networks.as_apply(critic),
        times=default_times(teacher.process),
    )
    return _against(teacher, critic, losses)


def latent_adversarial(teacher: Teacher, run: Run, steps: int) -> Method:
    """Sauer et al. 2024, LADD: a critic of the teacher's features of noised examples."""
    features, critic = _features(teacher)
    adversary = distill.Adversary(features, networks.as_apply(critic), teacher.process, default_times(teacher.process))
    return _against(teacher, critic, distill.latent_adversarial_diffusion(_generator(teacher, steps), adversary))


def gan(teacher: Teacher, run: Run, steps: int) -> Method:
    """Huang et al. 2024, R3GAN: no teacher; a network of the same architecture, at first random, against a critic."""
    shape, cond = teacher.experiment.medium.shape, teacher.encoded_spec()
    known = {*SEEN, "tokens", "mask"} if "vector" in cond else {*SEEN}
    if unseen := sorted(cond.keys() - known):
        raise UserError(
            f"--method gan has a critic that is given classes and vectors of texts, and no {', '.join(unseen)} as "
            f"{teacher.path} is: choose another method"
        )
    fields: Any = {name: getattr(teacher.network, name, None) for name in ("num_classes", "pooled_dim")}
    critic = networks.ConvCritic(**fields) if len(shape) > 1 else networks.MLPCritic(**fields)
    seen = lambda cond: {name: cond[name] for name in SEEN if name in cond}  # noqa: E731
    judge = networks.as_apply(critic)
    losses = distill.gan(
        _generator(teacher, 1), lambda params, x, t, cond: judge(params, x, t, seen(cond)), r1=PENALTY, r2=PENALTY
    )

    def others(key: Array, student: Any) -> dict[str, Any]:
        return {"critic": networks.init(critic, key, jnp.zeros((1, *shape)), seen(cond))}

    turn = distill.alternate({"critic": 1, "generator": 1})
    return method_of(
        teacher, teacher.network, losses, solvers.consistency(), others=others, turn=turn, drawn="generator", new=True
    )


def _generator(teacher: Teacher, steps: int) -> distill.Generator:
    levels = teacher.experiment.sampling.grid(steps)
    return distill.few_step_generator(teacher.apply(), teacher.prediction, levels)


def _names(teacher: Teacher) -> list[str]:
    shapes = jax.eval_shape(lambda: teacher.init(teacher.network, jax.random.key(0)))
    found = {match[1]: leaf.shape for path, leaf in trees.flatten(shapes).items() if (match := LAYERS.match(path))}
    if not found:
        kind = type(teacher.network).__name__
        raise UserError(
            f"adversarial methods need the inner layers of a UNet, an MLP or a transformer, and the teacher is a {kind}"
        )
    return sorted(name for loop, shape in found.items() for name in _blocks(loop, shape))


def _blocks(name: str, shape: tuple[int, ...]) -> set[str]:
    if not name.endswith(".*"):
        return {name}
    return {f"{name[:-1]}{-(-shape[0] * i // BLOCKS) - 1}" for i in range(1, BLOCKS + 1)}


def _features(teacher: Teacher) -> tuple[distill.Features, Any]:
    """The teacher's features, and their critic."""
    apply = networks.as_features(teacher.network, _names(teacher))
    critic = networks.FeatureCritic(num_classes=getattr(teacher.network, "num_classes", None))
    return distill.network_features(apply, teacher.prediction), critic


def _against(teacher: Teacher, critic: Any, losses: Any) -> Method:
    """The method of a student against a critic of features."""

    def others(key: Array, student: Any) -> dict[str, Any]:
        apply, cond = networks.as_features(teacher.network, _names(teacher)), teacher.encoded_spec()
        x = jnp.zeros((1, *teacher.experiment.medium.shape))
        features = jax.eval_shape(apply, student, x, jnp.zeros(1), cond)
        return {"critic": networks.init(critic, key, features, cond)}

    turn = distill.alternate({"critic": 1, "student": 1})
    return method_of(
        teacher,
        teacher.network,
        losses,
        solvers.consistency(),
        others=others,
        turn=turn,
        rates={"student": STUDENT_RATE},
    )
