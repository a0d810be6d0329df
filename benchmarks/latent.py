"""The same pictures in pixels and in latents: python benchmarks/latent.py [twemoji64:PACKAGE] [--page docs/latent.md].

Counts the operations and the memory of an update and of a sample, for pictures of 64 and of 512 pixels. Then trains, on
those of 64, `experiments/autoencoder.py`, `experiments/latent.py` on its latents and `experiments/emoji.py` on the
pixels, the latter two alike but for the number of updates, which are to take equally long, and measures reconstructions
and samples by `jaxdiff eval`. Results are kept in the folder as they come, so that the same command goes on where it
stopped; `--page` writes the table and, of what was trained, a picture.
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
import jax.numpy as jnp
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
SMALL, LARGE = 64, 512  # pixels
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


def train_all(folder: Path, options: argparse.Namespace) -> None:
    common = {"source": options.source, "batch": options.batch}
    first = trained(
        folder, "autoencoder", "autoencoder", **common, split="train", widths=options.widths, critic_weight=0,
        steps=options.first_steps, preview_every=options.first_steps,
    )  # fmt: skip
    common |= {"width": options.width, "preview_every": 0}
    trained(folder, "latent", "latent", **common, autoencoder=first, steps=options.latent_steps)
    trained(folder, "pixels", "emoji", **common, steps=options.pixel_steps)


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


def models_of(folder: Path, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Experiments of pictures of a size, with random parameters: nothing that is counted depends on these."""
    pictures, vae = folder / f"black-{size}", folder / f"random-{size}"
    if not (pictures / "0.txt").exists():
        pictures.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(pictures / "0.png")
        (pictures / "0.txt").write_text("black")
    if not (vae / "config.json").exists():
        widths = (*options.widths, *[options.widths[-1]] * (size == LARGE))  # 8 pixels a latent, as Stable Diffusion
        origin = first_stage.open_origin(first_stage.Architecture(widths=widths), (size, size, 3))
        origin.save(origin.init(jax.random.key(0)), vae, scale=1.0)
    knobs = {"source": f"folder:{pictures}", "width": options.width, "batch": 4}
    latent, emoji = (run.load(EXPERIMENTS / f"{name}.py") for name in ("latent", "emoji"))
    return {
        "latent": latent(autoencoder=str(vae), **knobs),
        "pixels": emoji(**knobs),
        "pixels, no patches": emoji(patch_size=1, **knobs),
    }


def update_flops(experiment: Any) -> float:
    """Operations of an update, a picture: three times those of the loss, as `jaxdiff plan` counts them."""
    part, model = experiment.training, experiment.model
    batch = {name: jnp.zeros((part.batch, *spec.shape), spec.dtype) for name, spec in part.batch_spec.items()}
    params = model.merge_frozen(jax.eval_shape(model.init, jax.random.key(0)))
    return 3 * flops.of_jaxpr(jax.make_jaxpr(part.loss)(params, jax.random.key(0), batch)) / part.batch


def update_memory(experiment: Any) -> float:
    """Bytes of an update's temporary arrays, a picture, as compiled for one device of this machine."""
    program = plan.train_step(experiment, make_mesh(devices=jax.devices()[:1]))
    return (program.memory.temporaries or 0) / experiment.training.batch


def sample_flops(experiment: Any) -> float:
    """Operations of a sample."""
    params = jax.eval_shape(experiment.model.init, jax.random.key(0))
    generate = sampler(experiment.model, experiment.sampling, experiment.condition, experiment.medium)
    cond = jax.tree.map(np.asarray, experiment.condition.choose(np.arange(1)))
    arguments = experiment.model.merge_frozen(params), example_keys(0, 1), cond, experiment.guidance
    return flops.of_jaxpr(jax.make_jaxpr(generate)(*arguments))


COUNTS = {
    "update": (update_flops, "GFLOP of an update, a picture", 1e9),
    "sample": (sample_flops, "GFLOP of a sample", 1e9),
    "memory": (update_memory, "MB of an update's temporary arrays, a picture", 1e6),
}


def lines_of(results: dict) -> list[str]:
    """The table: pixels, latents, and their ratio; of what there is."""
    lines = ["| | in pixels | in latents | ratio |", "|---|---|---|---|"]

    def add(name: str, pixels: float, latents: float, form: str, *, ratio: bool = False) -> None:
        cells = f"{pixels:{form}} | {latents:{form}}"
        lines.append(f"| {name} | {cells} | {f'{pixels / latents:.1f}' if ratio else ''} |")

    for size in (SMALL, LARGE):
        found = results.get(f"{size} px", {})
        for kind, (_, title, scale) in COUNTS.items():
            for name, form in (("pixels", ""), ("pixels, no patches", ", pixels without patches")):
                pixels, latents = (found.get(each, {}).get(kind) for each in (name, "latent"))
                if pixels and latents:
                    add(f"{title}, {size} x {size}{form}", pixels / scale, latents / scale, ",.1f", ratio=True)
    if "pixels" not in results:
        return lines
    pixels, latents = results["pixels"], results["latent"]
    add("updates", pixels["step"], latents["step"], ",.0f")
    add("CPU seconds of training, compiling included", pixels["cpu"], latents["cpu"], ",.0f")
    add("seconds of a sample", pixels["seconds"], latents["seconds"], ".3f", ratio=True)
    for name, form in (("kernel_distance", ".3f"), ("recognized", ".1%")):
        add(name.replace("_", " "), pixels["values"][name], latents["values"][name], form)
    first, own = results["autoencoder"], results["autoencoder"]["values"]
    feature, kernel = (f"{own[f'{name}_distance']:.3f}" for name in ("feature", "kernel"))
    return [
        *lines,
        "",
        f"The autoencoder: {first['step']:,} updates, {first['cpu']:,.0f} CPU seconds. {own['count']} reconstructions: "
        f"PSNR {own['psnr']:.1f} dB, SSIM {own['ssim']:.3f}, feature distance {feature} (of different pictures "
        f"{own['feature_distance_other']:.3f}), kernel distance {kernel} (of true pictures "
        f"{own['kernel_distance_real']:.3f}). By chance {pixels['values']['chance']:.2%} are recognized.",
    ]


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
    parser.add_argument("source", nargs="?", default="", help="twemoji64:PACKAGE; without it nothing is trained")
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
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}

    def keep(where: dict, what: str, value: Callable[[], Any]) -> None:
        if what not in where:
            where[what] = value()
            path.write_text(json.dumps(results, indent=1))
            print(what, json.dumps(where[what]), flush=True)
            jax.clear_caches()

    for kind, (count, *_) in COUNTS.items():
        for size in (SMALL, LARGE):
            for name, experiment in models_of(folder, size, options).items():
                if kind != "memory" or name != "pixels, no patches":  # that program would be too large to compile here
                    where = results.setdefault(f"{size} px", {}).setdefault(name, {})
                    keep(where, kind, lambda count=count, experiment=experiment: count(experiment))
    if options.source:
        train_all(folder, options)
        for name in ("autoencoder", "latent", "pixels"):
            found = results.setdefault(name, {})
            found |= json.loads((folder / f"{name}.json").read_text())
            keep(found, "values", lambda name=name: measured(folder / name, options.num))
            if name != "autoencoder":
                keep(found, "seconds", lambda name=name: seconds(folder / name))
    print("\n".join(lines_of(results)))
    if options.page:
        write_table(options.page, "table", lines_of(results))
        if options.source:
            write_picture(folder, options.source, options.page.with_suffix(".png"))


if __name__ == "__main__":
    main()
