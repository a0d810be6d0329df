"""Text to image by embeddings: python benchmarks/unclip.py [--emoji RUN] [--page docs/unclip.md].

Trains `experiments/image_text.py`, and of `experiments/unclip.py` the diffusion prior, the direct one and the decoder
(`--decoder-steps 0` leaves it out); `jaxdiff eval` measures all but the decoder. Pictures of captions that training
shows, and of held-out ones, are drawn by either prior, of the true pictures' embeddings, and by a run of
`experiments/emoji.py`: another image-text model, which no part has seen, looks for the caption of each among 100. Then
variations: whether they keep their caption, and how they differ. Results are kept in the folder as they come; `--page`
writes the tables and a picture.
"""

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff import data, run, unclip
from jaxdiff.conditions import Condition
from jaxdiff.drawing import Asked, Drawer
from jaxdiff.media.captions import save_captioned
from jaxdiff.media.retrieval import Retriever, fit_retriever, load_retriever, save_retriever
from jaxdiff.metrics import recall_at_1

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
SHOWN = (
    "two cherries",
    "a large red heart on the left",
    "dog face and pizza",
    "green apple",
    "a small blue fish on the top",
)
BATCH = 50
ROW_OF_EMBEDDINGS = "decoder, of the true pictures' embeddings"
FROM, TO = "a red heart", "a green heart"
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TURNS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def trained(folder: Path, name: str, file: str, **knobs: object) -> Path:
    """Train a part, or go on where it stopped."""
    options = {**knobs, "preview_every": 0, "workdir": folder / name}
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    subprocess.run([sys.executable, "-m", "jaxdiff", "train", str(EXPERIMENTS / f"{file}.py"), *words], check=True)
    return folder / name


def evaluated(workdir: Path) -> dict[str, dict[str, float]]:
    """What `jaxdiff eval` says of a part, for seen and held-out captions."""
    path = workdir / "eval.json"
    if not path.exists():
        subprocess.run([sys.executable, "-m", "jaxdiff", "eval", str(workdir)], check=True)
    return json.loads(path.read_text())["samples"]


