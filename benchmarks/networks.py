"""Forward pass and train step of two networks over diffusers' in PyTorch, as ratios: python benchmarks/networks.py.

Both sides do the same work: the noise-prediction loss, its gradient, clipping, AdamW and an average of the parameters.
Needs PyTorch and diffusers (`pip install -e '.[parity]'`).
"""

import argparse
import time

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

import jaxdiff as jd
from jaxdiff import train

DDPM = {
    "_class_name": "UNet2DModel",
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
DIT = {"_class_name": "DiTTransformer2DModel", "num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12,
       "sample_size": 32, "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_zero", "norm_elementwise_affine": False,
       "activation_fn": "gelu-approximate", "attention_bias": True}  # fmt: skip
NETWORKS = {"DDPM CIFAR-10 U-Net": (DDPM, 3, None), "DiT-S/2": (DIT, 4, 1000)}


def ours(config, channels, classes, batch):
    """(forward, step) of jaxdiff; each call runs to its end."""
    built = jd.interop.architecture(config)
    rng = np.random.default_rng(0)
    data = {"x": jnp.asarray(rng.standard_normal((batch, 32, 32, channels)), jnp.float32)}
    if classes:
        data["label"] = jnp.arange(batch) % classes
    cond = {name: data[name] for name in data if name != "x"}
    forward = jax.jit(built.apply)
    noise = jnp.arange(batch) * 10.0

    process = jd.processes.Discrete.linear(1000)
    loss = jd.losses.denoising_loss(built.apply, process, jd.parameterize.zero_based(jd.parameterize.eps))
    optimizer = train.adamw(1e-4)
    step = train.make_step(loss, optimizer, key=jax.random.key(0), ema=train.ema.constant(0.9999))
    mesh = train.make_mesh()
    state = train.init_state(built.init, optimizer, jax.random.key(0), mesh)
    params = jax.tree.map(jnp.copy, state.params)
    data = train.shard_batch(data, mesh)

    def run_step():
        nonlocal state
        state, _ = step(state, data)
        jax.block_until_ready(state)

    return lambda: jax.block_until_ready(forward(params, data["x"], noise, cond)), run_step


def theirs(config, channels, classes, batch):
    """(forward, step) of diffusers in PyTorch."""
    config = {name: value for name, value in config.items() if name != "_class_name"}
    kind = diffusers.DiTTransformer2DModel if classes else diffusers.UNet2DModel
    model = kind(**config).train()
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.0)
    scheduler = diffusers.DDPMScheduler()
    x = torch.randn(batch, channels, 32, 32)
    label = {"class_labels": torch.arange(batch) % classes} if classes else {}

    def forward():
        with torch.no_grad():
            model(x, torch.arange(batch) * 10, **label)

    def step():
        eps, t = torch.randn_like(x), torch.randint(1000, (batch,))
        answer = model(scheduler.add_noise(x, eps, t), t, **label).sample
        torch.nn.functional.mse_loss(answer[:, :channels], eps).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 1e-4)

    return forward, step


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="images (default 16)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements, alternating (default 5)")
    args = parser.parse_args()
    for name, (config, channels, classes) in NETWORKS.items():
        sides = ours(config, channels, classes, args.batch), theirs(config, channels, classes, args.batch)
        for which, run in zip(("forward", "train step"), zip(*sides, strict=True), strict=True):
            for side in run:
                side()  # compiles, and warms up
            times = np.array([[seconds(side) for side in run] for _ in range(args.rounds)])
            best = times.min(0) / args.batch * 1e3
            print(
                f"{name}, {which}: ours {best[0]:.1f} ms an image, torch {best[1]:.1f}; ratio {best[0] / best[1]:.2f}"
            )


if __name__ == "__main__":
    main()
