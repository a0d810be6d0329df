"""A model that makes pictures larger: what noises the low-resolution picture, and that it is nobody else's."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxdiff as jd
from jaxdiff import cascade, conditions, data, models, networks, resize, text_encoders
from jaxdiff.cli import upscale
from jaxdiff.export import export_sampler
from jaxdiff.media.captioned import captioned, representatives
from jaxdiff.recipe import load
from jaxdiff.sampler import sampler
from jaxdiff.seeds import example_keys
from jaxdiff.train import make_mesh

PARAMS = {"w": jnp.zeros(())}
FLOW = jd.processes.Flow()


@pytest.fixture(scope="module")
def tiny():
    return load(Path(__file__).parent / "helpers" / "tiny_cascade.py")()


@pytest.fixture(scope="module")
def upscaler(tiny):
    return cascade.Upscaler(tiny)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(1).integers(0, 256, (5, 4, 4, 1), np.uint8)


def larger(picture, size):
    """Pillow's, in [-1, 1], without rounding."""
    values = Image.fromarray(picture[..., 0].astype(np.float32) / 127.5 - 1, mode="F")
    return np.asarray(values.resize((size, size), Image.Resampling.BICUBIC))[..., None]


@pytest.mark.slow
@pytest.mark.parametrize("process", [FLOW, jd.processes.VP()], ids=["flow", "vp"])
def test_a_picture_is_noised_to_the_alpha_and_sigma_of_its_own_level(process):
    size, n = 64, 4
    hint = np.random.default_rng(0).uniform(0, 1, (n, 8, 8, 1)).astype(np.float32)
    shown = conditions.hint(conditions.none(), np.uint8(255 * hint))
    condition = conditions.noised(shown, process, (size, size), level=0.2, max_level=1.0)
    level = np.array([0.0, 0.1, 0.4, 0.8], np.float32)
    given = jax.jit(condition.augment)(example_keys(0, n), {"hint": hint, "level": level})
    assert given.keys() == {"concat", "concat_noise"}
    np.testing.assert_allclose(given["concat_noise"], 1000 * level)
    plain = np.stack([larger(255 * picture, size) for picture in hint])
    np.testing.assert_allclose(given["concat"][0], plain[0], atol=2e-6)  # level 0 is clean
    eps = []
    for i in range(1, n):
        at = process(jnp.asarray(level[i]))
        eps.append((given["concat"][i] - float(at.alpha) * plain[i]) / float(at.sigma))
        # Of 4,096 numbers the mean's standard error is 0.016, that of their square 0.022.
        assert abs(np.mean(eps[-1])) < 0.08 and abs(np.mean(np.square(eps[-1])) - 1) < 0.11
        # An alpha that is off leaves some of the picture in the noise; the error of the product is 0.6 / 64.
        assert abs(np.mean(eps[-1] * plain[i])) < 0.05
    assert abs(np.mean(eps[0] * eps[1])) < 0.08  # each of its own key


def augmented(condition, hint, **options):
    """The batch that the loss of a batch with these pictures is given."""
    seen = lambda params, key, batch: (jnp.zeros(()), batch)  # noqa: E731
    loss = cascade.augmented_loss(seen, condition, **options)
    n = len(hint)
    return jax.jit(loss)(PARAMS, jax.random.key(0), {"x": np.zeros((n, 2)), "label": np.arange(n), "hint": hint})[1]


@pytest.mark.slow
def test_training_draws_a_level_for_each_picture(tiny):
    """Uniform from 0 to the largest, and the network is given it with the picture that was noised to it."""
    got = augmented(tiny.condition, np.full((2000, 4, 4, 1), 0.75, np.float32), max_level=0.4)
    assert got.keys() == {"x", "label", "concat", "concat_noise"}
    np.testing.assert_array_equal(got["label"], np.arange(2000))
    level = np.asarray(got["concat_noise"]) / 1000
    # The standard error of the mean is 0.0026; the extremes of 2,000 are within 0.002 of the ends.
    assert abs(level.mean() - 0.2) < 0.011 and 0 <= level.min() < 0.003 and 0.397 < level.max() <= 0.4
    # The picture is 0.5 in [-1, 1], and has 64 pixels.
    eps = (np.asarray(got["concat"]) - 0.5 * (1 - level)[:, None, None, None]) / level[:, None, None, None]
    assert abs(eps.std() - 1) < 0.01 and abs(8 * eps.mean((1, 2, 3)).std() - 1) < 0.07


