"""What draws the pictures of a history: a trained run, or a text-to-image directory, as the same parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from jax import Array
from jax.sharding import Mesh

from jaxdiff import text_to_image, train, trees
from jaxdiff.conditions import Cond, guidance_scale
from jaxdiff.distributed import gather
from jaxdiff.drawing import parameters, parsed
from jaxdiff.experiment import Condition, Experiment, Medium, Model, Sampling, UserError, compute_dtype
from jaxdiff.hooks import change_sampling
from jaxdiff.imagine.hint_file import Hint
from jaxdiff.imagine.history import History
from jaxdiff.options import absolute
from jaxdiff.quantize import Weights
from jaxdiff.recipe import load_run
from jaxdiff.sampler import Generate, sampler
from jaxdiff.sharding import use_mesh
from jaxdiff.text_to_image.control import HintShape
from jaxdiff.text_to_image.prompts import check_guided
from jaxdiff.text_to_image.steering import hint_cond, hint_shapes, steered
from jaxdiff.types import Params

__all__ = ["Generator", "Stage", "fingerprint", "of_directory", "of_experiment", "of_run"]


class Stage(NamedTuple):
    """How pictures of one size are drawn: parameters, and the parts of an experiment.

    Attributes:
        params: as `sampler.sampler`'s function takes them.
        model, sampling, condition, medium: as an experiment has them.
        controls: of what steers the model, by name the shape of what it follows, as `text_to_image.Pipeline` has it.
        encode: (params, images [B, H, W, C] in [-1, 1]) -> x0 as the network gets it; None: what is drawn is not
            begun with pictures.
        encode_masked: (params, images, mask bool [B, H, W]) -> `cond["concat"]` of a network for inpainting; None:
            other networks.
    """

    params: Params
    model: Model
    sampling: Sampling
    condition: Condition
    medium: Medium
    encode: Callable[[Any, Array], Array] | None = None
    controls: Mapping[str, HintShape] = MappingProxyType({})
    encode_masked: Callable[[Any, Array, Array], Array] | None = None

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """Of what is drawn, decoded: (height, width, channels) of pictures."""
        x = jax.ShapeDtypeStruct((1, *self.medium.shape), np.float32)
        return jax.eval_shape(self.medium.decode, self.params, x).shape[1:]


class Generator:
    """A model that draws pictures by programs that are compiled once.

    Attributes:
        history: one of no pictures, to begin with.
        mesh: where the parameters lie.
        stage: scale -> how pictures of that many times the usual size are drawn.
        sampler: (scale, whether guided) -> `sampler.sampler`'s function; it returns (x0, picture).
        enlarge: scale -> compiled function x0 of half the scale -> x0, to begin with.
        compiled: (make, *arguments, **options) -> the function make(stage(1), *arguments, **options) under `jax.jit`,
            the same for equal arguments.
    """

    def __init__(self, stage: Callable[[int], Stage], history: History, *, mesh: Mesh | None = None):
        """Put a model together, as `of_run`, `of_directory` and `of_experiment` do.

        Args:
            stage: scale -> how pictures of that many times the usual size are drawn, which may be by other parameters;
                raises a ValueError for sizes that are not drawn.
            history: of no pictures, with the fingerprint of the parameters and the settings of sampling.
            mesh: where the parameters lie; None is the default device.
        """
        self.history, self.mesh = history, mesh
        self.stage, self.sampler, self.enlarge = cache(stage), cache(self._sampler), cache(self._enlarge)
        self.compiled = cache(self._compiled)

    def check(self, history: History) -> None:
        """Raise ValueError unless a history is of this model with these settings."""
        mine = self.history
        if history.controls != mine.controls:
            was, now = (", ".join(h.controls) or "no controls" for h in (history, mine))
            raise ValueError(f"the history was begun with {was}, got {now}: begin another one")
        if history.weights != mine.weights:
            raise ValueError(
                f"the history is of other weights, whose fingerprint is {history.weights}, and that of these is "
                f"{mine.weights}: begin another one, or draw with the --weights that it was begun with"
            )
        for name in ("steps", "solver", "size"):
            was, now = getattr(history, name), getattr(mine, name)
            if was != now:
                raise ValueError(f"the history was begun with {name} {was}, got {now}: begin another one")

    def cond(self, scale: int, prompt: str, guidance: float, hints: Sequence[Hint] = ()) -> tuple[Cond, float]:
        """Make the condition of a prompt and of what the picture follows.

        Args:
            scale: of the picture.
            prompt: what it shows.
            guidance: scale, which is an input of a network whose guidance was distilled.
            hints: as for `steer`.

        Returns:
            (condition, leaves [1, ...]; scale of the guidance by a null condition, 1 for none).

        Raises:
            UserError: words for which the condition's `parse` raises a ValueError.
            ValueError: guidance 0, with which the prompt counts nothing; or as by `steer`.
        """
        steering = self.steer(scale, hints)
        condition = self.stage(scale).condition
        cond = parsed(condition, [prompt])
        if "guidance" in condition.bounds:
            guidance_scale(condition, guidance)
        if "guidance" in cond:
            return {**cond, "guidance": np.full_like(cond["guidance"], guidance), **steering}, 1.0
        check_guided(guidance)
        return {**cond, **steering}, guidance

    def steer(self, scale: int, hints: Sequence[Hint]) -> Cond:
        """Make the entries of a condition that say what a picture follows.

        Args:
            scale: of the picture.
            hints: one for each of the stage's controls.

        Raises:
            UserError: another number of hints, or a file that has changed.
            ValueError: a file that holds no such hint.
        """
        controls = self.stage(scale).controls
        if len(hints) != len(controls):
            raise UserError(f"{len(controls)} controls take as many pictures to follow, got {len(hints)}")
        read = [hint.read(shape, scale) for hint, shape in zip(hints, controls.values(), strict=True)]
        return hint_cond(list(controls), read, [hint.scale for hint in hints])

    def _sampler(self, scale: int, guided: bool) -> Generate:
        _, model, sampling, condition, medium, *_ = self.stage(scale)

        def decode(params: Params, x: Array) -> Any:
            return x, medium.decode(params, x)

        both = replace(medium, decode=decode)
        return sampler(model, sampling, condition, both, guided=guided, mesh=self.mesh)

    def _compiled(self, make: Callable[..., Callable[..., Any]], *arguments: Any, **options: Any) -> Any:
        return jax.jit(make(self.stage(1), *arguments, **options))

    def _enlarge(self, scale: int) -> Callable[[Array], Array]:
        small, large = self.stage(scale // 2), self.stage(scale)
        encode = large.encode
        if encode is None:
            raise ValueError(f"pictures of scale {scale} are not begun with smaller ones")

        @jax.jit
        def enlarge(params: Params, larger_params: Any, x0: Array) -> Array:
            with use_mesh(self.mesh):
                images = small.medium.decode(params, x0)
                batch, height, width, channels = images.shape
                larger = jax.image.resize(images, (batch, 2 * height, 2 * width, channels), "bicubic")
                return encode(larger_params, jnp.clip(larger, -1, 1))

        return lambda x0: enlarge(small.params, large.params, x0)


def of_experiment(
    experiment: Experiment,
    params: Params,
    *,
    solver: str | None = None,
    weights: Weights | None = None,
    mesh: Mesh | None = None,
) -> Generator:
    """Make a generator of an experiment.

    Args:
        experiment: the experiment; `hooks.change_sampling` changes its sampling.
        params: its parameters, e.g. from `run.parameters`.
        solver: name of the solver, for the history, where it is not the experiment's own.
        weights: "int8" or "float8", for the history, where the parameters' kernels are in 8 bits.
        mesh: where the parameters lie.

    Raises:
        UserError: the model does not denoise.
    """
    if experiment.model.generate is not None:
        raise UserError("imagine draws by noising and denoising, and this run's network makes its examples in one call")
    merged, medium = experiment.model.merge_frozen(params), experiment.medium
    usual = Stage(merged, experiment.model, experiment.sampling, experiment.condition, medium, medium.encode)

    def stage(scale: int) -> Stage:
        return usual if scale == 1 else _grown(usual, scale)

    return _generator(stage, solver=solver, weights=weights, mesh=mesh)


def _grown(usual: Stage, scale: int) -> Stage:
    """A stage whose network, with the same parameters, sees a larger grid."""
    shape = usual.medium.shape
    if usual.encode is None or len(shape) != 3:
        raise UserError(f"what grows is a picture, and this run makes other data, of shape {list(shape)}")
    larger = usual._replace(medium=replace(usual.medium, shape=(scale * shape[0], scale * shape[1], shape[2])))
    model, condition = usual.model, usual.condition

    def predict(params: Params, x: Array, noise: Array, cond: Cond) -> Any:
        return model.apply(params, x, noise, condition.encode(params, cond))

    x, noise = (jax.ShapeDtypeStruct((1, *rest), np.float32) for rest in (larger.medium.shape, ()))
    try:
        jax.eval_shape(predict, usual.params, x, noise, condition.zeros())
    except Exception as error:  # of any kind: Flax has its own, of which this room knows nothing
        height, width, _ = larger.picture_shape
        reason = str(error).split("\n")[0].split(" (https://")[0]
        raise UserError(
            f"the network of this run does not draw pictures of {width} x {height}, as convolutional ones do: {reason}"
        ) from error
    return larger


def of_run(
    run: str | Path,
    *,
    steps: int | None = None,
    solver: str | None = None,
    weights: Weights | None = None,
    mesh: Mesh | None = None,
    trust: bool = False,
) -> Generator:
    """Make a generator of a trained run, with its averaged parameters.

    Args:
        run: the run's folder.
        steps: number of steps; None is the run's.
        solver: one of jaxdiff.solvers such as ddim(eta=1.0), or FILE.py:NAME; None is the run's.
        weights: "int8" or "float8": kernels in 8 bits, see `quantize.quantize`.
        mesh: where the parameters lie; None is the default device.
        trust: execute the run's program even if others can write it.

    Raises:
        ValueError: as by `recipe.load_run`, `hooks.change_sampling` and `drawing.parameters`.
    """
    experiment = change_sampling(load_run(run, mesh=mesh, trust=trust), solver=solver, steps=steps)
    params = parameters(experiment, run, weights=weights, mesh=mesh)
    return of_experiment(experiment, params, solver=solver, weights=weights, mesh=mesh)


def of_directory(
    directory: str | Path,
    *,
    steps: int | None = None,
    solver: str | None = None,
    size: tuple[int, int] | None = None,
    base: str | Path | None = None,
    variant: str | None = None,
    weights: Weights | None = None,
    controls: Sequence[str | Path] = (),
    inpaint: bool = False,
    mesh: Mesh | None = None,
) -> Generator:
    """Make a generator of a text-to-image directory, whose pictures can grow.

    Args:
        directory: of Stable Diffusion 1, 2, XL, 3 or Flux, or a checkpoint in one file.
        steps: number of steps; None is the usual one.
        solver: class of the scheduler, in place of the directory's.
        size: (height, width) of pictures that have not grown; None is the network's own.
        base: directory that gives what the other lacks; see `text_to_image.load`.
        variant: of the weights in a directory.
        weights: "int8" or "float8": kernels in 8 bits, as for `text_to_image.load`.
        controls: what steers the model, as for `text_to_image.load`.
        inpaint: also take a network for inpainting, with which `edit.edit` draws a part of a picture.
        mesh: where the parameters lie; None is the default device.

    Raises:
        ValueError: as by `text_to_image.load`; a network for inpainting without `inpaint`.
    """
    options: dict[str, Any] = {
        "steps": steps, "kind": solver, "base": base, "dtype": compute_dtype(), "controls": controls,
    }  # fmt: skip
    usual = text_to_image.describe(directory, size=size, **options)
    if not inpaint:
        usual.check_whole()
    place = None if mesh is None else lambda tree: train.shard_params(tree, mesh)
    params = text_to_image.load(
        directory, size=size, variant=variant, param_dtype=weights, place=place, **options
    ).params

    def stage(scale: int) -> Stage:
        larger = scale * usual.size[0], scale * usual.size[1]
        parts = steered(usual if scale == 1 else text_to_image.describe(directory, size=larger, **options))
        made = parts.model, parts.sampling, parts.condition, parts.medium
        masked = parts.encode_masked if parts.inpaints else None
        return Stage(params, *made, parts.encode_images, hint_shapes(parts), masked)

    where = tuple(absolute(str(path)) for path in controls)
    return _generator(stage, solver=solver, size=usual.size, weights=weights, controls=where, mesh=mesh)


def fingerprint(tree: Any) -> str:
    """Return the 128-bit XXH3 hash of a tree's arrays, their names, types and shapes, in hexadecimal digits.

    Args:
        tree: of arrays.
    """
    digest = xxhash.xxh3_128()
    for name, leaf in sorted(trees.flatten(tree).items()):
        x = np.asarray(jax.device_get(gather(leaf)), order="C")
        digest.update(f"{name} {x.dtype.name} {list(x.shape)}\n".encode())
        digest.update(x.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _generator(
    stage: Callable[[int], Stage], *, solver: str | None, size: Any = None, weights: Weights | None,
    controls: tuple[str, ...] = (), mesh: Mesh | None,
) -> Generator:  # fmt: skip
    first = stage(1)
    distilled = first.condition.choose(np.arange(1)).get("guidance")
    guidance = first.sampling.guidance if distilled is None else np.asarray(distilled)[0]
    history = History(fingerprint(first.params), first.sampling.steps, float(guidance), solver, size, weights, controls)
    return Generator(stage, history, mesh=mesh)
