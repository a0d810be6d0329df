"""What steering a trained run by edges gives: python benchmarks/control.py RUN [RUN ...] --page docs/control.png.

RUN is a run of the experiment control. For each: the edges' F1 score by updates, with control and without, and the time
of 100 pictures in turns. The page's rows: the edges of test pictures, what each run draws of them, and what the base
draws of their classes alone by the same noise.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from jaxdiff import control, media, train
from jaxdiff.drawing import Drawer
from jaxdiff.media.files import save_png
from jaxdiff.recipe import load_run
from jaxdiff.train.snapshots import FOLDER

SHOWN = 10


def uncontrolled(experiment, run: Path):
    """The experiment of the base alone, with the same conditions."""
    network = control.load_base(train.read_knobs(run)["base"]).model.apply

    def apply(params, x, noise, cond, **options):
        return network(params[1]["unet"], x, noise, {"label": cond["label"]}, **options)

    model = replace(experiment.model, apply=apply)
    return replace(experiment, model=model, condition=replace(experiment.condition, encode=lambda params, cond: cond))


def score(samples) -> float:
    return float(media.edge_scores(samples.x, samples.cond["hint"]).mean())


def snapshots(run: Path):
    with train.Checkpointer(run, folder=FOLDER, keep=None, read_only=True) as store:
        for step in store.steps():
            yield step, store.restore_params("ema/0", step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--num", type=int, default=50)
    parser.add_argument("--page", type=Path, default=Path("docs/control.png"))
    arguments = parser.parse_args()
    num, drawers = arguments.num, {}
    for run in arguments.runs:
        experiment = load_run(run)
        drawers[run.name] = Drawer(experiment), train.load_params(run, "ema")
        for step, params in snapshots(run):
            value = score(drawers[run.name][0](params, num, batch=num))
            print(f"{run.name:12} {step:5} updates: F1 {value:.3f}", flush=True)
    drawers["base"] = Drawer(uncontrolled(experiment, arguments.runs[-1])), drawers[run.name][1]
    drawn, seconds = {}, {name: [] for name in drawers}
    for _ in range(3):
        for name, (draw, params) in drawers.items():
            start = time.process_time()
            drawn[name] = draw(params, num, batch=num)
            seconds[name].append(time.process_time() - start)
    for name, samples in drawn.items():
        print(f"{name:12} F1 {score(samples):.3f}, {min(seconds[name]):.1f} CPU seconds for {num} pictures")
    hints = 2 * drawn["base"].cond["hint"][:SHOWN, ..., :1] - 1
    save_png(arguments.page, np.concatenate([hints, *(samples.x[:SHOWN] for samples in drawn.values())]), SHOWN)
    with Image.open(arguments.page) as small:
        larger = small.resize((3 * small.width, 3 * small.height), Image.Resampling.NEAREST)
    larger.save(arguments.page)
    print(arguments.page)


if __name__ == "__main__":
    main()
