"""Small networks and attention, whose answers and gradients on a device are compared with a CPU's in float64.

The part "correct" of `gpu.py`; `python benchmarks/gpu.py --store` writes what it compares with.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import autoencoders, networks, text
from jaxdiff.networks.attention import attend
from jaxdiff.quantize import Quantized, Weights, quantize

REFERENCE = Path(__file__).with_name("gpu_reference.npz")
KINDS = ("answer", "input gradient", "parameter gradient")
# How far from float64 a device may be: as far as this many times what the CPU's own rounding is, or as the floor.
FACTOR, FLOOR = 3.0, {"float32": 1e-5, "bfloat16": 1e-2}
SAMPLES, SAMPLES_OF_A_LEAF = 256, 4


class Case(NamedTuple):
    """A function of parameters and an input, in a type."""

    function: Callable[[Any, Any, Any], Any]  # (dtype, params, x) -> arrays
    params: Any  # float64, NumPy's: the same on every machine
    x: np.ndarray


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def drawn(shapes: Any) -> Any:
    """A network's parameters, none of them zero, of sizes that keep its answers near 1."""
    rng = np.random.default_rng(1)

    def draw(path: Any, a: Any) -> np.ndarray:
        spread = math.sqrt(math.prod(a.shape[:-1])) if len(a.shape) > 1 else 10
        return (path[-1].key == "scale") + rng.standard_normal(a.shape) / spread

    return jax.tree_util.tree_map_with_path(draw, shapes)


def network(module: Any, x: tuple[int, ...], **cond: tuple[int, ...] | int) -> Case:
    """A network, with conditions drawn of these shapes; a number is that of classes."""
    rng = np.random.default_rng(3)
    given = {
        name: rng.integers(0, of, x[:1]).astype(np.int32) if isinstance(of, int) else rng.normal(size=of)
        for name, of in cond.items()
    }
    noise = np.linspace(0.3, 0.9, x[0])
    like = {name: jax.ShapeDtypeStruct(a.shape, jnp.int32 if a.dtype == np.int32 else jnp.float32)
            for name, a in given.items()}  # fmt: skip
    example = jax.ShapeDtypeStruct(x, jnp.float32)
    shapes = jax.eval_shape(lambda: networks.init(module, jax.random.key(0), example, like))

    def function(dtype: Any, params: Any, value: Any) -> Any:
        typed = {name: a if a.dtype == np.int32 else a.astype(value.dtype) for name, a in given.items()}
        return networks.as_apply(module.clone(dtype=dtype))(params, value, noise.astype(value.dtype), typed)

    return Case(function, drawn(shapes), normal(2, *x))


def autoencoder(module: Any, x: tuple[int, ...]) -> Case:
    """An autoencoder, there and back."""

    def function(dtype: Any, params: Any, value: Any) -> Any:
        codec = autoencoders.kl_codec(module.clone(dtype=dtype))
        mean, std = codec.encode(params, value)
        return mean, std, codec.decode(params, mean)

    shapes = jax.eval_shape(lambda: autoencoders.init(module, jax.random.key(0)))
    return Case(function, drawn(shapes), normal(2, *x))


