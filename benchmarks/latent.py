"""The same pictures in pixels and in latents: python benchmarks/latent.py twemoji64:PACKAGE [--page docs/latent.md].

Trains `experiments/autoencoder.py`, `experiments/latent.py` on its latents and `experiments/emoji.py` on the pixels,
the latter two alike but for the number of updates, which are to take equally long. Measures reconstructions and samples
by `jaxdiff eval`, and counts the operations and the memory of an update and of a sample; those also for pictures of 512
pixels, of which nothing is trained. Results are kept in the folder as they come, so that the same command goes on where
it stopped; `--page` writes the table and a picture.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from few_steps import write_table
from PIL import Image

from jaxdiff import data, first_stage, plan, run
from jaxdiff.drawing import Drawer
from jaxdiff.media.files import grid
from jaxdiff.plan import flops
from jaxdiff.sampler import sampler
from jaxdiff.seeds import example_keys
from jaxdiff.sharding import make_mesh

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
LARGE = 512  # pixels
SHOWN = 10


def trained(folder: Path, name: str, experiment: str, **knobs: Any) -> Path:
    """Train, or go on where it stopped, and keep the CPU seconds."""
    workdir, kept = folder / name, folder / f"{name}.json"
    words = [word for key, value in knobs.items() for word in _option(key, value)]
    command = [sys.executable, "-m", "jaxdiff", "train", str(EXPERIMENTS / f"{experiment}.py"), *words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, "--workdir", str(workdir)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    earlier = json.loads(kept.read_text()) if kept.exists() else {"cpu": 0.0}
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    if earlier.get("step") != last:  # a finished run is not trained again
        kept.write_text(json.dumps({"cpu": earlier["cpu"] + spent, "step": last}))
    return workdir


def _option(name: str, value: Any) -> list[str]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [f"--{name.replace('_', '-')}", *map(str, values)]


def measured(workdir: Path, num: int) -> dict[str, float]:
    experiment = run.load_run(workdir)
    params = run.parameters(experiment, workdir)
    return run.evaluate(experiment, params, workdir, num=num, batch=min(num, 32)).values


def seconds(workdir: Path, batch: int = 16) -> float:
    """Seconds of a picture, of the fastest of three batches."""
    experiment = run.load_run(workdir)
    params, draw, took = run.parameters(experiment, workdir), Drawer(experiment), []
    for seed in range(4):
        begun = time.perf_counter()
        draw(params, batch, seed=seed, batch=batch)
        took.append(time.perf_counter() - begun)
    return min(took[1:]) / batch


def counted(experiment: Any, *, memory: bool) -> dict[str, float]:
    """Operations of an update and of a sample, a picture; bytes of an update's temporary arrays, a picture."""
    part, mesh = experiment.training, make_mesh(devices=jax.devices()[:1])
    found = {"sample": _sample_flops(experiment)}
    if memory:
        program = plan.train_step(experiment, mesh)
        found["memory"] = (program.memory.temporaries or 0) / part.batch
        return found | {"update": program.model_flops / part.batch}
    return found


def _sample_flops(experiment: Any) -> float:
    params = jax.eval_shape(experiment.model.init, jax.random.key(0))
    generate = sampler(experiment.model, experiment.sampling, experiment.condition, experiment.medium)
    cond = jax.tree.map(np.asarray, experiment.condition.choose(np.arange(1)))
    arguments = experiment.model.merge_frozen(params), example_keys(0, 1), cond, experiment.guidance
    return flops.of_jaxpr(jax.make_jaxpr(generate)(*arguments))


def large(folder: Path, options: argparse.Namespace) -> dict[str, dict]:
    """Models of large pictures, with random parameters: what is counted does not depend on them."""
    pictures, vae = folder / "large", folder / "large-autoencoder"
    if not (pictures / "0.png").exists():
        pictures.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((LARGE, LARGE, 3), np.uint8)).save(pictures / "0.png")
        (pictures / "0.txt").write_text("black")
    if not (vae / "config.json").exists():
        architecture = first_stage.Architecture(widths=(*options.widths, options.widths[-1]))
        origin = first_stage.open_origin(architecture, (LARGE, LARGE, 3))
        origin.save(origin.init(jax.random.key(0)), vae, scale=1.0)
    common = {"source": f"folder:{pictures}", "width": options.width, "batch": 1}
    latent, emoji = (run.load(EXPERIMENTS / f"{name}.py") for name in ("latent", "emoji"))
    return {
        "latents": counted(latent(autoencoder=str(vae), **common), memory=True),
        "pixels": counted(emoji(**common), memory=True),
        "pixels, no patches": counted(emoji(patch_size=1, **common), memory=False),
    }


