"""The experiments: an image-text model, priors and a decoder made of it, at little size, and what a run refuses."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import tiny_unclip
from helpers.plans import can_be_planned
from helpers.weights import random_weights

from jaxdiff import export, networks, train, trees, unclip
from jaxdiff.cli import main, vary
from jaxdiff.drawing import draw
from jaxdiff.experiment import UserError
from jaxdiff.media import Samples
from jaxdiff.media.files import write_pixels
from jaxdiff.recipe import Recipe, load, load_run
from jaxdiff.script import Script
from jaxdiff.unclip import embedders, priors

FOLDER = Path(__file__).parents[2] / "experiments"
TINY = {"steps": 10, "batch": 4}


def disturbed(experiment):
    """Parameters of which none is zero: networks begin with outputs that are."""
    return random_weights(experiment.model.init, 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs that were never trained: what is read of them is the parameters that they begin with."""
    made = tmp_path_factory.mktemp("unclip")
    knobs = {
        "image_text": {"width": 8, "channels": (4,)},
        "prior": {"part": "prior", "width": 2},
        "direct": {"part": "direct", "width": 2},
        "decoder": {"part": "decoder", "width": 8},
    }
    for name, own in knobs.items():
        file = "image_text" if name == "image_text" else "unclip"
        given = {} if name == "image_text" else {"image_text": str(made / "image_text")}
        Recipe(Script(FOLDER / f"{file}.py"), TINY | own | given).keep(made / name)
    begin = lambda experiment, path, mesh=None: disturbed(experiment)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        unet = networks.UNet
        small = {
            "widths": (8,),
            "attention": (0,),
            "mid_blocks": 0,
            "patch_size": 8,
        }  # the experiment's compiles for long
        patch.setattr(networks, "UNet", lambda **options: unet(**options | small))
        for room in (embedders, priors):
            patch.setattr(room, "parameters", begin)
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image_text", "decoder"])
def test_planned(runs, name):
    can_be_planned(partial(load_run, runs / name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["direct", "decoder"])
def test_samplers_of_any_batch_are_exported(runs, name):
    """With a number of examples that is not known; the direct prior has no guidance, though it has a null condition."""
    with export.for_export("float32"):
        experiment = load_run(runs / name)
        guidance = None if name == "direct" else 1.0
        exported = export.export_sampler(experiment, disturbed(experiment), guidance=guidance, platforms=("cpu",))
    assert {str(size) for shape in exported.in_avals for size in shape.shape[:1]} >= {"b"}


def changes(experiment):
    """By its path, the largest change of each parameter in two updates, of which the first has a rate of zero."""
    part, model = experiment.training, experiment.model
    batches, mesh = part.batches(0), train.make_mesh(devices=jax.devices()[:1])
    described = {name: ((4, *leaf.shape), leaf.dtype) for name, leaf in part.batch_spec.items()}
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in next(batches).items()} == described
    state = train.init_state(model.init, part.optimizer, jax.random.key(0), mesh)
    step = train.make_step(part.loss, part.optimizer, key=jax.random.key(1), ema=part.ema, frozen=model.frozen)
    before = trees.flatten(jax.device_get(state.params))
    for _ in range(2):
        state, metrics = step(state, train.shard_batch(next(batches), mesh))
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    after = trees.flatten(jax.device_get(state.params))
    return {name: float(np.abs(after[name] - before[name]).max()) for name in before}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image_text", "prior", "direct", "decoder"])
def test_first_steps(runs, name):
    found = changes(load_run(runs / name))
    assert np.isfinite(list(found.values())).all()
    last = {"prior": "linear_out/kernel", "direct": "linear_out/kernel", "decoder": "network/conv_out/kernel"}
    parts = ("image", "text", "projection", "log_scale") if name == "image_text" else (last[name],)
    for part in parts:  # all of them learn, and networks learn more than a mean
        assert max(value for path, value in found.items() if path.startswith(part)) > 0


