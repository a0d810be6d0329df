"""The page of `mri.py`: a table, and a picture of the reconstructions."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.media.files import grid, write_pixels

BEGIN, END = "<!-- table -->", "<!-- end of table -->"
COLUMNS = {"psnr": 1, "ssim": 3, "covered": 3, "covered_head": 3, "correlation": 2}
HEADS = ("task", "pictures", "method", "PSNR, dB", "SSIM", "in range (0.9 is right)", "... in the head", "correlation")
BRIGHTER = 5  # standard deviations and errors, than the pictures


def table(found: dict[str, Any]) -> str:
    """Of every task and set of pictures, the methods in the order of their results."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    for task, results in found.items():
        methods = {method: values for method, values in results.items() if method != "tuned"}
        for pictures in next(iter(methods.values())):
            for method, values in methods.items():
                numbers = [f"{values[pictures][c]:.{d}f}" if c in values[pictures] else "" for c, d in COLUMNS.items()]
                lines.append("| " + " | ".join([task, pictures, method, *numbers]) + " |")
    return "\n".join(lines)


def best_method(results: dict[str, Any]) -> str:
    """The method of the samples with the largest PSNR on phantoms."""
    drawn = [method for method in results if "covered" in results[method].get("phantoms", {})]
    return max(drawn, key=lambda method: results[method]["phantoms"]["psnr"])


def picture(found: dict[str, Any], folder: Path, true: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Truth, the simplest reconstruction, total variation, mean, deviation and error of each task, in [0, 1]."""
    lines = []
    for task, results in found.items():
        simple = next(method for method in results if method != "tuned")
        zero_filled, smooth, drawn = (
            np.load(folder / f"{task}-{method}.npy")[:, shown]
            for method in (simple, "total variation", best_method(results))
        )
        mean, truth = drawn.mean(0), true[shown]
        lines += [truth, zero_filled[0], smooth[0], mean]
        lines += [BRIGHTER * drawn.std(0, ddof=1), BRIGHTER * np.abs(mean - truth)]
    return np.concatenate(lines)


def write(page: Path, found: dict[str, Any], sheet: np.ndarray, columns: int) -> None:
    """Write the table between the page's marks, and pictures in [0, 1] at twice their size to a PNG of its name."""
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{rest.partition(END)[2]}")
    pixels = grid(np.clip(2 * sheet - 1, -1, 1), columns=columns)
    write_pixels(page.with_suffix(".png"), np.kron(pixels, np.ones((2, 2, 1), np.uint8)))
