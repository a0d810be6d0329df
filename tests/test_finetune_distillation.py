"""Distillation of a network that was read from a folder: the losses are the papers', and the teacher stays."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.tiny_finetune import CROSS, DIT, FILE, TINY, UNET, folder, run, same

import jaxdiff as jd
from jaxdiff import sharding
from jaxdiff.distill import Context
from jaxdiff.drawing import draw
from jaxdiff.networks import lora
from jaxdiff.recipe import load

pytestmark = pytest.mark.slow
SCALE = 2.5
SMALL = DIT | {"num_layers": 1}


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    return str(folder(SMALL, tmp_path_factory.mktemp("dit")))


@pytest.fixture(scope="module")
def cross(tmp_path_factory):
    """A U-Net of tokens, which are far from the null condition's."""
    path = tmp_path_factory.mktemp("cross")
    folder(CROSS, path)
    np.savez(path / "cond.npz", tokens=3 * np.random.default_rng(0).normal(size=(11, 3, 6)).astype(np.float32))
    return {"directory": str(path), "cond": str(path / "cond.npz")}


def loss_of(made, params):
    """(key, batch) -> the loss of trained parameters, as in a run, and its gradient."""
    inputs = lambda params: (params, Context(jnp.zeros((), jnp.int32), None, made.frozen_of_loss()))  # noqa: E731
    both = jax.jit(jax.value_and_grad(lambda params, key, batch: made.training.loss(inputs(params), key, batch)[0]))
    return lambda key, batch: both(params, key, batch)


def value_of(made):
    """(parameters, key, batch) -> the loss as in a run."""
    context = Context(jnp.zeros((), jnp.int32), None, made.frozen_of_loss())
    value = jax.jit(lambda params, context, key, batch: made.training.loss((params, context), key, batch)[0])
    return lambda params, key, batch: value(params, context, key, batch)


def shaken(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten(
        [x + 0.03 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    )


def example(label=3):
    x, eps = np.random.default_rng(4).normal(size=(2, 1, 8, 8, 1)).astype(np.float32)
    return {"x": jnp.asarray(0.5 * x), "eps": jnp.asarray(eps), "label": jnp.full((1,), label, jnp.int32)}


def latent_consistency(predict, teach, batch):
    """f of the student and its target at each of the 50 times of a grid, by DDPM's linear table.

    predict, teach: (x, time from 0, label) -> eps.
    """
    abar = np.append(1.0, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    t = 20 * np.arange(50, 0, -1)
    (a, s), (b, r) = (
        [np.sqrt(v).astype(np.float32).reshape(-1, 1, 1, 1) for v in (abar[i], 1 - abar[i])] for i in (t, t - 20)
    )
    x = a * batch["x"] + s * batch["eps"]
    label = jnp.broadcast_to(batch["label"], (50,))
    null = jnp.full((50,), 10)
    c, u = (teach(x, jnp.asarray(t - 1, jnp.float32), k) for k in (label, null))
    guided = u + SCALE * (c - u)
    after = b * (x - s * guided) / a + r * guided
    f = lambda x, t, a, s: (x - s * predict(x, jnp.asarray(t - 1, jnp.float32), label)) / a  # noqa: E731
    target = jnp.concatenate([f(after, t - 20, b, r)[:-1], after[-1:]])  # at clean data f(x) = x
    return f(x, t, a, s), jax.lax.stop_gradient(target)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_loss_is_that_of_latent_consistency_models(mode, dit):
    made = load(FILE)(directory=dit, mode=mode, distill="consistency", guidance=SCALE, **TINY)
    network = jd.interop.load(dit)
    init = made.model.init(jax.random.key(2)) if mode == "lora" else made.model.pretrained()
    params, batch, whole = shaken(init, 5), example(), mode == "full"

    def want(params):
        own = params if whole else lora.merge(network.params, params)
        predict, teach = (lambda x, t, k, p=p: network.apply(p, x, t, {"label": k}) for p in (own, network.params))
        f, target = latent_consistency(predict, teach, batch)
        c = 0.00054 * 8  # of 64 dimensions
        return jnp.sqrt(jnp.sum((f - target) ** 2, axis=(1, 2, 3)) + c**2) - c

    def at(params, i):
        each = want(params)
        return each[i], each

    loss, both = loss_of(made, params), jax.jit(jax.value_and_grad(at, has_aux=True))
    each, found = np.asarray(both(params, 0)[0][1]), set()
    for seed in range(8):
        value, grad = loss(jax.random.key(seed), batch)
        i = int(np.argmin(np.abs(each - value)))
        found.add(i)
        np.testing.assert_allclose(value, each[i], rtol=1e-3, atol=1e-5)
        ours, theirs = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (grad, both(params, i)[1]))
        np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())
    assert len(found) > 3  # of 50 pairs


def test_it_is_trained_and_drawn_in_few_steps(dit, tmp_path):
    before = jd.interop.load(dit).params
    made, state, _ = run(1, dit, mode="lora", rank=4, steps=4, distill="consistency", guidance=SCALE)
    same(made.model.frozen["base"], before)
    same(made.frozen_of_loss()["teacher"], before)
    assert all(pair["up"].any() for _, pair in lora.pairs(state.params))
    reference = jd.interop.scheduler({"_class_name": "LCMScheduler", "beta_schedule": "linear", "beta_start": 1e-4,
                                      "beta_end": 0.02})  # fmt: skip
    assert made.sampling.steps == 4
    for n in (1, 2, 4):
        levels = made.sampling.grid(n)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), levels, reference.sampling.grid(n))
        some = replace(made, sampling=replace(made.sampling, steps=n))
        x = draw(some, state.ema, 3).x
        assert x.shape == (3, 8, 8, 1) and np.isfinite(x).all() and np.ptp(x) > 0.1
    with pytest.raises(ValueError, match="in 1 to 50 steps, got 51"):
        replace(made.sampling, steps=51).prepare()
    with pytest.raises(ValueError, match="--guidance 1"):
        replace(made, sampling=replace(made.sampling, guidance=2.0))
    made.model.export["lora"](state.params, tmp_path)
    same(jd.interop.load_lora(tmp_path, {"transformer": jd.interop.load(dit)})["transformer"], state.params)


