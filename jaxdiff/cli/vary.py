"""`jaxdiff vary RUN PICTURE`: variations of a picture, paths between two, and along a difference of two texts."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import tyro

from jaxdiff import unclip
from jaxdiff.cli.options import Devices, Guidance, PicturesOut, SampleSteps, Trust
from jaxdiff.cli.pictures import read_picture
from jaxdiff.cli.places import try_out
from jaxdiff.cli.sample import check_suffix
from jaxdiff.drawing import parameters
from jaxdiff.hooks import change_sampling
from jaxdiff.options import Seed, Versions, refuse_unused
from jaxdiff.recipe import check_run, load_run
from jaxdiff.sharding import parse_mesh
from jaxdiff.train import read_knobs


def command(
    run: tyro.conf.Positional[Path],
    pictures: tyro.conf.Positional[tuple[Path, ...]],
    before: str | None = None,
    after: str | None = None,
    turn: float = 0.5,
    num: Versions = 6,
    fit: bool = False,
    guidance: Guidance = None,
    steps: SampleSteps = None,
    seed: Seed = 0,
    out: PicturesOut = None,
    mesh: Devices = "",
    trust: Trust = False,
) -> None:
    """Draw pictures of a picture's embedding, with a decoder of the experiment unclip.

    Of one picture: variations, or with --before and --after what it becomes on the way from one text to the other. Of
    two pictures: those between them.

    Args:
        run: the decoder's folder.
        pictures: one or two files of any type that Pillow reads.
        before: a text that describes the picture.
        after: a text that describes what it shall become.
        turn: how far it turns to that, up to 1.
        num: number of pictures; a single one is what it becomes, or half of the way between two.
        fit: scale a file to cover the run's size, crop the centre and convert its colours.
        seed: of the noise.
    """
    texts = [text for text in (before, after) if text is not None]
    if len(pictures) not in (1, 2) or len(texts) == 1 or (len(pictures) == 2 and texts):
        raise ValueError("vary takes one picture, one with --before and --after, or two pictures")
    if not 0 < turn <= 1:
        raise ValueError(f"--turn must be above 0 and at most 1, got {turn:g}")
    if not texts:
        refuse_unused(command, "vary without --before and --after", turn=turn)
    if out is None:
        check_run(run)
        out = run / f"varied-{seed}.png"
    where = parse_mesh(mesh)
    try_out(out)
    experiment = change_sampling(load_run(run, mesh=where, trust=trust), guidance=guidance, steps=steps)
    decoder = unclip.Decoder(experiment, where)
    check_suffix(experiment.medium, out)
    embedder = unclip.load_embedder(read_knobs(run)["image_text"], where)
    x = np.stack([read_picture(file, embedder.model.shape, fit=fit) for file in pictures])
    params = parameters(experiment, run, mesh=where)
    shares = np.linspace(0, 1, num) if num > 1 else np.full(1, 1.0 if texts else 0.5)
    z = embedder.embed_pictures(x)
    if texts:
        parse = unclip.of_texts(embedder).parse
        tokens = jax.tree.map(lambda *each: np.concatenate(each), *map(parse, texts))
        first, last = np.asarray(jax.jit(embedder.texts)(embedder.params, tokens))
        path = unclip.text_difference(z[0], first, last, turn * shares)
        samples = decoder.along(params, path, seed=seed)
    elif len(z) == 2:
        samples = decoder.along(params, unclip.slerp(z[0], z[1], shares), seed=seed)
    else:
        samples = decoder(params, z, num, seed=seed, batch=num)
    experiment.medium.save(out, samples._replace(choices=min(num, 10)))
    print(out)
