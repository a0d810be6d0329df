"""The same work as in `gpu_models.py` by diffusers, compiled by `torch.compile`: the parts "torch ..." of `gpu.py`.

Imports nothing of JAX, whose processes hold the device's memory.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

Report = Callable[[dict[str, Any]], None]
GIB, STEPS = 2**30, 20
CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")


def missing(*, tiny: bool) -> str | None:
    """Why nothing can be measured here, if so."""
    try:
        import diffusers  # noqa: F401
        import torch
    except ImportError as error:
        return f"cannot import PyTorch and diffusers ({error})"
    return None if torch.cuda.is_available() or tiny else "this PyTorch sees no GPU"


def machine() -> dict[str, Any]:
    """The device, and the versions."""
    import diffusers
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__}}


def network(name: str, *, tiny: bool) -> tuple[Any, tuple[int, ...], int, tuple[int, ...]]:
    """(the network, the shape of what it denoises, examples in an update, sizes of batches that are drawn)."""
    import diffusers

    if name == "ddpm":
        widths: dict[str, Any] = {
            "block_out_channels": (16, 32) if tiny else (128, 256, 256, 256),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", *("DownBlock2D",) * 2)[: 2 if tiny else 4],
            "up_block_types": (*("UpBlock2D",) * 2, "AttnUpBlock2D", "UpBlock2D")[-2 if tiny else -4 :],
        }
        model = diffusers.UNet2DModel(
            **widths, layers_per_block=1 if tiny else 2, norm_num_groups=8 if tiny else 32, downsample_padding=0,
            flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, attention_head_dim=None, dropout=0.1,
        )  # fmt: skip
        return model, (3, 8, 8) if tiny else (3, 32, 32), 4 if tiny else 128, (4,) if tiny else (128,)
    if name == "dit":
        size = (2, 16, 2, 10, 8) if tiny else (16, 72, 28, 1000, 32)
        keys = "num_attention_heads", "attention_head_dim", "num_layers", "num_embeds_ada_norm", "sample_size"
        model = diffusers.DiTTransformer2DModel(**dict(zip(keys, size, strict=True)), in_channels=4, out_channels=4)
        return model, (4, size[4], size[4]), 4 if tiny else 64, (4,) if tiny else (64,)
    kinds = [CROSS, PLAIN] if tiny else [CROSS, CROSS, CROSS, PLAIN]
    model = diffusers.UNet2DConditionModel(
        sample_size=8 if tiny else 64, block_out_channels=(16, 32) if tiny else (320, 640, 1280, 1280),
        down_block_types=tuple(kind[0] for kind in kinds), up_block_types=tuple(kind[1] for kind in kinds[::-1]),
        layers_per_block=1 if tiny else 2, norm_num_groups=8 if tiny else 32, attention_head_dim=2 if tiny else 8,
        cross_attention_dim=12 if tiny else 768,
    )  # fmt: skip
    return model, (4, 8, 8) if tiny else (4, 64, 64), 2 if tiny else 8, (1, 2) if tiny else (1, 8)


def jobs(name: str, report: Report, *, tiny: bool, deadline: float) -> list[Callable[[], None]]:
    """A network's samplers, then its train step."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model, shape, examples, draws = network(name, tiny=tiny)
    like = torch.channels_last if name != "dit" else torch.contiguous_format
    model = model.to(device, memory_format=like)

    def inputs(batch: int, dtype: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        x = torch.randn((batch, *shape), device=device, dtype=dtype).contiguous(memory_format=like)
        if name == "dit":
            return x, (), {"class_labels": torch.ones(batch, dtype=torch.long, device=device)}
        if name == "ddpm":
            return x, (), {}
        width = model.config.cross_attention_dim
        return x, (torch.randn((batch, 77, width), device=device, dtype=dtype),), {}

    fast: Callable[[Any], Any] = torch.compile if device == "cuda" else lambda f: f
    meter = _Meter(report, name, device, deadline)

    def draw(batch: int) -> None:
        half = fast(model.to(torch.bfloat16).eval())
        meter.measure(f"sampler, {STEPS} steps", batch, _sampler(half, inputs(batch, torch.bfloat16), name))

    def update() -> None:
        model.float().train()
        meter.measure("train step", examples, _step(model, fast(model), inputs(examples, torch.float32), device))

    return [*(partial(draw, batch) for batch in draws), update]


def _sampler(model: Any, inputs: tuple[Any, ...], name: str) -> Callable[[], None]:
    """DDIM, guided where there is a condition, by diffusers' scheduler."""
    import diffusers
    import torch

    x, args, options = inputs
    guided = name != "ddpm"
    if guided:
        args = tuple(torch.cat([a, torch.zeros_like(a)]) for a in args)
        options = {key: torch.cat([a, torch.zeros_like(a)]) for key, a in options.items()}
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(STEPS, device=x.device)

    @torch.no_grad()
    def draw() -> None:
        now = x
        for t in scheduler.timesteps:
            both = torch.cat([now, now]) if guided else now
            eps = model(both, t.expand(len(both)), *args, **options, return_dict=False)[0]
            if guided:
                cond, null = eps.chunk(2)
                eps = null + 3.0 * (cond - null)
            now = scheduler.step(eps, t, now).prev_sample

    return draw


def _step(model: Any, compiled: Any, inputs: tuple[Any, ...], device: str) -> Callable[[], None]:
    """Loss, gradient, clipping, AdamW and an average, in bfloat16 by autocast on parameters in float32."""
    import diffusers
    import torch

    x, args, options = inputs
    weights, scheduler = list(model.parameters()), diffusers.DDPMScheduler()
    average = [p.detach().clone() for p in weights]
    optimizer = torch.optim.AdamW(weights, 1e-4, weight_decay=0.0, fused=device == "cuda")

    def step() -> None:
        eps, t = torch.randn_like(x), torch.randint(1000, x.shape[:1], device=device)
        with torch.autocast(device, torch.bfloat16):
            answer = compiled(scheduler.add_noise(x, eps, t), t, *args, **options, return_dict=False)[0]
        torch.nn.functional.mse_loss(answer.float(), eps).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1e-4)

    return step


class _Meter:
    """Times and reports, as `gpu_models.Meter` does."""

    def __init__(self, report: Report, name: str, device: str, deadline: float):
        self._report, self._name, self._device, self._deadline = report, name, device, deadline

    def measure(self, what: str, batch: int, call: Callable[[], None]) -> None:
        import torch

        cuda = self._device == "cuda"
        wait = torch.cuda.synchronize if cuda else contextlib.nullcontext
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        prediction: dict[str, Any] = {"model": self._name, "by": "diffusers", "what": what, "batch": batch}

        def seconds(count: int) -> float:
            begin = time.perf_counter()
            for _ in range(count):
                call()
            wait()
            return (time.perf_counter() - begin) / count

        prediction["compile_s"] = seconds(1)  # with a first run
        self._report(prediction)
        seconds(1)
        count, rounds = max(1, round(0.5 / seconds(1))), []
        while len(rounds) < 5 and (not rounds or time.monotonic() + 2 * count * rounds[-1] < self._deadline):
            rounds.append(seconds(count))
        prediction["peak_gib"] = torch.cuda.max_memory_allocated() / GIB if cuda else None
        self._report(prediction | {"seconds": median(rounds), "images_per_s": batch / median(rounds)})
