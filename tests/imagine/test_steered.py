"""Pictures of a directory that follow others: drawn, varied, edited, and made again bit for bit by their history."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers import tiny_pipeline as tiny
from PIL import Image

import jaxdiff as jd
from jaxdiff import imagine, quantize
from jaxdiff.cli import main
from jaxdiff.cli.errors import sentence
from jaxdiff.edit import edit
from jaxdiff.experiment import UserError
from jaxdiff.seeds import example_keys
from jaxdiff.text_to_image.control import encode_hints
from jaxdiff.text_to_image.steering import hint_cond

# Of a ControlNet, a T2I-Adapter, and of IP-Adapters of a picture, of a face, and of a face with its picture.
SCALES = 0.7, 1.3, 0.6, 0.9, 0.8
PICTURE = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A directory, what steers it, and files to follow; the tiny kernels may have 8 bits."""
    top = tmp_path_factory.mktemp("steered")
    tiny.write(top / "sd"), tiny.write_control(top / "control"), tiny.write_adapter(top / "adapter")
    tiny.write_ip_adapter(top / "ip"), tiny.write_face_adapter(top / "ip" / "face.safetensors")
    tiny.write_face_adapter(top / "ip" / "plus.safetensors", 17, plus=True)
    rng = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(top / f"{name}.png")
    np.save(top / "face.npy", rng.standard_normal(tiny.FACE))
    picture = rng.integers(0, 256, (6, 7, 3), np.uint8)
    np.savez(top / "face.npz", embedding=rng.standard_normal(tiny.FACE), picture=picture, shortcut=0.7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "MIN_SIZE", 64)
        for command in ("imagine", "edit"):  # on one device, as the generator below
            patch.setattr(f"jaxdiff.cli.{command}.parse_mesh", lambda text: None)
        yield top


def controls(top):
    faces = top / "ip/face.safetensors", top / "ip/plus.safetensors"
    return [top / "control", top / "adapter", top / "ip/ip.safetensors", *faces]


def hints(top, scales=SCALES, first="a"):
    texts = f"edges:{top / first}.png", top / "b.png", top / "c.png", top / "face.npy", top / "face.npz"
    return [imagine.make_hint(str(text), scale) for text, scale in zip(texts, scales, strict=True)]


@pytest.fixture(scope="module")
def generator(top):
    return imagine.of_directory(top / "sd", steps=2, controls=controls(top), weights="int8")


@pytest.fixture(scope="module")
def history(generator, top):
    """Four begun, a variation that follows the same, one that follows another hint less."""
    begun = imagine.begin(generator.history, "a cat", hints=hints(top), seed=3)
    varied = imagine.vary(begun, 2, num=1)
    return imagine.vary(varied, 2, num=1, hints=hints(top, (0.2, *SCALES[1:]), "b"))


@pytest.fixture(scope="module")
def drawn(generator, history):
    return imagine.draw(generator, history, range(1, 7))


def test_pictures_are_those_of_the_pipeline(generator, drawn, top):
    """Which evaluates both halves of guidance at once; one program draws all, and 0 is off bit for bit."""
    pipe = jd.text_to_image.load(top / "sd", steps=2, controls=controls(top), param_dtype="int8")
    read = [hint.read(shape) for hint, shape in zip(hints(top), pipe.hint_shapes, strict=True)]
    want = jax.jit(pipe.generate)(
        pipe.params, pipe.tokenize(["a cat"] * 4), example_keys(3, 4), 7.5, negative=pipe.tokenize([""] * 4),
        hints=jax.tree.map(lambda a: np.repeat(a[None], 4, axis=0), read), control_scale=list(SCALES),
    )  # fmt: skip
    np.testing.assert_allclose(want, [drawn[n].picture for n in range(1, 5)], atol=2e-4)
    sampler, stage = generator.sampler(1, True), generator.stage(1)
    compiled = sampler._cache_size()
    assert compiled == 1 and np.std(want) > 0.05
    asked, _ = generator.cond(1, "a cat", 7.5, hints(top))

    def by(params, *scales):
        given = hint_cond(list(stage.controls), read, scales)
        cond = jax.tree.map(lambda a: jax.numpy.asarray(np.repeat(a, 4, axis=0)), asked | given)
        image = jax.numpy.zeros((4, *stage.medium.shape)), jax.numpy.float32(1)
        return np.asarray(sampler(params, example_keys(3, 4), cond, jax.numpy.float32(7.5), image=image)[0])

    none = [0] * len(SCALES)
    off, on = by(stage.params, *none), by(stage.params, *SCALES)
    plain = "unet", "vae", "text_encoder"
    spoiled = {name: p if name in plain else doubled(p) for name, p in stage.params.items()}
    np.testing.assert_array_equal(by(spoiled, *none), off)
    for i in range(5):
        alone = by(stage.params, *(s if i == j else 0 for j, s in enumerate(SCALES)))
        assert np.abs(alone - off).max() > 1e-3 and np.abs(alone - on).max() > 1e-3, i
    assert sampler._cache_size() == compiled


