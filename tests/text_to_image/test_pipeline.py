"""Text-to-image pipelines as functions: laws and mistakes; parity with diffusers' is in tests/parity."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_pipeline as tiny
from jax.sharding import NamedSharding, PartitionSpec

import jaxdiff as jd
from jaxdiff import train
from jaxdiff.sampler import first_step, sampler


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def pipe(directory):
    return jd.text_to_image.load(directory, steps=2)


@pytest.mark.slow
def test_a_picture_is_its_own_keys_and_prompts_on_any_mesh_and_is_compiled_once(directory, pipe):
    prompts = [tiny.LETTERS[i : i + 3] for i in range(8)]
    keys = jax.random.split(jax.random.key(0), 8)
    generate = jax.jit(pipe.generate)
    negative = pipe.tokenize([""] * 8)
    alone = generate(pipe.params, pipe.tokenize(prompts), keys, 3.0, negative=negative, rescale=0.5)
    compiled = generate._cache_size()
    again = generate(pipe.params, pipe.tokenize(prompts), keys, 30.0, negative=negative, rescale=0.0)
    assert generate._cache_size() == compiled and not np.allclose(alone, again, atol=1e-3)
    mesh = train.make_mesh()
    place = lambda tree: train.shard_params(tree, mesh)  # noqa: E731
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    spread = jd.text_to_image.load(directory, steps=2, place=place)
    data = jax.device_put((spread.tokenize(prompts[::-1]), keys[::-1], negative), split)
    images = jax.jit(spread.generate)(spread.params, data[0], data[1], 3.0, negative=data[2], rescale=0.5)
    assert images.sharding.is_equivalent_to(split, 4)
    np.testing.assert_allclose(images[::-1], alone, atol=1e-5)
    assert np.abs(alone).max() <= 1 and np.abs(alone[0] - alone[1]).max() > 1e-3


@pytest.mark.slow
def test_the_sampler_of_the_parts_draws_the_same_pictures(pipe):
    """With two evaluations of the network in place of one, of twice the batch."""
    keys = jax.random.split(jax.random.key(0), 2)
    negative = pipe.tokenize([""] * 2)
    want = jax.jit(pipe.generate)(pipe.params, pipe.tokenize(["abc"] * 2), keys, 3.0, negative=negative)
    draw = sampler(pipe.model, pipe.sampling, pipe.condition, pipe.medium)
    cond = {name: jnp.repeat(jnp.asarray(a), 2, axis=0) for name, a in pipe.condition.parse("abc").items()}
    np.testing.assert_allclose(draw(pipe.params, keys, cond, 3.0), want, atol=1e-5)
    shapes = [jax.tree.map(jnp.shape, params) for params in (pipe.params, jax.eval_shape(pipe.model.init, keys[0]))]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_on_an_accelerator_parameters_are_cast_before_the_steps(directory, monkeypatch):
    """Each step would read them all in float32; the pictures are the same."""
    half = jd.text_to_image.load(directory, steps=2, dtype=jnp.bfloat16)
    arguments = half.params, half.tokenize(["abc"]), jax.random.key(0), 3.0
    # One function for each device: JAX remembers what it traced.
    draw = lambda *a: half.generate(*a, negative=half.tokenize([""]))  # noqa: E731
    again = lambda *a: draw(*a)  # noqa: E731
    want = jax.jit(draw)(*arguments)

    def kernels_of_steps(f):
        """The dtypes of the U-Net's 3 x 3 kernels that the steps take."""
        loops = [e for e in jax.make_jaxpr(f)(*arguments).eqns if e.primitive.name == "scan"]
        taken = [v.aval for loop in loops for v in loop.invars]
        return {a.dtype for a in taken if a.ndim == 4 and a.shape[:2] == (3, 3)}

    assert kernels_of_steps(draw) == {jnp.dtype(jnp.float32)}
    monkeypatch.setattr("jaxdiff.sampler.platform", lambda: "gpu")
    assert kernels_of_steps(again) == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(jax.jit(again)(*arguments), want, atol=2e-3)


def autoencoded(pipe, image):
    codec = jd.interop.architecture(tiny.VAE).apply
    mean, _ = codec.encode(pipe.params["vae"], image)
    return jnp.clip(codec.decode(pipe.params["vae"], mean), -1, 1)


@pytest.mark.slow
def test_strength_is_traced_and_0_is_the_autoencoders_answer(pipe):
    image = jax.random.uniform(jax.random.key(1), (1, 8, 8, 3), minval=-1)
    generate = jax.jit(pipe.generate)

    def by(strength):
        tokens = pipe.tokenize(["a"])
        return generate(pipe.params, tokens, jax.random.key(0), image=image, strength=jnp.asarray(strength))

    same = by(0.0)
    compiled = generate._cache_size()
    half, whole = by(0.5), by(1.0)
    assert generate._cache_size() == compiled
    assert pipe.sampling.grid(2).sigma[-1] > 0.02  # the schedule does not end at clean data
    np.testing.assert_allclose(same, autoencoded(pipe, image), atol=1e-5)
    np.testing.assert_array_equal(by(0.49), same)  # rounded down to no step
    assert not np.allclose(same, half, atol=1e-3) and not np.allclose(half, whole, atol=1e-3)


