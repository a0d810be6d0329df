"""What fine-tuning begins with: a network's folder, its autoencoder, and its scheduler's config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxdiff import interop
from jaxdiff.experiment import UserError, compute_dtype
from jaxdiff.finetune.knobs import Network
from jaxdiff.interop.schedulers import FLOW_NETWORKS
from jaxdiff.interop.sources import find_part, is_file, pipeline_of, read_fields
from jaxdiff.sharding import shard_params
from jaxdiff.storage import read_json
from jaxdiff.text_to_image.index import scheduler_config

__all__ = ["FEW_STEPS", "Origin", "read_origin", "takes_scale"]

Place = Callable[[Any], Any]
SCALE_FEATURES = 256  # of the guidance scale, as published LCMs have
# Schedulers of networks that do not estimate E[x_0 | x_t].
FEW_STEPS = (
    "CMStochasticIterativeScheduler", "FlowMapEulerDiscreteScheduler", "FlowMatchLCMScheduler", "LCMScheduler",
    "SCMScheduler", "TCDScheduler",
)  # fmt: skip


def takes_scale(config: Mapping[str, Any]) -> bool:
    """Whether a network's config says that it gets the guidance scale as a condition."""
    return bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim"))


class Origin(NamedTuple):
    """A network that was trained elsewhere.

    Attributes:
        folder: the network's.
        config: the fields of what is trained, its class in "_class_name": those of the folder, and for guidance
            distillation that it gets the scale.
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
        return takes_scale(self.config)

    @property
    def scheduler_class(self) -> str:
        """The class of its scheduler."""
        config = self._scheduler_config()
        fields = config if isinstance(config, Mapping) else read_json(config / "scheduler_config.json")
        return str(fields.get("_class_name"))

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
        """The side of the images: as asked for, else as the config has it; None: as they are.

        Raises:
            UserError: the config's images are no squares, and no side is asked for.
        """
        factor, sides = self.autoencoder.apply.factor if self.autoencoder else 1, self.config.get("sample_size") or 0
        height, width = (sides, sides) if isinstance(sides, int) else sides
        if not size and height != width:
            raise UserError(
                f"images are fitted to squares, and the network's are {height * factor} x {width * factor}: give --size"
            )
        return size or height * factor or None

    def shape(self, images: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one example as the network gets it, of images of this shape."""
        if self.autoencoder is None:
            return images
        codec = self.autoencoder.apply
        return (*(length // codec.factor for length in images[:-1]), codec.channels)

    def scheduler(self, shape: tuple[int, ...]) -> interop.Scheduler:
        """Read the scheduler's config; without one it is DDPM's, or a flow for SD3 and Flux."""
        return interop.network_scheduler(self._scheduler_config(), self.config, shape[:2])

    def read(self, dtype: Any) -> interop.Pretrained:
        """Read the network, its parameters in this dtype."""
        return interop.load(self.folder, dtype=compute_dtype(), param_dtype=dtype, place=self.place)

    def _scheduler_config(self) -> Path | Mapping[str, Any]:
        own = self.folder if (self.folder / "scheduler_config.json").is_file() else None
        config = own or scheduler_config(pipeline_of(self.folder), self.base)
        default = {"_class_name": "FlowMatchEulerDiscreteScheduler" if self.kind in FLOW_NETWORKS else "DDPMScheduler"}
        return config or default


def read_origin(network: Network, mesh: Mesh | None) -> Origin:
    """Read a network's config, and its autoencoder.

    Args:
        network: where it lies.
        mesh: where the parameters that are read lie; None is the default device.

    Raises:
        UserError: there is no network, or one that guidance distillation is not for.
    """
    directory = Path(network.directory)
    folder = find_part(directory, "unet", "transformer")
    if not is_file(folder) and not is_file(folder.parent) and not (folder / "config.json").is_file():
        raise UserError(f"no config.json in {directory}, nor in unet or transformer below it")
    place = None if mesh is None else lambda tree: shard_params(tree, mesh)
    vae = _autoencoder(network.vae, folder, place)
    fields = read_fields(folder)
    config = _with_scale(fields) if network.distill == "guidance" else fields
    return Origin(folder, config, vae, place, network.base or None)


def _with_scale(fields: dict[str, Any]) -> dict[str, Any]:
    """The config of a network that also gets the guidance scale."""
    if fields["_class_name"] != "UNet2DConditionModel":
        raise UserError(
            "--distill guidance is of a UNet2DConditionModel, which can be given the scale, got "
            f"{fields['_class_name']}"
        )
    if takes_scale(fields):
        raise UserError("the network's guidance is distilled already: --distill consistency is for networks like it")
    return fields | {"time_cond_proj_dim": SCALE_FEATURES}


def _autoencoder(vae: str, folder: Path, place: Place | None) -> interop.Pretrained | None:
    pipeline = pipeline_of(folder)
    path = Path(vae) if vae else find_part(pipeline, "vae", "vqvae")
    return None if path == pipeline else interop.load(path, dtype=compute_dtype(), place=place)
