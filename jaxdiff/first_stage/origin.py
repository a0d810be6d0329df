"""The autoencoder that a training begins with: a new network, or another project's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdiff import interop
from jaxdiff.autoencoders import Codec, VQCodec
from jaxdiff.experiment import UserError, compute_dtype
from jaxdiff.first_stage.knobs import Architecture
from jaxdiff.interop.sources import find_part, read_fields
from jaxdiff.sharding import shard_params
from jaxdiff.types import Params

__all__ = ["Origin", "open_origin"]

CLASSES = {"kl": "AutoencoderKL", "vq": "VQModel"}


@dataclass(frozen=True)
class Origin:
    """An autoencoder, as a config of diffusers describes it.

    Attributes:
        config: the fields, with the class in "_class_name".
        folder: where its weights are; None: they are drawn.
        mesh: where they lie; None is the default device.
    """

    config: Mapping[str, Any]
    folder: Path | None = None
    mesh: Mesh | None = None

    @property
    def codec(self) -> Codec | VQCodec:
        """The network as functions."""
        return interop.architecture(self.config, compute_dtype()).apply

    @property
    def channels(self) -> int:
        """Of the images."""
        return self.config.get("in_channels", 3)

    def init(self, key: jax.Array) -> Any:
        """Draw parameters."""
        return interop.architecture(self.config).init(key)

    def read(self) -> Any:
        """Read the folder's parameters, as float32."""
        mesh = self.mesh
        place = None if mesh is None else lambda tree: shard_params(tree, mesh)
        return interop.load(str(self.folder), param_dtype=jnp.float32, place=place).params

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise UserError unless images of this shape can be encoded and decoded."""
        factor, out = self.codec.factor, self.config.get("out_channels", 3)
        if not self.channels == out == shape[-1]:
            raise UserError(
                f"the autoencoder takes {self.channels} channels and makes {out}, and the images have {shape[-1]}: "
                "--channels 1 or 3 reads them as grey or RGB"
            )
        if any(n % factor for n in shape[:2]):
            raise UserError(
                f"the autoencoder halves images {factor.bit_length() - 1} times, and those of {shape[0]} x {shape[1]} "
                f"are no multiple of {factor}: choose another --size"
            )

    def save(self, params: Params, out: Path, *, scale: float | None) -> None:
        """Write a folder that diffusers loads.

        Args:
            params: the network's.
            out: the folder.
            scale: the scaling_factor of a new network's latents; None keeps the config's.
        """
        config = dict(self.config) if scale is None else {**self.config, "scaling_factor": scale}
        interop.save(interop.Pretrained(self.codec, params, config), out)


def open_origin(architecture: Architecture, shape: tuple[int, ...], mesh: Mesh | None = None) -> Origin:
    """Describe the autoencoder to train.

    Args:
        architecture: the knobs.
        shape: of an image.
        mesh: where parameters that are read lie; None is the default device.

    Raises:
        UserError: the folder holds no autoencoder, or the network does not fit the images.
    """
    if architecture.directory:
        folder = find_part(Path(architecture.directory), "vae", "vqvae")
        config = read_fields(folder)
        if config["_class_name"] not in CLASSES.values():
            raise UserError(
                f"--directory must hold an {' or '.join(CLASSES.values())}, got {config['_class_name']} in {folder}"
            )
        origin = Origin(config, folder, mesh)
    else:
        origin = Origin(_config(architecture, shape))
    origin.check(shape)
    return origin


def _config(architecture: Architecture, shape: tuple[int, ...]) -> dict[str, Any]:
    """The config of a new network."""
    levels, latent = len(architecture.widths), architecture.latent_channels
    config = {
        "_class_name": CLASSES[architecture.form],
        "in_channels": shape[-1],
        "out_channels": shape[-1],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(architecture.widths),
        "layers_per_block": architecture.num_blocks,
        "act_fn": "silu",
        "latent_channels": latent,
        "norm_num_groups": architecture.groups,
        "sample_size": shape[0],
        "scaling_factor": 1.0,
    }
    return config | (
        {"num_vq_embeddings": architecture.codes, "vq_embed_dim": latent} if architecture.form == "vq" else {}
    )
