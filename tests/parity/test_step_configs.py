"""A walk over configs of diffusers' schedulers: where theirs runs, ours is the same path; what it refuses, so do we.

In float64, theirs by reading its float32 as float64, to 1e-8. Ours takes its steps one by one, without a program:
`test_scheduler_configs` has whole programs. A third of the walk begins at the first step, the rest in the middle, as
from an image, where the reference's history is empty and its count of steps is not.
"""

import sys
import warnings
from importlib import import_module
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from parity.common import in_double  # noqa: E402
from parity.step_options import FEW_STEPS, OPTIONS, nan, walk  # noqa: E402

import jaxdiff as jd  # noqa: E402
from jaxdiff.levels import typed_levels  # noqa: E402
from jaxdiff.sample import check_levels, check_pure_noise  # noqa: E402

pytestmark = pytest.mark.usefixtures("x64")
SHAPE = (2, 3, 2)
X = np.random.default_rng(0).normal(size=SHAPE)
Z, REST = np.random.default_rng(1).normal(size=(2, 40, *SHAPE))  # of each step, and of its second draw
COUNT = {  # fewer where there are few options, or theirs is slow
    "CMStochasticIterativeScheduler": 8, "DPMSolverSDEScheduler": 12,
    "FlowMapEulerDiscreteScheduler": 8, "FlowMatchHeunDiscreteScheduler": 8,
    "IPNDMScheduler": 8, "KDPM2AncestralDiscreteScheduler": 12, "KDPM2DiscreteScheduler": 12,
    "LMSDiscreteScheduler": 8, "SCMScheduler": 12,
}  # fmt: skip


@pytest.fixture
def double():
    """diffusers in float64, and the noise of both ours."""
    two_stage = import_module("jaxdiff.interop.schedulers.two_stage")
    with in_double() as patch:
        patch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))  # whose tree of noise is replaced
        patch.setattr(jd.noise, "_normal", lambda key, shape, dtype: jnp.asarray((REST if key[1] else Z)[key[0]]))
        patch.setattr(two_stage, "fold_in", lambda key, i: (key[0], i))
        yield


def network(x, t):
    return (0.6 * x + 0.1) / (1 + 0.1 * x**2) + 0.0003 * t


def end_of_step(r):
    return 0.0005 * r


def variance(module, x, config):
    """The second half of a network's channels."""
    return module.tanh(x) * 0.5 + 0.6 * (config["variance_type"] == "learned")


class Path:
    """Increments of one Brownian path whose clock is sigma, from where each step begins."""

    def __init__(self, first):
        self.step, self.middle = first, None

    def __call__(self, begin, end):
        begin, end, middle = float(begin), float(end), self.middle
        if middle is None:
            self.middle = end
            return torch.from_numpy(Z[self.step])
        w = (begin - middle) ** 0.5 * Z[self.step] + (middle - end) ** 0.5 * REST[self.step]
        self.step, self.middle = self.step + 1, None
        return torch.from_numpy(w / (begin - end) ** 0.5)


def theirs(monkeypatch, kind, config, n, first, **options):
    """The first x and each one after; None in place of what a method of several stages has inside of a step."""
    module = import_module("diffusers.schedulers.scheduling_dpmsolver_sde") if "SDE" in kind else diffusers
    cls = getattr(module, kind)
    draws = iter(Z[first:])
    if hasattr(import_module(cls.__module__), "randn_tensor"):
        monkeypatch.setattr(f"{cls.__module__}.randn_tensor", lambda *args, **kwargs: torch.from_numpy(next(draws)))
    scheduler = cls.from_config(config)
    if kind == "SCMScheduler":  # as its pipeline does
        scheduler.init_noise_sigma = scheduler.config.sigma_data
        options["intermediate_timesteps"] = 1.3 if n == 2 else None
    scheduler.set_timesteps(n, **options)
    if config.get("steps_offset") == -1 and not hasattr(scheduler, "sigmas") and scheduler.timesteps.min() < 0:
        raise ValueError("the end of the table is read for a time below 0, and an end of all noise is refused")
    scheduler.noise_sampler = Path(first)
    times = scheduler.timesteps[first * scheduler.order :]
    times = times[:-1] if kind == "SCMScheduler" else times  # which lists the end, too
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first * scheduler.order)
    x = torch.from_numpy(X) * (1 if first else getattr(scheduler, "init_noise_sigma", 1))
    path = [x.numpy()]
    for i, t in enumerate(times, first):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        F = network(scaled, t.item())
        if kind.startswith("FlowMap"):
            F = F + end_of_step(scheduler.sigmas[i + 1].item() * scheduler.config.num_train_timesteps)
        if config.get("variance_type", "").startswith("learned"):
            F = torch.cat([F, variance(torch, scaled, config)], 1)
        x = scheduler.step(F, t, x).prev_sample
        path.append(x.numpy())
    return path


