"""A data set becomes latents and features of its texts, on which experiments train and from which they decode."""

from itertools import pairwise
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_pipeline import write
from PIL import Image

from jaxdiff import data, interop, text_to_image
from jaxdiff.cli import encode, main
from jaxdiff.train.lock import Lock

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CLASSES = ("boot", "coat", "shirt")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Seven images of each class of Fashion-MNIST, as files."""
    folder, x = (
        tmp_path_factory.mktemp("pictures"),
        data.load_arrays(data.open_dataset("fashion_mnist", "test"), 21)["x"],
    )
    for i, image in enumerate(x[..., 0]):
        (folder / CLASSES[i // 7]).mkdir(exist_ok=True)
        Image.fromarray(image).resize((16, 16)).save(folder / CLASSES[i // 7] / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def latents(pipeline, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("latents")
    command = ["encode", str(pipeline), "--source", f"folder:{pictures}", "--size", "16", "--prompt", "a {}"]
    main([*command, "--out", str(out), "--batch", "8", "--rows", "25"])
    return out


@pytest.mark.parametrize("sizes", [(3, 4, 5), (12,), (1, 11)])
def test_shards_have_all_rows_in_their_order(sizes):
    starts = np.cumsum((0, *sizes))
    batches = [{"mean": np.arange(a, b), "label": -np.arange(a, b)} for a, b in pairwise(starts)]
    shards = list(encode._shards(iter(batches), 5))
    assert [len(shard["mean"]) for shard in shards] == [5, 5, 2]
    for name, sign in (("mean", 1), ("label", -1)):
        np.testing.assert_array_equal(np.concatenate([shard[name] for shard in shards]), sign * np.arange(12))
    assert [len(each["mean"]) for each in encode._shards(iter(batches), 6)] == [6, 6]


@pytest.mark.slow
def test_latents_are_those_of_the_images_and_of_their_mirrors(pipeline, pictures, latents):
    files = [np.load(latents / name) for name in ("00000.npz", "00001.npz")]
    assert [len(file["mean"]) for file in files] == [25, 17] and not (latents / "00002.npz").exists()
    found = {name: np.concatenate([file[name] for file in files]) for name in ("mean", "std", "label", "tokens")}
    images = data.load_arrays(data.open_dataset(f"folder:{pictures}", channels=3))
    x, vae = data.to_float(images["x"]), interop.load(pipeline / "vae")
    mean, std = vae.apply.encode(vae.params, jnp.concatenate([x, x[:, :, ::-1]]))
    # The latents of a batch of eight, then those of its mirrors.
    order = np.concatenate([[*range(b, min(b + 8, 21)), *range(21 + b, 21 + min(b + 8, 21))] for b in (0, 8, 16)])
    scale = vae.apply.scale
    np.testing.assert_allclose(found["mean"], scale * np.asarray(mean)[order], rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(found["std"], scale * np.asarray(std)[order], rtol=2e-3)
    np.testing.assert_array_equal(found["label"], np.tile(images["label"], 2)[order])
    said = text_to_image.encode_prompts(pipeline, [*(f"a {name}" for name in CLASSES), ""], size=(16, 16))
    np.testing.assert_allclose(found["tokens"], said["tokens"][found["label"]], rtol=2e-3, atol=1e-3)
    table = data.load_embeddings(latents / "prompts" / "classes.npz")
    np.testing.assert_allclose(table["tokens"], said["tokens"], rtol=2e-3, atol=1e-3)


@pytest.mark.slow
def test_pictures_with_captions_have_those_of_their_captions(pipeline, tmp_path):
    """Of nine pictures, in batches of eight; the second of the two captions of a picture is not read."""
    said = ["boot", "coat", "hat", "bag", "dress", "shirt", "sock", "tie", "belt"]
    (tmp_path / "pictures").mkdir()
    for i, text in enumerate(said):
        Image.new("RGB", (16, 16), (25 * i, 0, 0)).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text(f"{text}\nshoe\n")
    out = tmp_path / "out"
    command = ["encode", str(pipeline), "--source", f"folder:{tmp_path / 'pictures'}", "--size", "16", "--no-flip"]
    main([*command, "--prompt", "a {}", "--batch", "8", "--out", str(out)])
    expected = text_to_image.encode_prompts(pipeline, [*(f"a {text}" for text in said), ""], size=(16, 16))
    file, table = np.load(out / "00000.npz"), data.load_embeddings(out / "prompts" / "captions.npz")
    assert set(file) == {"mean", "std", "tokens"}
    np.testing.assert_allclose(file["tokens"], expected["tokens"][:9], rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(table["tokens"], expected["tokens"], rtol=2e-3, atol=1e-3)
    moment = np.zeros(file["mean"].shape[1:], np.float32)
    shards = data.NpzShards(out, {"mean": moment, "tokens": np.zeros(file["tokens"].shape[1:], np.float32)})
    assert len(shards) == 9 and (shards[3]["tokens"] != shards[1]["tokens"]).any()


@pytest.mark.slow
def test_dit_of_them_trains_and_its_samples_are_decoded(pipeline, latents, tmp_path):
    knobs = {"steps": 2, "batch": 8, "width": 32, "layers": 2, "num_heads": 2, "num-classes": 3, "preview-every": 10}
    knobs |= {"source": latents, "autoencoder": pipeline / "vae", "workdir": tmp_path / "run", "mesh": "data=2,fsdp=4"}
    given = [text for name, value in knobs.items() for text in (f"--{name}", str(value))]
    main(["train", str(EXPERIMENTS / "imagenet256_dit.py"), *given, "--latent", "8", "8", "4"])
    # Twenty images of 16 pixels, a class in each of three columns, with gaps of 2.
    assert Image.open(tmp_path / "run" / "samples.png").size == (3 * 18 - 2, 7 * 18 - 2)


@pytest.mark.slow
def test_mistakes(pipeline, tmp_path, capsys):
    np.savez(tmp_path / "0.npz", x=np.zeros(1))
    for given, message in (
        (["--out", str(tmp_path)], "already has .npz files"),
        (["--out", str(tmp_path / "new"), "--source", "fashion-mnist"], "did you mean 'fashion_mnist'"),
    ):
        with pytest.raises(SystemExit):
            main(["encode", str(pipeline), *given])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    with Lock(tmp_path / "taken", what="encoding"), pytest.raises(SystemExit):
        main(["encode", str(pipeline), "--out", str(tmp_path / "taken"), "--source", "fashion_mnist", "--size", "16"])
    assert "taken is in use by process" in capsys.readouterr().err
