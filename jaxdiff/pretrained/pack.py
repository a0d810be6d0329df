"""Put a trained run into the package: `python -m jaxdiff.pretrained.pack RUN [--num 5000]`.

Its averaged parameters are rounded to half precision, and these are measured.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import tyro

from jaxdiff import run as runs
from jaxdiff import train, trees
from jaxdiff.media.files import save_npz
from jaxdiff.options import Count
from jaxdiff.pretrained import FOLDER, WEIGHTS, unpack
from jaxdiff.recipe import VOCABULARY
from jaxdiff.script import SOURCE, shipped
from jaxdiff.storage import write_text


def pack(run: tyro.conf.Positional[Path], num: Count = 5000, out: Path = FOLDER) -> None:
    """Write a trained run into the package.

    Args:
        run: the run's folder, of an experiment that comes with the package.
        num: number of samples that are measured.
        out: the folder with the trained runs.

    Raises:
        ValueError: the run is of another experiment, its file has changed since, or a value is too large for halves.
    """
    text = (run / SOURCE).read_text()
    name = next((name for name, path in shipped().items() if path.read_text() == text), None)
    if name is None:
        raise ValueError(
            f"{run / SOURCE} is none of the experiments that come with the package: {', '.join(shipped())}"
        )
    knobs = train.read_knobs(run)
    packed = out / name
    weights = trees.flatten(train.load_params(run))
    save_npz(packed / WEIGHTS, **{key: np.asarray(a, np.float16) for key, a in weights.items()})
    train.write_knobs(packed, knobs, may_change=knobs)
    if (run / VOCABULARY).is_file():
        write_text(packed / VOCABULARY, (run / VOCABULARY).read_text())
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / name
        unpack(name, unpacked, source=out)
        experiment = runs.load_run(unpacked)
        report = runs.evaluate(experiment, runs.parameters(experiment, unpacked), unpacked, num=num)
        write_text(packed / "eval.json", (unpacked / "eval.json").read_text())
    print(report.text)
    print(packed)


if __name__ == "__main__":
    tyro.cli(pack)
