"""What the default autoencoder comes to: python benchmarks/autoencoder.py [--page docs/autoencoder.md].

Trains `experiments/autoencoder.py` on Fashion-MNIST with each distance of features, and measures reconstructions of the
test set by `jaxdiff eval`. The same command goes on where it stopped; `--page` writes the table, and a picture of
originals, each with its reconstruction.
"""

import argparse
import json
from pathlib import Path

import jax
from few_steps import write_table
from latent import measured, trained

from jaxdiff import run


def cells(name: str, found: dict, values: dict) -> str:
    distances = (
        f"{values[f'{kind}_distance']:.{digits}f} ({values[f'{kind}_distance_{other}']:.{digits}f})"
        for kind, other, digits in (("feature", "other", 3), ("kernel", "real", 3))
    )
    numbers = f"{found['step']:,}", f"{found['cpu']:,.0f}", f"{values['psnr']:.2f}", f"{values['ssim']:.3f}"
    return f"| `{name}` | {' | '.join((*numbers, *distances))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--perceptual", nargs="+", default=["efficientnet"], help="distances of features")
    parser.add_argument("--steps", type=int, nargs="+", default=[1500], help="updates with each")
    parser.add_argument("--critic-start", type=int, default=1000)
    parser.add_argument("--num", type=int, default=500, help="reconstructions that are measured")
    parser.add_argument("--folder", type=Path, default=Path("runs/autoencoder"))
    parser.add_argument("--page", type=Path, help="a page whose table is written, and the picture with its name")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    columns = ["`--perceptual`", "updates", "CPU seconds", "PSNR, dB", "SSIM"]
    columns += ["feature distance (of different pictures)", "kernel distance (of originals)"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, steps in zip(options.perceptual, options.steps, strict=True):
        knobs = {"perceptual": name, "critic_start": options.critic_start, "steps": steps, "preview_every": steps}
        workdir = trained(folder, name, "autoencoder", **knobs)
        values = measured(workdir, options.num)
        lines.append(cells(name, json.loads((folder / f"{name}.json").read_text()), values))
        print(lines[-1], flush=True)
        jax.clear_caches()
    if options.page:
        write_table(options.page, "table", lines)
        workdir = folder / options.perceptual[0]
        experiment = run.load_run(workdir)
        samples = run.draw(experiment, run.parameters(experiment, workdir), 20)
        experiment.medium.save(options.page.with_suffix(".png"), samples)


if __name__ == "__main__":
    main()
