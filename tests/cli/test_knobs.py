"""Every integer that a command takes has a range, in its type, and is held against it."""

import inspect
import math
import re
from dataclasses import replace
from importlib import import_module
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from jaxdiff.cli import COMMANDS, ELSEWHERE, knobs, main, plan
from jaxdiff.options import Count, Help, Natural, Range, Seed, Source, checked
from jaxdiff.recipe import load
from jaxdiff.script import shipped


def options():
    """(where, name, type) of each option of each command, and of each knob of each experiment."""
    for command in COMMANDS.keys() - {"train", "plan"}:
        module, name = ELSEWHERE.get(command, (command, "command"))
        function = getattr(import_module(f"jaxdiff.cli.{module}"), name)
        for option, kind in get_type_hints(function, include_extras=True).items():
            yield command, option, kind
    for option, (kind, *_) in plan.OWN.items():
        yield "plan", option, kind
    for experiment in shipped():
        for option, kind in get_type_hints(load(experiment), include_extras=True).items():
            yield experiment, option, kind


def bare(kind) -> bool:
    """Whether a type allows an integer without a range."""
    if get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        return bare(kind) and not any(isinstance(one, Range) for one in more)
    return kind is int or (get_origin(kind) is not Literal and any(map(bare, get_args(kind))))


def test_the_walk_sees_integers():
    assert all(map(bare, (int, int | None, tuple[int, ...], tuple[Count, int], Annotated[int, "x"])))
    assert not any(map(bare, (Count, Seed | None, tuple[Natural, Count], bool, float, Literal[3], None)))


def test_every_integer_has_a_range():
    found = list(options())
    assert [(where, name) for where, name, kind in found if name != "return" and bare(kind)] == []
    counted = {(where, name) for where, name, kind in found if "Range" in str(kind)}
    assert counted >= {("sample", "num"), ("encode", "rows"), ("eval", "batch"), ("fashion", "preview_every")}


def test_every_range_is_looked_at():
    """Whatever an integer is wrapped in, one below its range or above it is refused."""
    for where, name, kind in options():
        if "Range" not in str(kind):
            continue
        inner = next(k for k in get_args(kind) if k is not type(None)) if optional(kind) else kind
        if get_origin(inner) is Annotated and get_origin(get_args(inner)[0]) is tuple:  # with its help
            inner = get_args(inner)[0]
        parts = [each for each in get_args(inner) if each is not Ellipsis] if get_origin(inner) is tuple else []
        checked(name, kind, tuple(5 for _ in parts) if parts else 5)
        for value in (-1, 2**70):
            with pytest.raises(ValueError, match=f"{name} must be an integer"):
                checked(name, kind, (*(5 for _ in parts[1:]), value) if parts else value)
        if optional(kind):
            checked(name, kind, None)
        assert where


def test_a_folder_of_data_is_kept_from_the_root(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for name, kept in (("folder:~/a", "folder:/home/me/a"), ("folder:/a/../b", "folder:/b"), ("twemoji", "twemoji")):
        assert checked("--source", Source, name) == kept


def test_help_is_the_docstrings_or_else_the_types(capsys):
    common = Annotated[str, Help("of the type.")]

    def command(mesh: common = "", steps: Annotated[Count | None, Help("of it.")] = None, num: common = "a") -> None:
        """Add.

        Args:
            num: of the docstring.
        """

    with pytest.raises(SystemExit):
        knobs.run(command, ["--help"], prog="add")
    shown = capsys.readouterr().out
    assert re.search(r"--mesh STR +of the type\. +\W*\n.*--steps INT +of it\. +\W*\n", shown)
    assert re.search(r"--num STR +of the docstring\. \(default: a\)", shown)


def optional(kind) -> bool:
    return get_origin(kind) in (Union, UnionType) and type(None) in get_args(kind)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["encode", "DIR", "--out", "OUT", "--rows", "0"], "--rows must be an integer from 1 to 10000000, got 0"),
        (["encode", "DIR", "--out", "OUT", "--batch", "-2"], "--batch must be an integer from 1 to 1000000, got -2"),
        (["plan", "fashion", "--topology", "v5e:2x4", "--batch", "0"], "--batch must be an integer from 1 to 1000000"),
        (["train", "toy2d", "--preview-every", "-1"], "--preview-every must be an integer from 0 to 2147483647"),
        (["train", "cifar10_ddpm", "--widths", "32", "0"], "--widths must be an integer from 1 to 2147483647, got 0"),
        (["sample", "DIR", "--size", "64", "0"], "--size must be an integer from 1 to 2147483647, got 0"),
        (["sample", "DIR", "--seed", "-1"], "--seed must be an integer from 0 to 18446744073709551615, got -1"),
        (["eval", "DIR", "--seed", str(2**64)], "--seed must be an integer from 0 to"),
        # Numbers that a machine cannot hold, or at which XLA ends the process.
        (["sample", "DIR", "--steps", "1000000000000"], "--steps must be an integer from 1 to 100000, got"),
        (["sample", "DIR", "--num", "1000000000000000"], "--num must be an integer from 1 to 10000000, got"),
        (["edit", "DIR", "a.png", "--num", "100000000000000"], "--num must be an integer from 1 to 10000, got"),
        (["train", "toy2d", "--batch", "100000000000000"], "--batch must be an integer from 1 to 1000000, got"),
        (["train", "few_steps", "--teacher", "DIR", "--sample-steps", "100000000"], "--sample-steps must be"),
        (
            ["train", "few_steps", "--teacher", "DIR", "--guidance", "nan"],
            "--guidance must be a finite number of at least 0",
        ),
        (["train", "toy2d", "--lr", "nan"], "--lr must be a finite number of at least 0, got nan"),
        (["train", "toy2d", "--lr", "inf"], "--lr must be a finite number of at least 0, got inf"),
        (["train", "toy2d", "--lr", "-1"], "--lr must be a finite number of at least 0, got -1.0"),
    ],
)
def test_the_command_line_says_so(args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2 and words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("part", "field"),
    [("training", name) for name in ("batch", "steps", "grad_accum_steps", "preview_every", "save_every")]
    + [("sampling", "steps"), ("medium", "preview")],
)
def test_an_experiments_own_numbers_are_checked_however_it_is_built(part, field):
    made = load("toy2d")()
    with pytest.raises(ValueError, match=rf"{part}.{field} must be an integer .*, got -1"):
        replace(getattr(made, part), **{field: -1})
    with pytest.raises(ValueError, match=r"seed must be an integer from 0 .*, got -1"):
        replace(made, seed=-1)
    with pytest.raises(ValueError, match=r"sampling\.guidance must be a finite number, got nan"):
        replace(made.sampling, guidance=math.nan)
    assert inspect.signature(load("toy2d")).parameters["seed"].default == 0