@pytest.mark.slow
def test_bfloat16_is_near(directory, pipe):
    half = jd.text_to_image.load(directory, steps=2, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    options = {"negative": pipe.tokenize([""]), "rescale": 0.5, "image": jnp.full((1, 8, 8, 3), 0.3), "strength": 0.9}
    images = [
        jax.jit(one.generate)(one.params, one.tokenize(["a"]), jax.random.key(0), 2.0, **options)
        for one in (half, pipe)
    ]
    assert images[0].dtype == jnp.float32
    np.testing.assert_allclose(*images, atol=0.1)


@pytest.mark.parametrize("upcast", [True, False])
def test_an_autoencoder_that_float16_is_too_small_for_computes_in_float32(directory, tmp_path, upcast):
    copy = Path(shutil.copytree(directory, tmp_path / "model"))
    config = copy / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": upcast}))
    parts = jd.text_to_image.describe(copy, dtype=jnp.float16)
    vae = jax.eval_shape(parts.models.init["vae"], jax.random.key(0))
    program = jax.make_jaxpr(parts.codec.decode)(vae, jnp.zeros((1, 4, 4, parts.codec.channels)))
    assert ("f16[" in str(program)) is not upcast


@pytest.mark.slow
def test_what_is_kept_is_kept(pipe):
    image = jax.random.uniform(jax.random.key(1), (1, 8, 8, 3), minval=-1)
    tokens, key, generate = pipe.tokenize(["a"]), jax.random.key(0), jax.jit(pipe.generate)
    for anew, strength in ((0.0, 1.0), (1.0, 0.0)):  # nothing is painted, or in no step
        mask = jnp.full((1, 8, 8), anew)
        kept = generate(pipe.params, tokens, key, image=image, mask=mask, strength=jnp.asarray(strength))
        np.testing.assert_allclose(kept, autoencoded(pipe, image), atol=1e-5)


@pytest.mark.slow
def test_mistakes(directory, pipe, monkeypatch):
    tokens, key = pipe.tokenize(["a"]), jax.random.key(0)
    image, mask = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8, 8))
    for options, words in (
        ({"guidance": 3.0}, "negative"),
        ({"negative": tokens}, "there is no guidance"),
        ({"mask": mask}, "an image and a mask"),
        ({"image": image[:, :4]}, r"images must be floats .* got float32, \(1, 4, 8, 3\)"),
        ({"image": image.astype(jnp.uint8)}, r"images must be floats in \[-1, 1\] .* got uint8"),
        ({"image": image, "mask": mask[:, 1:]}, "masks must have shape"),
        ({"image": image, "strength": 1.5}, r"strength must lie in \[0, 1\]"),
        ({"image": image, "strength": jnp.ones(1)}, "one number"),
        ({"strength": 0.5}, "there is none"),
        ({"noise": jnp.zeros((1, 6, 4, 4))}, r"noise must have shape \(1, 4, 4, 4\), got \(1, 6, 4, 4\)"),
        ({"guidance": 3.0, "negative": pipe.tokenize(["", ""])}, r"shapes of the others, .*\(1, 8\).*\(2, 8\)"),
    ):
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(lambda options=options: pipe.generate(pipe.params, tokens, key, **options))
    with pytest.raises(ValueError, match=r"tokens must be \[B, L\] for text_encoder, got {}"):
        pipe.generate(pipe.params, {}, key)
    monkeypatch.setattr("jaxdiff.text_to_image.pipeline.load_model", None)  # all is found before the weights are read
    for options, words in (
        ({"size": (9, 8)}, r"in pixels, multiples of 2, got \(9, 8\)"),
        ({"size": 8}, "multiples of 2"),
        ({"kind": "Euler"}, "EulerDiscreteScheduler"),
        ({"steps": 0}, r"sampling\.steps must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            jd.text_to_image.load(directory, **options)


def test_directories_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"model_index\.json does not exist"):
        jd.text_to_image.load(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "AudioPipeline"}')
    with pytest.raises(ValueError, match="StableDiffusionXLPipeline"):
        jd.text_to_image.load(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ValueError, match="lacks unet, vae, text_encoder"):
        jd.text_to_image.load(tmp_path)


def test_strength_is_a_number_of_steps_as_meant():
    hundredths = np.arange(101)
    for up, taken in ((False, 50 * hundredths // 100), (True, -(-50 * hundredths // 100))):
        traced = np.asarray(jax.vmap(lambda s, up=up: first_step(50, s, round_up=up))(jnp.float32(hundredths / 100)))
        np.testing.assert_array_equal(traced, 50 - taken)
        assert int(first_step(50, 0.58, round_up=up)) == traced[58]
        outside = jax.vmap(lambda s, up=up: first_step(50, s, round_up=up))(jnp.array([1.5, -0.5]))
        np.testing.assert_array_equal(outside, [0, 50])  # a traced one cannot be refused