class Bench:
    """The pairs, what draws pictures, and what measures them."""

    def __init__(self, folder: Path, parts: dict[str, Path], emoji: Path | None, num: int):
        self.folder, self.emoji, self.priors, self.decoder = folder, emoji, parts, parts["decoder"]
        self.embedder = unclip.load_embedder(parts["image_text"])
        self.pairs = data.pairs_of(data.Compositions(subset="core"), num)
        self.pictures = self.pairs.read(np.arange(num))
        self.judge = self._judge()

    def _judge(self) -> Retriever:
        path = self.folder / "judge.npz"
        if not path.exists():
            save_retriever(path, fit_retriever(subset="core", progress=True))
        return load_retriever(path)

    @functools.cache  # noqa: B019
    def drawer(self, prior: str) -> tuple[Condition, Drawer, unclip.Decoder | None, Any]:
        """What draws prompts, and for a prior's name embeddings: compiled once for each size of a batch."""
        workdir, changes = (self.decoder, {"prior": str(self.priors[prior])}) if prior else (self.emoji, {})
        experiment = run.load_run(workdir, changes=changes)
        decoder = unclip.Decoder(experiment) if prior else None
        return experiment.condition, Drawer(experiment), decoder, run.parameters(experiment, workdir)

    def of_prompts(self, prompts: tuple[str, ...], prior: str, *, batch: int = BATCH) -> np.ndarray:
        """Pictures of prompts, by a prior, or for "" by the run of emoji."""
        condition, draw, _, params = self.drawer(prior)
        parts = [condition.parse(prompt) for prompt in prompts]
        cond = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return draw(params, len(prompts), Asked(cond, prompts), batch=batch).x

    def of_embeddings(self, z: np.ndarray, seed: int = 0, *, batch: int = BATCH) -> np.ndarray:
        """Pictures of embeddings."""
        _, _, decoder, params = self.drawer("prior")
        return decoder(params, z, seed=seed, batch=batch).x

    def along(self, z: np.ndarray, seed: int = 0) -> np.ndarray:
        """Pictures of embeddings, all by the same noise."""
        _, _, decoder, params = self.drawer("prior")
        return decoder.along(params, z, seed=seed).x

    def found(self, x: np.ndarray) -> dict[str, float]:
        """R@1 of 100 of pictures of the pairs, seen and held out."""
        seen = len(x) - self.pairs.held_out
        vectors, captions = self.judge.pictures(x), self.judge.captions(self.pairs.captions)
        parts = {"seen": slice(0, seen), "held_out": slice(seen, None)}
        return {k: recall_at_1(vectors[part], captions[part], self.pairs.captions[part]) for k, part in parts.items()}

    def rows(self) -> dict[str, Callable[[], np.ndarray]]:
        made = {
            "true pictures": lambda: self.pictures,
            ROW_OF_EMBEDDINGS: lambda: self.again(seed=0),
            "diffusion prior and decoder": lambda: self.of_prompts(self.pairs.captions, "prior"),
            "direct prior and decoder": lambda: self.of_prompts(self.pairs.captions, "direct"),
        }
        emoji = {"text straight in (emoji)": lambda: self.of_prompts(self.pairs.captions, "")} if self.emoji else {}
        return made | emoji

    def again(self, seed: int) -> np.ndarray:
        """The pairs' pictures, drawn of their embeddings; kept, since they are measured twice."""
        path = self.folder / f"again-{seed}.npy"
        if not path.exists():
            np.save(path, self.of_embeddings(self.embedder.embed_pictures(self.pictures), seed))
        return np.load(path)

    def variations(self, kept: dict[str, float]) -> dict[str, float]:
        """How far two pictures of each embedding are apart; `kept` is how many keep the caption."""
        a, b = (np.clip(self.again(seed), -1, 1) for seed in (0, 1))
        u, v = self.judge.pictures(a), self.judge.pictures(b)
        rms = lambda x, y: float(np.sqrt(np.mean(np.square(x - y))))  # noqa: E731
        return kept | {
            "distance": float(1 - np.mean(np.sum(u * v, 1))),
            "distance of other pictures": float(1 - np.mean(np.sum(u * np.roll(v, 1, 0), 1))),
            "pixels": rms(a, b),
            "pixels of other pictures": rms(a, np.roll(b, 1, 0)),
        }


def percents(values: Iterable[float]) -> str:
    return " | ".join(f"{100 * value:.1f}" for value in values)


def of_parts(parts: dict[str, dict]) -> list[str]:
    """The tables of the image-text model and of the priors."""
    columns = [(part, name) for part in ("seen", "held_out") for name in ("captions", "pictures")]
    found = (parts["image_text"][part][name] for part, name in columns)
    lines = ["| found among 100, % | captions, seen | pictures, seen | captions, held-out | pictures, held-out |"]
    lines += ["|---|---|---|---|---|", f"| image-text model | {percents(found)} |", "| chance | 1 | 1 | 1 | 1 |", ""]
    lines += ["| embedding of a caption | its picture found among 100, % | held-out | cosine | held-out |"]
    lines += ["|---|---|---|---|---|"]
    keys = {"the text's own": ("prior", " of text"), "diffusion prior": ("prior", ""), "direct prior": ("direct", "")}
    for name, (part, suffix) in keys.items():
        each = [parts[part][kind] for kind in ("seen", "held_out")]
        recall = percents(kind["found by text" if suffix else "found"] for kind in each)
        lines.append(f"| {name} | {recall} | " + " | ".join(f"{kind[f'cosine{suffix}']:.3f}" for kind in each) + " |")
    return lines


def of_pictures(results: dict) -> list[str]:
    """The table of pictures, and a sentence on variations."""
    lines = ["", "| caption of a picture found among 100, % | seen | held-out |", "|---|---|---|"]
    for name, found in results["rows"].items():
        lines.append(f"| {name} | {percents((found['seen'], found['held_out']))} |")
    v = results["variations"]
    return [
        *lines,
        "| chance | 1 | 1 |",
        "",
        f"Of variations of a picture {100 * v['seen']:.0f} % (seen) and {100 * v['held_out']:.0f} % (held-out) keep",
        f"its caption, and two of them differ: by {v['distance']:.2f} in the cosine distance of the judge's vectors",
        f"(of different pictures: {v['distance of other pictures']:.2f}), and by {v['pixels']:.2f} in pixels, root",
        f"mean square of [-1, 1] ({v['pixels of other pictures']:.2f}).",
    ]


