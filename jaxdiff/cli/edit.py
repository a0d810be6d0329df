"""`jaxdiff edit RUN PICTURE`: what a picture shows, a part of it, or what lies beyond its edges, drawn anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tyro

from jaxdiff import text_to_image
from jaxdiff.cli.controls import Controls, read_controls
from jaxdiff.cli.generators import check_kind, open_generator
from jaxdiff.cli.options import Devices, EightBits, Guidance, SampleSteps, Trust
from jaxdiff.cli.pictures import read_mask, read_picture
from jaxdiff.cli.places import try_out
from jaxdiff.cli.sample import check_suffix
from jaxdiff.data import read_image
from jaxdiff.edit import STYLE_WEIGHT, Method, check_canvas, check_part, edit
from jaxdiff.media import Samples, images
from jaxdiff.media.images import save_images
from jaxdiff.options import Count, Natural, Seed, Versions
from jaxdiff.progress import busy
from jaxdiff.sharding import parse_mesh


def command(
    run: tyro.conf.Positional[Path],
    picture: tyro.conf.Positional[Path],
    prompt: str | None = None,
    source: str | None = None,
    method: Method | None = None,
    style: Path | None = None,
    style_weight: float = STYLE_WEIGHT,
    mask: Path | None = None,
    outpaint: tuple[Natural, Natural, Natural, Natural] = (0, 0, 0, 0),
    strength: float | None = None,
    fit: bool = False,
    num: Versions = 4,
    seed: Seed = 0,
    guidance: Guidance = None,
    steps: SampleSteps = None,
    solver: str | None = None,
    size: tuple[Count, Count] | None = None,
    base: Path | None = None,
    variant: str | None = None,
    weights: EightBits = None,
    control: Controls = (),
    out: Path | None = None,
    mesh: Devices = "",
    trust: Trust = False,
) -> None:
    """Change a picture with a trained run, or with Stable Diffusion or Flux.

    --prompt redraws the whole picture, the more of it the larger --strength is, which alone does so without words; with
    --source it is moved from one prompt to the other, and keeps more. --mask and --outpaint draw a part anew, and leave
    the rest as it is.

    Args:
        run: the run's folder, fashion or emoji, or a text-to-image directory or file.
        picture: a file of any type that Pillow reads.
        prompt: what it shall show; of a run with classes the name of one.
        source: what it shows.
        method: how it is moved from the source: by the difference of the prompts, which is the default, by its own
            noise, or by that and the source's attention maps.
        style: a file of any size, in whose style the picture is drawn: features' statistics, see docs/edit.md.
        style_weight: how much of that style.
        mask: a file of the same size, white where the picture is drawn anew and black where it stays.
        outpaint: pixels to add on the left, right, top and bottom.
        strength: share of the steps that are taken, from 0 to 1; by default 0.6, for a part of the picture 1.
        fit: scale the picture to cover the run's size, crop the centre and convert its colours.
        num: number of versions.
        seed: version i depends on the seed and i alone.
        solver: of jaxdiff.solvers, such as ddim(eta=1.0), or a scheduler of diffusers; for a part of the picture only
            of a network for inpainting.
        size: height and width of a directory's pictures; by default the network's own.
        base: directory with what a file lacks.
        variant: weights' variant, such as fp16.
        control: ControlNet, picture, scale: docs/control.md.
        out: FILE.png for a picture of all, FILE.npz for arrays, or a folder; by default edited-SEED.png.
    """
    out = Path(f"edited-{seed}.png") if out is None else out
    check_suffix(images((1, 1, 3)), out)
    try_out(out)
    if all(option is None for option in (prompt, style, mask, strength)) and not any(outpaint):
        raise ValueError("edit takes --prompt, --strength, --style, --mask or --outpaint: what shall be drawn?")
    check_canvas(size or (1, 1), outpaint)
    of_directory = check_kind(run, size=size, base=base, variant=variant, control=control)
    inpaints = of_directory and text_to_image.describe(run, base=base).inpaints
    partly = mask is not None or any(outpaint)
    check_part(partly, inpaints=inpaints)
    if solver is not None and (method in ("edit_friendly", "prompt_to_prompt") or (partly and not inpaints)):
        raise ValueError(
            "--solver is for the whole picture and for networks made for inpainting: of others --mask and --outpaint, "
            "and --method edit_friendly and prompt_to_prompt, have solvers of their own"
        )
    where = parse_mesh(mesh)
    controls, hints = read_controls(control)
    wanted = None if style is None else read_image(style)
    # What is no picture, or too large, shows before a model is read, which gives its size.
    given = [read_image(file) for file in (picture, mask) if file is not None]
    if not fit:
        check_canvas(given[0].shape, outpaint)
    generator = open_generator(
        run, steps=steps, solver=solver, size=size, base=base, variant=variant, weights=weights, controls=controls,
        inpaint=True, mesh=where, trust=trust,
    )  # fmt: skip
    shape = generator.stage(1).picture_shape
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise ValueError(f"edit takes runs of pictures, and {run} draws other data, of shape {list(shape)}")
    x = read_picture(picture, shape, fit=fit)
    inpaint_mask = None if mask is None else read_mask(mask, (shape[0], shape[1]), fit=fit)
    with busy("drawing"):
        made = edit(
            generator, x, prompt=prompt, source=source, method=method, mask=inpaint_mask, outpaint=outpaint,
            strength=strength, style=wanted, style_weight=style_weight,
            guidance=guidance, hints=hints, num=num, seed=seed,
        )  # fmt: skip
    save_images(out, Samples(np.asarray(made), {}, choices=min(num, 10)))
    print(out)