@pytest.mark.slow
def test_an_image_text_model_is_evaluated_by_its_pairs(runs):
    experiment = load_run(runs / "image_text")
    samples = draw(experiment, experiment.model.init(jax.random.key(0)), 300, batch=100)
    np.testing.assert_allclose(np.linalg.norm(samples.x, axis=-1), 1, rtol=1e-5)
    assert samples.held_out is None or not samples.held_out.any()  # these are the first half of the pairs
    report = experiment.medium.evaluator(runs, experiment.condition)(samples)
    assert report.values["samples"]["seen"]["chance"] == 0.01 and report.values["samples"]["seen"]["captions"] < 0.2
    perfect = samples._replace(x=np.repeat(samples.x[:, :1], 2, axis=1))
    assert experiment.medium.evaluator(runs, experiment.condition)(perfect).values["samples"]["seen"] == {
        "captions": 1.0,
        "pictures": 1.0,
        "chance": 0.01,
    }
    with pytest.raises(ValueError, match="at least 100 captions"):
        experiment.medium.evaluator(runs, experiment.condition)(Samples(samples.x[:5], {}, names=samples.names[:5]))


@pytest.mark.slow
def test_a_decoder_draws_prompts_by_either_prior(runs):
    """The prior's parameters are the frozen ones; the picture is that of the embedding which the prior draws."""
    experiment = load_run(runs / "decoder", changes={"prior": str(runs / "direct")})
    experiment = replace(experiment, sampling=_short(experiment.sampling))
    params = disturbed(experiment)
    drawn = draw(experiment, params, 2, words=["dog face", "a red pizza"])
    direct = unclip.load_prior(runs / "direct", str(runs / "image_text"))
    tokens = experiment.condition.parse("a red pizza")
    z = direct.draw(direct.params, np.zeros((1, 8), np.float32), {name: tokens[name] for name in ("ids", "mask")})
    sampler = unclip.Decoder(experiment)
    again = sampler(params, np.repeat(z, 2, axis=0))
    np.testing.assert_allclose(again.x[1], drawn.x[1], atol=1e-3)
    with pytest.raises(ValueError, match=r"\[N, 8\], got \[1, 3\]"):
        sampler(params, np.zeros((1, 3)))
    experiment = load_run(runs / "decoder", changes={"prior": str(runs / "prior")})
    drawn = draw(replace(experiment, sampling=_short(experiment.sampling)), params, 2, words=["dog face"])
    assert np.isfinite(drawn.x).all() and np.abs(drawn.x[0] - again.x[0]).max() > 1e-3


def _short(sampling):
    return replace(sampling, steps=1, guidance=1.0)


@pytest.mark.slow
def test_what_is_no_prior_and_no_image_text_model_is_refused(runs, capsys):
    with pytest.raises(UserError, match="is no image-text model"):
        unclip.load_embedder(runs / "prior")
    with pytest.raises(UserError, match="is no prior"):
        unclip.load_prior(runs / "decoder", str(runs / "image_text"))
    with pytest.raises(UserError, match="of the embeddings of"):
        unclip.load_prior(runs / "prior", "elsewhere")
    for command in ("sample", "eval"):
        with pytest.raises(SystemExit):
            main([command, str(runs / "prior"), "--prior", str(runs / "direct")])
        assert "takes no --prior" in capsys.readouterr().err


