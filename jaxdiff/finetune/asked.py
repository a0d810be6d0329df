"""What the network is trained to be asked for: classes of the data, by labels, texts or hints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff import conditions, data, text_to_image
from jaxdiff.conditions import Condition
from jaxdiff.experiment import UserError, compute_dtype
from jaxdiff.finetune.knobs import Network, Pictures
from jaxdiff.finetune.origin import FEW_STEPS, Origin
from jaxdiff.interop.sources import pipeline_of

__all__ = ["Asked", "network_cond", "open_condition"]


# Knobs of some modes alone.
OF_MODES = {"control": ("control",), "rank": ("lora",), "scale": ("lora",), "only": ("full", "lora")}


class Asked(NamedTuple):
    """The data, and the condition of its classes.

    Attributes:
        images: the source.
        condition: of the classes; none for a network without a condition.
        null_label: the label of the null condition; None without a condition.
        tables: name -> [classes + 1, ...], what the network gets in place of a label, on the devices; {}: labels.
    """

    images: Any
    condition: Condition
    null_label: int | None
    tables: dict[str, Any]


def open_condition(origin: Origin, pictures: Pictures, network: Network, *, guidance: float) -> Asked:
    """Open the data, and make the condition of its classes that the network needs.

    Args:
        origin: the network.
        pictures: the data.
        network: the network's knobs.
        guidance: the scale that a distilled network gets.

    Raises:
        UserError: the network needs texts and there are none, the classes do not fit it, it cannot be distilled, or a
            knob is of another mode.
    """
    _check_mode(origin, network, pictures)
    asked = _opened(origin, pictures, guidance=guidance, hints=network.mode == "control")
    if network.distill == "none":
        return asked
    _check_distilled(origin, asked, network, guidance)
    return asked._replace(condition=replace(asked.condition, null=None))  # the student's guidance is its own


def network_cond(tables: dict[str, Any], cond: Any) -> Any:
    """What the network is given in place of labels.

    Args:
        tables: name -> [classes + 1, ...], see `Asked`.
        cond: the condition; where it has an entry of a table's name, that one is used.
    """
    if not tables:
        return cond
    label, rest = cond["label"], {name: value for name, value in cond.items() if name != "label"}
    return {name: table[label] for name, table in tables.items()} | rest


def _opened(origin: Origin, pictures: Pictures, *, guidance: float, hints: bool) -> Asked:
    channels = 3 if origin.autoencoder else origin.channels
    images: Any = data.open_dataset(pictures.source, size=origin.image_size(pictures.size), channels=channels)
    tables = _tables(origin, pictures, images)
    if origin.distilled and tables:
        rows = len(next(iter(tables.values())))
        tables |= _placed({"guidance": np.full(rows, guidance, np.float32)}, origin)
    if not tables and {"cross_attention_dim", "joint_attention_dim"} & origin.config.keys():
        raise UserError("the network needs texts: give --prompt or --cond FILE.npz")
    null = _null_label(origin, tables)
    if null is None:
        if hints:
            raise UserError("a ControlNet is trained with the U-Net's condition: give --prompt or --cond FILE.npz")
        return Asked(images, conditions.none(), None, tables)
    if not 0 < images.num_classes <= null:
        raise UserError(f"{pictures.source} has {images.num_classes} classes, the network's condition 1 to {null}")
    condition = conditions.label(images.num_classes, images.class_names, null=null)
    if hints:
        images = data.open_hints(pictures.hints, images)
        condition = conditions.hint(condition, images.class_hints())
    return Asked(images, condition, null, tables)


def _check_mode(origin: Origin, network: Network, pictures: Pictures) -> None:
    """Raise UserError where a knob is given that the mode does not look at."""
    plain = Network(network.directory)
    for name, modes in OF_MODES.items():
        if network.mode not in modes and getattr(network, name) != getattr(plain, name):
            raise UserError(f"--{name} goes with --mode {' or '.join(modes)}, got --mode {network.mode}")
    told_scale = network.distill == "guidance" or (network.distill == "consistency" and origin.distilled)
    if not told_scale and network.max_guidance != plain.max_guidance:
        raise UserError("--max-guidance is of the distillation of a network that is given the guidance scale")
    if network.mode != "control" and pictures.hints != Pictures().hints:
        raise UserError(f"--hints goes with --mode control, got --mode {network.mode}")
    if pictures.prompt and pictures.cond:
        raise UserError("--prompt makes the condition, and --cond has it: give one of them")


def _check_distilled(origin: Origin, asked: Asked, network: Network, guidance: float) -> None:
    if network.mode == "control" or (network.distill == "guidance" and network.mode == "lora"):
        allowed = "full" if network.distill == "guidance" else "full or lora"
        raise UserError(f"--distill {network.distill} trains with --mode {allowed}, got {network.mode}")
    if origin.scheduler_class in FEW_STEPS:
        raise UserError(
            f"{origin.folder} holds a network of few steps, by its {origin.scheduler_class}: give the network that it "
            "was distilled from, whose scheduler follows the probability flow, e.g. a DDIMScheduler"
        )
    if network.distill == "guidance" and asked.null_label is None:
        raise UserError("--distill guidance needs a network with a null condition: of classes or of texts")
    if not origin.distilled and guidance != 1 and asked.null_label is None:
        raise UserError(
            f"--guidance {guidance:g} needs a network with a null condition, which this one has not: use --guidance 1"
        )
    if origin.distilled and not 1 <= guidance <= network.max_guidance:
        raise UserError(
            f"--guidance {guidance:g} is of the samples, and lies in the range that is trained, 1 to --max-guidance "
            f"{network.max_guidance:g}"
        )


def _tables(origin: Origin, pictures: Pictures, images: Any) -> dict[str, Any]:
    if not pictures.prompt:
        return _placed(data.load_embeddings(pictures.cond), origin) if pictures.cond else {}
    texts = data.class_prompts(pictures.prompt, images.class_names)
    size = images.shape[0], images.shape[1]
    encoded = text_to_image.encode_prompts(
        pipeline_of(origin.folder), texts, size=size, base=origin.base, dtype=compute_dtype()
    )
    return _placed(encoded, origin)


def _placed(arrays: dict[str, Any], origin: Origin) -> dict[str, Any]:
    return jax.device_put(arrays, None if origin.place is None else origin.place(arrays))


def _null_label(origin: Origin, tables: dict[str, Any]) -> int | None:
    """The label of the null condition; None for a network without a condition."""
    if tables:
        return len(next(iter(tables.values()))) - 1
    if origin.kind in ("DiTTransformer2DModel", "Transformer2DModel"):
        return origin.config.get("num_embeds_ada_norm", 1000)
    classes = origin.config.get("num_class_embeds")
    return None if classes is None else classes - 1
