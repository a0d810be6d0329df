"""Go on training another project's network: all of it, a part, low-rank adapters, or a ControlNet that steers it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jaxdiff as jd
from jaxdiff import data, interop, text_to_image, train
from jaxdiff.experiment import Experiment, UserError, compute_dtype, seed_key
from jaxdiff.interop.models.conditional_unets import control_config
from jaxdiff.interop.sources import find_part, is_file, pipeline_of, read_fields
from jaxdiff.networks import lora
from jaxdiff.networks.controlnet import controlled, copy_encoder
from jaxdiff.options import Count, File, Kept, Natural, Seed, Source, absolute
from jaxdiff.text_to_image.index import scheduler_config


def experiment(
    directory: File,
    mode: Literal["full", "lora", "control"] = "full",
    only: str = "",
    rank: Count = 8,
    scale: float = 1.0,
    control: File = "",
    hints: Annotated[str, Kept(lambda text: absolute(text) if text.endswith(".npz") else text)] = "edges",
    source: Source = "fashion_mnist",
    size: Natural = 0,
    prompt: str = "",
    cond: File = "",
    vae: File = "",
    base: File = "",
    steps: Count = 1000,
    batch: Count = 32,
    accumulate: Count = 1,
    lr: float = 1e-4,
    seed: Seed = 0,
    drop_rate: float = 0.1,
    ema: float = 0.999,
    guidance: float = 1.0,
    sample_steps: Count = 50,
    preview_every: Count = 1000,
    mesh: Mesh | None = None,
) -> Experiment:
    """Fine-tuning, of all parameters, low-rank adapters (arXiv:2106.09685) or a ControlNet (arXiv:2302.05543).

    What noises the data and what the network predicts is read from scheduler_config.json in the network's folder or in
    "scheduler" beside it. Without one it is DDPM's linear table and the noise, or for SD3 and Flux a flow and its
    velocity.

    Args:
        directory: a Hugging Face folder of a diffusion network, or of a pipeline that has one; or a file of either.
        mode: full trains the network's own parameters; lora leaves them and trains low-rank adapters; control trains a
            ControlNet beside a conditional U-Net.
        only: a regular expression for dotted paths: what is trained or adapted; by default everything, or the
            projections of attention.
        rank: of the adapters.
        scale: of the adapters' part, alpha / rank.
        control: folder of a ControlNet to begin with; by default one that begins as the U-Net's encoder.
        hints: what a ControlNet sees: edges of the images, or an .npz file of "hint", uint8 [N, H, W, C], a row for
            each image of the data.
        source: fashion_mnist, tfds:NAME or folder:PATH.
        size: of the images; by default as the network's config and the autoencoder have it.
        prompt: for a pipeline: what its text encoders are told of a class, whose name stands for {}, such as
            "a photo of a {}"; an empty text says nothing.
        cond: in place of a prompt an .npz file of the condition by its names ("tokens", "vector"): one row for each
            class of the data and a last one that says nothing.
        vae: folder or file of the autoencoder whose latents the network is of; a pipeline's is found.
        base: folder of a pipeline that gives what the other lacks; of a checkpoint in one file the tokenizers.
        steps: updates of the parameters.
        batch: images in an update.
        accumulate: microbatches in an update.
        lr: learning rate after its warm-up.
        seed: of adapters, training noise and data order.
        drop_rate: share of images trained without their class, where the network has classes.
        ema: decay of the parameters' average.
        guidance: classifier-free guidance scale of the samples; or what a network made for it is told of it, always.
        sample_steps: steps of a sample.
        preview_every: steps between two grids of samples.
        mesh: where the network's own parameters lie; None is the default device.
    """
    folder = _network_folder(Path(directory))
    config = read_fields(folder)
    kind = config["_class_name"]
    place = None if mesh is None else lambda tree: train.shard_params(tree, mesh)
    codec = _autoencoder(vae, folder, place)
    size = size or config.get("sample_size", 0) * (codec.apply.factor if codec else 1)
    images = data.open_source(source, size=size or None, channels=3 if codec else _channels(config))
    shape = _latent_shape(images.shape, codec)
    sampling = _sampling(folder, base, config, shape)
    told = data.class_prompts(prompt, images.class_names) if prompt else []
    texts = _prompted(pipeline_of(folder), base, told, images.shape) if told else data.open_table(cond) if cond else {}
    tables = _placed(texts, place)
    distilled = bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim"))
    if distilled and tables:
        rows = len(next(iter(tables.values())))
        tables["guidance"] = _placed({"guidance": np.full(rows, guidance, np.float32)}, place)["guidance"]
    if not tables and {"cross_attention_dim", "joint_attention_dim"} & config.keys():
        raise UserError("the network sees texts: give --prompt or --cond FILE.npz")
    null = _null_label(kind, config, tables)
    if null is not None and not 0 < images.num_classes <= null:
        raise UserError(f"{source} has {images.num_classes} classes, the network's condition 1 to {null}")
    if mode == "control":
        if null is None:
            raise UserError("a ControlNet is trained beside the U-Net's condition: give --prompt or --cond FILE.npz")
        images = data.open_hints(hints, images)
        tuned = _control(folder, place, begin=control, seed=seed, shape=shape, hint=images.hint_shape)
    elif mode == "lora":
        tuned = _adapters(folder, place, only=only, rank=rank, scale=scale)
    else:
        tuned = _parameters(folder, config, place, only)

    def apply(params: Any, x: Any, noise: Any, cond: Any = None, **options: Any) -> Any:
        trained, frozen = params
        if frozen["cond"]:
            label, rest = cond["label"], {name: value for name, value in cond.items() if name != "label"}
            cond = rest | {name: table[label] for name, table in frozen["cond"].items()}
        return tuned.apply((trained, frozen["base"]), x, noise, cond, **options)

    def batches(start: int, rows: np.ndarray | None = None) -> Iterator[dict[str, np.ndarray]]:
        for one in data.batches(images, batch, seed=seed, start=start, rows=rows):
            yield one if null is not None else {name: value for name, value in one.items() if name != "label"}

    # What a batch holds: pixels even where the network is of latents, and hints.
    example = {"x": jax.ShapeDtypeStruct(images.shape, jnp.float32)}
    if null is not None:
        example["label"] = jax.ShapeDtypeStruct((), jnp.int32)
    if mode == "control":
        example["hint"] = jax.ShapeDtypeStruct(images.hint_shape, jnp.float32)
    # Samples are steered by a hint for each class.
    shown = _placed({"hint": images.of_classes()} if mode == "control" else {}, place)

    def beside(params: Any, label: Any) -> dict[str, Any]:
        return {name: hints[label].astype(jnp.float32) / 255 for name, hints in params[1]["shown"].items()}

    learned = config.get("out_channels") == 2 * config.get("in_channels", 0)
    discrete = isinstance(sampling.process, jd.processes.Discrete)
    make_loss = jd.losses.hybrid_loss if learned and discrete else jd.losses.denoising_loss
    loss = make_loss(apply, sampling.process, sampling.row)
    if null is not None:
        loss = _of_some(loss, null, drop_rate)
    return Experiment(
        init=tuned.init,
        start=tuned.start,
        frozen={"base": tuned.base, "cond": tables, "vae": codec.params if codec else {}, "shown": shown},
        export=tuned.export,
        apply=apply,
        process=sampling.process,
        row=sampling.row,
        loss=_of_latents(loss, codec.apply) if codec else loss,
        optimizer=train.adamw(lr, warmup=min(100, steps // 10)),
        ema=train.ema.warmup(ema),
        batches=batches,
        batch=batch,
        example=example,
        steps=steps,
        seed=seed,
        shape=shape,
        grid=sampling.grid,
        solver=sampling.solver,
        limit=sampling.limit,
        std=sampling.std,
        sample_steps=sample_steps,
        accumulate=accumulate,
        preview_every=preview_every,
        preview=8 if codec else 50,
        num_classes=0 if null is None else images.num_classes,
        null_label=null,
        guidance=1.0 if distilled else guidance,
        learned_variance=learned,
        source=source,
        beside=beside,
        decode=(lambda params, z: codec.apply.to_images(params[1]["vae"], z)) if codec else (lambda params, x: x),
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


def _control(folder: Path, place: Any, *, begin: str, seed: int, shape: tuple, hint: tuple) -> _Tuned:
    """Train a ControlNet of a conditional U-Net, which stays as it was read."""
    loaded = interop.load(folder, dtype=compute_dtype(), place=place)
    if loaded.config["_class_name"] != "UNet2DConditionModel":
        raise UserError(f"a ControlNet is for a UNet2DConditionModel, got {loaded.config['_class_name']}")
    if begin:
        config = read_fields(begin)
    else:
        # Each width after the first halves the hint.
        widths = (16, 32, 96, 256)[: (hint[0] // shape[0]).bit_length()]
        fields = {"conditioning_channels": hint[-1], "conditioning_embedding_out_channels": widths}
        config = control_config(loaded.config, **fields)
    if config["_class_name"] != "ControlNetModel":
        raise UserError(f"{begin} must hold a ControlNetModel, got {config['_class_name']}")
    seen = [one.get("in_channels", 4) for one in (loaded.config, config)]
    own = min(shape[-1], loaded.config.get("out_channels", 4))
    if seen != [own, own]:
        raise UserError(f"U-Net and ControlNet must see x alone, {own} channels; theirs are {seen[0]} and {seen[1]}")
    factor = 2 ** (len(config.get("conditioning_embedding_out_channels", (16, 32, 96, 256))) - 1)
    wanted = (factor * shape[0], factor * shape[1], config.get("conditioning_channels", 3))
    if hint != wanted:
        raise UserError(f"the ControlNet takes hints of shape {wanted}, got {hint}")
    built = interop.architecture(config, compute_dtype())
    steered = controlled(built.apply, loaded.apply)

    def start() -> Any:
        if begin:
            return interop.load(begin, param_dtype=jnp.float32, place=place).params
        copied = copy_encoder(built.init(seed_key(seed)), loaded.params)
        return jax.tree.map(lambda a: a.astype(jnp.float32), copied)

    return _Tuned(
        init=built.init,
        apply=lambda params, *args, **options: steered({"controlnet": params[0], "unet": params[1]}, *args, **options),
        base=loaded.params,
        export={"model": lambda params, out: interop.save(interop.Loaded(built.apply, params, config), out)},
        start=start,
    )


def _autoencoder(vae: str, folder: Path, place: Any) -> interop.Loaded | None:
    pipeline = pipeline_of(folder)
    path = Path(vae) if vae else find_part(pipeline, "vae")
    if path == pipeline:
        return None
    return interop.load(path, dtype=compute_dtype(), place=place)


def _of_some(loss: Any, null: int, rate: float) -> Any:
    """The loss of examples some of which have lost their class, but nothing else."""

    def of_some(params: Any, key: Any, batch: dict[str, Any]) -> Any:
        drop_key, key = jax.random.split(key)
        label = jd.guidance.drop_condition(drop_key, batch["label"], jnp.full((1,), null), rate)
        return loss(params, key, {**batch, "label": label})

    return of_some


def _of_latents(loss: Any, codec: Any) -> Any:
    """The loss of latents, drawn from the autoencoder's posterior, as a loss of images."""
    drawn = jd.losses.latent_loss(loss)

    def of_images(params: Any, key: Any, batch: dict[str, Any]) -> Any:
        mean, std = codec.posterior(params[1]["vae"], batch["x"])
        rest = {name: value for name, value in batch.items() if name != "x"}
        return drawn(params, key, {**rest, "mean": mean, "std": std})

    return of_images