def doubled(params):
    return jax.tree.map(lambda a: 2 * a if np.issubdtype(a.dtype, np.floating) else a, params)


def test_a_history_makes_its_pictures_again(generator, history, drawn, top, tmp_path, capsys):
    """By the command, from the file alone: what steers, what is followed, scales, and weights in 8 bits."""
    small = [leaf for leaf in jax.tree.leaves(generator.stage(1).params) if leaf.dtype == np.int8]
    assert small and generator.history.param_dtype == "int8" and len(generator.history.controls) == 5
    assert np.abs(drawn[5].x0 - drawn[6].x0).max() > 1e-2
    path = tmp_path / "out" / "history.json"
    imagine.write_history(path, imagine.sign(history, drawn))
    main(["imagine", str(top / "sd"), "--again", "6", "--out", str(path.parent)])
    assert "picture 6 is the one that was drawn first, bit for bit" in capsys.readouterr().out
    kept = json.loads(path.read_text())["pictures"][5]["hints"]
    assert [hint["scale"] for hint in kept] == [0.2, *SCALES[1:]] and kept[0]["picture"] == f"edges:{top}/b.png"
    with pytest.raises(ValueError, match=r"begun with .*control, .*, got no controls: begin another one"):
        imagine.of_directory(top / "sd", steps=2).check(history)


def test_a_hint_that_has_changed_is_refused(generator, top, tmp_path):
    file = tmp_path / "a.png"
    shutil.copy(top / "a.png", file)
    steered = [imagine.make_hint(str(file), 1.0), *hints(top)[1:]]
    shutil.copy(top / "b.png", file)
    for ask in (
        lambda: imagine.draw(generator, imagine.begin(generator.history, "a cat", hints=steered), [1]),
        lambda: edit(generator, PICTURE, prompt="a cat", hints=steered),
    ):
        with pytest.raises(UserError, match="has changed since it became the hint") as error:
            ask()
        assert sentence(error.value)


def test_edits_follow_others_as_the_command_has_it(generator, top, tmp_path, monkeypatch):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    steering = controls(top)
    options = [["--control", c, h.picture, h.scale] for c, h in zip(steering, hints(top), strict=True)]
    args = [top / "sd", tmp_path / "a.png", "--prompt", "a cat", "--steps", 2, "--num", 1, "--seed", 5]
    args += [word for option in options for word in option]

    def opened(directory, *, steps, weights, controls, **rest):  # as the generator, whose program is there
        assert (directory, steps, weights) == (top / "sd", 2, "int8") and list(controls) == steering
        return generator

    monkeypatch.setattr("jaxdiff.cli.edit.open_generator", opened)
    main(["edit", *map(str, args), "--weights", "int8", "--out", str(tmp_path / "x.npz")])
    ours = edit(generator, PICTURE, prompt="a cat", hints=hints(top), seed=5)
    np.testing.assert_allclose(np.load(tmp_path / "x.npz")["x"], ours, atol=1e-5)
    off = edit(generator, PICTURE, prompt="a cat", hints=hints(top, [0] * len(SCALES)), seed=5)
    assert np.abs(ours - off).max() > 1e-3
    with pytest.raises(UserError, match="5 controls take as many pictures to follow, got 0"):
        edit(generator, PICTURE, prompt="a cat")
    with pytest.raises(UserError, match="controlnet takes hints of 8 x 8 pixels, and the canvas is larger"):
        edit(generator, PICTURE, prompt="a cat", hints=hints(top), outpaint=(2, 0, 0, 0))