@pytest.mark.slow
def test_vary_draws_what_its_pictures_and_texts_say(runs, tmp_path, monkeypatch):
    """One picture's own embedding; from the one to the other; from a picture halfway to a difference of texts."""
    asked = []

    class Recorder:
        def __init__(self, experiment, mesh):
            pass

        def __call__(self, params, z, num, *, seed, batch):
            return self.along(params, np.repeat(z, num, axis=0), seed=seed)

        def along(self, params, z, *, seed):
            asked.append((z, seed))
            return Samples(np.zeros((len(z), 32, 32, 3), np.float32), {})

    monkeypatch.setattr(vary.unclip, "Decoder", Recorder)
    monkeypatch.setattr(vary, "parameters", lambda *args, **options: None)
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    files = [str(write_pixels(tmp_path / f"{i}.png", picture)) for i, picture in enumerate(x)]
    common = ["--num", "3", "--seed", "5", "--out", str(tmp_path / "out.png")]
    for words in (files[:1], files, [files[0], "--before", "red heart", "--after", "green heart"]):
        main(["vary", str(runs / "decoder"), *words, *common])
    encoders = unclip.load_embedder(runs / "image_text")
    z, (first, last) = encoders.embed_pictures(x), encoders.embed_texts(["red heart", "green heart"])
    half = unclip.text_difference(z[0], first, last, [0, 0.25, 0.5])
    for (got, seed), want in zip(asked, (z[[0, 0, 0]], unclip.slerp(z[0], z[1], [0, 0.5, 1]), half), strict=True):
        assert seed == 5
        np.testing.assert_allclose(got, want, atol=1e-4)
    assert (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["a.png", "b.png", "c.png"],
        ["a.png", "--before", "a heart"],
        ["a.png", "b.png", "--before", "a heart", "--after", "a dog"],
        ["a.png", "--turn", "0"],
        ["a.png", "--turn", "0.3"],
    ],
)
def test_what_vary_refuses(words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["vary", str(tmp_path), *words])
    assert re.search(
        r"one with --before and --after, or two|above 0 and at most 1|takes no --turn, got 0.3", capsys.readouterr().err
    )


def test_texts_of_vary_are_those_of_other_prompts(tmp_path, capsys, monkeypatch):
    """An empty one is refused, and an unknown word becomes the nearest known one."""
    asked, embedder = [], tiny_unclip.embedder()

    class Recorder:
        def along(self, params, z, *, seed):
            asked.append(z)
            return Samples(z, {})

    stand_ins = {
        "load_run": lambda *args, **options: None,
        "change_sampling": lambda *args, **options: SimpleNamespace(medium=SimpleNamespace(save=lambda *args: None)),
        "check_suffix": lambda *args: None,
        "parameters": lambda *args, **options: None,
        "read_knobs": lambda run: {"image_text": ""},
        "read_picture": lambda *args, **options: tiny_unclip.PICTURES[0],
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(vary, name, stand_in)
    monkeypatch.setattr(vary.unclip, "Decoder", lambda *args: Recorder())
    monkeypatch.setattr(vary.unclip, "load_embedder", lambda *args: embedder)
    monkeypatch.setattr(priors, "rephrase", lambda prompt, words: {"kitten": "b"}.get(prompt, prompt))
    common = ["vary", str(tmp_path), "a.png", "--num", "2", "--turn", "1", "--out", str(tmp_path / "out.png")]
    main([*common, "--before", "a", "--after", "kitten"])
    first, last = embedder.embed_texts(["a", "b"])
    want = unclip.text_difference(embedder.embed_pictures(tiny_unclip.PICTURES)[0], first, last, [0, 1])
    np.testing.assert_allclose(asked[0], want, rtol=1e-5)
    for words in (["", "b"], ["a", " "]):
        with pytest.raises(SystemExit):
            main([*common, "--before", words[0], "--after", words[1]])
        assert "a prompt is a text, got an empty one" in capsys.readouterr().err
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("part", "knobs", "words"),
    [
        ("prior", {"prior": "/a"}, "--part prior takes no --prior, got '/a'"),
        ("direct", {"prior": "/a"}, "--part direct takes no --prior, got '/a'"),
        ("direct", {"cond_dropout": 0.3}, "--part direct takes no --cond-dropout, got 0.3"),
    ],
)
def test_knobs_that_a_part_does_not_look_at_are_refused(part, knobs, words):
    build = partial(load(FOLDER / "unclip.py"), image_text="/nowhere", part=part)
    with pytest.raises(ValueError, match="/nowhere holds no run"):
        build()
    with pytest.raises(ValueError, match=words):
        build(**knobs)


@pytest.mark.parametrize("name", ["image_text", "unclip"])
def test_common_knobs(name):
    assert {"steps", "batch", "seed", "lr", "grad_accum_steps", "preview_every"} <= set(
        load(FOLDER / f"{name}.py").__annotations__
    )
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= 70