def layers(module: Any, x: tuple[int, ...]) -> Case:
    """A module of one input: an adapter, an image encoder."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct(x, jnp.float32))["params"]

    def function(dtype: Any, params: Any, value: Any) -> Any:
        return module.clone(dtype=dtype).apply({"params": params}, value)

    return Case(function, drawn(shapes), normal(2, *x))


def text_encoder(module: Any, table: str) -> Case:
    """A text encoder of seven tokens, whose input is what is added to its table of tokens."""
    ids = np.random.default_rng(3).integers(0, module.vocab_size, (2, 7)).astype(np.int32)
    seen = np.arange(7)[None] < np.array([[7], [4]])
    shapes = jax.eval_shape(lambda: text.init(module, jax.random.key(0)))

    def function(dtype: Any, params: Any, value: Any) -> Any:
        moved = params | {table: {"embedding": params[table]["embedding"] + value}}
        return text.as_apply(module.clone(dtype=dtype))(moved, ids, seen)

    return Case(function, drawn(shapes), normal(2, module.vocab_size, module.width))


def in_8_bits(case: Case, weights: Weights) -> Case:
    """A network with large kernels in 8 bits, which are as on every machine; what is left of each is its scale."""
    made, values = jax.eval_shape(partial(quantize, weights=weights), case.params), {}

    def scale_of(path: Any, kernel: np.ndarray, small: Any) -> np.ndarray:
        if not isinstance(small, Quantized):
            return kernel
        dtype = small.values.dtype
        whole = jnp.issubdtype(dtype, jnp.integer)
        scale = np.abs(kernel).max(-2, keepdims=True) / float((jnp.iinfo if whole else jnp.finfo)(dtype).max)
        values[path] = (np.rint(kernel / scale) if whole else kernel / scale).astype(dtype)
        return scale

    params = jax.tree_util.tree_map_with_path(scale_of, case.params, made)

    def function(dtype: Any, params: Any, value: Any) -> Any:
        def whole(path: Any, a: Any) -> Any:
            return Quantized(jnp.asarray(values[path]), a) if path in values else a

        return case.function(dtype, jax.tree_util.tree_map_with_path(whole, params), value)

    return Case(function, params, case.x)


def attention(n: int, length: int, num_heads: int, width: int, **options: Any) -> Case:
    """Attention of n positions to keys and values, its parameters here; from 4096 on it goes by blocks of keys."""
    seen = np.arange(length)[None] < np.array([[length], [length // 3]])
    bias = normal(4, 2, num_heads, n, length)

    def function(dtype: Any, params: Any, q: Any) -> Any:
        more: dict[str, Any] = {"causal": True} if "causal" in options else {}
        more |= {"mask": jnp.asarray(seen)} if "mask" in options else {}
        more |= {"bias": jnp.asarray(bias, q.dtype)} if "bias" in options else {}
        y = attend(*(a.astype(dtype) for a in (q, params["k"], params["v"])), **more)
        return y.astype(q.dtype)

    params = {name: normal(seed, 2, length, num_heads, width) for seed, name in ((6, "k"), (7, "v"))}
    return Case(function, params, normal(2, 2, n, num_heads, width))


def cases(tiny: bool = False) -> dict[str, Case]:
    """By name; few of them where it is only tried whether they run."""
    return {name: build() for name, build in builders(tiny).items()}


def builders(tiny: bool = False) -> dict[str, Callable[[], Case]]:
    """By its name, what makes a case."""
    image, latent, clip = (2, 16, 16, 3), (2, 8, 8, 4), (2, 4, 8, 8, 3)
    encoder = {"vocab_size": 11, "width": 32, "layers": 2, "num_heads": 2, "mlp_dim": 64}
    crossing = networks.TransformerConfig(depth=(1, 1), num_heads=(2, 2))
    unet = {"widths": (32, 64), "num_blocks": 1, "groups": 8}
    dit = {"width": 64, "layers": 2, "num_heads": 2}
    karras = {"resolution": 16, "model_channels": 32, "widths": (32, 32), "num_blocks": 1, "attention": (8,)}
    shared: dict[str, Callable[[], Case]] = {
        "attention": lambda: attention(64, 64, 2, 64),
        "attention by blocks": lambda: attention(16, 4200, 1, 32, mask=True),
        "MLP": lambda: network(networks.MLP(width=32), (2, 5)),
    }
    others: dict[str, Callable[[], Case]] = {
        "attention, masked": lambda: attention(64, 77, 2, 40, mask=True),
        "attention, wide": lambda: attention(64, 64, 2, 160),
        "attention, causal": lambda: attention(64, 64, 2, 64, causal=True),
        "attention, biased": lambda: attention(64, 64, 2, 64, bias=True),
        "U-Net": lambda: network(networks.UNet(**unet, attention=(1,), head_dim=32, num_classes=5), image, label=5),
        "U-Net, odd": lambda: network(networks.UNet(**unet), (2, 15, 17, 3)),
        "U-Net of texts": lambda: network(
            networks.UNet(**unet, attention=(0, 1), transformer=crossing, context_dim=24, pooled_dim=6),
            latent, tokens=(2, 7, 24), vector=(2, 6),
        ),
        "ControlNet": lambda: network(
            networks.ControlNet(**unet, attention=(1,), transformer=crossing, context_dim=24, hint_widths=(8, 16)),
            latent, tokens=(2, 7, 24), hint=(2, 16, 16, 3),
        ),
        "MMDiT": lambda: network(
            networks.MMDiT(**dit, context_dim=24, pooled_dim=6, grid=4, pos_embed_max_size=8, qk_norm=True),
            latent, tokens=(2, 7, 24), vector=(2, 6),
        ),
        "Flux": lambda: network(
            networks.Flux(
                width=64, layers=1, single_layers=1, num_heads=2, axes=(8, 12, 12), context_dim=24, pooled_dim=6
            ),
            latent, tokens=(2, 7, 24), vector=(2, 6),
        ),
        "DiT": lambda: network(networks.DiT(**dit, num_classes=5, learned_variance=True), latent, label=5),
        "U-ViT": lambda: network(networks.UViT(width=64, layers=2, num_heads=2, num_classes=5), latent, label=5),
        "DDPM++": lambda: network(networks.SongUNet(**karras), image),
        "NCSN++": lambda: network(
            networks.SongUNet(
                **karras, embedding="fourier", encoder="residual", resample_filter=(1.0, 3.0, 3.0, 1.0)
            ), image
        ),
        "ADM": lambda: network(networks.DhariwalUNet(**karras, head_dim=32), image),
        "EDM2": lambda: network(
            networks.EDM2UNet(resolution=16, widths=(32, 32), num_blocks=1, attention=(8,), head_dim=32, num_classes=5),
            image, label=5,
        ),
        "video U-Net": lambda: network(
            networks.VideoUNet(**unet, attention=(1,), frames=4, motion_num_heads=2, temporal_conv=True), clip
        ),
        "video DiT": lambda: network(networks.VideoDiT(**dit, frames=4), clip),
        "U-Net of texts and positions": lambda: network(
            networks.JointUNet(
                **unet, attention=(1,), head_dim=32, resample="resblock", scale_shift=True, context_dim=24,
                token_width=32, token_norm=True, pool_num_heads=4,
            ),
            latent, tokens=(2, 7, 24),
        ),
        "U-Net of scores": lambda: network(
            networks.ScoreUNet(widths=(64, 64), num_blocks=1, attention=(1,), groups=None), image
        ),
        "Dance Diffusion": lambda: network(networks.DanceUNet(widths=(8, 32, 32), features=16), (2, 64, 3)),
        "T2I-Adapter": lambda: layers(networks.T2IAdapter(widths=(32, 64), num_blocks=1, factor=2), image),
        "image prompt": lambda: layers(
            networks.Resampler(
                count=4, width=24, inner_width=32, layers=1, num_heads=2, head_dim=16, features=64
            ), (2, 9, 40)
        ),
        "CLIP of texts": lambda: text_encoder(
            text.CLIPText(**encoder, max_length=7, projection=24, eos=None), "text_model.embeddings.token_embedding"
        ),
        "T5": lambda: text_encoder(text.T5Encoder(**encoder, head_dim=16), "shared"),
        "BERT": lambda: text_encoder(text.Bert(**encoder, max_length=7), "embeddings.word_embeddings"),
        "CLIP of images": lambda: layers(
            text.CLIPImage(size=16, patch_size=8, width=32, layers=2, num_heads=2, mlp_dim=64, projection=24), image
        ),
        "DiT in int8": lambda: in_8_bits(network(networks.DiT(**dit), latent), "int8"),
        "U-Net in float8": lambda: in_8_bits(
            network(networks.UNet(**unet, attention=(1,), head_dim=32), image), "float8"
        ),
        "autoencoder": lambda: autoencoder(autoencoders.KLAutoencoder(widths=(16, 32), num_blocks=1, groups=8), image),
    }  # fmt: skip
    return shared if tiny else shared | others


def lowered(case: Case, dtype: str) -> tuple[Any, tuple[Any, ...]]:
    """(the lowered program of a case's answer and gradients, its arguments)."""
    held = np.float64 if dtype == "float64" else np.float32  # bfloat16 is the type of the computation
    function = partial(case.function, jnp.dtype(dtype))
    params, x = jax.tree.map(lambda a: a.astype(held), (case.params, case.x))

    def value(params: Any, x: Any) -> Any:
        answers = jax.tree.leaves(function(params, x))
        probes = (jnp.asarray(normal(9 + i, *a.shape), a.dtype) for i, a in enumerate(answers))
        return sum(jnp.sum(a * probe) for a, probe in zip(answers, probes, strict=True)), answers

    def all_of_it(params: Any, x: Any) -> Any:
        grads, answers = jax.grad(value, argnums=(0, 1), has_aux=True)(params, x)
        return answers, grads[1], jax.tree.leaves(grads[0])

    # A product in float32 is one, and not of TF32's ten bits.
    with jax.default_matmul_precision("highest" if dtype != "bfloat16" else None):
        return jax.jit(all_of_it).lower(params, x), (params, x)


def samples(results: Any) -> list[np.ndarray]:
    """Of each of `KINDS` some numbers that lie far apart, float64."""

    def thin(a: Any, most: int) -> np.ndarray:
        flat = np.asarray(a, np.float64).ravel()
        return flat[:: max(1, len(flat) // most)][:most]

    answers, dx, dparams = results
    return [
        np.concatenate([thin(a, SAMPLES) for a in answers]),
        thin(dx, SAMPLES),
        np.concatenate([thin(a, SAMPLES_OF_A_LEAF) for a in dparams]),
    ]


def computed(chosen: Mapping[str, Case], dtype: str) -> Iterator[tuple[str, Callable[[], list[np.ndarray]]]]:
    """Of each case a function of its samples on the default device; programs are compiled while others are traced."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        programs = []
        for name, case in chosen.items():
            try:
                program, arguments = lowered(case, dtype)
            except Exception as error:  # of tracing for this device: it is the result's, not the other cases'
                programs.append((name, _raise(error), ()))
            else:
                programs.append((name, pool.submit(program.compile).result, arguments))
        for name, compiled, arguments in programs:
            yield name, lambda compiled=compiled, arguments=arguments: samples(compiled()(*arguments))


def _raise(error: Exception) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """|got - want| / |want|; infinite where something is not finite."""
    error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    return error if math.isfinite(error) else math.inf


def store(names: Sequence[str] = ()) -> None:
    """Writes the reference: float64's numbers, and how far the CPU's own float32 and bfloat16 are from them.

    Args:
        names: of cases; the numbers of others stay as they are. Without names all are computed.
    """
    arrays: dict[str, np.ndarray] = {}
    if unknown := set(names) - set(builders()):
        raise ValueError(f"unknown cases {sorted(unknown)}: known are {', '.join(builders())}")
    if names:
        with np.load(REFERENCE) as kept:
            arrays = dict(kept)
    chosen = {name: build() for name, build in builders().items() if not names or name in names}
    with jax.enable_x64(True):
        exact = {name: run() for name, run in computed(chosen, "float64")}
    for dtype in FLOOR:
        for name, run in computed(chosen, dtype):
            arrays[f"{name}/{dtype}"] = np.array([distance(*pair) for pair in zip(run(), exact[name], strict=True)])
    arrays |= {f"{name}/{kind}": a for name, parts in exact.items() for kind, a in zip(KINDS, parts, strict=True)}
    np.savez_compressed(REFERENCE, **{name: a.astype(np.float32) for name, a in arrays.items()})
    print(f"{REFERENCE}: {len(chosen)} cases, {REFERENCE.stat().st_size / 1024:.0f} KiB")


def compared(name: str, dtype: str, got: list[np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A row of the results: whether all three kinds are as near as they must be, and which is the worst."""
    errors = [distance(a, reference[f"{name}/{kind}"]) for a, kind in zip(got, KINDS, strict=True)]
    allowed = [max(FLOOR[dtype], FACTOR * float(own)) for own in reference[f"{name}/{dtype}"]]
    worst = max(range(len(KINDS)), key=lambda i: errors[i] / allowed[i])
    why = f"{KINDS[worst]} off by {errors[worst]:.1e}, allowed {allowed[worst]:.1e}"
    return {"what": name, "dtype": dtype, "correct": errors[worst] <= allowed[worst], "why": why}


def run(report: Callable[[dict[str, Any]], None], *, tiny: bool) -> None:
    """Reports how far each case is from the reference, in both types."""
    chosen = cases(tiny)
    with np.load(REFERENCE) as reference:
        for dtype in FLOOR:
            for name, computing in computed(chosen, dtype):
                try:
                    report(compared(name, dtype, computing(), reference))
                except Exception as error:  # of the compiler or the device: the others are worth knowing all the same
                    report({"what": name, "dtype": dtype, "correct": False, "why": f"{error!r:.300}"})
