"""What the README's training costs and how good its samples are: python benchmarks/fashion.py [EXPERIMENT ...].

Trains the experiments in turns, each in a process of its own that finds nothing compiled, and prints the CPU seconds of
all of it, compiling and previews included (on a busy machine a clock would measure the others), then the verdict of
`jaxdiff eval`, by one judge for all. An experiment in another checkout is trained by the jaxdiff that lies there.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FASHION = ROOT / "experiments" / "fashion.py"


def jaxdiff(*arguments: str, package: Path, cache: Path) -> tuple[float, float]:
    """Run a command; return its user and system seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environ = os.environ | {"XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-m", "jaxdiff", *arguments]  # -m takes what lies in the folder that it runs in
    subprocess.run(command, cwd=package, env=environ, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime


def row(experiment: Path, seed: int, num: int, folder: Path) -> str:
    package = experiment.parents[1]
    run = folder / f"run-{len(list(folder.iterdir()))}"
    trained = ("train", str(experiment), "--seed", str(seed), "--workdir", str(run))
    user, system = jaxdiff(*trained, package=package, cache=Path(tempfile.mkdtemp(dir=folder)))
    judge = folder / "judge.npz"
    if judge.exists():
        shutil.copy(judge, run / judge.name)
    jaxdiff("eval", str(run), "--num", str(num), package=ROOT, cache=folder / "cache")
    shutil.copy(run / judge.name, judge)
    report = json.loads((run / "eval.json").read_text())
    found = [report[of] for of in ("samples", "real")]
    values = (
        " | ".join(f"{one[name]:.3f}" for one in found)
        for name in ("accuracy", "kernel_distance", "precision", "recall")
    )
    return f"| {experiment} | {seed} | {user:.0f} + {system:.0f} | {' | '.join(values)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", type=lambda path: Path(path).resolve(), nargs="*", default=[FASHION])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--num", type=int, default=5000, help="samples that are judged")
    arguments = parser.parse_args()
    columns = ["experiment", "seed", "CPU s, user + system"]
    columns += [f"{name}{of}" for name in ("recognized", "distance", "precision", "recall") for of in ("", " (real)")]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for experiment in arguments.experiments:
                print(row(experiment, seed, arguments.num, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
