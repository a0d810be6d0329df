"""docs/experiment.md: its files make a run with a medium and a condition of its own, which every command takes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdiff import options
from jaxdiff.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "experiment.md").read_text()
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.S))


@pytest.mark.slow
def test_the_pages_experiment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    main(["train", "waves.py", "--workdir", "run", "--steps", "300", "--width", "32"])
    assert {"experiment.py", "curves.py", "frequency.py", "samples.png"} <= {p.name for p in Path("run").iterdir()}
    assert Image.open("run/samples.png").size == (320, 200)
    asked = ["sample", "run", "--label", "2.5", "--num", "3", "--out", "a.npz"]
    main([*asked, "--solver", "ddim(eta=0.0)", "--grid", "by_time(start=0.99)", "--guidance-fn", "cfg"])
    arrays = np.load("a.npz")
    assert arrays["x"].shape == (3, 32) and arrays["frequency"].tolist() == [2.5] * 3
    main(["eval", "run", "--num", "9"])
    power = json.loads(Path("run/eval.json").read_text())["power"]
    assert 0.2 < power < 0.8 and f"power {power:.2f}" in capsys.readouterr().out


def test_the_page_has_all_of_them_and_their_knobs_are_its():
    assert FILES.keys() == {"frequency.py", "curves.py", "waves.py"}
    types = re.search(r"\| type \|.*?\n\n", PAGE, re.S).group(0)
    names = set(re.findall(r"`([A-Z]\w+)`", types)) - {"Annotated"}
    assert {"Count", "Source", "File"} <= names <= set(options.__all__)
    for option in ("steps", "batch", "lr", "seed", "grad-accum-steps", "preview-every"):
        assert f"`--{option}`" in PAGE