def write_page(lines: list[str], page: Path) -> None:
    print("\n".join(lines))
    text = page.read_text() if page.exists() else "<!-- table -->\n<!-- end -->\n"
    head, rest = text.split("<!-- table -->\n")
    page.write_text(head + "<!-- table -->\n" + "\n".join(lines) + "\n<!-- end -->" + rest.split("<!-- end -->")[1])


def write_picture(bench: Bench, out: Path) -> None:
    """Lines of six: prompts, variations of a picture, a path between two, a difference of texts."""
    prompts = (*SHOWN, FROM)
    z = bench.embedder.embed_pictures(bench.pictures)
    first, second = z[0], z[1]
    before, after = bench.embedder.embed_texts([FROM, TO])
    heart = bench.embedder.embed_pictures(bench.of_prompts((FROM,), "prior", batch=1).clip(-1, 1))[0]
    lines = {
        prompts: bench.of_prompts(prompts, "prior", batch=1),
        ("the picture", *["a variation"] * 5): np.concatenate(
            [bench.pictures[:1], bench.of_embeddings(np.repeat(z[:1], 5, axis=0), seed=3, batch=1)]
        ),
        tuple(f"{share:.0%} of the way" for share in SHARES): bench.along(unclip.slerp(first, second, SHARES), seed=4),
        tuple(f"{FROM} -> {TO}, {turn:.0%}" for turn in TURNS): bench.along(
            unclip.text_difference(heart, before, after, TURNS)
        ),
    }
    captions = [caption for each in lines for caption in each]
    save_captioned(out, np.concatenate(list(lines.values())), captions, columns=6)


def measured(bench: Bench, path: Path) -> dict:
    """The pictures' results, of which those in the file are there already."""
    results = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    for name, draw in bench.rows().items():
        if name not in results["rows"]:
            results["rows"][name] = bench.found(draw())
            path.write_text(json.dumps(results, indent=1))
            print(name, results["rows"][name], flush=True)
    if "variations" not in results:
        results["variations"] = bench.variations(results["rows"][ROW_OF_EMBEDDINGS])
        path.write_text(json.dumps(results, indent=1))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-text-steps", type=int, default=500)
    parser.add_argument("--prior-steps", type=int, default=500)
    parser.add_argument("--decoder-steps", type=int, default=900)
    parser.add_argument("--num", type=int, default=200, help="captions, half of them held out; a multiple of 200")
    parser.add_argument("--emoji", type=Path, help="a run of experiments/emoji.py to compare with")
    parser.add_argument("--folder", type=Path, default=Path("runs/unclip"))
    parser.add_argument("--page", type=Path, help="a page whose table is written, and the picture with its name")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    image_text = trained(folder, "image_text", "image_text", steps=arguments.image_text_steps)
    parts = {"image_text": image_text}
    for name in ("prior", "direct"):
        common = {"part": name, "image_text": image_text}
        parts[name] = trained(folder, name, "unclip", **common, steps=arguments.prior_steps, batch=128)
    lines = of_parts({name: evaluated(workdir) for name, workdir in parts.items()})
    if arguments.decoder_steps:
        common = {"part": "decoder", "image_text": image_text}
        parts["decoder"] = trained(folder, "decoder", "unclip", **common, steps=arguments.decoder_steps)
        bench = Bench(folder, parts, arguments.emoji, arguments.num)
        lines += of_pictures(measured(bench, folder / "results.json"))
        if arguments.page:
            write_picture(bench, arguments.page.with_suffix(".png"))
    else:
        lines += ["", "The decoder was not measured."]
    if arguments.page:
        write_page(lines, arguments.page)


if __name__ == "__main__":
    main()
