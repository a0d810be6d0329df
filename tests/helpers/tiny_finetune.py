"""Folders of tiny networks, and runs of `experiments/finetune.py` on them."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from helpers.weights import random_weights

import jaxdiff as jd
from jaxdiff import train
from jaxdiff.recipe import load
from jaxdiff.sampler import sampler

FILE = Path(__file__).parents[2] / "experiments" / "finetune.py"
UNET = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [16],
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "num_class_embeds": 11,
    "down_block_types": ["AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D"],
}
DIT = {
    "_class_name": "DiTTransformer2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "num_embeds_ada_norm": 10,
}
CROSS = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8],
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
}
FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 6,
    "pooled_projection_dim": 5,
    "guidance_embeds": True,
    "axes_dims_rope": [2, 2, 4],
}
TINY = {"steps": 4, "batch": 8, "lr": 1e-2}


def folder(config, path, seed=0):
    """A network with random numbers in all of its parameters, as a folder."""
    built = jd.interop.architecture(config)
    jd.interop.save(jd.interop.Pretrained(built.apply, random_weights(built.init, seed), config), path)
    return path


def run(count, directory, steps=4, *, state=None, optimizer=None, after=None, **knobs):
    """Trains on the first devices; returns the experiment, the state and the losses. After each step: after(state)."""
    mesh = train.make_mesh(1, count, devices=jax.devices()[:count])
    made = load(FILE)(directory=directory, **(TINY | knobs), mesh=mesh)
    if optimizer is not None:
        made = replace(made, training=replace(made.training, optimizer=optimizer))
    model, part = made.model, made.training
    step = train.make_step(
        part.loss,
        part.optimizer,
        key=jax.random.key(3),
        ema=part.ema,
        grad_accum_steps=part.grad_accum_steps,
        frozen=made.frozen_of_loss(mesh),
        given=part.given,
    )
    if state is None and model.pretrained is not None:
        state = train.state_from_params(model.pretrained(), part.optimizer, mesh)
    elif state is None:
        state = train.init_state(model.init, part.optimizer, jax.random.key(2), mesh)
    batches, losses, spec = part.batches(int(state.step)), [], part.batch_spec
    for _ in range(steps):
        batch = next(batches)
        assert {name: (part.batch, *one.shape) for name, one in spec.items()} == jax.tree.map(np.shape, batch)
        assert {name: one.dtype for name, one in spec.items()} == {name: a.dtype for name, a in batch.items()}
        state, metrics = step(state, train.shard_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
        if after is not None:
            after(state)
    assert step.cache_size() == 1
    return made, state, losses


def errors(made, *several):
    """The loss of each of several parameters, on the first batches with fixed noise."""
    batches = made.training.batches(0)
    whole = [next(batches) for _ in range(16)]
    batch = jax.tree.map(lambda *parts: np.concatenate(parts), *whole)
    loss = jax.jit(made.training.loss)
    # Off the mesh, so that one program serves all.
    merged = (jax.device_get(made.model.merge_frozen(params)) for params in several)
    return [float(loss(params, jax.random.key(9), batch)[0]) for params in merged]


def draw(made, params, keys, cond, *, steps=None, **medium):
    """Samples, guided or not as the experiment has it."""
    sampling = made.sampling if steps is None else replace(made.sampling, steps=steps)
    generate = sampler(made.model, sampling, made.condition, replace(made.medium, **medium))
    return generate(made.model.merge_frozen(params), keys, cond, sampling.guidance)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
