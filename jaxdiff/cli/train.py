"""`jaxdiff train EXPERIMENT`: options -> one call of `run.train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxdiff import run
from jaxdiff.cli.knobs import parse_knobs
from jaxdiff.cli.options import TRUST_PARTS
from jaxdiff.cli.places import try_folder
from jaxdiff.faults import AGAIN
from jaxdiff.options import Count
from jaxdiff.pretrained import open_run
from jaxdiff.recipe import Recipe, load
from jaxdiff.script import Script
from jaxdiff.sharding import parse_mesh
from jaxdiff.signals import Signals
from jaxdiff.train import Goodput
from jaxdiff.trust import trusting

USAGE = """usage: jaxdiff train EXPERIMENT [knobs]

EXPERIMENT is a name that `jaxdiff list` tells, such as fashion, or a Python file with a function
`experiment`. Its knobs: jaxdiff train EXPERIMENT --help"""


def command(args: list[str], signals: Signals | None = None) -> None:
    """`jaxdiff train EXPERIMENT [--knobs]`.

    Args:
        args: from the command line.
        signals: of the program; None handles none before training begins.
    """
    goodput = Goodput(None if signals is None else signals.since)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return
    path, *rest = args
    script = Script(path)
    knobs, options = parse_knobs(load(script), rest, _own(script), prog=f"jaxdiff train {path}")
    workdir, mesh, recipe = options["workdir"], parse_mesh(options["mesh"]), Recipe(script, knobs)
    try_folder(workdir, "--workdir")
    recipe.check(workdir)
    begin = options["init_from"]
    with trusting(options["trust"]):  # a run that goes on with more steps builds its earlier experiment, too
        experiment = recipe.build(mesh)
        if options["save_every"] is not None:
            experiment = replace(experiment, training=replace(experiment.training, save_every=options["save_every"]))
        state = run.train(
            experiment, workdir, mesh=mesh, recipe=recipe, init_from=None if begin is None else open_run(begin),
            hang_timeout=options["hang_timeout"],
            signals=signals, goodput=goodput,
        )  # fmt: skip
    signalled = signals is not None and signals.received is not None and jax.process_count() == 1
    if signalled or int(state.step) < experiment.training.steps:
        raise SystemExit(AGAIN)


def _own(script: Script) -> dict[str, tuple[Any, Any, str]]:
    """The command's own options: name -> (type, default, help)."""
    folder = "folder of checkpoints, samples and metrics; the same command goes on where it stopped."
    hang_timeout = (
        "seconds without a finished step until it ends with status 75; by default 3600, in many processes 900."
    )
    return {
        "workdir": (Path, Path("runs") / script.path.stem, folder),
        "mesh": (str, "", "devices as data=8,fsdp=4,tensor=2,sequence=2; data takes those that are left."),
        "init_from": (Path | None, None, "another run, with whose averaged parameters this one begins."),
        "hang_timeout": (float | None, None, hang_timeout),
        "save_every": (Count | None, None, "steps between two checkpoints; by default the experiment's."),
        "trust": TRUST_PARTS,
    }
