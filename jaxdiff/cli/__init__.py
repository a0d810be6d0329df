"""The command line: `jaxdiff train EXPERIMENT | sample RUN | eval RUN | convert RUN | export RUN |
plan EXPERIMENT`."""

from __future__ import annotations

import os
import sys

COMMANDS = {
    "train": "train an experiment, or go on where it stopped",
    "sample": "make pictures with a trained run, or of a prompt with a text-to-image directory",
    "eval": "measure a trained run's samples against real data",
    "encode": "write a data set's latents, for networks that are trained on those",
    "convert": "write a run's parameters as a Hugging Face folder",
    "export": "write a run's sampler as one file, which runs where there is nothing but JAX",
    "plan": "say what an experiment needs and can reach on a TPU slice that is not there",
}


def main(args: list[str] | None = None) -> None:
    """Run the program; a user's mistake ends it with the ValueError's sentence and status 2."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: jaxdiff COMMAND ... (each with --help)\n")
        print("\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items()))
        return
    command, *rest = args
    import absl.logging

    from jaxdiff.cli.cluster import end_together
    from jaxdiff.cli.environment import prepare

    prepare()
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax warns of what is meant
    with end_together():
        try:
            _run(command, rest)
        except ValueError as error:
            if os.environ.get("JAXDIFF_TRACEBACK"):
                raise
            print(f"jaxdiff: {error}", file=sys.stderr)
            raise SystemExit(2) from None


def _run(command: str, args: list[str]) -> None:
    import tyro

    if command == "train":
        from jaxdiff.cli.cluster import join

        join()
        from jaxdiff.cli.train import command as train

        train(args)
    elif command == "sample":
        from jaxdiff.cli.sample import command as sample

        tyro.cli(sample, args=args, prog="jaxdiff sample")
    elif command == "eval":
        from jaxdiff.cli.evaluate import command as evaluate

        tyro.cli(evaluate, args=args, prog="jaxdiff eval")
    elif command == "encode":
        from jaxdiff.cli.encode import command as encode

        tyro.cli(encode, args=args, prog="jaxdiff encode")
    elif command == "convert":
        from jaxdiff.cli.convert import command as convert

        tyro.cli(convert, args=args, prog="jaxdiff convert")
    elif command == "export":
        from jaxdiff.cli.export import command as export

        tyro.cli(export, args=args, prog="jaxdiff export")
    elif command == "plan":
        from jaxdiff.cli.plan import command as plan

        plan(args)
    else:
        raise ValueError(f"unknown command {command!r}; there are: {', '.join(COMMANDS)}")
