"""Latent diffusion: autoencoders of runs and folders, their scale, what is decoded, and mistakes."""

import json
import re
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.untrained import untrained

from jaxdiff import conditions, data, imagine, interop, latents, losses, models, parameterize, run, sharding, train
from jaxdiff.autoencoders import Codec, VQCodec
from jaxdiff.autoencoders.codec import decode_singly
from jaxdiff.cli import main
from jaxdiff.conditions import Condition
from jaxdiff.drawing import Drawer, draw
from jaxdiff.experiment import UserError
from jaxdiff.finetune.knobs import Network
from jaxdiff.finetune.origin import read_origin
from jaxdiff.first_stage import Architecture, open_origin
from jaxdiff.media.files import write_pixels
from jaxdiff.recipe import Recipe
from jaxdiff.script import Script

FOLDER = Path(__file__).parents[1] / "experiments"
SIZE, FACTOR = 8, 2
NETWORK = {"widths": (8, 8), "latent_channels": 2}
TINY = {"size": SIZE, "width": 8, "batch": 8, "preview_every": 0}
X = np.random.default_rng(0).integers(0, 256, (70, SIZE, SIZE, 1), np.uint8)


def linear(scale=3.0, shift=0.5):
    """An autoencoder that averages 2 x 2 pixels, with two channels of them, and repeats the first."""

    def encode(params, x):
        small = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, 1).mean((2, 4))
        mean = jnp.concatenate([small, params * small], axis=-1)
        return mean, 0.1 * jnp.ones_like(mean)

    decode = lambda params, z: z[..., :1].repeat(2, axis=1).repeat(2, axis=2)  # noqa: E731
    config = {"_class_name": "AutoencoderKL", "in_channels": 1, "out_channels": 1, "block_out_channels": [32, 32]}
    return interop.Pretrained(Codec(encode, decode, FACTOR, 2, scale, shift), jnp.float32(2), config)


@pytest.mark.slow
def test_all_pictures_are_encoded_once_and_scaled_and_the_last_batch_is_whole():
    source = data.ArraySource(X, np.arange(70) % 3, 3)
    vae = linear()
    encoded = latents.Latents(source, vae, conditions.label(3))
    assert len(encoded) == 70 and encoded.example["mean"].shape == (4, 4, 2) and set(encoded.example) > {"label"}
    small = data.to_float(X).reshape(70, 4, 2, 4, 2, 1).mean((2, 4))
    for i in (0, 32, 69):
        np.testing.assert_allclose(encoded[i]["mean"], (small[i] * [1, 2] - 0.5) * 3, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(encoded[i]["std"], 0.3, rtol=1e-6)
        assert encoded[i]["label"] == i % 3
    # A loss of the latents is the loss that encodes their pictures.
    loss = losses.latent_loss(lambda params, key, batch: (jnp.sum(batch["x"] * batch["y"]), {}))
    y = jnp.arange(8.0).reshape(8, 1, 1, 1)
    stored = {name: np.stack([encoded[i][name] for i in range(8)]) for name in ("mean", "std")}
    given, key = ({}, {"vae": vae.params}), jax.random.key(1)
    fresh = latents.encoding_loss(loss, vae)(given, key, {"x": data.to_float(X[:8]), "y": y})
    np.testing.assert_allclose(fresh[0], loss(given, key, {**stored, "y": y})[0], rtol=1e-5)
    assert "label" not in latents.Latents(source, vae, conditions.none()).example


def test_decoding_inverts_the_scale_of_either_autoencoder():
    z = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 4, 2)), jnp.float32)
    codec = linear(scale=(3.0, 4.0), shift=(0.5, 0.1)).apply
    medium = models.latent_medium((4, 4, 2), linear(scale=(3.0, 4.0), shift=(0.5, 0.1)))
    x = medium.decode(((), {"vae": jnp.float32(2)}), codec.normalize(z))
    np.testing.assert_allclose(x, codec.decode(None, z), atol=1e-6)
    vq = VQCodec(lambda params, x: x + params, None, None, lambda params, z: z - params, 1, 2, scale=5.0)
    mean, std = vq.posterior(1.0, z)
    np.testing.assert_allclose(mean, 5 * (z + 1), rtol=1e-6)
    assert not std.any()
    np.testing.assert_allclose(vq.decode_latents(1.0, mean), z, atol=1e-6)


def test_each_device_decodes_its_own():
    """In turns of one image a device: what a turn decodes is as large as the mesh, and no device gets another's."""
    z, mesh, turns = jnp.arange(32.0).reshape(16, 2), sharding.make_mesh(4, 2), []

    def decode(z):
        turns.append(z.shape)
        return jnp.sin(z) @ jnp.ones((2, 3))

    def in_turns(z):
        with sharding.use_mesh(mesh):
            return decode_singly(decode, z)

    split = sharding.batch_sharding(mesh)
    compiled = jax.jit(in_turns, in_shardings=split, out_shardings=split).lower(z).compile()
    assert turns == [(8, 2)] and not re.search("all-|collective|permute", compiled.as_text())
    np.testing.assert_allclose(compiled(jax.device_put(z, split)), decode_singly(decode, z), rtol=1e-6)
    assert turns[1:] == [(1, 2)]
    np.testing.assert_allclose(decode_singly(decode, z), decode(z), rtol=1e-6)