def test_guidance_becomes_an_input(cross, tmp_path):
    knobs = cross | {"distill": "guidance", "guidance": 3.0, "max_guidance": 4.0}
    network, made = jd.interop.load(cross["directory"]), load(FILE)(**knobs, **TINY)
    params = jax.device_get(made.model.pretrained())
    assert made.sampling.guidance == 1 and made.condition.null is None
    # It begins as the network, at any scale; so where the two conditions are one, nothing is wrong.
    key, noise, batch, data = jax.random.key(0), jnp.array([30.0]), example(), next(made.training.batches(0))
    tokens = jnp.asarray(np.load(cross["cond"])["tokens"])[batch["label"]]
    student = jax.jit(
        lambda params, cond: made.model.apply(
            made.model.merge_frozen(params), batch["x"], noise, {"label": batch["label"], **cond}
        )
    )
    want = jax.jit(network.apply)(network.params, batch["x"], noise, {"tokens": tokens})
    np.testing.assert_allclose(student(params, {"guidance": jnp.array([7.0])}), want, atol=1e-6)
    loss = value_of(made)
    assert loss(params, key, data | {"label": np.full_like(data["label"], 10)}) < 1e-8
    assert loss(params, key, data) > 1e-4

    made, state, _ = run(1, steps=60, **(knobs | {"lr": 3e-3}))
    same(made.frozen_of_loss()["teacher"], network.params)
    # Over the same pairs and scales; off the mesh, so that the programs above serve again.
    trained = jax.device_get(state.params)
    first, last = (np.mean([loss(p, jax.random.key(i), data) for i in range(20)]) for p in (params, trained))
    assert last < 0.9 * first and bool(trained["time_embedding.cond_proj"]["kernel"].any())
    drawn, table = (student(trained, {"guidance": jnp.array([w])}) for w in (3.9, 3.0))
    assert float(jnp.abs(drawn - table).max()) > 1e-2
    # Without a scale it is the samples', but for the rounding of another program.
    np.testing.assert_array_equal(made.model.frozen["cond"]["guidance"], np.full(11, 3.0))
    np.testing.assert_allclose(student(trained, {}), table, atol=1e-5)
    made.model.export["model"](state.params, tmp_path / "out")
    written = jd.interop.load(tmp_path / "out")
    assert written.config["time_cond_proj_dim"] == 256
    same(written.params, state.params)
    assert np.isfinite(draw(replace(made, sampling=replace(made.sampling, steps=2)), state.ema, 2).x).all()

    # The second stage: few steps of a network that is given the scale, by itself as the teacher, without guidance.
    second = {"directory": str(tmp_path / "out"), "cond": cross["cond"], "mode": "lora", "rank": 2}
    made = load(FILE)(**second, distill="consistency", guidance=2.0, **TINY)
    assert np.isfinite(value_of(made)(made.model.init(key), key, data))


