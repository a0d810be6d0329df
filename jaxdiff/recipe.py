"""What a run was made of: a Python file and the values of its knobs, kept in the run's folder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from jax.sharding import Mesh

from jaxdiff import options, train
from jaxdiff.conditions import Condition
from jaxdiff.experiment import Experiment
from jaxdiff.messages import listed
from jaxdiff.script import SOURCE, Script
from jaxdiff.storage import read_json, write_text
from jaxdiff.trust import check_own, trusting

__all__ = ["MAY_CHANGE", "Recipe", "check_run", "check_vocabulary", "flat", "keep_vocabulary", "load", "load_run"]

# The words of a run's captions.
VOCABULARY = "vocabulary.json"
# Knobs that may differ from those that a run began with.
MAY_CHANGE = ("steps",)


class Recipe(NamedTuple):
    """A file's function and its arguments, from which a run's experiment can be made again.

    Attributes:
        script: the file.
        knobs: name -> value; JSON has to be able to hold them.
    """

    script: Script
    knobs: Mapping[str, Any]

    def build(self, mesh: Mesh | None = None) -> Experiment:
        """Make the experiment.

        Args:
            mesh: where the parameters that it reads lie; None is the default device.
        """
        function = load(self.script)
        where = {"mesh": mesh} if "mesh" in inspect.signature(function).parameters else {}
        return function(**self.knobs, **where)

    def check(self, workdir: Path) -> None:
        """Raise ValueError if a folder holds a run of another file, or of other knobs than may change."""
        self.script.check_kept(workdir)
        train.check_knobs(workdir, self.knobs, may_change=MAY_CHANGE)

    def before(self, workdir: Path) -> Recipe | None:
        """Return the recipe with the number of steps that the run in a folder has had so far.

        Returns:
            None where there is no run, or it keeps its number of steps.
        """
        if not train.has_knobs(workdir):
            return None
        old = {name: value for name, value in train.read_knobs(workdir).items() if name in MAY_CHANGE}
        return None if old.items() <= self.knobs.items() else self._replace(knobs={**self.knobs, **old})

    def keep(self, workdir: Path) -> None:
        """Write the knobs, the file and the modules that it has imported from its folder into a run's folder.

        Raises:
            ValueError: as `check` does.
        """
        import jax

        train.write_knobs(workdir, self.knobs, may_change=MAY_CHANGE)
        if jax.process_index() == 0:
            self.script.keep(workdir)


def load(path: str | Path | Script) -> Callable[..., Experiment]:
    """Import the function `experiment` of a Python file, which may import the modules in its folder.

    Args:
        path: the file, the name of an experiment that comes with jaxdiff, or a `Script`.

    Returns:
        the function; its arguments are the run's knobs, those of an `options.Run` among them by their own names.
        Called, it raises a ValueError where it does not know them, their types do not allow a value, or it returns
        something else than an Experiment.

    Raises:
        ValueError: no such file, it has no such function, or the types of its arguments cannot be read.
    """
    script = path if isinstance(path, Script) else Script(path)
    build = flat(script.function("experiment", "returns a jaxdiff.experiment.Experiment"))
    kinds = build.__annotations__

    def checked(*args: Any, **knobs: Any) -> Experiment:
        if unknown := sorted(knobs.keys() - inspect.signature(build).parameters.keys()):
            raise ValueError(f"the knobs are not those of {script.path}: it takes no --{unknown[0].replace('_', '-')}")
        try:
            given = inspect.signature(build).bind(*args, **knobs)
        except TypeError as error:
            raise ValueError(f"the knobs are not those of {script.path}: {error}") from None
        for name, value in given.arguments.items():
            given.arguments[name] = options.checked(name, kinds.get(name), value)
        made = build(*given.args, **given.kwargs)
        if not isinstance(made, Experiment):
            raise ValueError(f"experiment(...) in {script.path} must return an Experiment, got {made!r:.80}")
        return made

    return _like(checked, build, list(inspect.signature(build).parameters.values()))


def check_vocabulary(workdir: Path, condition: Condition) -> None:
    """Raise ValueError if a run was trained with other words than the condition knows: its data has changed since."""
    path = workdir / VOCABULARY
    if not path.is_file():
        return
    kept, words = read_json(path).get("words"), condition.vocabulary
    if not isinstance(kept, list) or not all(isinstance(word, str) for word in kept):
        raise ValueError(f"{path} must hold a list of words")
    if tuple(kept) != words:
        new, lost = sorted(set(words) - set(kept)), sorted(set(kept) - set(words))
        changes = [f"{what} are {listed(found, 5)}" for found, what in ((new, "new"), (lost, "lost")) if found]
        how = ", ".join(changes) or "their order"
        raise ValueError(f"the captions of {workdir}'s data have other words than in its training: {how}")


def keep_vocabulary(workdir: Path, condition: Condition) -> None:
    """Write the words that a condition knows, if these are a closed set, into a run's folder."""
    import jax

    if condition.vocabulary and jax.process_index() == 0:
        write_text(workdir / VOCABULARY, json.dumps({"words": condition.vocabulary}) + "\n")