def test_the_condition_is_what_the_source_has(tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(X[0, ..., 0]).save(tmp_path / name / "0.png")
    folder = f"folder:{tmp_path}"
    assert (
        not data.has_captions(folder) and not data.has_captions("fashion_mnist") and data.has_captions("twemoji:tones")
    )
    (tmp_path / "a" / "0.txt").write_text("a cat")
    assert data.has_captions(folder)
    with pytest.raises(ValueError, match=r"b/0\.png has no caption"):
        data.open_dataset(folder, captions=True)


def test_knobs_that_nothing_looks_at_are_refused(monkeypatch):
    monkeypatch.setattr(latents, "load_autoencoder", lambda *args: linear())
    build = partial(run.load(FOLDER / "latent.py"), autoencoder="a", **TINY)
    for classes in (3, 0):
        source = data.ArraySource(X, np.arange(70) % classes if classes else None, classes)
        monkeypatch.setattr(data, "open_dataset", lambda *args, source=source, **options: source)
        assert build().condition.choices == classes
        with pytest.raises(ValueError, match="the encoder /nowhere is for captions, and this data has none"):
            build(encoder="/nowhere")
    with pytest.raises(ValueError, match=r"without captions and classes takes no --cond-dropout, got 0\.3"):
        build(cond_dropout=0.3)


@pytest.fixture
def folder(tmp_path):
    """The config of an autoencoder of grey images; its parameters are not there."""
    (tmp_path / "vae").mkdir()
    config = open_origin(Architecture(**NETWORK), (SIZE, SIZE, 1)).config
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_mistakes(folder, monkeypatch):
    build = run.load(FOLDER / "latent.py")
    kinds = "allowed are a run of the experiment autoencoder, or a folder of AutoencoderKL or VQModel"
    with pytest.raises(UserError, match=f"nowhere holds no autoencoder: {kinds}"):
        build(autoencoder="/nowhere")
    Recipe(Script(FOLDER / "fashion.py"), {"width": 8}).keep(folder / "run")
    with pytest.raises(UserError, match=f"run is the run of another kind of model: {kinds}"):
        build(autoencoder=str(folder / "run"))
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    (folder / "vae").rename(folder / "hidden")
    with pytest.raises(UserError, match=f"holds a UNet2DModel: {kinds}"):
        build(autoencoder=str(folder))
    vae = linear()
    with pytest.raises(UserError, match="takes 1 channels and makes 1, and the images have 3: --channels 1 or 3"):
        latents.latent_shape(vae, (SIZE, SIZE, 3))
    with pytest.raises(UserError, match="no multiple of 2: choose another --size"):
        latents.latent_shape(vae, (SIZE + 1, SIZE, 1))
    assert latents.latent_shape(vae, (SIZE, 4, 1)) == (4, 2, 2)
    source = latents.Latents(data.ArraySource(X), vae, conditions.none())
    monkeypatch.setattr(latents, "FITS", 70 * 4 * 4 * 2 * 8 - 1)
    with pytest.raises(UserError, match=r"latents of 70 pictures would take .* --no-encode-once"):
        len(source)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="--no-encode-once for several"):
        latents.Latents(data.ArraySource(X), vae, conditions.none())


