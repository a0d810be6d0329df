"""Histories: what the verbs add to them, what they refuse, and their files."""

import json

import numpy as np
import pytest

from jaxdiff import imagine
from jaxdiff.imagine import History

WEIGHTS = "0123456789abcdef" * 2
EMPTY = History(WEIGHTS, 8, 1.5, "ddim(eta=0.5)", (8, 12))
STEERED = EMPTY._replace(param_dtype="int8", controls=("/models/canny",))
HINT, OTHER = imagine.Hint("canny:/a.png", 0.5, WEIGHTS), imagine.Hint("/b.png", 1.0, WEIGHTS)


def family():
    """Four pictures, a variation, another prompt's, and that at twice the size."""
    history = imagine.vary(imagine.begin(EMPTY, "a cat", seed=2**40), 2, num=1)
    return imagine.upscale(imagine.remix(history, 5, "a dog", strength=0.25, num=1, seed=7, guidance=3), 6)


def test_each_verb_adds_pictures_and_changes_none():
    begun = imagine.begin(EMPTY, "a cat", num=2, guidance=4)
    assert EMPTY.pictures == () and len(imagine.begin(EMPTY, "a cat").pictures) == 4
    assert begun.pictures == (imagine.Picture("a cat", 0, 4.0),) * 2
    history = family()
    assert history.pictures[:4] == imagine.begin(EMPTY, "a cat", seed=2**40).pictures
    assert history.picture(5) == imagine.Picture("a cat", 0, 1.5, 2, 0.6)
    assert history.picture(6) == imagine.Picture("a dog", 7, 3.0, 5, 0.25)
    assert history.picture(7) == imagine.Picture("a dog", 0, 3.0, 6, 0.3, 2)
    of_run = history._replace(size=None)
    assert imagine.upscale(of_run, 6).picture(8).strength == 0.2
    assert imagine.vary(history, 7, num=1).picture(8).scale == 2
    assert imagine.lineage(history, 7) == [2, 5, 6, 7] and imagine.lineage(history, 4) == [4]
    signed = history._replace(pictures=tuple(p._replace(x0=WEIGHTS) for p in history.pictures))
    assert imagine.vary(signed, 7).picture(8).x0 is None  # not what its parent has


def test_what_cannot_be_drawn_is_refused():
    history, verbs = imagine.begin(EMPTY, "a cat"), imagine
    for ask, words in (
        (lambda: verbs.begin(EMPTY, "a" * 10_001), "a prompt is a text of up to 10,000 characters, got 10,001"),
        (lambda: verbs.begin(EMPTY, None), "a prompt is a text"),
        (lambda: verbs.begin(EMPTY, "a", num=0), "num must be an integer from 1 to 10000, got 0"),
        (lambda: verbs.begin(EMPTY, "a", seed=-1), "seed must be an integer from 0"),
        (lambda: verbs.begin(EMPTY, "a", guidance=float("nan")), "guidance must be a number"),
        (lambda: verbs.vary(EMPTY, 1), "there is no picture 1: the history has no pictures yet"),
        (lambda: verbs.vary(history, 5), "there is no picture 5: the history has pictures 1 to 4"),
        (lambda: verbs.upscale(history, 0), "there is no picture 0"),
        (lambda: verbs.vary(history, 1, strength=0.0), "strength must be above 0"),
        (lambda: verbs.vary(history, 1, strength=1.01), "strength must be a number from 0 to 1, got 1.01"),
        (lambda: verbs.upscale(history, 1, strength=True), "strength must be a number"),
        (lambda: verbs.lineage(history, 9), "there is no picture 9"),
    ):
        with pytest.raises(ValueError, match=words):
            ask()
    for scale in (2, 4, 8, 16):
        history = verbs.upscale(history, len(history.pictures))
        assert history.pictures[-1].scale == scale
    with pytest.raises(ValueError, match="picture 8 has grown 16 times already"):
        verbs.upscale(history, 8)


def test_a_file_holds_a_history(tmp_path):
    path, history = tmp_path / "sub" / "history.json", family()
    imagine.write_history(path, history)
    assert imagine.read_history(path) == history and type(imagine.read_history(path).size) is tuple
    numbers = imagine.begin(EMPTY, "ä", num=np.int64(1), seed=np.uint64(2**64 - 1), guidance=np.float32(1.1))
    numbers = imagine.vary(numbers, np.int64(1), num=1, strength=np.float32(0.5))
    imagine.write_history(path, numbers)
    assert imagine.read_history(path) == numbers