def check_run(workdir: Path) -> None:
    """Raise ValueError unless a folder holds a run's file."""
    if not (workdir / SOURCE).is_file():
        raise ValueError(f"{workdir} holds no run: `jaxdiff train EXPERIMENT --workdir {workdir}` makes one")


def load_run(
    workdir: str | Path, *, mesh: Mesh | None = None, trust: bool = False, changes: Mapping[str, Any] | None = None
) -> Experiment:
    """Rebuild a run's experiment from the files and the knobs that training left in its folder.

    Args:
        workdir: the run's folder.
        mesh: where the parameters that it reads lie; None is the default device.
        trust: execute the folder's Python files, and those of the runs that it is made of, even where other users can
            write them.
        changes: knobs with other values than the run had, by name.

    Returns:
        the experiment.

    Raises:
        ValueError: the folder holds no run, others than the user may have written its files, or its experiment does not
            take the changes.
    """
    workdir = Path(workdir)
    check_run(workdir)
    with trusting(trust), options.kept_knobs(changes or ()):
        check_own(workdir / SOURCE)
        knobs = {**train.read_knobs(workdir), **(changes or {})}
        return Recipe(Script(workdir / SOURCE, kept=True), knobs).build(mesh)


def flat(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function the fields of its dataclass arguments as arguments of their own.

    Args:
        function: e.g. `experiment(run: Run = Run(steps=900, batch=32, lr=1e-3), width: int = 32)`.

    Returns:
        the same function of `steps`, `batch`, ... and `width` by name, whose defaults are those of the dataclass
        argument.

    Raises:
        ValueError: the types of the arguments cannot be read, or two arguments have one name.
    """
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ValueError(f"the types of experiment's arguments cannot be read: {error}") from None
    groups: dict[str, list[inspect.Parameter]] = {}
    parameters: list[inspect.Parameter] = []
    for p in inspect.signature(function).parameters.values():
        p = p.replace(annotation=hints.get(p.name, p.empty))
        if is_dataclass(p.annotation):
            groups[p.name] = _fields(p)
            parameters += groups[p.name]
        else:
            parameters.append(p)
    names = [p.name for p in parameters]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"experiment has two arguments of the name {twice[0]!r}")

    def call(*args: Any, **options: Any) -> Any:
        given = inspect.signature(call).bind(*args, **options)
        given.apply_defaults()
        values = dict(given.arguments)
        for name, parts in groups.items():
            values[name] = hints[name](**{part.name: values.pop(part.name) for part in parts})
        return function(**values)

    if groups:
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters]
    return _like(call if groups else function, function, parameters)


def _fields(p: inspect.Parameter) -> list[inspect.Parameter]:
    """The fields of a dataclass argument as parameters, with the defaults of its default."""
    hints, given = get_type_hints(p.annotation, include_extras=True), p.default
    parameters = []
    for field in fields(p.annotation):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        default = default if given is p.empty else getattr(given, field.name)
        parameters.append(inspect.Parameter(field.name, p.KEYWORD_ONLY, default=default, annotation=hints[field.name]))
    return parameters


def _like(
    call: Callable[..., Any], function: Callable[..., Any], parameters: Sequence[inspect.Parameter]
) -> Callable[..., Any]:
    """Give a function the documentation of another one, and these parameters."""
    call.__doc__, call.__name__ = function.__doc__, function.__name__
    call.__signature__ = inspect.Signature(list(parameters))  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
    return call