@pytest.mark.slow
def test_a_run_is_scaled_to_unit_variance_and_its_samples_are_decoded(tmp_path, monkeypatch):
    first, workdir, size = tmp_path / "first", tmp_path / "run", 6
    for i, picture in enumerate(X[:64, :size, :size, 0]):
        write_pixels(tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png", picture[..., None])
    knobs = {"source": f"folder:{tmp_path / 'pictures'}", "batch": 8, "steps": 4}
    untrained(first, FOLDER / "autoencoder.py", **NETWORK, **knobs, perceptual="none", critic_weight=0.0)
    vae = latents.load_autoencoder(first)
    main(["convert", str(first), "--out", str(tmp_path / "vae")])
    converted = latents.load_autoencoder(tmp_path)  # "vae" in it
    jax.tree.map(np.testing.assert_array_equal, converted.params, vae.params)
    assert converted.apply.scale == vae.apply.scale != 1
    untrained(workdir, FOLDER / "latent.py", autoencoder=str(first), width=8, **knobs)
    experiment = run.load_run(workdir)
    part = list(islice(experiment.training.batches(0), 8))  # all 64
    mean, std = (np.concatenate([each[name] for each in part]) for name in ("mean", "std"))
    np.testing.assert_allclose(np.mean(mean**2 + std**2) - np.mean(mean) ** 2, 1, rtol=1e-4)
    # What is read is the same wherever a training goes on.
    assert part[1].keys() == {"mean", "std", "label"} and part[1]["mean"].shape == (8, 3, 3, 2)
    jax.tree.map(np.testing.assert_array_equal, part[1], next(experiment.training.batches(1)))
    # A model that always answers the same latents draws what these decode to, whatever is asked for.
    z = jnp.asarray(mean[:1] / vae.apply.scale)
    answer = replace(
        experiment.model,
        apply=lambda params, x, noise, cond: jnp.broadcast_to(vae.apply.normalize(z), x.shape),
        prediction=parameterize.x0,
    )
    short = replace(experiment, model=answer, sampling=replace(experiment.sampling, steps=2))
    params = run.parameters(experiment, workdir)
    x = draw(short, params, 2).x
    np.testing.assert_allclose(x, np.repeat(vae.apply.decode(vae.params, z), 2, axis=0), atol=1e-5)
    drawer = Drawer(experiment)
    pictures = drawer(params, 3, batch=3).x
    assert pictures.shape == (3, size, size, 1) and np.isfinite(pictures).all()
    drawer(params, 3, batch=3, seed=7)
    assert drawer._generate._cache_size() == 1
    # Pictures are edited by way of their latents, and grow; nothing is trained here that would change one.
    picture, mask = tmp_path / "pictures" / "a" / "0.png", tmp_path / "mask.png"
    white = np.arange(size) > 2
    write_pixels(mask, np.uint8(255 * np.tile(white, (size, 1)))[..., None])
    main(["edit", str(workdir), str(picture), "--mask", str(mask), "--steps", "2", "--num", "1", "--strength", "0",
          "--out", str(tmp_path / "same.npz")])  # fmt: skip
    same = np.load(tmp_path / "same.npz")["x"][0]
    pixels = X[:1, :size, :size] / np.float32(127.5) - 1
    coded = vae.apply.decode_latents(vae.params, vae.apply.posterior(vae.params, pixels)[0])[0]
    np.testing.assert_allclose(same[:, white], coded[:, white], atol=1e-5)
    np.testing.assert_array_equal(same[:, ~white], pixels[0][:, ~white])
    grown, large = imagine.of_run(workdir).stage(2), jax.ShapeDtypeStruct((1, 2 * size, 2 * size, 1), jnp.float32)
    assert grown.picture_shape == large.shape[1:] and grown.encode is not None
    assert jax.eval_shape(grown.encode, grown.params, large).shape == (1, 6, 6, 2) == (1, *grown.medium.shape)
    seen = []
    module = import_module("jaxdiff.media.images")
    monkeypatch.setattr(module, "_evaluator", lambda run, condition, *given: seen.append(given))
    experiment.medium.evaluator(workdir, experiment.condition)
    assert seen == [(knobs["source"], (size, size, 1))]  # pictures are measured, not latents
    main(["export", str(workdir), "--platforms", "cpu"])
    assert (workdir / "sampler.jaxdiff").stat().st_size > 0


@pytest.mark.slow
def test_captions_and_pictures_that_are_encoded_in_each_step(tmp_path):
    """Traced alone: the state keeps its shape."""
    knobs = {**NETWORK, "widths": (8, 8, 8), "latent_channels": 3}
    origin = open_origin(Architecture(**knobs), (SIZE, SIZE, 3))
    origin.save(origin.init(jax.random.key(0)), tmp_path, scale=1.5)
    build = run.load(FOLDER / "latent.py")
    made = build(autoencoder=str(tmp_path), source="twemoji", **TINY, steps=2, encode_once=False)
    part, condition = made.training, made.condition
    assert isinstance(condition, Condition) and condition.vocabulary and made.medium.shape == (2, 2, 3)
    update = train.make_update(part.loss, part.optimizer, key=jax.random.key(0), ema=part.ema)
    state = jax.eval_shape(
        lambda key: train.new_state(made.model.init(key), part.optimizer, ema=part.ema), jax.random.key(0)
    )
    batch = {name: jax.ShapeDtypeStruct((8, *spec.shape), spec.dtype) for name, spec in part.batch_spec.items()}
    assert batch.keys() == {"x", "ids", "mask"}
    after, metrics = jax.eval_shape(update, state, batch, made.model.frozen)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state) and "mse" in metrics
    assert made.medium.prompts(3) == [made.medium.prompts(6)[i] for i in (0, 2, 4)]


def test_the_autoencoder_of_a_pipeline_is_found_under_either_name(tmp_path):
    """A network of latents that is fine-tuned without it would be trained on pixels."""
    (tmp_path / "unet").mkdir()
    fields = {"_class_name": "UNet2DModel", "in_channels": 2, "out_channels": 2, "sample_size": 4}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(fields))
    origin = open_origin(Architecture(form="vq", codes=4, **NETWORK), (SIZE, SIZE, 1))
    origin.save(origin.init(jax.random.key(0)), tmp_path / "vqvae", scale=2.0)
    found = read_origin(Network(str(tmp_path)), None)
    assert isinstance(found.autoencoder.apply, VQCodec) and found.autoencoder.apply.scale == 2
    assert found.image_size(0) == SIZE and found.shape((SIZE, SIZE, 1)) == (4, 4, 2)