@pytest.mark.slow
def test_training_blurs_its_share_of_the_pictures(tiny):
    hint = np.repeat(np.random.default_rng(0).uniform(0, 1, (1, 4, 4, 1)).astype(np.float32), 400, axis=0)
    got = augmented(tiny.condition, hint, max_level=0.0, blur=0.3)["concat"]
    sharp, blurred = (
        2 * resize.bicubic(resize.blur(hint[:1], np.array([sigma], np.float32)), (8, 8)) - 1 for sigma in (0, 0.6)
    )
    is_sharp, is_blurred = (np.abs(got - want).max((1, 2, 3)) < 1e-5 for want in (sharp, blurred))
    assert np.all(is_sharp ^ is_blurred) and abs(is_blurred.mean() - 0.3) < 0.1


@pytest.mark.slow
def test_samples_are_the_pictures_own(tiny, upscaler, pictures):
    """By their seeds, in any batch; level 0 is the picture without noise; no level compiles anything."""
    draw = lambda **options: upscaler(PARAMS, pictures, **options).x  # noqa: E731
    plain, noised = draw(), draw(level=0.5)
    np.testing.assert_allclose(plain, [larger(picture, 8) for picture in pictures], atol=2e-6)
    eps = 2 * noised - plain
    assert 0.8 < eps.std() < 1.2 and abs(np.mean(eps[0] * eps[1])) < 0.5
    other = draw(level=0.5, seed=1)
    assert np.abs(other - noised).max() > 0.5
    twice = draw(level=0.5, num=10, batch=5)
    np.testing.assert_allclose(twice[:5], noised, atol=1e-6)
    assert np.abs(twice[5:] - noised).max() > 0.5  # the same pictures' other versions
    assert upscaler._draw._generate._cache_size() == 1
    np.testing.assert_allclose(draw(level=0.5, batch=2), noised, atol=1e-6)


@pytest.mark.slow
def test_the_conditions_of_guidance_have_the_same_noise(tiny):
    apply = lambda params, x, noise, cond: cond["concat"] + 0.0 * cond["label"][:, None, None, None].astype(x.dtype)  # noqa: E731
    guided = replace(
        tiny, model=replace(tiny.model, apply=apply), sampling=replace(tiny.sampling, guidance=9.0, steps=1)
    )
    cond, keys = guided.condition.choose(np.arange(3)) | {"level": np.full(3, 0.4, np.float32)}, example_keys(0, 3)
    with_it, without = (
        sampler(guided.model, guided.sampling, guided.condition, guided.medium, guided=each)(PARAMS, keys, cond, 9.0)
        for each in (True, False)
    )
    np.testing.assert_allclose(with_it, without, atol=1e-5)
    # It is not the noise that the sampler begins with, which a step of a network that answers with it leaves.
    begun = replace(guided.model, apply=lambda params, x, noise, cond: x)
    start = sampler(begun, guided.sampling, guided.condition, guided.medium, guided=False)(PARAMS, keys, cond, 1.0)
    eps = (without - 0.6 * np.stack([larger(255 * picture, 8) for picture in cond["hint"]])) / 0.4
    assert np.std(start) > 0.8 and abs(np.corrcoef(eps.ravel(), np.ravel(start))[0, 1]) < 0.35


@pytest.mark.slow
def test_the_experiments_network_is_given_the_picture_and_the_class():
    made = load(Path(__file__).parents[1] / "experiments" / "cascade.py")(width=8, size=8, low=4, batch=2)
    made = replace(made, sampling=replace(made.sampling, steps=2))
    params = made.model.init(jax.random.key(0))  # whose output is zero
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(1), a.shape), params)
    upscale, grey = cascade.Upscaler(made), np.zeros((2, 4, 4, 1), np.uint8)
    draw = lambda pictures, label: upscale(params, pictures, cond={"label": np.array(label, np.int32)}, level=0.0).x  # noqa: E731
    x = draw(grey, [0, 0])
    assert x.shape == (2, 8, 8, 1) and np.isfinite(x).all()
    other = draw(np.stack([grey[0], grey[1] + 255]), [1, 0])
    assert np.abs(other - x).max((1, 2, 3)).min() > 1e-3