def lines_of(results: dict) -> list[str]:
    """The table: pixels, latents, and their ratio."""
    lines = ["| | in pixels | in latents | ratio |", "|---|---|---|---|"]

    def add(name: str, pixels: float, latents: float, form: str, scale: float = 1.0, ratio: bool = True) -> None:
        cells = [f"{value / scale:{form}}" for value in (pixels, latents)]
        lines.append(f"| {name} | {' | '.join(cells)} | {f'{pixels / latents:.1f}' if ratio else ''} |")

    each = [results[name] for name in ("pixels", "latent")]
    add("updates", *(one["step"] for one in each), ",.0f", ratio=False)
    add("CPU seconds of training, compiling included", *(one["cpu"] for one in each), ",.0f", ratio=False)
    for size, (pixels, latents) in {
        "": [one["counted"] for one in each],
        f", {LARGE} px": [results["large"][name] for name in ("pixels", "latents")],
    }.items():
        add(f"GFLOP of an update, a picture{size}", pixels["update"], latents["update"], ".2f", 1e9)
        add(f"GFLOP of a sample{size}", pixels["sample"], latents["sample"], ".1f", 1e9)
        add(f"MB of an update's temporaries, a picture{size}", pixels["memory"], latents["memory"], ".1f", 1e6)
    unpatched = results["large"]["pixels, no patches"]["sample"], results["large"]["latents"]["sample"]
    add(f"GFLOP of a sample, {LARGE} px, pixels without patches", *unpatched, ".1f", 1e9)
    add("seconds of a sample", *(one["seconds"] for one in each), ".3f")
    values = [one["values"] for one in each]
    for name, key, form, scale in (
        ("kernel distance", "kernel_distance", ".2f", 1.0),
        ("recognized, %", "recognized", ".1f", 0.01),
    ):
        add(name, *(one[key] for one in values), form, scale, ratio=False)
    first = results["autoencoder"]
    own = first["values"]
    feature, kernel = (f"{own[f'{name}_distance']:.3f}" for name in ("feature", "kernel"))
    lines += [
        "",
        f"The autoencoder: {first['step']:,} updates, {first['cpu']:,.0f} CPU seconds. {own['count']} reconstructions: "
        f"PSNR {own['psnr']:.1f} dB, SSIM {own['ssim']:.3f}, feature distance {feature} (of different pictures "
        f"{own['feature_distance_other']:.3f}), kernel distance {kernel} (of true pictures "
        f"{own['kernel_distance_real']:.3f}). By chance {100 * values[0]['chance']:.2f} % are recognized.",
    ]
    return lines


def write_picture(folder: Path, source: str, out: Path) -> None:
    """Ten captions: the pictures, their reconstructions, samples of latents, samples of pixels."""
    pictures = data.open_dataset(source, captions=True)
    made = {name: run.load_run(folder / name) for name in ("autoencoder", "latent", "pixels")}
    params = {name: run.parameters(experiment, folder / name) for name, experiment in made.items()}
    captions = [str(text) for text in made["latent"].medium.prompts(SHOWN)]  # type: ignore[misc]
    first = [next(i for i in range(len(pictures)) if text in pictures[i]["captions"]) for text in captions]
    true = data.to_float(np.stack([pictures[i]["x"] for i in first]))
    generate: Callable[..., Any] = made["autoencoder"].model.generate  # type: ignore[assignment]
    rows = [true, np.asarray(jax.jit(generate)(params["autoencoder"], example_keys(0, SHOWN), {"x": true}))]
    rows += [run.draw(made[name], params[name], SHOWN, words=captions, batch=SHOWN).x for name in ("latent", "pixels")]
    Image.fromarray(grid(np.concatenate(rows), SHOWN)).save(out)
    print(captions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="pictures with captions, e.g. twemoji64:PACKAGE")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64], help="of the autoencoder, by level")
    parser.add_argument("--first-steps", type=int, default=450, help="updates of the autoencoder")
    parser.add_argument("--latent-steps", type=int, default=1000)
    parser.add_argument("--pixel-steps", type=int, default=240)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=24, help="channels at the first level of both diffusion models")
    parser.add_argument("--num", type=int, default=256, help="samples that are measured")
    parser.add_argument("--folder", type=Path, default=Path("runs/latent"))
    parser.add_argument("--page", type=Path, help="a page whose table is written, and the picture with its name")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    common = {"source": options.source, "batch": options.batch}
    first = trained(
        folder, "autoencoder", "autoencoder", **common, split="train", widths=options.widths, critic_weight=0,
        steps=options.first_steps, preview_every=options.first_steps,
    )  # fmt: skip
    common |= {"width": options.width, "preview_every": 0}
    trained(folder, "latent", "latent", **common, autoencoder=first, steps=options.latent_steps)
    trained(folder, "pixels", "emoji", **common, steps=options.pixel_steps)
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}

    def keep(name: str, what: str, value: Callable[[], Any]) -> None:
        if what not in results.setdefault(name, {}):
            results[name][what] = value()
            path.write_text(json.dumps(results, indent=1))
            print(name, what, json.dumps(results[name][what]), flush=True)
            jax.clear_caches()

    for name in ("autoencoder", "latent", "pixels"):
        results[name] = results.get(name, {}) | json.loads((folder / f"{name}.json").read_text())
        keep(name, "values", lambda name=name: measured(folder / name, options.num))
    for name in ("latent", "pixels"):
        keep(name, "seconds", lambda name=name: seconds(folder / name))
        keep(name, "counted", lambda name=name: counted(run.load_run(folder / name), memory=True))
    for name, value in large(folder, options).items() if "large" not in results else ():
        results["large"] = results.get("large", {}) | {name: value}
    path.write_text(json.dumps(results, indent=1))
    print("\n".join(lines_of(results)))
    if options.page:
        write_table(options.page, "table", lines_of(results))
        write_picture(folder, options.source, options.page.with_suffix(".png"))


if __name__ == "__main__":
    main()