def _latent_shape(shape: tuple[int, ...], vae: interop.Loaded | None) -> tuple[int, ...]:
    if vae is None:
        return shape
    return (*(length // vae.apply.factor for length in shape[:-1]), vae.apply.channels)


def _network_folder(directory: Path) -> Path:
    found = find_part(directory, "unet", "transformer")
    if not is_file(found) and not is_file(found.parent) and not (found / "config.json").is_file():
        raise UserError(f"no config.json in {directory}, nor in unet or transformer below it")
    return found


def _channels(config: dict) -> int | None:
    # Flux's config counts those of 2x2 pixels.
    return (
        config["in_channels"] // 4 if config["_class_name"] == "FluxTransformer2DModel" else config.get("in_channels")
    )


def _sampling(folder: Path, base: str, config: dict, shape: tuple[int, ...]) -> interop.Sampling:
    kind = config["_class_name"]
    own = (
        folder if (folder / "scheduler_config.json").is_file() else scheduler_config(pipeline_of(folder), base or None)
    )
    flow = kind in ("SD3Transformer2DModel", "FluxTransformer2DModel")
    default = {"_class_name": "FlowMatchEulerDiscreteScheduler" if flow else "DDPMScheduler"}
    return interop.network_sampling(own or default, config, shape[:2])


def _prompted(directory: Path, base: str, told: list[str], shape: tuple[int, ...]) -> dict[str, Any]:
    size = shape[0], shape[1]
    return text_to_image.encode_prompts(directory, told, size=size, base=base or None, dtype=compute_dtype())


def _placed(arrays: dict[str, Any], place: Callable[[Any], Any] | None) -> dict[str, Any]:
    return jax.device_put(arrays, None if place is None else place(arrays))


def _null_label(kind: str, config: dict, tables: dict[str, Any]) -> int | None:
    """The label that says nothing; None for a network without a condition."""
    if tables:
        return len(next(iter(tables.values()))) - 1
    if kind in ("DiTTransformer2DModel", "Transformer2DModel"):
        return config.get("num_embeds_ada_norm", 1000)
    classes = config.get("num_class_embeds")
    return None if classes is None else classes - 1
