"""Fine-tuning a network that was read from a folder: what is trained moves, what is frozen doesn't, on any mesh."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.plans import can_be_planned
from helpers.tiny_finetune import CROSS, DIT, FILE, FLUX, TINY, UNET, draw, errors, folder, run, same
from helpers.tiny_pipeline import write

import jaxdiff as jd
from jaxdiff import sharding, train
from jaxdiff.cli import main
from jaxdiff.data import open_dataset
from jaxdiff.experiment import Sampling
from jaxdiff.finetune.origin import Origin
from jaxdiff.networks import lora
from jaxdiff.networks.controlnet import controlled
from jaxdiff.recipe import load, load_run
from jaxdiff.seeds import example_keys


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    return str(folder(UNET, tmp_path_factory.mktemp("unet")))


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    return str(folder(DIT, tmp_path_factory.mktemp("dit")))


def test_the_side_of_the_images():
    def side(size=0, **config):
        return Origin(Path(), config, None, None, None).image_size(size)

    assert side() is side(sample_size=None) is None
    assert side(sample_size=64) == side(sample_size=[64, 64]) == 64
    for config in ({}, {"sample_size": None}, {"sample_size": 64}, {"sample_size": [64, 96]}):
        assert side(32, **config) == 32
    with pytest.raises(ValueError, match=r"squares, and the network's are 64 x 96: give --size"):
        side(sample_size=[64, 96])


@pytest.mark.slow
def test_planned(unet):
    can_be_planned(load(FILE), directory=unet, **TINY)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "only"), [("unet", ""), ("dit", "ff|proj_out|to_[qv]$")])
def test_adapters_are_trained_and_nothing_else(kind, only, request):
    directory = request.getfixturevalue(kind)
    original = jd.interop.load(directory).params
    made, state, _ = run(1, directory, mode="lora", only=only, rank=2, steps=40)
    after, before = errors(made, state.params, made.model.init(jax.random.key(2)))
    assert after < 0.95 * before
    same(made.model.frozen["base"], original)
    # The state is the adapters', its average and moments too.
    kernels = [".".join(path[:-1]) for path, _ in lora.pairs(state.params)]
    assert kernels and all(re.search(only or "to_", path) for path in kernels)
    for tree in (state.params, state.ema):
        assert all(pair["up"].any() and pair["down"].any() for _, pair in lora.pairs(tree))
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    assert size(state.opt[1][0].mu) == size(state.params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "takes"),
    [
        ({"_class_name": "DDIMScheduler"}, False),
        ({"_class_name": "DDPMScheduler"}, False),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, True),
    ],
)
def test_a_learned_variance_under_each_kind_of_scheduler(fields, takes, tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(fields))
    directory = folder(DIT | {"num_layers": 1, "out_channels": 2}, tmp_path / "transformer")
    made = load(FILE)(directory=str(directory), **TINY, guidance=2.0)
    assert made.model.learned_variance and made.sampling.solver(2).learned_variance == takes
    params, label = jax.eval_shape(made.model.pretrained), jnp.zeros(2, jnp.int32)
    x = jax.eval_shape(lambda params: draw(made, params, example_keys(0, 2), {"label": label}, steps=2), params)
    assert x.shape == (2, 8, 8, 1)


@pytest.mark.slow
def test_all_parameters(unet):
    made, state, _ = run(1, unet, steps=30, lr=2e-3)
    after, before = errors(made, state.params, made.model.pretrained())
    assert after < 0.8 * before
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, jd.interop.load(unet).params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.slow
def test_a_part_is_trained_and_the_rest_stays(unet, tmp_path):
    made, state, _ = run(1, unet, only=r"attentions", steps=30)
    after, before = errors(made, state.params, made.model.pretrained())
    assert after < 0.95 * before
    made.model.export["model"](state.params, tmp_path / "out")
    before, after = jd.interop.load(unet).params, jd.interop.load(tmp_path / "out").params
    for entries, leaf in jax.tree_util.tree_leaves_with_path(after):
        old = before
        for entry in entries:
            old = old[entry.key]
        assert np.array_equal(leaf, old) != ("attentions" in jax.tree_util.keystr(entries))


@pytest.mark.slow
@pytest.mark.parametrize("own", [{"mode": "lora"}, {}, {"only": "attn1"}], ids=["lora", "full", "part"])
def test_eight_devices_are_one(own, dit, monkeypatch):
    # Tiny arrays are split, too, as large ones are.
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 64)
    # Plain descent: Adam divides by the gradient's size, so where that is a rounding error, it moves all the same.
    knobs = {"optimizer": optax.sgd(0.1), "steps": 3, "directory": dit, **own}
    _, one, losses = run(1, **knobs)
    made, eight, sharded = run(8, **knobs)
    np.testing.assert_allclose(sharded, losses, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), eight.params, one.params)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves((eight.params, made.model.frozen["base"])))


@pytest.mark.slow
def test_latents_and_cached_tokens(tmp_path):
    """A pipeline's conditional U-Net on its autoencoder's latents, the tokens of each class from a file."""
    cross = CROSS | {"in_channels": 4, "out_channels": 4}
    vae = {"_class_name": "AutoencoderKL", "block_out_channels": [8, 8], "norm_num_groups": 4, "sample_size": 16}
    vae |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    folder(cross, tmp_path / "unet")
    folder(vae, tmp_path / "vae", seed=5)
    (tmp_path / "scheduler").mkdir()
    settings = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    tokens = np.random.default_rng(0).normal(size=(11, 3, 6)).astype(np.float32)
    np.savez(tmp_path / "cond.npz", tokens=tokens)

    made, state, losses = run(1, str(tmp_path), mode="lora", cond=str(tmp_path / "cond.npz"), sample_steps=2)
    assert made.medium.shape == (8, 8, 4) and np.isfinite(losses).all()
    assert made.model.process.T == 1000 and made.condition.null["label"].tolist() == [10]
    network = jd.interop.load(tmp_path / "unet")
    x, noise = jax.random.normal(jax.random.key(1), (2, 8, 8, 4)), jnp.array([3.0, 500.0])
    label = np.array([4, 10])
    got = jax.jit(made.model.apply)(made.model.merge_frozen(state.params), x, noise, {"label": label})
    merged = jax.jit(lora.merge)(network.params, state.params)
    want = jax.jit(network.apply)(merged, x, noise, {"tokens": tokens[label]})
    np.testing.assert_allclose(got, want, atol=1e-5)

    # Samples are decoded: by the sampler here and by the parts there.
    keys, label = example_keys(3, 2), jnp.array([1, 2])
    images = draw(made, state.ema, keys, {"label": label})
    latents = draw(made, state.ema, keys, {"label": label}, decode=lambda params, z: z)
    vae = jd.interop.load(tmp_path / "vae")
    decode = lambda params, z: vae.apply.decode(params, vae.apply.denormalize(z))  # noqa: E731
    np.testing.assert_allclose(images, jax.jit(decode)(vae.params, latents), atol=1e-4)
    assert images.shape == (2, 16, 16, 3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A conditional U-Net of pixels, and tokens for each class."""
    path = tmp_path_factory.mktemp("cross")
    folder(CROSS, path)
    tokens = np.random.default_rng(0).normal(size=(11, 3, 6)).astype(np.float32)
    np.savez(path / "cond.npz", tokens=tokens)
    return {"directory": str(path), "cond": str(path / "cond.npz"), "mode": "control"}