def test_known_pictures_are_those_of_their_captions():
    names = [f"{colour} {thing}" for colour in ("red", "blue") for thing in ("car", "hat", "cup")]
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    shown = data.low_resolution(data.ArraySource(x, captions=[(name, "a thing") for name in names]), 4)
    of_text_of = lambda source: text_encoders.of_source("own", source)  # noqa: E731
    of_text = of_text_of(shown)
    condition = cascade.known_pictures(conditions.none(), shown, of_text)
    assert condition.choices == 6 and sorted(condition.names) == sorted(names) and "hat" in condition.vocabulary
    chosen = condition.choose(np.arange(6))
    for i, name in enumerate(condition.names):
        hint = shown[names.index(name)]["hint"] / np.float32(255)
        for cond in (condition.parse(name), {entry: a[i : i + 1] for entry, a in chosen.items()}):
            np.testing.assert_allclose(cond["hint"][0], hint)
            np.testing.assert_array_equal(cond["ids"], of_text.tokenize([name])["ids"])
    with pytest.raises(ValueError, match="no picture of 'car' among the 6 at hand"):
        condition.parse("car")
    assert condition.parse_text("car").keys() == {"ids", "mask"}  # of a picture that is given
    # Two pictures of one caption: the first is shown, and what an evaluation compares with.
    twice = data.ArraySource(x, captions=[(name,) for name in ["cat", "dog", *names[:2], "cat", "dog"]])
    assert representatives(twice).tolist() == [0, 1, 2, 3]
    assert captioned(twice, features=None).prompts(4) == ["cat", "dog", *names[:2]]
    again = cascade.known_pictures(conditions.none(), data.low_resolution(twice, 4), of_text_of(twice))
    assert again.choices == 4
    np.testing.assert_allclose(
        again.parse("dog")["hint"][0], data.low_resolution(twice, 4)[1]["hint"] / np.float32(255)
    )
    # A word that only the other source has.
    plum = data.ArraySource(x[:1], captions=[("a plum",)])
    assert "plum" in text_encoders.condition_of_source(shown, "own", plum)[0].vocabulary
    with pytest.raises(ValueError, match="plum"):
        text_encoders.of_source("own", shown).tokenize(["a plum"])


def test_known_pictures_of_a_grammar_are_those_that_an_evaluation_asks_for(monkeypatch):
    monkeypatch.setattr(cascade, "MOST", 12)
    source = data.open_dataset("compositions:few", captions=True)
    shown, of_text = data.low_resolution(source, 16), text_encoders.of_source("own", source)
    condition = cascade.known_pictures(conditions.none(), shown, of_text)
    prompts, pairs = models.picture_medium(source, "").prompts, data.pairs_of(source, 12)
    for i, (words, plain) in enumerate(zip(prompts(12), pairs.captions, strict=True)):
        assert plain in words  # which may have an article
        x = data.to_uint8(pairs.read(np.array([i])))
        np.testing.assert_array_equal(condition.parse(words)["hint"], [shown.hints(x[0]) / np.float32(255)])
    assert condition.choices == 12 and all("hint" in condition.parse(words) for words in prompts(5))


@pytest.mark.slow
def test_the_experiment_is_given_captions(monkeypatch):
    """Its loss, traced alone, has both parts of the parameters; words and the picture each change what is answered."""
    unet = networks.UNet  # of its levels the second alone, which attends to the words: each compiles for seconds
    monkeypatch.setattr(networks, "UNet", lambda widths, **rest: unet(widths[:1], **rest | {"attention": (0,)}))
    make = load(Path(__file__).parents[1] / "experiments" / "cascade.py")
    knobs = {"width": 8, "size": 8, "batch": 2, "source": "twemoji"}
    base, made = make(low=0, **knobs), make(low=4, split="train", **knobs)
    for experiment, more in ((base, set()), (made, {"hint"})):
        assert experiment.training.batch_spec.keys() == {"x", "ids", "mask"} | more
        assert next(experiment.training.batches(0)).keys() == {"x", "ids", "mask"} | more
    assert base.guidance == 2 and made.guidance == 1
    learning, key, rng = made.training, jax.random.key(0), np.random.default_rng(0)
    params = jax.eval_shape(made.model.init, key)
    batch = {name: jax.ShapeDtypeStruct((2, *spec.shape), spec.dtype) for name, spec in learning.batch_spec.items()}
    gradient = jax.eval_shape(lambda *given: jax.grad(learning.loss, has_aux=True)(*given)[0], params, key, batch)
    assert gradient.keys() == {"network", "text"} == jax.eval_shape(learning.optimizer.init, params).inner_states.keys()
    params = jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape).astype(a.dtype), params)
    read = [made.condition.parse_text(text) for text in ("red apple", "green heart", "red apple")]
    cond = {name: np.concatenate([each[name] for each in read]) for name in read[0]}
    grey = np.full((3, 4, 4, 3), 0.5, np.float32) + np.array([0, 0, 0.5], np.float32)[:, None, None, None]
    given = made.condition.augment(example_keys(0, 3), {**cond, "hint": grey, "level": np.zeros(3, np.float32)})
    apply = jax.jit(made.condition.encoded(made.model.apply))
    x = np.asarray(apply(params, jnp.zeros((3, 8, 8, 3)), jnp.full(3, 500.0), given))
    assert np.isfinite(x).all() and np.abs(x - x[:1]).max((1, 2, 3))[1:].min() > 1e-2


