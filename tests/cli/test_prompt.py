"""`jaxdiff sample DIRECTORY --prompt`: pictures of a text-to-image directory, and what is said to mistakes."""

import json

import jax
import numpy as np
import pytest
from helpers import tiny_pipeline as tiny
from helpers.devices import one_device
from PIL import Image

from jaxdiff import sharding, text_to_image
from jaxdiff.cli import main
from jaxdiff.seeds import example_keys


def fails(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(["sample", *map(str, args)])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_runs_folder_has_no_prompt_and_a_directory_needs_one(tmp_path, capsys):
    assert "no model_index.json" in fails(capsys, tmp_path, "--prompt", "a cat", "--size", "8", "8")
    assert "holds no run" in fails(capsys, tmp_path, "--prompt", "a cat")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "AudioPipeline"}))
    assert "unknown pipeline 'AudioPipeline'" in fails(capsys, tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    assert "needs --prompt" in fails(capsys, tmp_path)
    assert "no --params" in fails(capsys, tmp_path, "--prompt", "a cat", "--params", "ema")
    assert "of the axes data" in fails(capsys, tmp_path, "--prompt", "a cat", "--mesh", "8")
    assert "no --label" in fails(capsys, tmp_path, "--prompt", "a cat", "--label", "1")
    assert "from 1 to" in fails(capsys, tmp_path, "--prompt", "a cat", "--num", "0")
    assert ".png or .npz" in fails(capsys, tmp_path, "--prompt", "a cat", "--out", "a.gif")


@pytest.mark.slow
def test_a_prompt_makes_pictures(tmp_path, capsys, monkeypatch):
    directory = str(tiny.write(tmp_path / "model"))
    monkeypatch.chdir(tmp_path)
    common = ["sample", directory, "--prompt", "a cat", "--steps", "2", "--seed", "1"]
    main([*common, "--num", "3", "--size", "8", "12", "--guidance", "3"])
    said = capsys.readouterr()
    assert said.out.split()[-1] == "samples-1" and "2/2" in said.err
    names = sorted(path.name for path in (tmp_path / "samples-1").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png"]
    assert Image.open(tmp_path / "samples-1" / names[0]).size == (12, 8)

    arrays = {}
    for name, options in {
        "off": ["--guidance", "1"], "away": ["--negative", "dog"], "euler": ["--solver", "EulerDiscreteScheduler"],
    }.items():  # fmt: skip
        out = tmp_path / f"{name}.npz"
        with one_device():
            main([*common, "--num", "2", "--out", str(out), *options])
        arrays[name] = np.load(out)["x"]
        assert arrays[name].shape == (2, 8, 8, 3)
    # The state is split, too; one device alone is told the same.
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 64)
    # In three batches: four parts; three prompts in turn.
    many = ["--prompt", "a cat", "--prompt", "dogs", "--num", "10", "--mesh", "data=2,fsdp=2,tensor=2"]
    main([*common, *many, "--out", str(tmp_path / "many.npz")])
    drawn = np.load(tmp_path / "many.npz")
    prompts = ["a cat", "a cat", "dogs", "dogs"]
    chosen = [0, 1, 2, 8]
    assert drawn["prompt"][chosen].tolist() == prompts
    assert "6/6" in capsys.readouterr().err
    pipe = text_to_image.load(directory, steps=2)
    options = {"guidance": pipe.guidance, "negative": pipe.tokenize([""] * 4)}
    keys = example_keys(1, 10)[np.array(chosen)]
    alone = jax.jit(pipe.generate)(pipe.params, pipe.tokenize(prompts), keys, **options)
    np.testing.assert_allclose(drawn["x"][chosen], alone, atol=2e-5)
    for name, x in arrays.items():
        assert np.abs(x - alone[:2]).max() > 1e-4, name
    for weights in (tmp_path / "model").rglob("*.safetensors"):  # mistakes show before these are read
        weights.unlink()
    assert "classifier-free" in fails(capsys, *common[1:], "--guidance", "1", "--negative", "dog")
    assert "guidance 0 draws without the prompt" in fails(capsys, *common[1:], "--guidance", "0")