@pytest.mark.slow
def test_controlnet(pair, tmp_path):
    network = jd.interop.load(pair["directory"])
    made, state, _ = run(1, **pair, steps=40, cond_dropout=0.5)
    first = jax.device_get(made.model.pretrained())
    zero = {name: leaf for name, leaf in first.items() if not jax.tree.reduce(lambda a, x: a or x.any(), leaf, False)}
    assert sum("controlnet_down_blocks" in name for name in zero) == 2 and "controlnet_mid_block" in zero
    after, before = errors(made, state.params, first)
    assert after < 0.97 * before
    same(made.model.frozen["base"], network.params)
    assert all(leaf["kernel"].any() for name, leaf in state.params.items() if name in zero)

    # At the beginning it says nothing; then it sees the hint, each part of which has its own effect.
    x, noise = jax.random.normal(jax.random.key(1), (2, 8, 8, 1)), jnp.array([3.0, 500.0])
    label = jnp.array([4, 10])
    hint = jax.random.uniform(jax.random.key(2), (2, 8, 8, 3))
    tokens = jnp.asarray(np.load(pair["cond"])["tokens"])[label]
    # Operation by operation, in which both sides round alike; two programs would not.
    plain = network.apply(network.params, x, noise, {"tokens": tokens})
    apply = lambda params, hint: made.model.apply(  # noqa: E731
        made.model.merge_frozen(params), x, noise, {"label": label, "hint": hint}
    )
    np.testing.assert_allclose(apply(first, hint), plain, atol=1e-6)
    made.model.export["model"](state.params, tmp_path / "out")
    written = jd.interop.load(tmp_path / "out")
    same(written.params, state.params)
    steered = controlled(written.apply, network.apply)(
        {"controlnet": written.params, "unet": network.params}, x, noise, {"tokens": tokens, "hint": hint}
    )
    trained = jax.device_get(state.params)
    np.testing.assert_allclose(apply(trained, hint), steered, atol=1e-6)
    other = apply(trained, 1 - hint)
    assert float(jnp.abs(steered - plain).max()) > 1e-2 and float(jnp.abs(steered - other).max()) > 1e-4

    # Going on from a folder begins where it was.
    again = load(FILE)(**pair, **TINY, control=str(tmp_path / "out"))
    same(again.model.pretrained(), state.params)