@pytest.mark.slow
def test_eight_devices_draw_what_one_does(tiny, upscaler, pictures):
    alone = upscaler(PARAMS, pictures, level=0.3)
    eight = cascade.Upscaler(tiny, make_mesh())(PARAMS, pictures, level=0.3)
    np.testing.assert_allclose(eight.x, alone.x, atol=1e-6)


@pytest.mark.slow
def test_an_exported_sampler_draws_the_same(tiny, upscaler, pictures):
    program = export_sampler(tiny, PARAMS, guidance=1.0, platforms=["cpu"])
    want = upscaler(PARAMS, pictures, level=0.3)
    got = program.call(seed=np.int32(0), index=np.arange(5, dtype=np.int32), **want.cond)
    np.testing.assert_allclose(got, want.x, atol=1e-6)


def test_what_else_the_model_is_given(upscaler, pictures):
    got = upscaler(PARAMS, pictures, cond={"label": np.array([1, 0, 1, 0, 1], np.int32), "other": pictures})
    assert got.cond["label"].tolist() == [1, 0, 1, 0, 1] and got.cond["level"].tolist() == [0] * 5
    assert upscaler(PARAMS, pictures[:1], num=5).cond["label"].tolist() == [2] * 5  # none
    np.testing.assert_allclose(got.cond["hint"], pictures / np.float32(255))


@pytest.mark.parametrize(("entry", "refused"), [("label", True), ("ids", False)])
def test_a_chain_is_of_the_same_classes_where_a_stage_takes_classes(tiny, tmp_path, entry, refused):
    """The names of a condition with other entries, such as captions, are no classes."""
    size, spec = 4, {name: tiny.condition.spec[name] for name in ("hint", "level")}
    base = load(Path(__file__).parent / "helpers" / "tiny_cascade.py")(size=size, low=0)
    given = replace(
        tiny.condition, spec={**spec, entry: tiny.condition.spec["label"]}, names=("boot", "bag"), choices=2, null=None
    )
    stages = [
        upscale._Stage(tmp_path / "base", base),
        upscale._Stage(tmp_path / "large", replace(tiny, condition=given)),
    ]
    with pytest.raises(ValueError, match="large has other classes than") if refused else nullcontext():
        upscale._check_chain(stages)


def test_mistakes(tiny, upscaler, pictures):
    for wrong in (pictures.astype(np.float32), pictures[:, :3], np.repeat(pictures, 3, -1), pictures[:0]):
        with pytest.raises(ValueError, match=r"pictures must be uint8 \[N, 4, 4, 1\], got "):
            upscaler(PARAMS, wrong)
    for level in (-0.1, 0.6):
        with pytest.raises(ValueError, match=r"level of the noise on pictures is from 0 to 0.5, got "):
            upscaler(PARAMS, pictures, level=level)
    with pytest.raises(ValueError, match=r"label must have the shape \(\), got \(2,\)"):
        upscaler(PARAMS, pictures, cond={"label": np.zeros((1, 2), np.int32)})
    always = replace(tiny, condition=replace(tiny.condition, null=None))
    with pytest.raises(ValueError, match="the model is always given label: say which"):
        cascade.Upscaler(always)(PARAMS, pictures)
    with pytest.raises(ValueError, match="makes no picture larger"):
        cascade.picture_shape(conditions.label(3))
    hint = conditions.hint(conditions.none(), pictures)
    for low, high in ((-0.1, 0.5), (0.6, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="levels are 0 <= level <= max_level <= 1, got"):
            conditions.noised(hint, FLOW, (8, 8), level=low, max_level=high)
    with pytest.raises(ValueError, match=r"conditions.hint; the condition has \['label'\]"):
        conditions.noised(conditions.label(3), FLOW, (8, 8), level=0.1, max_level=0.5)
    source = data.ArraySource(np.zeros((2, 4, 4, 1), np.uint8))
    for size in (0, 4):
        with pytest.raises(ValueError, match=f"from 1 pixel to below that of square images, got {size} of 4 x 4"):
            data.low_resolution(source, size)
