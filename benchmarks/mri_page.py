"""The page of `mri.py`: a table, and a picture of the reconstructions."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.media.files import grid, write_pixels

BEGIN, END = "<!-- table -->", "<!-- end of table -->"
COLUMNS = {"psnr": 1, "ssim": 3, "covered": 3, "covered_head": 3, "correlation": 2}
HEADS = [
    "task", "pictures", "method", "PSNR, dB", "SSIM", "truth in range (0.9 is right)", "... within the head",
    "correlation of std and error",
]  # fmt: skip
BRIGHTER = 5  # standard deviations and errors, than the pictures


def table(found: dict[str, Any]) -> str:
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    for task, methods in found.items():
        drawn = {method: values for method, values in methods.items() if method != "tuned"}
        for pictures in next(iter(drawn.values())):
            for method, values in drawn.items():
                numbers = [f"{values[pictures][c]:.{d}f}" if c in values[pictures] else "" for c, d in COLUMNS.items()]
                lines.append("| " + " | ".join([task, pictures, method, *numbers]) + " |")
    return "\n".join(lines)


def picture(found: dict[str, Any], folder: Path, true: np.ndarray, shown: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """A line of each: truth, the simplest reconstruction, total variation, mean, deviation and error; then samples."""
    blocks = []
    for task, methods in found.items():
        simple, *_, best = (method for method in methods if method != "tuned")
        best = max((m for m in methods if "covered" in methods[m].get("phantoms", {})), key=lambda m: methods[m]["phantoms"]["psnr"], default=best)
        load = lambda method, task=task: np.load(folder / f"{task}-{method}.npy")[:, shown]  # noqa: E731
        drawn, truth = load(best), true[shown]
        error = np.abs(drawn.mean(0) - truth)
        spread = drawn.std(0, ddof=1)
        blocks += [truth, load(simple)[0], load("total variation")[0], drawn.mean(0), BRIGHTER * spread, BRIGHTER * error]
    sheet = np.concatenate([*blocks, samples[: 2 * len(shown)]])
    return grid(np.clip(2 * sheet - 1, -1, 1), columns=len(shown))


def write(page: Path, found: dict[str, Any], folder: Path, true: np.ndarray, where: dict, samples: np.ndarray) -> None:
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{rest.partition(END)[2]}")
    shown = np.concatenate([at[:6] for at in where.values()])
    write_pixels(page.with_suffix(".png"), np.kron(picture(found, folder, true, shown, samples), np.ones((2, 2, 1), np.uint8)))
