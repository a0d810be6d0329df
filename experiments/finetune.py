"""Go on training another project's network: all of it, a part, or low-rank adapters beside it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jaxdiff as jd
from jaxdiff import data, interop, train
from jaxdiff.cli.images import save_png
from jaxdiff.experiment import Experiment, compute_dtype, example_keys, sampler
from jaxdiff.interop.files import read_config
from jaxdiff.networks import lora


def experiment(
    directory: str,
    mode: Literal["full", "lora"] = "full",
    only: str = "",
    rank: int = 8,
    scale: float = 1.0,
    source: str = "fashion_mnist",
    size: int = 0,
    cond: str = "",
    vae: str = "",
    steps: int = 1000,
    batch: int = 32,
    accumulate: int = 1,
    lr: float = 1e-4,
    seed: int = 0,
    drop_rate: float = 0.1,
    ema: float = 0.999,
    guidance: float = 1.0,
    sample_steps: int = 50,
    preview_every: int = 1000,
    mesh: Mesh | None = None,
) -> Experiment:
    """Fine-tuning, of all parameters or of low-rank adapters (Hu et al. 2021, arXiv:2106.09685).

    What noises the data and what the network predicts is read from scheduler_config.json in the network's folder or in
    "scheduler" beside it. Without one it is DDPM's linear table and the noise, or for SD3 and Flux a flow and its
    velocity.

    Args:
        directory: a Hugging Face folder of a diffusion network, or of a pipeline that has one.
        mode: full trains the network's own parameters; lora leaves them and trains low-rank adapters.
        only: a regular expression for dotted paths: what is trained or adapted; by default everything, or the
            projections of attention.
        rank: of the adapters.
        scale: of the adapters' part, alpha / rank.
        source: fashion_mnist, tfds:NAME or folder:PATH.
        size: of the images; by default as the network's config and the autoencoder have it.
        cond: an .npz file of what the network is conditioned on, by its names ("tokens", "vector"): one row for each
            class of the data and a last one that says nothing.
        vae: folder of the autoencoder whose latents the network is of; a pipeline's is found.
        steps: updates of the parameters.
        batch: images in an update.
        accumulate: microbatches in an update.
        lr: learning rate after its warm-up.
        seed: of adapters, training noise and data order.
        drop_rate: share of images trained without their class, where the network has classes.
        ema: decay of the parameters' average.
        guidance: classifier-free guidance scale of the samples.
        sample_steps: steps of a sample.
        preview_every: steps between two grids of samples.
        mesh: where the network's own parameters lie; None is the default device.
    """
    folder = _network_folder(Path(directory))
    kind, config = read_config(folder)
    config = {**config, "_class_name": kind}
    sampling = _sampling(folder, kind)
    place = None if mesh is None else lambda tree: train.shard_params(tree, mesh)
    codec = _autoencoder(vae, folder, place)
    size = size or config.get("sample_size", 0) * (codec.apply.factor if codec else 1)
    images = data.open_source(source, size=size or None, channels=3 if codec else config.get("in_channels"))
    tables = _tables(cond, place)
    null = _null_label(kind, config, tables)
    if null is not None and not 0 < images.num_classes <= null:
        raise ValueError(f"{source} has {images.num_classes} classes, the network's condition 1 to {null}")
    if mode == "lora":
        tuned = _adapters(folder, place, only=only, rank=rank, scale=scale)
    else:
        tuned = _parameters(folder, config, place, only)

    def apply(params: Any, x: Any, noise: Any, cond: Any = None, **options: Any) -> Any:
        trained, frozen = params
        if frozen["cond"]:
            cond = {name: table[cond["label"]] for name, table in frozen["cond"].items()}
        return tuned.apply((trained, frozen["base"]), x, noise, cond, **options)

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        for one in data.batches(images, batch, seed=seed, start=start):
            yield one if null is not None else {"x": one["x"]}

    learned = config.get("out_channels") == 2 * config.get("in_channels", 0)
    discrete = isinstance(sampling.process, jd.processes.Discrete)
    make_loss = jd.losses.hybrid_loss if learned and discrete else jd.losses.denoising_loss
    loss = make_loss(
        apply,
        sampling.process,
        sampling.row,
        null=None if null is None else {"label": jnp.full((1,), null)},
        drop_rate=0.0 if null is None else drop_rate,
    )
    return Experiment(
        init=tuned.init,
        start=tuned.start,
        frozen={"base": tuned.base, "cond": tables, "vae": codec.params if codec else {}},
        export=tuned.export,
        apply=apply,
        process=sampling.process,
        row=sampling.row,
        loss=_of_latents(loss, codec.apply) if codec else loss,
        optimizer=train.adamw(lr, warmup=min(100, steps // 10)),
        ema=train.ema.warmup(ema),
        batches=batches,
        steps=steps,
        seed=seed,
        shape=_latent_shape(images.shape, codec.apply) if codec else images.shape,
        grid=sampling.grid,
        solver=sampling.solver,
        limit=sampling.limit,
        sample_steps=sample_steps,
        accumulate=accumulate,
        preview_every=preview_every,
        num_classes=0 if null is None else images.num_classes,
        null_label=null,
        guidance=guidance,
        learned_variance=learned,
        source=source,
        draw=_drawing(codec.apply) if codec else None,
    )


class _Tuned(NamedTuple):
    """What of a network is trained, and how that is read, used and written."""

    init: Callable[[Any], Any]
    apply: Callable[..., Any]  # of (what is trained, base)
    base: Any
    export: dict[str, Callable[[Any, Path], Any]]
    start: Callable[[], Any] | None = None


def _parameters(folder: Path, config: dict, place: Any, only: str) -> _Tuned:
    """Train the network's parameters, or those that `only` finds."""
    built = interop.architecture(config, compute_dtype())

    def read() -> Any:
        return interop.load(folder, param_dtype=jnp.float32, place=place).params

    # Everything is read when the run begins; a part needs the rest whenever it runs.
    base = train.split(read(), only)[1] if only else {}

    def part(params: Any) -> Any:
        return train.split(params, only)[0] if only else params

    def export(params: Any, out: Path) -> None:
        interop.save(interop.Loaded(built.apply, train.join(params, base), config), out)

    return _Tuned(
        init=lambda key: part(built.init(key)),
        apply=lambda params, *args, **options: built.apply(train.join(*params), *args, **options),
        base=base,
        export={"model": export},
        start=lambda: part(read()),
    )


