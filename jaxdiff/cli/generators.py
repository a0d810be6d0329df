"""What `imagine` and `edit` draw with: a trained run, or a text-to-image directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxdiff import imagine
from jaxdiff.cli.prompt import is_pipeline
from jaxdiff.imagine import Generator
from jaxdiff.pretrained import open_run
from jaxdiff.progress import busy
from jaxdiff.quantize import Weights


def check_kind(run: Path, **of_directories: Any) -> bool:
    """Return whether a path is of a text-to-image directory.

    Args:
        run: a run's folder, or such a directory or file.
        **of_directories: options that runs do not take, by name.

    Raises:
        ValueError: it is no such directory, and one of the options is given.
    """
    of_directory = is_pipeline(run)
    if not of_directory and any(of_directories.values()):
        *most, last = (f"--{name}" for name in of_directories)
        raise ValueError(f"{run} is no text-to-image directory: it takes no {', '.join(most)} and {last}")
    return of_directory


def open_generator(
    run: Path, *, steps: int | None, solver: str | None, size: tuple[int, int] | None, base: Path | None,
    variant: str | None, weights: Weights | None, controls: Sequence[Path] = (), inpaint: bool = False,
    mesh: Mesh | None, trust: bool,
) -> Generator:  # fmt: skip
    """Load what draws.

    Args:
        run: a run's folder, a run that comes with the package, or a text-to-image directory or file.
        steps: number of steps; None is the usual one.
        solver: of `jaxdiff.solvers`; of a directory a scheduler of diffusers.
        size: height and width of a directory's pictures.
        base: directory with what a file lacks.
        variant: of a directory's weights.
        weights: "int8" or "float8": kernels in 8 bits.
        controls: what steers a directory's network, as for `text_to_image.load`.
        inpaint: also take a directory's network for inpainting.
        mesh: where the parameters lie.
        trust: execute the run's program even if others can write it.
    """
    with busy("loading"):
        if is_pipeline(run):
            return imagine.of_directory(
                run, steps=steps, solver=solver, size=size, base=base, variant=variant, weights=weights,
                controls=controls, inpaint=inpaint, mesh=mesh,
            )  # fmt: skip
        return imagine.of_run(open_run(run), steps=steps, solver=solver, weights=weights, mesh=mesh, trust=trust)