def test_a_part_and_the_embedding_of_the_scale(cross):
    made = load(FILE)(**cross, distill="guidance", only="attn2", guidance=2.0, **TINY)
    names = set(made.model.pretrained())
    assert "time_embedding.cond_proj" in names and len(names) > 1
    assert not any("attn2" in path or "cond_proj" in path for path in jd.trees.flatten(made.model.frozen["base"]))
    same(made.frozen_of_loss()["teacher"], jd.interop.load(cross["directory"]).params)


def test_eight_devices_are_one(dit, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 64)
    knobs = {"optimizer": optax.sgd(0.1), "steps": 2, "directory": dit, "distill": "consistency", "guidance": 2.0}
    _, one, losses = run(1, mode="lora", **knobs)
    _, eight, sharded = run(8, mode="lora", **knobs)
    np.testing.assert_allclose(sharded, losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), eight.params, one.params)


def test_of_latents_on_a_flow(tmp_path):
    """A pipeline's U-Net whose scheduler is a flow's: pairs of its own shifted times, of encoded pictures."""
    cross = CROSS | {"in_channels": 4, "out_channels": 4}
    vae = {"_class_name": "AutoencoderKL", "block_out_channels": [8, 8], "norm_num_groups": 4, "sample_size": 16}
    vae |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    folder(cross, tmp_path / "unet")
    folder(vae, tmp_path / "vae", seed=5)
    (tmp_path / "scheduler").mkdir()
    fields = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(fields))
    np.savez(tmp_path / "cond.npz", tokens=np.random.default_rng(0).normal(size=(11, 3, 6)).astype(np.float32))
    knobs = {"cond": str(tmp_path / "cond.npz"), "mode": "lora", "distill": "consistency", "guidance": 3.0}
    made, state, losses = run(1, str(tmp_path), **knobs)
    assert np.isfinite(losses).all()
    levels = made.sampling.grid(4)
    np.testing.assert_allclose(levels.alpha, 1 - levels.sigma, atol=1e-6)
    assert levels.sigma[0] == 1 and levels.sigma[-1] == 0 and float(made.sampling.init_noise_std(levels)) == 1
    x = draw(replace(made, sampling=replace(made.sampling, steps=1)), state.ema, 2).x
    assert x.shape == (2, 16, 16, 3) and np.isfinite(x).all()


def test_mistakes(dit, cross, tmp_path):
    def fails(words, **knobs):
        with pytest.raises(ValueError, match=words):
            load(FILE)(**(TINY | knobs))

    def config(name, fields, scheduler=None):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(fields))
        if scheduler is not None:
            (tmp_path / name / "scheduler_config.json").write_text(json.dumps(scheduler))
        return {"directory": str(tmp_path / name), "mode": "lora"}

    few = {"distill": "consistency", "guidance": 2.0}
    plain = config("plain", {name: value for name, value in UNET.items() if name != "num_class_embeds"})
    fails("--guidance 2 needs a network with a null condition.* use --guidance 1", **plain, **few)
    fails("of few steps, by its LCMScheduler.* distilled from", **config("few", DIT, {"_class_name": "LCMScheduler"}),
          **few)  # fmt: skip
    fails("UNet2DConditionModel.* got UNet2DModel", **plain, distill="guidance")
    scaled = config("scaled", CROSS | {"time_cond_proj_dim": 4}) | {"mode": "full"}
    fails("guidance is distilled already", **scaled, cond=cross["cond"], distill="guidance")
    fails("1 to --max-guidance 4", **scaled, cond=cross["cond"], distill="consistency", guidance=5.0, max_guidance=4.0)
    for distill in ("none", "consistency"):
        fails("of a network that is given the guidance scale", **cross, distill=distill, max_guidance=4.0)
    fails("--mode full, got lora", **cross, distill="guidance", mode="lora")
    fails("--mode full or lora, got control", **cross, distill="consistency", mode="control")
    fails("a network without a null condition takes no --cond-dropout, got 0.3", **plain, cond_dropout=0.3)
    fails("--distill guidance takes no --cond-dropout", **cross, distill="guidance", cond_dropout=0.3)
    shutil.copytree(dit, tmp_path / "clean")
    fields = {"_class_name": "DDIMScheduler", "prediction_type": "sample"}
    (tmp_path / "clean" / "scheduler_config.json").write_text(json.dumps(fields))
    fails(r"f\(x, 0\) = x", directory=str(tmp_path / "clean"), mode="lora", distill="consistency")
    fields |= {"prediction_type": "epsilon", "rescale_betas_zero_snr": True}
    (tmp_path / "clean" / "scheduler_config.json").write_text(json.dumps(fields))
    fails(
        "predicts eps cannot denoise pure noise", directory=str(tmp_path / "clean"), mode="lora", distill="consistency"
    )
