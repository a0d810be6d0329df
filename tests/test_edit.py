"""Edited pictures of Gaussian classes, whose laws are known; and the command."""

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_classes as tiny
from helpers import tiny_pipeline
from helpers.devices import one_device
from helpers.untrained import unpacked
from PIL import Image

from jaxdiff import conditions, imagine, solvers, text_to_image, train
from jaxdiff.cli import main
from jaxdiff.cli.errors import sentence
from jaxdiff.cli.pictures import read_mask
from jaxdiff.edit import draw, edit
from jaxdiff.edit.source import align_tokens
from jaxdiff.experiment import UserError
from jaxdiff.seeds import example_keys

PICTURE = np.random.default_rng(0).integers(0, 256, tiny.SHAPE).astype(np.uint8)
X0 = np.float32(PICTURE) / 127.5 - 1
SNEAKER, BAG, NULL = 0, 2, 3


@pytest.fixture(scope="module")
def generator():
    made = tiny.experiment()
    return imagine.of_experiment(made, made.model.init(None))


def guided(label):
    return tiny.MEANS[NULL] + tiny.GUIDANCE * (tiny.MEANS[label] - tiny.MEANS[NULL])


def test_a_prompt_draws_the_noised_picture(generator):
    for options in ({}, {"source": "Sneaker"}):
        np.testing.assert_array_equal(edit(generator, PICTURE, prompt="Bag", strength=0.0, **options), X0[None])
    drawn = edit(generator, PICTURE, prompt="Bag", strength=0.5, num=2, seed=3)
    for i in range(2):
        np.testing.assert_allclose(drawn[i], tiny.by_hand(BAG, tiny.noise(3, i + 1), X0, 0.5), atol=1e-5)