def _adapters(folder: Path, place: Any, *, only: str, rank: int, scale: float) -> _Tuned:
    """Train adapters of the kernels that `only` finds, beside the network as it was read."""
    loaded = interop.load(folder, dtype=compute_dtype(), place=place)
    name = "unet" if loaded.config["_class_name"].startswith("UNet") else "transformer"
    shapes = jax.eval_shape(lambda: loaded.params)

    def export(params: Any, out: Path) -> None:
        merged = jax.jit(lora.merge)(loaded.params, params, scale)
        interop.save(loaded._replace(params=merged), out)

    return _Tuned(
        init=lambda key: lora.init(key, shapes, rank, targets=only or lora.ATTENTION),
        apply=lora.adapted(loaded.apply, scale),
        base=loaded.params,
        export={
            "model": export,
            "lora": lambda params, out: interop.save_lora(out, {name: params}, {name: loaded}, scale=scale),
        },
    )


def _autoencoder(vae: str, folder: Path, place: Any) -> interop.Loaded | None:
    path = Path(vae) if vae else folder.parent / "vae"
    if not vae and not (path / "config.json").is_file():
        return None
    return interop.load(path, dtype=compute_dtype(), place=place)


def _of_latents(loss: Any, codec: Any) -> Any:
    """The loss of latents, drawn from the autoencoder's posterior, as a loss of images."""

    def of_images(params: Any, key: Any, batch: dict[str, Any]) -> Any:
        draw_key, key = jax.random.split(key)
        mean, std = codec.encode(params[1]["vae"], batch["x"])
        z = codec.standardize(mean + std * jd.noise.normal_like(draw_key, mean))
        return loss(params, key, {**batch, "x": z.astype(jnp.float32)})

    return of_images


def _latent_shape(shape: tuple[int, ...], codec: Any) -> tuple[int, ...]:
    return (*(length // codec.factor for length in shape[:-1]), codec.channels)


def _drawing(codec: Any) -> Callable[[Experiment, Any, Path], None]:
    def draw(made: Experiment, params: Any, path: Path) -> None:
        columns = made.num_classes or 4
        label = jnp.arange(2 * columns, dtype=jnp.int32) % made.num_classes if made.num_classes else None
        generate = sampler(made, guided=made.guidance != 1)
        z = generate(params, example_keys(made.seed, 2 * columns), label, made.guidance)
        images = jax.jit(lambda params, z: codec.decode(params, codec.restore(z)))(params[1]["vae"], z)
        save_png(path, np.asarray(images, np.float32), columns)

    return draw


def _network_folder(directory: Path) -> Path:
    folders = [directory, directory / "unet", directory / "transformer"]
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(f"no config.json in {', '.join(map(str, folders))}")


def _sampling(folder: Path, kind: str) -> interop.Sampling:
    for place in (folder, folder.parent / "scheduler"):
        if (place / "scheduler_config.json").is_file():
            return interop.scheduler(place)
    flows = ("SD3Transformer2DModel", "FluxTransformer2DModel")
    return interop.scheduler({"_class_name": "FlowMatchEulerDiscreteScheduler" if kind in flows else "DDPMScheduler"})


def _tables(cond: str, place: Callable[[Any], Any] | None) -> dict[str, Any]:
    if not cond:
        return {}
    with np.load(cond) as file:
        tables = {name: file[name] for name in file.files}
    if len({len(table) for table in tables.values()}) != 1:
        raise ValueError(
            f"{cond} must hold arrays of equally many rows, got { {k: v.shape for k, v in tables.items()} }"
        )
    return jax.device_put(tables, None if place is None else place(tables))


def _null_label(kind: str, config: dict, tables: dict[str, Any]) -> int | None:
    """The label that says nothing; None for a network without a condition."""
    if tables:
        return len(next(iter(tables.values()))) - 1
    if kind == "DiTTransformer2DModel":
        return config.get("num_embeds_ada_norm", 1000)
    classes = config.get("num_class_embeds")
    return None if classes is None else classes - 1
