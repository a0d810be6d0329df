"""From words to four pictures, their variations, and pictures at twice the size, with a history that makes each again.

generator = imagine.of_run("runs/fashion")
history = imagine.vary(imagine.begin(generator.history, "Sneaker"), 2)
drawn = imagine.draw(generator, history, [5, 6, 7, 8])
"""

from jaxdiff.imagine.draw import Drawn, draw, sign
from jaxdiff.imagine.generator import Generator, Stage, fingerprint, of_directory, of_experiment, of_run
from jaxdiff.imagine.hint_file import Hint, make_hint, parse_hint
from jaxdiff.imagine.history import History, Picture, begin, lineage, remix, upscale, vary
from jaxdiff.imagine.written import read_history, write_history

__all__ = [
    "Drawn",
    "Generator",
    "Hint",
    "History",
    "Picture",
    "Stage",
    "begin",
    "draw",
    "fingerprint",
    "lineage",
    "make_hint",
    "of_directory",
    "of_experiment",
    "of_run",
    "parse_hint",
    "read_history",
    "remix",
    "sign",
    "upscale",
    "vary",
    "write_history",
]