def test_a_source_moves_the_picture_by_the_difference_of_the_classes(generator):
    """The edit of two Gaussians of one variance is a number, whatever the noise: by its recursion in numpy."""
    drawn = edit(generator, PICTURE, prompt="Bag", source="Sneaker", strength=0.75, guidance=tiny.GUIDANCE)
    times = np.linspace(tiny.FIRST, 0, tiny.STEPS + 1)[tiny.STEPS // 4 :]
    apart, d = guided(BAG) - tiny.MEANS[SNEAKER], 0.0
    for t, s in pairwise(times):
        change = tiny.denoised(d, apart, t)
        d = s / t * d + ((1 - s) - (1 - t) * s / t) * change
    np.testing.assert_allclose(drawn[0], X0 + d, atol=1e-5)
    assert 0.3 < d < apart


@pytest.mark.slow
def test_the_noise_that_gives_the_picture_draws_the_prompt(generator):
    """The edit of two Gaussians of one variance is a number here, too: the recursion of DDPM's mean in numpy."""
    edited = partial(edit, generator, PICTURE, strength=0.75)
    by_noise = edited(prompt="Bag", source="Sneaker", method="edit_friendly", guidance=tiny.GUIDANCE)
    times = np.linspace(tiny.FIRST, 0, tiny.STEPS + 1)[tiny.STEPS // 4 :]
    apart, d = guided(BAG) - tiny.MEANS[SNEAKER], 0.0
    for t, s in pairwise(times):
        kept = (1 - t) / (1 - s) * (s / t) ** 2
        d = kept * d + (1 - s) * (1 - ((1 - t) * s / (t * (1 - s))) ** 2) * tiny.denoised(d, apart, t)
    np.testing.assert_allclose(by_noise[0], X0 + d, atol=1e-5)
    # A network without attention has no maps to replace, and what a picture shows already changes nothing.
    by_maps = edited(prompt="Bag", source="Sneaker", method="prompt_to_prompt", guidance=tiny.GUIDANCE)
    np.testing.assert_allclose(by_maps, by_noise, atol=1e-5)
    same = edited(prompt="Bag", source="Bag", method="prompt_to_prompt", guidance=1.0)
    np.testing.assert_allclose(same[0], X0, atol=1e-5)


def test_tokens_are_aligned_with_those_of_the_source():
    """Words as they were, words for as many others, and new ones; in front of the padding."""
    source, cond = ({"ids": np.array([ids])} for ids in ([1, 5, 6, 7, 2, 0, 0, 0], [1, 5, 8, 7, 3, 4, 2, 0]))
    np.testing.assert_array_equal(align_tokens(source, cond), [0, 1, 2, 3, -1, -1, 4, 5])
    assert align_tokens({"label": np.array([1])}, {"label": np.array([2])}) is None


@pytest.mark.slow
def test_another_picture_prompt_strength_or_mask_compiles_nothing():
    experiment = tiny.experiment()
    fresh = imagine.of_experiment(experiment, experiment.model.init(None))
    left, right = np.arange(6)[None] < np.array([2, 4])[:, None]
    for picture, prompt, strength, guidance, mask in (
        (PICTURE, "Bag", 0.5, 2.0, left),
        (255 - PICTURE, "Sneaker", 0.8, 3.0, right),
    ):
        given = partial(edit, fresh, picture, prompt=prompt, strength=strength, guidance=guidance)
        given()
        given(mask=np.tile(mask, (6, 1)))
        given(source="Sneaker")
    assert fresh.compiled(draw._redrawn, guided=True, mesh=None)._cache_size() == 2  # with a mask and without
    assert fresh.compiled(draw.editor, "flow_edit", guided=True)._cache_size() == 1
    assert fresh.compiled(draw._encoder)._cache_size() == 1


@pytest.mark.slow
def test_on_eight_devices_as_on_one(generator):
    experiment = tiny.experiment()
    spread = imagine.of_experiment(experiment, experiment.model.init(None), mesh=train.make_mesh())
    mask = np.tile(np.arange(6) > 2, (6, 1))
    for options in ({"mask": mask}, {"outpaint": (2, 0, 0, 0)}, {}):
        wanted, drawn = (edit(each, PICTURE, prompt="Bag", num=3, **options) for each in (generator, spread))
        np.testing.assert_allclose(drawn, wanted, atol=1e-6)
        assert np.abs(drawn[0] - drawn[1]).max() > 0.1


@pytest.mark.slow
def test_a_part_is_drawn_and_the_rest_stays(generator):
    mask = np.zeros(tiny.SHAPE[:2], bool)
    mask[:, 3:] = True
    for prompt, mean in (("Bag", guided(BAG)), (None, tiny.MEANS[NULL])):
        drawn = edit(generator, PICTURE, prompt=prompt, mask=mask, num=200)
        np.testing.assert_array_equal(drawn[:, ~mask], np.broadcast_to(X0[~mask], (200, 18, 1)))
        new = drawn[:, mask]
        assert abs(new.mean() - mean) < 4 * tiny.STD / np.sqrt(new.size) + 0.02  # of 8 steps
        assert 0.6 * tiny.STD < new.std() < 1.2 * tiny.STD  # few steps draw too little
    wide = edit(generator, PICTURE, prompt="Bag", outpaint=(2, 1, 0, 3), num=50)
    assert wide.shape == (50, 9, 9, 1)
    np.testing.assert_array_equal(wide[:, :6, 2:8], np.broadcast_to(X0, (50, *tiny.SHAPE)))
    assert abs(wide[:, 6:].mean() - guided(BAG)) < 0.05
    apart = np.abs(wide[0] - wide[1])
    assert apart[6:].min() > 0 and apart[:6, 2:8].max() == 0


def test_what_a_model_is_given_without_a_prompt():
    """Nothing where there is no condition; and where `null` has a part of it, the rest has to be said."""
    made = tiny.experiment(guidance=1.0)
    asked = []

    def apply(params, x, noise, cond):
        asked.append(sorted(cond))
        return made.model.apply(params, x, noise, {"label": np.full(len(x), NULL)})

    plain = replace(made, model=replace(made.model, apply=apply), condition=conditions.none())
    generator = imagine.of_experiment(plain, made.model.init(None))
    drawn = edit(generator, PICTURE, outpaint=(0, 2, 0, 0))
    assert drawn.shape == (1, 6, 8, tiny.SHAPE[2]) and asked and not any(asked)
    begun = imagine.draw(generator, imagine.begin(generator.history, "", seed=3), [2])[2]
    np.testing.assert_allclose(begun.x0, tiny.by_hand(NULL, tiny.noise(3, 2)), atol=1e-5)
    hinted = conditions.hint(made.condition, np.zeros((3, *tiny.SHAPE), np.uint8))
    steered = imagine.of_experiment(replace(made, condition=hinted), made.model.init(None))
    with pytest.raises(UserError, match="without a prompt, which gives it hint"):
        edit(steered, PICTURE, outpaint=(0, 2, 0, 0))


@pytest.mark.parametrize("method", ["flow_edit", "edit_friendly"])
def test_conditions_are_augmented_for_a_prompt_and_its_source_alike(method):
    """A model that is given the class only by `augment` moves the picture as the one that is given it directly."""
    made = tiny.experiment()

    def apply(params, x, noise, cond):
        return made.model.apply(params, x, noise, {"label": cond["class"]})

    condition = replace(made.condition, augment=lambda key, cond: {**cond, "class": cond["label"]})
    condition = replace(
        condition, encode=lambda params, cond: {**cond, "class": cond["label"]} if "class" in cond else {}
    )
    other = replace(made, model=replace(made.model, apply=apply), condition=condition)
    options = {"prompt": "Bag", "source": "Sneaker", "method": method, "strength": 0.75}
    drawn = [edit(imagine.of_experiment(one, made.model.init(None)), PICTURE, **options) for one in (made, other)]
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-6)


def test_what_denoisers_give_is_clipped_as_for_samples():
    """Clipped to nothing at all, a prompt and its source differ by nothing."""
    made = tiny.experiment()
    clipped = replace(made.sampling, clip=lambda denoise: lambda x, level: 0 * denoise(x, level))
    drawn = edit(
        imagine.of_experiment(replace(made, sampling=clipped), made.model.init(None)), PICTURE, prompt="Bag",
        source="Sneaker",
    )  # fmt: skip
    np.testing.assert_allclose(drawn[0], X0, atol=1e-6)


def test_mistakes(generator):
    black = np.zeros(tiny.SHAPE[:2], bool)
    for options, words in (
        ({"prompt": "Bag", "strength": 1.1}, r"strength must lie in \[0, 1\], got 1.1"),
        ({"mask": ~black + 0.5}, "a mask is 1 where the picture is drawn anew and else 0"),
        ({"strength": 0.5, "guidance": 2.0}, "guidance leads to a prompt"),
        ({"prompt": "Bag", "style_weight": 2.0}, "goes with a style"),
        ({"source": "Bag"}, "beside a prompt"),
        ({"prompt": "Bag", "source": "Bag", "outpaint": (1, 0, 0, 0)}, "goes without mask and edges"),
        ({"prompt": "Bag", "method": "edit_friendly"}, "it goes with a source"),
        ({"mask": black}, "black everywhere"),
        ({"mask": black[:3]}, r"a mask has the size of its picture, \(6, 6\), got \(3, 6\)"),
        ({"outpaint": (0, -1, 0, 0)}, "number of pixels, at least 0"),
        ({"prompt": "Bag", "guidance": float("nan")}, "guidance must be a number from -1,000 to 1,000, got nan"),
        ({"prompt": "Bag", "guidance": float("inf")}, "guidance must be a number from -1,000 to 1,000, got inf"),
        ({"prompt": "Bag", "guidance": 0.0}, "guidance 0 draws without the prompt"),
        ({"prompt": "Hat"}, "Hat"),
    ):
        with pytest.raises((UserError, ValueError), match=words) as error:
            edit(generator, PICTURE, **options)
        assert sentence(error.value)
    with pytest.raises(
        ValueError, match="method must be one of flow_edit, edit_friendly, prompt_to_prompt, got 'flow'"
    ):
        edit(generator, PICTURE, prompt="Bag", source="Bag", method="flow")
    made = tiny.experiment()
    noisy = replace(made, sampling=replace(made.sampling, solver=solvers.euler_ancestral()))
    with pytest.raises(UserError, match="flow_edit follows an ODE, and this solver draws noise"):
        edit(imagine.of_experiment(noisy, made.model.init(None)), PICTURE, prompt="Bag", source="Bag")
    with pytest.raises(UserError, match="at most 89,478,485 pixels, got 15,000,006 x 6"):
        draw._canvas(generator.stage(1), PICTURE, None, (0, 15_000_000, 0, 0))
    with pytest.raises(UserError, match="not as large"):
        edit(generator, PICTURE[:4], prompt="Bag")


def test_mistakes_of_the_command(tmp_path, capsys):
    for args, words in (
        ((), "edit takes --prompt, --strength, --style, --mask or --outpaint"),
        (("--prompt", "Bag", "--out", str(tmp_path / "b.jpg")), "--out must end in .png or .npz, or be a folder, got"),
        (("--prompt", "Bag", "--out", str(tmp_path / "b.PNG")), "--out must end in .png or .npz, or be a folder, got"),
        (("--prompt", "Bag", "--size", "8", "8"), "is no text-to-image directory"),
        (("--outpaint", "0", "15000000", "9", "0"), "has at most 89,478,485 pixels, got 15,000,001 x 10"),
        (("--strength", "0.5"), "cannot read the image"),
        (("--prompt", "Bag"), "a.png"),
        (("--outpaint", "0", "8000000", "0", "0"), "has at most 89,478,485 pixels, got 8,000,012 x 12"),
    ):
        with pytest.raises(SystemExit):
            main(["edit", str(tmp_path / "run"), str(tmp_path / "a.png"), "--out", str(tmp_path / "b.png"), *args])
        assert words in " ".join(capsys.readouterr().err.split())
        if words == "a.png":  # which was not there
            Image.new("L", (12, 12)).save(tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_mask_is_black_and_white_but_for_its_edges(tmp_path):
    of = lambda rows: Image.fromarray(np.tile(np.uint8(rows), (8, 1))).save(tmp_path / "mask.png")  # noqa: E731
    read = lambda: read_mask(tmp_path / "mask.png", (8, 8), fit=False)  # noqa: E731
    of([0, 0, 0, 40, 200, 255, 255, 130])
    np.testing.assert_array_equal(read(), np.tile(np.arange(8) > 3, (8, 1)))
    for grey, share in ([90] * 8, "100%"), (np.arange(8) * 36, "50%"):
        of(grey)
        with pytest.raises(ValueError, match=f"is grey in {share} of its pixels: a mask is black and white"):
            read()


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch, capsys):
    """A run that comes with the package: a sneaker's right half, and beyond its right edge."""
    monkeypatch.chdir(tmp_path)
    unpacked("fashion", Path("fashion"))
    shoe, mask = np.zeros((28, 28), np.uint8), np.zeros((28, 28), np.uint8)
    shoe[12:20, 4:24], mask[:, 14:] = 200, 255
    Image.fromarray(shoe).save("shoe.png")
    Image.fromarray(mask).convert("RGB").save("mask.png")  # as most programs save black and white
    with one_device():
        main(["edit", "fashion", "shoe.png", "--prompt", "Sneaker", "--mask", "mask.png", "--outpaint", "0", "4", "0",
              "0", "--num", "2", "--steps", "3", "--out", "new.npz"])  # fmt: skip
    x = np.load("new.npz")["x"]
    assert x.shape == (2, 28, 32, 1)
    np.testing.assert_array_equal(x[:, :, :14, 0], np.broadcast_to(np.float32(shoe[:, :14]) / 127.5 - 1, (2, 28, 14)))
    main(["edit", "fashion", "shoe.png", "--prompt", "Sneaker", "--steps", "3", "--strength", "0.4", "--num", "1",
          "--weights", "int8", "--out", "small.npz"])  # fmt: skip
    small = imagine.of_run("fashion", weights="int8")
    assert small.history.weights != imagine.of_run("fashion").history.weights  # of its pictures' history
    assert 0 < np.abs(np.load("small.npz")["x"][0, :, :, 0] - (np.float32(shoe) / 127.5 - 1)).mean() < 0.3
    with pytest.raises(SystemExit):
        main(["edit", "fashion", "mask.png", "--prompt", "Sneaker", "--mask", "new.npz"])
    Image.fromarray(shoe[:20]).save("small.png")
    with pytest.raises(SystemExit):
        main(["edit", "fashion", "shoe.png", "--prompt", "Sneaker", "--mask", "small.png"])
    assert "the mask small.png is 28 x 20 pixels, and its picture 28 x 28" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        main(["edit", "fashion", "small.png", "--prompt", "Sneaker"])
    assert "--fit scales" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_run_of_latents_edits_pictures():
    """Encoded, drawn as latents are, and decoded; a latent, of 2 x 2 pixels here, is known where all its pixels are."""
    made = tiny.experiment()

    def encode(params, images):
        return 0.5 * images.reshape(len(images), images.shape[1] // 2, 2, -1, 2, 1).mean((2, 4)) + 0.1

    def decode(params, z):
        return 2 * (z - 0.1).repeat(2, axis=1).repeat(2, axis=2)

    latent = replace(made, medium=replace(made.medium, decode=decode, encode=encode))
    generator = imagine.of_experiment(latent, made.model.init(None))
    pictures = np.random.default_rng(1).integers(0, 256, (2, 12, 12, 1)).astype(np.uint8)
    x = np.float32(pictures) / 127.5 - 1
    z = np.asarray(encode(None, x))
    drawn = partial(edit, generator, pictures[0], prompt="Bag")
    np.testing.assert_allclose(drawn(strength=0.0), decode(None, z[:1]), atol=1e-6)
    changed = tiny.by_hand(BAG, tiny.noise(3, 1), z[0], 0.5)
    np.testing.assert_allclose(drawn(strength=0.5, seed=3), decode(None, changed[None]), atol=1e-5)
    # Nothing of a picture is left where all of it is drawn anew.
    full = [edit(generator, picture, prompt="Bag", mask=np.ones((12, 12), bool)) for picture in pictures]
    np.testing.assert_array_equal(*full)
    mask = np.zeros((12, 12), bool)
    mask[:, 7:] = True
    part = drawn(mask=mask, num=2)
    np.testing.assert_array_equal(part[:, ~mask], np.broadcast_to(x[0][~mask], (2, 84, 1)))
    assert np.abs(part[0] - part[1])[mask].min() > 0  # also in the latent of column 7, half of which is known
    np.testing.assert_array_equal(part[:, ::2, 8:], part[:, 1::2, 8:])
    # At no strength it is what the latents decode to.
    np.testing.assert_allclose(drawn(mask=mask, strength=0.0)[0, mask], decode(None, z[:1])[0][mask], atol=1e-6)
    wide = drawn(outpaint=(0, 2, 0, 0))
    assert wide.shape == (1, 12, 14, 1)
    np.testing.assert_array_equal(wide[0, :, :12], x[0])


@pytest.mark.slow
def test_a_part_of_a_picture_by_a_directory(tmp_path):
    """Stable Diffusion with its own scheduler, which repeats a level: where latents are known, and pixels that stay."""
    tiny_pipeline.write(tmp_path / "sd")
    config = tmp_path / "sd" / "scheduler" / "scheduler_config.json"
    published = {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    config.write_text(json.dumps(json.loads(config.read_text()) | published))
    generator = imagine.of_directory(tmp_path / "sd", steps=2)
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[:, 5:] = True  # a latent is 2 x 2 pixels
    drawn = edit(generator, picture, prompt="a cat", mask=mask, num=2)
    np.testing.assert_array_equal(drawn[:, ~mask], np.broadcast_to(np.float32(picture[~mask]) / 127.5 - 1, (2, 40, 3)))
    assert np.abs(drawn[0] - drawn[1])[mask].max() > 1e-3
    # By its own prompt the picture stays what its latents decode to, by another one it changes.
    stay, move = (
        edit(generator, picture, prompt=prompt, source="a cat", method="prompt_to_prompt", guidance=scale, strength=1.0)
        for prompt, scale in (("a cat", 1.0), ("a dog", 3.0))
    )
    stage = generator.stage(1)
    coded = stage.medium.decode(stage.params, stage.encode(stage.params, np.float32(picture[None]) / 127.5 - 1))
    np.testing.assert_allclose(stay, np.asarray(coded), atol=1e-4)
    assert np.abs(move - stay).max() > 1e-3
    np.testing.assert_allclose(edit(generator, picture, prompt="a dog", strength=0.0)[:1], np.asarray(coded), atol=1e-4)


@pytest.mark.slow
def test_a_part_of_a_picture_by_a_network_for_inpainting(tmp_path, capsys):
    tiny_pipeline.write(tmp_path / "sd", inpainting=True)
    with pytest.raises(ValueError, match="for inpainting"):
        imagine.of_directory(tmp_path / "sd")
    generator = imagine.of_directory(tmp_path / "sd", steps=2, inpaint=True)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[:, 3:] = True  # a latent is 2 x 2 pixels
    with pytest.raises(UserError, match="draws a part of a picture"):
        edit(generator, picture, prompt="a cat")
    # The pipeline's pictures, which are the reference's (tests/parity/test_pipelines.py), with whole latents anew where
    # any of their pixels is, and the old part as it was.
    pipe = text_to_image.load(tmp_path / "sd", steps=2)
    x = np.float32(picture[None]) / 127.5 - 1
    both = {"image": np.repeat(x, 2, 0), "mask": np.tile(np.arange(8) >= 2, (2, 8, 1))}
    tokens, negative = (pipe.tokenize([words] * 2) for words in ("a cat", ""))
    options = both | {"negative": negative, "guidance": 3.0}
    for strength in (1.0, 0.5):
        wanted = pipe.generate(pipe.params, tokens, example_keys(0, 2), strength=strength, **options)
        drawn = edit(generator, picture, prompt="a cat", mask=mask, num=2, strength=strength, guidance=3.0)
        np.testing.assert_allclose(drawn, np.where(mask[..., None], wanted, x), atol=1e-5)
        assert np.abs(drawn[0] - drawn[1])[mask].max() > 1e-3
    # Beyond the edges, too, it sees what is around.
    other = np.where(mask[..., None], picture, 255 - picture).astype(np.uint8)
    wide, inverted = (edit(generator, p, prompt="a cat", outpaint=(4, 0, 0, 2)) for p in (picture, other))
    assert wide.shape == (1, 10, 12, 3)
    np.testing.assert_array_equal(wide[:, :8, 4:], x)
    assert np.abs(wide - inverted)[:, :, :4].max() > 1e-5
    Image.fromarray(picture).save(tmp_path / "picture.png")
    command = ["edit", str(tmp_path / "sd"), str(tmp_path / "picture.png"), "--prompt", "a cat", "--steps", "2"]
    command += ["--out", str(tmp_path / "edited.npz")]
    with pytest.raises(SystemExit):
        main(command)
    assert "draws a part of a picture" in capsys.readouterr().err
    main([*command, "--outpaint", "0", "2", "0", "0", "--solver", "EulerDiscreteScheduler"])
    assert np.load(tmp_path / "edited.npz")["x"].shape == (4, 8, 10, 3)
