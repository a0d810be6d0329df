"""Reconstructions by a run of experiments/mri.py: python benchmarks/mri.py runs/mri --page docs/mri.md.

Not for clinical use. Magnetic resonance imaging with a quarter of the lines of the Fourier transform, tomography from
20 angles, and denoising: of held-out phantoms, of the Shepp-Logan phantom, and of a slice of the averaged brain MNI152,
if nilearn is installed. Each method of `jaxdiff.inverse` draws 19 samples, between whose smallest and largest value the
truth lies with 90 % of probability, were they drawn from its distribution. Measured: PSNR and SSIM of their mean, that
share, and the correlation of their standard deviation with the error of the mean; and the same of reconstructions
without a network, whose weights are tuned on other phantoms. Results are kept in the folder as they come.
"""

import argparse
import gzip
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import classical
import jax
import jax.numpy as jnp
import mri_page
import numpy as np
from jax import Array

import jaxdiff as jd
from jaxdiff import inverse, metrics, run, solvers
from jaxdiff.domains import medical
from jaxdiff.experiment import Experiment
from jaxdiff.inverse import Operator, operators
from jaxdiff.resize import bicubic

SAMPLES = 19  # the truth is within the range of n others like it with probability (n - 1) / (n + 1)
PEAK = 0.8  # of the zero-filled picture, to which a measurement of unknown scale is normalized
PRIOR_STD = 0.5  # of a pixel of the phantoms, in [-1, 1]: what PiGDM, DiffPIR and DAPS take for the data's
LINES, CENTRE, ANGLES = 1 / 4, 0.08, 20
WEIGHTS = (1e-4, 3e-4, 1e-3, 3e-3, 6e-3, 1e-2, 2e-2, 3e-2, 6e-2, 0.1)
ITERATIONS = (10, 20, 40, 80, 160)

# (denoise, operator, y, std) -> (denoiser, solver), of pictures in [-1, 1].
Method = Callable[[Any, Operator, Array, Array], tuple[Any, solvers.Solver]]
METHODS: dict[str, Method] = {
    "diffpir": lambda d, a, y, std: (inverse.diffpir(d, a, y, std, prior_std=PRIOR_STD), solvers.ddim(1.0)),
    "pigdm": lambda d, a, y, std: (inverse.pigdm(d, a, y, std, prior_std=PRIOR_STD), solvers.ddim(1.0)),
    "tmpd": lambda d, a, y, std: (inverse.tmpd(d, a, y, std, iterations=4), solvers.ddim(1.0)),
    "daps": lambda d, a, y, std: (d, inverse.daps(inverse.exact(a, y, std), prior_std=PRIOR_STD)),
}


class Task(NamedTuple):
    """A kind of measurement.

    Attributes:
        std: of its noise, of the real and of the imaginary part, of pictures in [0, 1].
        arrays: what the operator of `count` pictures is made of.
        operator: these arrays -> A.
        simple: name and (operator, y) -> pictures of the reconstruction without any parameter.
        normalize: whether the measurement's scale is unknown, as a scanner's is.
        iterative: whether SIRT is for it.
    """

    std: float
    arrays: Callable[[int, int], Any]
    operator: Callable[[Any], Operator]
    simple: tuple[str, Callable[[Operator, Array], Array]]
    normalize: bool = False
    iterative: bool = False