def test_a_face_with_its_picture_is_projected_by_the_adapter(top):
    """As by the adapter and the image encoder alone; in place of none a face and a picture of zeros."""
    parts = jd.text_to_image.describe(top / "sd", steps=2, controls=controls(top)[4:])
    params = jd.text_to_image.load(top / "sd", steps=2, controls=controls(top)[4:]).params
    alone = jd.interop.load_ip_adapter(top / "ip/plus.safetensors", jd.interop.load(top / "sd/unet")).projection
    clip = jd.interop.load(top / "ip/image_encoder")
    face = jax.tree.map(lambda a: a[None], hints(top)[4].read({"embedding": (tiny.FACE,), "picture": None}))
    pixels = jd.text.clip_pixels(face["picture"], clip.config["image_size"])
    see = jax.jit(lambda params, pixels: clip.apply(params, pixels, layer=-2).hidden)
    patches = {factor: see(clip.params, factor * pixels) for factor in (1, 0)}
    encode = jax.jit(lambda params, hint: encode_hints(parts.models, params, parts.controls, [hint]))
    project = jax.jit(alone.apply)
    for shortcut in ({}, {"shortcut": face["shortcut"]}):  # of Plus and of Plus v2
        hint = {"embedding": face["embedding"], "picture": face["picture"], **shortcut}
        found = encode(params, hint)
        for each, factor in zip(found, (1, 0), strict=True):
            want = project(alone.params, factor * face["embedding"], patches[factor], *shortcut.values())
            np.testing.assert_allclose(each["image_prompt"][0], want, atol=1e-5)


def test_mistakes_of_shapes(top):
    pipe = jd.text_to_image.load(top / "sd", steps=2, controls=controls(top)[2:4])
    assert pipe.hint_shapes == (None, (tiny.FACE,)) and sorted(pipe.params)[:2] == ["image_encoder", "ip_adapter"]
    picture, face = np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, tiny.FACE), np.float32)
    for given, words in (
        (
            (picture, picture),
            r"ip_adapter_1 must be embeddings of faces of shape \(1, 5\), got float32, \(1, 8, 8, 3\)",
        ),
        ((picture, face[:, :4]), r"ip_adapter_1 must be embeddings of faces of shape \(1, 5\), got float32, \(1, 4\)"),
        ((face, face), r"ip_adapter must be floats in \[0, 1\] of shape \(1, 'H', 'W', 3\), got float32, \(1, 5\)"),
    ):
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(lambda h=given: pipe.generate(pipe.params, pipe.tokenize(["a"]), jax.random.key(0), hints=h))
    plus = jd.text_to_image.load(top / "sd", steps=2, controls=controls(top)[4:])
    assert plus.hint_shapes == ({"embedding": (tiny.FACE,), "picture": None},)
    for given, words in (
        (face, r"ip_adapter must be a dict of embedding, picture, and maybe shortcut, got ndarray"),
        ({"embedding": face, "patches": picture}, r"must be a dict of .* got embedding, patches"),
        ({"embedding": face, "picture": face}, r"ip_adapter, picture, must be floats in \[0, 1\] of shape \(1, 'H'"),
        ({"embedding": face, "picture": picture, "shortcut": np.ones(2)}, r"shortcut, must be weights of shape \(1,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(
                lambda h=given: plus.generate(plus.params, plus.tokenize(["a"]), jax.random.key(0), hints=[h])
            )
    # Adapters of one folder share the image encoder.
    both = jd.text_to_image.load(top / "sd", steps=2, controls=[controls(top)[2]] * 2)
    first, second = (jax.tree.leaves(both.params[name]) for name in ("image_encoder", "image_encoder_1"))
    assert all(a is b for a, b in zip(first, second, strict=True))