@pytest.mark.slow
def test_hints_of_a_file(pair, tmp_path):
    """The batch's hints are the images' own, and a sample's is of its class, with guidance too."""
    rows = np.zeros((10_000, 8, 8, 1), np.uint8)
    images = jd.data.open_dataset("fashion_mnist", size=8)
    rows[:] = 20 * images.label[:, None, None, None]
    np.savez(tmp_path / "hints.npz", hint=rows)
    made = load(FILE)(**pair, **TINY, hints=str(tmp_path / "hints.npz"))
    levels = made.sampling.grid(2)
    assert float(made.sampling.init_noise_std(levels)) == pytest.approx(1)  # the config's, not sigma
    assert float(levels.sigma[0]) < 0.99999
    batch = next(made.training.batches(0))
    np.testing.assert_allclose(
        batch["hint"], np.broadcast_to(batch["label"][:, None, None, None] / 12.75, (8, 8, 8, 1)), rtol=1e-6
    )
    asked = made.condition.choose(np.array([7, 2]))
    np.testing.assert_allclose(asked["hint"][:, 0, 0, 0], [140 / 255, 40 / 255], rtol=1e-6)

    def apply(params, x, noise, cond):
        return jnp.zeros_like(x) + cond["hint"] + jnp.where(cond["label"] == 10, 1.0, 0.0)[:, None, None, None]

    probe = replace(
        made,
        model=replace(made.model, apply=apply, prediction=jd.parameterize.x0),
        sampling=Sampling(made.sampling.grid, jd.solvers.ddim(), steps=2, guidance=3.0),
    )
    got = draw(probe, made.model.pretrained(), example_keys(0, 2), asked)
    # u + 3 (c - u) with u = hint + 1, c = hint.
    np.testing.assert_allclose(got[:, 0, 0, 0], np.array([140, 40]) / 255 - 2, atol=1e-5)


@pytest.mark.slow
def test_mistakes_of_a_controlnet(pair, unet, tmp_path):
    def fails(words, **knobs):
        with pytest.raises(ValueError, match=words):
            load(FILE)(**(pair | TINY | knobs))

    fails("UNet2DConditionModel, got UNet2DModel", directory=unet, cond="")
    fails("--cond", cond="")
    fails("must hold a ControlNetModel", control=pair["directory"])
    fails("--only goes with --mode full or lora, got --mode control", only="to_q")
    fails("--rank goes with --mode lora, got --mode full", mode="full", rank=4)
    fails("--control goes with --mode control, got --mode lora", mode="lora", control=pair["directory"])
    fails("--hints goes with --mode control, got --mode full", mode="full", hints="hints.npz")
    fails("give one of them", prompt="a {}")
    wider = CROSS | {"in_channels": 3, "sample_size": 8}
    fails(r"x alone, 1 channels; theirs are 3 and 3", directory=str(folder(wider, tmp_path / "wider")))
    np.savez(tmp_path / "few.npz", hint=np.zeros((3, 8, 8, 3), np.uint8))
    fails("one for each image", hints=str(tmp_path / "few.npz"))
    np.savez(tmp_path / "large.npz", hint=np.zeros((10_000, 12, 8, 3), np.uint8))
    fails(r"hints of shape \(8, 8, 3\), got \(12, 8, 3\)", hints=str(tmp_path / "large.npz"))