def lines(count: int, size: int) -> np.ndarray:
    """Masks of Cartesian undersampling, [count, size, size]: the middle columns, and others at random."""
    masks = np.zeros((count, size), np.float32)
    centre = round(CENTRE * size)
    for i, mask in enumerate(masks):
        mask[size // 2 - centre // 2 :][:centre] = 1
        rest = np.flatnonzero(mask == 0)
        mask[np.random.default_rng(i).choice(rest, round(LINES * size) - centre, replace=False)] = 1
    return np.repeat(masks[:, None], size, axis=1)


def ray_matrix(count: int, size: int) -> tuple[Array, Array, Array]:
    """The Radon transform as a matrix A [M, N], and A A^T = Q diag(e) Q^T: 20 turned pictures cost more than it."""
    transform = operators.radon(jnp.linspace(0, 180, ANGLES, endpoint=False), size)
    one_each = jnp.eye(size * size).reshape(-1, size, size, 1)
    a = jnp.concatenate([transform.apply(part).reshape(len(part), -1) for part in jnp.split(one_each, size)]).T
    values, vectors = np.linalg.eigh(np.asarray(a @ a.T, np.float64))
    return a, jnp.asarray(np.maximum(values, 0), jnp.float32), jnp.asarray(vectors, jnp.float32)


def ray_operator(arrays: tuple[Array, Array, Array]) -> Operator:
    a, values, vectors = arrays
    size, flat = round(a.shape[1] ** 0.5), lambda v: v.reshape(len(v), -1)
    measured = (size, ANGLES, 1)

    def solve(v: Array, c: float | Array, d: float | Array) -> Array:
        c, d = (s if jnp.ndim(s) == 0 else jnp.reshape(s, (-1, 1)) for s in (c, d))
        return (flat(v) @ vectors / (c * values[None] + d) @ vectors.T).reshape(v.shape)

    return Operator(
        lambda x: (flat(x) @ a.T).reshape(-1, *measured), lambda v: (flat(v) @ a).reshape(-1, size, size, 1), solve
    )


TASKS = {
    # Of real pictures A A^T has the eigenvalues 0, 1/2 and 1: as many iterations suffice.
    "MRI, 4x": Task(
        0.01, lines, lambda mask: operators.fourier(mask, real=True, iterations=4),
        ("zero-filled", lambda a, y: a.adjoint(y)), normalize=True,
    ),
    "CT, 20 angles": Task(
        0.1, ray_matrix, ray_operator, ("back projection", classical.filtered_back_projection), iterative=True
    ),
    "denoising": Task(
        0.1, lambda count, size: np.ones((1, size, size, 1), np.float32), operators.mask, ("noisy", lambda a, y: y)
    ),
}  # fmt: skip


def brain(size: int) -> np.ndarray | None:
    """An axial slice of MNI152, one averaged brain, in [0, 1]; None where nilearn, which has it, is not installed."""
    found = importlib.util.find_spec("nilearn")
    if found is None or not found.submodule_search_locations:
        return None
    name = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    raw = gzip.decompress((Path(found.submodule_search_locations[0]) / name).read_bytes())
    volume = np.frombuffer(raw, np.uint8, offset=352).reshape(189, 233, 197)  # after the header: z, y, x
    plane = np.zeros((241, 241))
    plane[4:237, 22:219] = volume[90, ::-1]
    small = np.asarray(bicubic(jnp.asarray(plane[None, ..., None], jnp.float32), (size, size)))[0]
    return np.clip(0.8 * small / np.percentile(small, 99.5), 0, 1)


def pictures(size: int, num: int, seed: int) -> dict[str, np.ndarray]:
    """By the name of their set, pictures [N, size, size, 1] in [0, 1]."""
    drawn = [medical.draw_phantom(np.random.default_rng((seed, i)), size) for i in range(num)]
    sets = {"phantoms": np.stack(drawn)[..., None], "Shepp-Logan": medical.shepp_logan(size)[None, ..., None]}
    slice_of = brain(size)
    return sets if slice_of is None else sets | {"MNI152": slice_of[None]}


class Measured(NamedTuple):
    """Measurements y = scale (A p + std n) of pictures p, and the scale as far as y tells."""

    arrays: Any
    y: Array
    std: float
    scale: Array  # [N, 1, 1, 1]


def measure(task: Task, p: np.ndarray, seed: int, gain: float = 1.0) -> Measured:
    """Measure pictures in [0, 1] by a device that multiplies all by an unknown gain."""
    arrays = task.arrays(len(p), p.shape[1])
    operator = task.operator(arrays)
    clean = operator.apply(jnp.asarray(p, jnp.float32))
    key = jax.random.key(seed)
    noise = jax.random.normal(key, clean.shape)
    if jnp.iscomplexobj(clean):
        noise = jax.lax.complex(noise, jax.random.normal(jax.random.fold_in(key, 1), clean.shape))
    if operator.measured is not None:
        noise = jnp.where(operator.measured == 1, noise, 0)
    y = gain * (clean + task.std * noise)
    scale = jnp.ones((len(p), 1, 1, 1))
    if task.normalize:
        scale = jnp.max(task.simple[1](operator, y), axis=(1, 2, 3), keepdims=True) / PEAK
    return Measured(arrays, y, gain * task.std, scale)


def of_axes(scale: Array, y: Array) -> Array:
    return scale.reshape(-1, *(1,) * (y.ndim - 1)).astype(y.dtype)


class Bench:
    """The network, and what it reconstructs."""

    def __init__(self, experiment: Experiment, params: Any, steps: int):
        self.experiment, self.params, self.shape = experiment, params, experiment.medium.shape
        # Noise well below the measurement's: the last step draws none.
        self.levels = jd.grids.karras(experiment.model.process, steps, sigma_min=0.004, sigma_max=80.0)

    def draw(self, task: Task, measured: Measured, method: str, seed: int = 1) -> np.ndarray:
        """Samples, [SAMPLES, N, H, W, 1], in units of the measured pictures."""
        model = self.experiment.model

        def reconstruct(params: Any, arrays: Any, y: Array, std: Array, keys: Array) -> Array:
            plain = jd.denoiser(model.apply, params, model.prediction, {})
            denoise, solver = METHODS[method](plain, task.operator(arrays), y, std)
            x = jd.noise.prior(self.levels, jd.noise.fold_in(keys, 0), (len(y), *self.shape))
            return jd.sample(denoise, solver, self.levels, x, jd.noise.fold_in(keys, 1))

        # The network's pictures are in [-1, 1]: x = 2 p / scale - 1.
        y, scale = measured.y, measured.scale
        white = task.operator(measured.arrays).apply(jnp.ones((len(y), *self.shape)))
        y, std = 2 * y / of_axes(scale, y) - white, 2 * measured.std / scale.reshape(-1)
        compiled = jax.jit(reconstruct)
        keys = jax.random.split(jax.random.key(seed), (SAMPLES, len(y)))
        x = np.stack([np.asarray(compiled(self.params, measured.arrays, y, std, k)) for k in keys])
        return (x + 1) / 2 * np.asarray(scale)

    def synthesize(self, num: int) -> np.ndarray:
        """Pictures of no measurement, [num, H, W, 1] in [0, 1]."""
        from jaxdiff.drawing import draw

        return (draw(self.experiment, self.params, num).x + 1) / 2


def without_network(task: Task) -> Callable[[Measured, dict[str, float]], dict[str, np.ndarray]]:
    """What makes reconstructions [N, H, W, 1], in units of the measured pictures, by parameters of each."""

    @jax.jit
    def reconstruct(arrays: Any, y: Array, tuned: dict[str, Array]) -> list[Array]:
        operator = task.operator(arrays)
        found = [task.simple[1](operator, y)]
        found += [classical.sirt(operator, y, tuned["SIRT"])] if task.iterative else []
        return [*found, classical.total_variation(operator, y, tuned["total variation"])]

    def run_all(measured: Measured, tuned: dict[str, float]) -> dict[str, np.ndarray]:
        y, scale = measured.y / of_axes(measured.scale, measured.y), np.asarray(measured.scale)
        names = [task.simple[0], *(["SIRT"] if task.iterative else []), "total variation"]
        found = reconstruct(measured.arrays, y, jax.tree.map(jnp.asarray, tuned))
        return {name: np.asarray(p) * scale for name, p in zip(names, found, strict=True)}

    return run_all


def decibels(p: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean(metrics.psnr(np.clip(p, 0, 1), true, span=1.0)))


def tune(task: Task, reconstruct: Callable, size: int, num: int) -> dict[str, float]:
    """The weight of the total variation and the iterations of SIRT that are best for other phantoms."""
    other = pictures(size, num, seed=3)["phantoms"]
    measured = measure(task, other, seed=2)
    best: dict[str, float] = {"total variation": WEIGHTS[0], "SIRT": ITERATIONS[0]}
    for name, candidates in (("total variation", WEIGHTS), ("SIRT", ITERATIONS if task.iterative else ())):
        results = [decibels(reconstruct(measured, best | {name: c})[name], other) for c in candidates]
        best |= {name: candidates[int(np.argmax(results))]} if candidates else {}
    return best


def judge(p: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Of samples [K, N, H, W, 1], or of the only reconstruction that there is."""
    mean = np.clip(p.mean(0), 0, 1)
    found = {"psnr": decibels(mean, true), "ssim": float(np.mean(metrics.ssim(mean, true, span=1.0)))}
    if len(p) > 1:
        inside = (p.min(0) <= true) & (true <= p.max(0))
        std, error = p.std(0, ddof=1), np.abs(mean - true)
        pairs = [np.corrcoef(s.ravel(), e.ravel())[0, 1] for s, e in zip(std, error, strict=True)]
        found |= {"covered": float(inside.mean()), "covered_head": float(inside[true > 0].mean())}
        found["correlation"] = float(np.mean(pairs))
    return found


def places(sets: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By the name of a set, the numbers of its pictures among all."""
    counts = [len(p) for p in sets.values()]
    return dict(zip(sets, np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1]), strict=True))


