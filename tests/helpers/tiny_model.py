"""A network of another project in miniature: its config, its tensors by name, and its place among the classes."""

import json

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jaxdiff.interop.formats.config import Fields
from jaxdiff.interop.models.architecture import ModelSpec
from jaxdiff.schema import whole_number

CONFIG = {"_class_name": "Tiny", "_diffusers_version": "0.1", "width": 8, "act": "silu"}


def tiny(config, dtype):
    """A network of every kind of leaf, whose equal layers are stacked."""
    c = Fields(config, "Tiny", dict.fromkeys(("width", "layers"), whole_number(1, 10**6)))
    c.expect("act", "silu")
    width, layers = c.get("width", 8), c.get("layers", 3)
    c.check_all_read()
    shapes = {
        "conv_in": {"kernel": (3, 3, 2, width), "bias": (width,)},
        "blocks.*": {"norm": {"scale": (layers, width)}, "to_out.0": {"kernel": (layers, width, 2 * width)}},
        "label": {"embedding": (5, width)},
        "gain": (),
    }

    def make(tree):
        return jnp.zeros(tree) if isinstance(tree, tuple) else {name: make(part) for name, part in tree.items()}

    def apply(params, x):
        return x.astype(dtype)

    return ModelSpec(
        lambda key: make(shapes),
        apply,
        rename=lambda key: key.replace("blocks.", "layers."),
        alias=lambda key: None if key == "positions" else key.replace("to_out_0", "to_out.0"),
        weights="model",
    )


def tensors(width=8, layers=3, dtype=np.float32):
    """What its file holds, in PyTorch's layout."""
    rng = np.random.default_rng(0)
    shapes = {"conv_in.weight": (width, 2, 3, 3), "conv_in.bias": (width,), "label.weight": (5, width), "gain": ()}
    for i in range(layers):
        shapes |= {f"layers.{i}.norm.weight": (width,), f"layers.{i}.to_out.0.weight": (2 * width, width)}
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def write(directory, held=None, name="model.safetensors", **config):
    """Makes a directory of it; returns what its file holds."""
    held = tensors() if held is None else held
    directory.mkdir(exist_ok=True, parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(held, directory / name)
    return held


def write_parts(directory, parts, index=None, name="model.safetensors.index.json"):
    """Writes files of the given names and an index, by default that of what they hold."""
    for file, held in parts.items():
        write(directory, held, file)
    right = {key: file for file, held in parts.items() for key in held}
    (directory / name).write_text(json.dumps({"weight_map": right if index is None else index}))


def halves(held):
    """Two files' worth."""
    names = sorted(held)
    return {
        f"model-0000{i}-of-00002.safetensors": {name: held[name] for name in part}
        for i, part in enumerate((names[:4], names[4:]), 1)
    }
