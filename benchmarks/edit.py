"""What `jaxdiff edit` does to real test pictures: python benchmarks/edit.py [RUN] --page docs/edit.png.

Columns: the picture, what is left of it, and four versions. Rows: a sneaker that becomes an ankle boot, noised and
denoised; the same, moved from one prompt to the other; the right half of a shirt, and of a bag.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from jaxdiff import data, imagine
from jaxdiff.edit import edit
from jaxdiff.media.files import save_png
from jaxdiff.pretrained import open_run

SIDE = 28


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("fashion"))
    parser.add_argument("--page", type=Path, default=Path("docs/edit.png"))
    arguments = parser.parse_args()
    generator = imagine.of_run(open_run(arguments.run))
    clothes = data.open_dataset("fashion_mnist", "test")
    arrays, names = data.load_arrays(clothes), clothes.class_names
    picture = lambda name, i: arrays["x"][np.flatnonzero(arrays["label"] == names.index(name))[i]]  # noqa: E731
    half = np.zeros((SIDE, SIDE), bool)
    half[:, SIDE // 2 :] = True
    shoe, boot = picture("Sneaker", 3), {"prompt": "Ankle boot"}
    nothing = np.zeros_like(half)
    tasks = [
        (shoe, nothing, boot | {"strength": 0.7}),
        (shoe, nothing, boot | {"source": "Sneaker", "strength": 0.9}),
        (picture("T-shirt/top", 3), half, {"prompt": "T-shirt/top", "mask": half}),
        (picture("Bag", 3), half, {"prompt": "Bag", "mask": half}),
    ]
    rows = []
    for x, hidden, options in tasks:
        left = np.where(hidden[..., None], 0, np.float32(x) / 127.5 - 1)
        rows += [np.float32(x) / 127.5 - 1, left, *edit(generator, x, num=4, **options)]
    save_png(arguments.page, np.stack(rows), 6)
    with Image.open(arguments.page) as small:
        larger = small.resize((3 * small.width, 3 * small.height), Image.Resampling.NEAREST)
    larger.save(arguments.page)
    print(arguments.page)


if __name__ == "__main__":
    main()