def compare(
    bench: Bench, sets: dict[str, np.ndarray], folder: Path, *, tasks: list[str], methods: list[str]
) -> dict[str, Any]:
    """Make what is not in the folder yet; results by task, method and set."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "results.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    true = np.concatenate(list(sets.values()))

    def note(task: str, method: str, p: np.ndarray) -> None:
        np.save(folder / f"{task}-{method}.npy", p)
        found[task][method] = {name: judge(p[:, at], true[at]) for name, at in places(sets).items()}
        kept.write_text(json.dumps(found, indent=1))
        print(task, method, json.dumps(found[task][method]), flush=True)

    for name in tasks:
        task, of_task = TASKS[name], found.setdefault(name, {})
        measured = measure(task, true, seed=1)
        if "tuned" not in of_task:
            reconstruct = without_network(task)
            of_task["tuned"] = tune(task, reconstruct, bench.shape[0], len(sets["phantoms"]))
            for method, p in reconstruct(measured, of_task["tuned"]).items():
                note(name, method, p[None])
        for method in methods:
            if method not in of_task:
                note(name, method, bench.draw(task, measured, method))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/reconstructions"))
    parser.add_argument("--num", type=int, default=8, help="held-out phantoms")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--methods", nargs="+", default=["daps", "tmpd"], choices=METHODS)
    parser.add_argument("--page", type=Path, help="write the table in this page, and a PNG of its name")
    arguments = parser.parse_args()
    experiment = run.load_run(arguments.run)
    bench = Bench(experiment, run.parameters(experiment, arguments.run), arguments.steps)
    sets = pictures(bench.shape[0], arguments.num, seed=1)
    if "MNI152" not in sets:
        print("without the slice of MNI152: `pip install --no-deps nilearn` has it")
    found = compare(bench, sets, arguments.folder, tasks=arguments.tasks, methods=arguments.methods)
    if arguments.page:
        shown = np.concatenate([at[:6] for at in places(sets).values()])
        sheet = mri_page.picture(found, arguments.folder, np.concatenate(list(sets.values())), shown)
        mri_page.write(arguments.page, found, np.concatenate([sheet, bench.synthesize(2 * len(shown))]), len(shown))


if __name__ == "__main__":
    main()
