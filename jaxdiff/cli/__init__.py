"""The command line: `jaxdiff list | new FILE | train EXPERIMENT | status RUN | sample RUN | imagine RUN |
edit RUN PICTURE | vary RUN | upscale RUN | eval RUN | encode DIRECTORY | convert RUN | export RUN |
verify RUN | plan EXPERIMENT`."""

from __future__ import annotations

import contextlib
import os
import sys
from importlib import import_module
from importlib.metadata import version

from jaxdiff.faults import AGAIN
from jaxdiff.signals import Signals, Stopped

COMMANDS = {
    "list": "name the experiments that come with jaxdiff",
    "new": "begin an experiment of your own with a copy of one",
    "train": "train an experiment, or go on where it stopped",
    "status": "say how far a run is, how fast, and where its time goes",
    "sample": "make pictures with a trained run, or of a prompt with a text-to-image directory",
    "imagine": "draw four pictures of a prompt, and vary, remix and upscale them",
    "edit": "change what a picture shows, draw a part of it anew, or go on beyond its edges",
    "vary": "draw variations of a picture, or a path between two, with a decoder of embeddings",
    "upscale": "make pictures larger with a trained run, from files or of another run",
    "eval": "measure a trained run's samples against real data",
    "encode": "write a data set's latents, for networks that are trained on those",
    "convert": "write a run's parameters as a Hugging Face folder",
    "export": "write a run's sampler as one file, which runs where there is nothing but JAX",
    "verify": "check every file of a run against what was written",
    "plan": "say what an experiment needs and can reach on TPUs or GPUs that are not there",
}
# Where a command is not the function `command` of the module of its name.
ELSEWHERE = {"list": ("gallery", "names"), "new": ("gallery", "new"), "eval": ("evaluate", "command")}
# Commands that read their own arguments, since an experiment's knobs are among them.
OF_EXPERIMENTS = ("train", "plan")


def main(args: list[str] | None = None) -> None:
    """Run the program; a failure that a sentence explains ends it with a status of `faults`, a bug with a traceback.

    SIGTERM and Ctrl-C end every command with status 75, and no half-written file is left.
    """
    program = args is None  # then the process is this program's, and its end is the process's
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: jaxdiff COMMAND ... (each with --help), or jaxdiff --version\n")
        print("\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items()))
        return
    if args == ["--version"]:
        print(f"jaxdiff {version('jaxdiff')}")
        return
    try:
        with Signals(ends=True) as signals:
            _prepared(args[0], args[1:], signals, program=program)
    except SystemExit as stop:
        if isinstance(stop, Stopped):
            lost = ": there was nothing to save, and nothing was lost" if args[0] == "train" else ""
            print(f"jaxdiff: stopped by {stop.signal}{lost}", file=sys.stderr)
        if program and stop.code == AGAIN:
            # An orderly exit would wait for what a signal has interrupted: a compiler's threads, say.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(AGAIN)
        raise


def _prepared(command: str, args: list[str], signals: Signals, *, program: bool) -> None:
    import absl.logging

    from jaxdiff.cli.environment import prepare
    from jaxdiff.distributed import end_in_time, end_together

    prepare()
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax warns of what is meant
    with end_in_time() if program else contextlib.nullcontext(), end_together():
        try:
            with signals.raising():  # what a signal interrupts may end in another exception, as a class's making does
                _run(command, args, signals)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            from jaxdiff.cli.errors import sentence
            from jaxdiff.faults import status

            message = None if os.environ.get("JAXDIFF_TRACEBACK") else sentence(error)
            if message is None:
                raise
            print(f"jaxdiff: {message}", file=sys.stderr)
            raise SystemExit(status(error)) from None


def _run(command: str, args: list[str], signals: Signals) -> None:
    if command not in COMMANDS:
        raise ValueError(f"unknown command {command!r}; there are: {', '.join(COMMANDS)}")
    if command == "train":
        from jaxdiff.distributed import join

        if join():
            signals.many()
    module, name = ELSEWHERE.get(command, (command, "command"))
    function = getattr(import_module(f"jaxdiff.cli.{module}"), name)
    if command in OF_EXPERIMENTS:
        function(args, **({"signals": signals} if command == "train" else {}))
        return
    from jaxdiff.cli.knobs import run

    run(function, args, prog=f"jaxdiff {command}")