def test_what_steers_pictures_is_kept(tmp_path):
    """By each picture; others that are made of it follow the same, unless they are told what."""
    begun = imagine.begin(STEERED, "a cat", num=1, hints=[HINT])
    history = imagine.upscale(imagine.vary(imagine.remix(begun, 1, "a dog", num=1), 2, num=1, hints=[OTHER]), 3)
    assert [p.hints for p in history.pictures] == [(HINT,), (HINT,), (OTHER,), (OTHER,)]
    assert imagine.upscale(history, 3, hints=[HINT]).picture(5).hints == (HINT,)
    imagine.write_history(tmp_path / "a.json", history)
    assert imagine.read_history(tmp_path / "a.json") == history
    for ask, words in (
        (lambda: imagine.begin(STEERED, "a cat"), "a history with 1 controls takes as many --control for each picture"),
        (lambda: imagine.vary(history, 1, hints=[HINT, HINT]), "takes as many --control for each picture, got 2"),
        (lambda: imagine.begin(EMPTY, "a cat", hints=[HINT]), "begun without --control: begin another one"),
        (lambda: imagine.vary(history, 1, hints=[HINT._replace(scale=float("nan"))]), "scale must be a number"),
    ):
        with pytest.raises(ValueError, match=words):
            ask()
    held = json.loads((tmp_path / "a.json").read_text())
    for change, words in (
        (changed(param_dtype="int4"), "param_dtype must be 'int8' or 'float8' or null, got 'int4'"),
        (changed(controls=["a", 1]), "controls must be a list of 0 to 100 values"),
        (changed(controls=[]), "picture 1: the history was begun without --control"),
        (of_picture(2, hints=[1]), "picture 2: a hint must be an object, got 1"),
        (of_picture(2, hints=[{"picture": "a.png", "scale": 1}]), "picture 2: a hint has no 'digest'"),
        (of_picture(2, hints=[HINT._asdict() | {"digest": "x"}]), "a hint: digest must be 32 hexadecimal digits"),
    ):
        (tmp_path / "b.json").write_text(json.dumps(change(held)))
        with pytest.raises(ValueError, match=words):
            imagine.read_history(tmp_path / "b.json")


def changed(**fields):
    return lambda held: held | fields


def of_picture(n, **fields):
    def change(held):
        pictures = list(held["pictures"])
        pictures[n - 1] = {name: v for name, v in (pictures[n - 1] | fields).items() if v != "absent"}
        return held | {"pictures": pictures}

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed(version=1), "version must be 2, got 1"),
        (changed(weights="a1"), "weights must be 32 hexadecimal digits, got 'a1'"),
        (changed(steps=0), "steps must be a whole number"),
        (changed(solver=3), "solver must be a text or null"),
        (changed(size=[8]), "size must be a list"),
        (changed(colour=1), "has an unknown 'colour'; its fields are version, weights"),
        (changed(pictures={}), "pictures must be a list of up to 10,000"),
        (changed(pictures=[1]), "picture 1 must be an object, got 1"),
        (of_picture(1, seed=-1), "picture 1: seed must be a whole number"),
        (of_picture(2, x0="f" * 31), "picture 2: x0 must be 32 hexadecimal digits or null"),
        (of_picture(3, prompt="a" * 10_001), "picture 3: a prompt is a text"),
        (of_picture(4, guidance="absent"), "picture 4 has no 'guidance'"),
        (of_picture(1, strength=0.5), "picture 1 has no parent: its strength is null"),
        (of_picture(5, strength=None), "picture 5: strength must be a number from 0 to 1"),
        (of_picture(5, parent=5), "picture 5 must come after its parent, picture 5"),
        (of_picture(7, scale=4), "picture 7 must be as large as its parent or twice as large, got 4 times"),
    ],
)
def test_a_file_that_is_no_history(tmp_path, change, words):
    path = tmp_path / "history.json"
    imagine.write_history(path, family())
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=words) as error:
        imagine.read_history(path)
    assert str(path) in str(error.value)