def ours(kind, config, n, first, **options):
    made = jd.interop.scheduler({"_class_name": kind, **config}, **options)
    solver, levels = made.sampling.solver(n), made.sampling.grid(n)
    x = jnp.asarray(X) * (1 if first else made.sampling.init_noise_std(levels))

    def apply(params, x, noise, cond):
        F = network(x, noise[:, None, None])
        F = F + end_of_step(cond["next_noise"][:, None, None]) if "next_noise" in cond else F
        learned = config.get("variance_type", "").startswith("learned")
        return (F, (variance(jnp, x, config) + 1) / 2) if learned else F

    denoise = made.sampling.clip(jd.denoiser(apply, None, made.prediction))
    check_levels(levels, decreasing=solver.decreasing)
    if not first:
        check_pure_noise(denoise, levels, x, next_level=solver.next_level)
    levels = typed_levels(levels, x)
    path, state = [np.asarray(x)], solver.init(x)
    for i in range(first, len(levels.t) - 1):
        cur, nxt = (levels.at(j) for j in (i, i + 1))
        x, state = solver.step(denoise, (i, 0), x, state, cur, nxt)
        path.append(np.asarray(x))
    return path


def outcome(monkeypatch, kind, config, n, first):
    """ "same", "refused", or why theirs does not answer; fails where ours differs."""
    tokens, mu, uniform_steps = None, {}, config.pop("uniform_steps", False)  # the last are sigmas of a pipeline
    if config.get("use_dynamic_shifting"):
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        tokens, mu = 1024, {"mu": low + (high - low) * (1024 - few) / (many - few)}
    mu |= {"sigmas": np.linspace(1, 1 / n, n)} if uniform_steps else {}
    options = {"tokens": tokens, "uniform_steps": uniform_steps}
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            want = theirs(monkeypatch, kind, config, n, first, **mu)
    except (ValueError, NotImplementedError, IndexError) as error:
        with pytest.raises(ValueError):
            ours(kind, config, n, first, **options)
        return "refused" if not isinstance(error, IndexError) else "fails"
    if not all(np.all(np.isfinite(x)) for x in want):
        assert nan(kind, config), "theirs is not finite, and this is not known"
        with pytest.raises(ValueError):
            ours(kind, config, n, first, **options)
        return nan(kind, config)
    got = ours(kind, config, n, first, **options)
    scale = max(1, max(np.abs(x).max() for x in want))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-12)
    if len(got) == len(want):
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-8 * scale)
    np.testing.assert_allclose(got[-1], want[-1], rtol=1e-8, atol=1e-8 * max(1, np.abs(want[-1]).max()))
    return "same"


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_walk_is_theirs(kind, double, monkeypatch):
    found = []
    for config, n, first in walk(kind, COUNT.get(kind, 24)):
        first = 0 if kind == "DDIMInverseScheduler" else first  # an inversion begins at clean data
        try:
            found.append(outcome(monkeypatch, kind, config, n, first))
        except Exception as error:
            shown = {key: value for key, value in config.items() if key != "trained_betas"}
            raise AssertionError(f"{kind}, {n} steps from step {first}: {shown}") from error
    print(kind, {what: found.count(what) for what in set(found)})
    assert found.count("same") > len(found) / 3


@pytest.mark.parametrize("name", FEW_STEPS)
def test_a_distilled_networks_steps_are_theirs(name, double, monkeypatch):
    kind, config = FEW_STEPS[name]
    for n in (1, 2, 4, 8):
        assert outcome(monkeypatch, kind, dict(config), n, 0) == "same"


def test_a_scheduler_of_several_resolutions_is_refused():
    with pytest.raises(ValueError, match=r"FlowMatchLCMScheduler: scale_factors must be None or \[\], got \[0.5\]"):
        jd.interop.scheduler({"_class_name": "FlowMatchLCMScheduler", "scale_factors": [0.5]})
