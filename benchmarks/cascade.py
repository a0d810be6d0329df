"""What noise on low-resolution pictures is good for: python benchmarks/cascade.py [--page docs/cascade.md].

Trains `experiments/cascade.py`: a base, and super-resolution models with several largest levels of noise. Each makes
true low-resolution pictures of the test set larger, and the base's samples, at several levels of noise; bicubic
interpolation is in the same table. Measured by PSNR where the true picture is known, and by the classifier of `jaxdiff
eval`. Results are kept in the folder as they come; `--page` writes the table and a picture.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from jaxdiff import data, run
from jaxdiff.cascade import Upscaler
from jaxdiff.media import Samples
from jaxdiff.media.files import grid
from jaxdiff.resize import bicubic

EXPERIMENT = Path(__file__).resolve().parents[1] / "experiments" / "cascade.py"
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.5)
COLUMNS = ("psnr", "kernel_distance", "accuracy")


def trained(folder: Path, name: str, arguments: argparse.Namespace, **knobs: float) -> Path:
    """Train a stage, or go on where it stopped."""
    workdir = folder / name
    common = {"source": arguments.source, "steps": arguments.steps, "width": arguments.width, "preview_every": 0}
    options = {**common, **knobs, "workdir": workdir}
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    subprocess.run([sys.executable, "-m", "jaxdiff", "train", str(EXPERIMENT), *words], check=True)
    return workdir


def psnr(x: np.ndarray, true: np.ndarray) -> float:
    """The mean over pictures, in dB, of pictures in [-1, 1]."""
    error = np.mean(np.square(np.clip(x, -1, 1) - true), axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(4 / error)))


def interpolated(pictures: np.ndarray, size: int) -> np.ndarray:
    return np.clip(np.asarray(bicubic(data.to_float(pictures), (size, size))), -1, 1)


class Bench:
    """The pictures to make larger, and what measures the results."""

    def __init__(self, folder: Path, base: Path, model: Path, arguments: argparse.Namespace):
        experiment, large = run.load_run(base), run.load_run(model)
        self.size = large.medium.shape[0]
        samples = run.draw(experiment, run.parameters(experiment, base), arguments.num)
        test = data.open_dataset(arguments.source, "test", size=self.size)
        true = data.load_arrays(data.low_resolution(test, arguments.low), arguments.num)
        self.true = data.to_float(true["x"])
        self.low = {"true": true["hint"], "base": data.to_uint8(samples.x)}
        self.label = {"true": true["label"], "base": samples.cond["label"]}
        assert large.medium.evaluator is not None
        self.measure = large.medium.evaluator(folder, large.condition)

    def row(self, of: str, x: np.ndarray) -> dict[str, float]:
        report = self.measure(Samples(x, {"label": self.label[of]})).values
        found = {name: report["samples"][name] for name in COLUMNS if name != "psnr"}
        found["real_distance"] = report["real"]["kernel_distance"]
        return found | ({"psnr": psnr(x, self.true)} if of == "true" else {})

    def of_model(self, workdir: Path, levels: list[float], folder: Path) -> dict[str, dict]:
        experiment = run.load_run(workdir)
        params, upscale = run.parameters(experiment, workdir), Upscaler(experiment)
        found = {}
        for level in levels:
            for of in ("true", "base"):
                x = upscale(params, self.low[of], cond={"label": self.label[of]}, level=level, batch=100).x
                np.save(folder / f"{workdir.name}-{level}-{of}.npy", x[:200])
                found[f"{level} {of}"] = self.row(of, x)
        return found


def write_page(results: dict, page: Path) -> None:
    columns = ["trained with", "drawn with", "PSNR", "distance", "recognized", "distance, base", "recognized, base"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, found in results.items():
        for level in dict.fromkeys(key.split()[0] for key in found):
            true, base = (found[f"{level} {of}"] for of in ("true", "base"))
            cells = [name, level, f"{true['psnr']:.2f}"]
            for each in (true, base):
                cells += [f"{each['kernel_distance']:.2f}", f"{100 * each['accuracy']:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    real = results["bicubic"]["- true"]["real_distance"]
    lines.append(f"| training pictures | - | - | {real:.2f} | - | - | - |")
    print("\n".join(lines))
    text = page.read_text() if page.exists() else "<!-- table -->\n<!-- end -->\n"
    head, rest = text.split("<!-- table -->\n")
    page.write_text(head + "<!-- table -->\n" + "\n".join(lines) + "\n<!-- end -->" + rest.split("<!-- end -->")[1])


def write_picture(bench: Bench, folder: Path, name: str, level: float, out: Path) -> None:
    """Ten pictures a row: low, bicubic, the model's, true; then the base's, bicubic, the model's."""
    rows = []
    for of in ("true", "base"):
        first = [int(np.flatnonzero(bench.label[of][:200] == c)[0]) for c in range(10)]
        low = bench.low[of][first]
        rows += [data.to_float(low.repeat(bench.size // low.shape[1], 1).repeat(bench.size // low.shape[1], 2))]
        rows += [interpolated(low, bench.size), np.load(folder / f"{name}-{level}-{of}.npy")[first]]
        rows += [bench.true[first]] if of == "true" else []
    sheet = grid(np.concatenate(rows), 10)
    sheet = sheet.repeat(2, 0).repeat(2, 1)
    Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet).save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="fashion_mnist")
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--low", type=int, default=14)
    parser.add_argument("--steps", type=int, default=900, help="updates of each model")
    parser.add_argument("--width", type=int, default=32, help="channels at each network's first level")
    parser.add_argument("--max-levels", type=float, nargs="+", default=[0.0, 0.2, 0.5])
    parser.add_argument("--num", type=int, default=1000, help="pictures that are measured")
    parser.add_argument("--folder", type=Path, default=Path("runs/cascade"))
    parser.add_argument("--page", type=Path, help="a page whose table is written, and the picture with its name")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    base = trained(folder, "base", arguments, size=arguments.low, low=0)
    models = {
        most: trained(
            folder, f"noise-{most}", arguments,
            size=arguments.size, low=arguments.low, max_level=most, level=min(0.1, most),
        )
        for most in arguments.max_levels
    }  # fmt: skip
    bench = Bench(folder, base, next(iter(models.values())), arguments)
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    if "bicubic" not in results:
        results["bicubic"] = {f"- {of}": bench.row(of, interpolated(bench.low[of], bench.size)) for of in bench.low}
    for most, workdir in models.items():
        if str(most) not in results:
            results[str(most)] = bench.of_model(workdir, [level for level in LEVELS if level <= most], folder)
            path.write_text(json.dumps(results, indent=1))
            print(most, json.dumps(results[str(most)]), flush=True)
            jax.clear_caches()
    if arguments.page:
        write_page(results, arguments.page)
        most = max(models)
        write_picture(bench, folder, models[most].name, 0.1 if most >= 0.1 else 0.0, arguments.page.with_suffix(".png"))


if __name__ == "__main__":
    main()
