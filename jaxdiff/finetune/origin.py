"""What fine-tuning begins with: a network's folder, its autoencoder, and its scheduler's config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxdiff import interop
from jaxdiff.experiment import UserError, compute_dtype
from jaxdiff.finetune.knobs import Network
from jaxdiff.interop.sources import find_part, is_file, pipeline_of, read_fields
from jaxdiff.sharding import shard_params
from jaxdiff.text_to_image.index import scheduler_config

__all__ = ["Origin", "read_origin"]

Place = Callable[[Any], Any]


class Origin(NamedTuple):
    """A network that was trained elsewhere.

    Attributes:
        folder: the network's.
        config: its fields, its class in "_class_name".
        autoencoder: of whose latents the network is; None: of pixels.
        place: tree -> shardings of what is read; None is the default device.
        base: folder of a pipeline that gives what this one lacks; None: no other.
    """

    folder: Path
    config: dict[str, Any]
    autoencoder: interop.Pretrained | None
    place: Place | None
    base: str | None

    @property
    def kind(self) -> str:
        """The network's class."""
        return self.config["_class_name"]

    @property
    def distilled(self) -> bool:
        """Whether the network gets the guidance scale as a condition."""
        return bool(self.config.get("guidance_embeds") or self.config.get("time_cond_proj_dim"))

    @property
    def learned_variance(self) -> bool:
        """Whether the network returns (F, frac)."""
        return self.config.get("out_channels") == 2 * self.config.get("in_channels", 0)

    @property
    def channels(self) -> int | None:
        """Of an image, as the network gets it; None: the config does not say."""
        # Flux's config counts those of 2x2 pixels.
        return self.config["in_channels"] // 4 if self.kind.startswith("Flux") else self.config.get("in_channels")

    def image_size(self, size: int) -> int | None:
        """The side of the images: as asked for, else as the config has it; None: as they are."""
        factor = self.autoencoder.apply.factor if self.autoencoder else 1
        return size or self.config.get("sample_size", 0) * factor or None

    def shape(self, images: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one example as the network gets it, of images of this shape."""
        if self.autoencoder is None:
            return images
        codec = self.autoencoder.apply
        return (*(length // codec.factor for length in images[:-1]), codec.channels)

    def scheduler(self, shape: tuple[int, ...]) -> interop.Scheduler:
        """Read the scheduler's config; without one it is DDPM's, or a flow for SD3 and Flux."""
        own = self.folder if (self.folder / "scheduler_config.json").is_file() else None
        config = own or scheduler_config(pipeline_of(self.folder), self.base)
        flow = self.kind in ("SD3Transformer2DModel", "FluxTransformer2DModel")
        default = {"_class_name": "FlowMatchEulerDiscreteScheduler" if flow else "DDPMScheduler"}
        return interop.network_scheduler(config or default, self.config, shape[:2])


def read_origin(network: Network, mesh: Mesh | None) -> Origin:
    """Read a network's config, and its autoencoder.

    Args:
        network: where it lies.
        mesh: where the parameters that are read lie; None is the default device.

    Raises:
        UserError: there is no network.
    """
    directory = Path(network.directory)
    folder = find_part(directory, "unet", "transformer")
    if not is_file(folder) and not is_file(folder.parent) and not (folder / "config.json").is_file():
        raise UserError(f"no config.json in {directory}, nor in unet or transformer below it")
    place = None if mesh is None else lambda tree: shard_params(tree, mesh)
    vae = _autoencoder(network.vae, folder, place)
    return Origin(folder, read_fields(folder), vae, place, network.base or None)


def _autoencoder(vae: str, folder: Path, place: Place | None) -> interop.Pretrained | None:
    pipeline = pipeline_of(folder)
    path = Path(vae) if vae else find_part(pipeline, "vae")
    return None if path == pipeline else interop.load(path, dtype=compute_dtype(), place=place)