@pytest.mark.slow
def test_resumed_run_is_the_same(dit, tmp_path):
    with train.Checkpointer(tmp_path) as checkpointer:
        half = lambda state: checkpointer.save(state) if int(state.step) == 2 else None  # noqa: E731
        made, straight, losses = run(8, dit, mode="lora", after=half)
        checkpointer.wait()
        like = train.state_shapes(made.model.init, made.training.optimizer, train.make_mesh(1, 8))
        resumed, last = run(8, dit, steps=2, state=checkpointer.restore(like), mode="lora")[1:]
    same(resumed, straight)
    assert last == losses[2:]


@pytest.mark.slow
def test_command_line(dit, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 64)
    monkeypatch.chdir(Path(dit).parent)  # the run finds its network from other folders
    knobs = ["--directory", Path(dit).name, "--mode", "lora", "--rank", "2", "--batch", "8", "--sample-steps", "2"]
    whole = tmp_path / "whole"
    begin = ["train", str(FILE), *knobs]
    main([*begin, "--steps", "4", "--preview-every", "2", "--workdir", str(whole), "--mesh", "data=8"])
    monkeypatch.chdir(tmp_path)
    main(["sample", "whole", "--num", "3", "--out", "x.npz"])
    main(["sample", "whole", "--num", "3", "--out", "split.npz", "--mesh", "data=4,fsdp=2"])
    one, split = (np.load(f"{name}.npz")["x"] for name in ("x", "split"))
    assert one.shape == (3, 8, 8, 1)
    np.testing.assert_allclose(split, one, atol=1e-5)
    base = load_run(whole, mesh=train.make_mesh(4, 2)).model.frozen["base"]
    assert {len(a.devices()) for a in jax.tree.leaves(base)} == {8}
    assert any(not a.sharding.is_fully_replicated for a in jax.tree.leaves(base))

    main(["convert", str(whole), "--out", str(tmp_path / "adapters"), "--form", "lora"])
    main(["convert", str(whole), "--out", str(tmp_path / "merged")])
    base = jd.interop.load(dit)
    adapters = jd.interop.load_lora(tmp_path / "adapters", {"transformer": base})["transformer"]
    same(adapters, train.load_params(whole))
    merged = jd.interop.load(tmp_path / "merged")
    same(merged.params, lora.merge(base.params, adapters))
    with pytest.raises(SystemExit):
        main(["convert", str(whole), "--out", str(tmp_path / "other"), "--form", "onnx"])
    assert "model or lora" in capsys.readouterr().err


@pytest.mark.slow
def test_a_prompt_tells_the_classes_by_their_names(tmp_path):
    pipeline = write(tmp_path / "pipeline")
    made = load(FILE)(directory=str(pipeline), prompt="a {}", mode="lora", rank=1, **TINY)
    names = open_dataset("fashion_mnist").class_names
    encoder, tokenize = jd.interop.load(pipeline / "text_encoder"), jd.text.tokenizer(pipeline / "tokenizer")
    ids, _ = tokenize([*(f"a {name}" for name in names), ""])
    want = jax.jit(encoder.apply)(encoder.params, ids).hidden
    np.testing.assert_allclose(made.model.frozen["cond"]["tokens"], want, atol=1e-5)
    assert made.condition.choices == made.condition.null["label"][0] == len(names)
    value, _ = jax.jit(made.training.loss)(
        made.model.merge_frozen(made.model.init(jax.random.key(1))), jax.random.key(0), next(made.training.batches(0))
    )
    assert np.isfinite(value)
    with pytest.raises(ValueError, match="--prompt or --cond"):
        load(FILE)(directory=str(pipeline), **TINY)


@pytest.mark.slow
def test_flux_is_told_the_time_as_it_is_and_its_guidance(tmp_path):
    directory = folder(FLUX, tmp_path / "flux" / "transformer")
    shift = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    (tmp_path / "flux" / "scheduler").mkdir()
    (tmp_path / "flux" / "scheduler" / "scheduler_config.json").write_text(json.dumps(shift))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "cond.npz", tokens=rng.normal(size=(11, 3, 6)), vector=rng.normal(size=(11, 5)))
    made = load(FILE)(
        directory=str(directory), cond=str(tmp_path / "cond.npz"), mode="lora", rank=1, size=8, guidance=3.5, **TINY
    )
    assert made.model.prediction(made.model.process(0.5)).noise == 0.5
    np.testing.assert_array_equal(made.model.frozen["cond"]["guidance"], np.full(11, 3.5))
    assert made.sampling.guidance == 1
    value, _ = jax.jit(made.training.loss)(
        made.model.merge_frozen(made.model.init(jax.random.key(1))), jax.random.key(0), next(made.training.batches(0))
    )
    assert np.isfinite(value)
