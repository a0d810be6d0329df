"""What an accelerator at hand for ten minutes can tell: right answers first, then speed, memory and compile time.

    python benchmarks/gpu.py

Every part runs in a process of its own with its own share of the time, and after each all that was found is written to
benchmarks/results/DEVICE-DATE.json and .md. Needs jaxdiff, jax, flax, optax, orbax and numpy; where PyTorch with CUDA
and diffusers are, they do the same work beside it. Exits with 1 where an answer is wrong or a part failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# The parts in their order, and shares of the time; what one leaves of its share is the others'.
PARTS = {"correct": 4, "ddpm": 3, "dit": 3, "sd": 4, "torch ddpm": 2, "torch dit": 2, "torch sd": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="for everything (default 10)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts alone")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder (default benchmarks/results)")
    parser.add_argument("--tiny", action="store_true", help="small networks and few cases: whether it runs at all")
    parser.add_argument(
        "--store", nargs="*", metavar="CASE", help="compute, on a CPU, what the part `correct` compares with"
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # what a process of a part is told
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))  # jaxdiff beside this folder, installed or not
    if arguments.store is not None:
        os.environ["JAX_PLATFORMS"] = "cpu"
        from gpu_cases import store

        store(arguments.store)
    elif arguments.part:
        run_part(arguments)
    else:
        raise SystemExit(run_all(arguments))


def run_all(arguments: argparse.Namespace) -> int:
    """Runs the parts one after the other; returns the status."""
    end = time.monotonic() + 60 * arguments.minutes
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "stderr.txt").unlink(missing_ok=True)
    results: dict[str, Any] = {"date": f"{datetime.now():%Y-%m-%d %H:%M}", "tiny": arguments.tiny}
    results |= {"device": None, "versions": {}, "parts": {}}
    todo = [part for part in PARTS if part in arguments.only]
    for i, part in enumerate(todo):
        left = end - time.monotonic()
        limit = left * PARTS[part] / sum(PARTS[one] for one in todo[i:])
        if limit < 5:
            results["parts"][part] = {"status": "no time left", "rows": []}
            continue
        print(f"{part}: {limit:.0f} s at most", flush=True)
        results["parts"][part] = found = one_part(part, limit, arguments)
        machine = found.pop("machine", {"device": None, "versions": {}})
        results["device"] = results["device"] or machine["device"]
        results["versions"] |= machine["versions"]
        print(f"  {found['status']}, {found['wall_s']:.0f} s", flush=True)
        write(results, arguments.out)
    print("\n" + table(results))
    print(*write(results, arguments.out), sep="\n")
    rows = [row for found in results["parts"].values() for row in found["rows"]]
    failed = [part for part, found in results["parts"].items() if found["status"].startswith("failed")]
    unsure = results["parts"].get("correct", {"status": "done"})["status"].startswith("stopped")
    return int(bool(failed) or unsure or not all(row.get("correct", True) for row in rows))


def one_part(part: str, limit: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs a part in its own process; its rows so far count, however it ends."""
    rows = arguments.out / f".{os.getpid()}-rows"
    command = [sys.executable, __file__, "--part", part, "--seconds", str(limit), "--rows", str(rows)]
    command += ["--tiny"] if arguments.tiny else []
    begin = time.monotonic()
    with (arguments.out / "stderr.txt").open("a+") as said:
        said.write(f"== {part}\n")
        said.flush()
        child = subprocess.Popen(command, stderr=said, env=environment(), start_new_session=True)
        try:
            status = "done" if child.wait(limit) == 0 else f"failed with status {child.returncode}: see stderr.txt"
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit:.0f} s"
        finally:
            if child.poll() is None:  # with what it has started: the device must be free for the next one
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    found: dict[str, Any] = {"status": status, "wall_s": time.monotonic() - begin, "rows": []}
    kept: dict[Any, dict[str, Any]] = {}  # a later row of a thing takes the place of an earlier one
    lines = rows.read_text().splitlines() if rows.exists() else []
    for row in (json.loads(line) for line in lines if line.endswith("}")):  # the last may have been cut off
        if "machine" in row or "skipped" in row:
            found |= {"status": f"skipped: {row['skipped']}"} if "skipped" in row else row
        else:
            kept[tuple(row.get(key) for key in ("model", "by", "what", "batch", "dtype"))] = row
    rows.unlink(missing_ok=True)
    return found | {"rows": list(kept.values())}


def environment() -> dict[str, str]:
    """Compiled programs are kept, and a part has nearly all of the device's memory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxdiff" / "compiled"
    wanted = {
        "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
    }  # fmt: skip
    return wanted | dict(os.environ)


def run_part(arguments: argparse.Namespace) -> None:
    """What a part's process does."""
    deadline, part = time.monotonic() + arguments.seconds, arguments.part

    def report(row: dict[str, Any]) -> None:
        with arguments.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")

    if part.startswith("torch "):
        import gpu_torch

        why = gpu_torch.missing(tiny=arguments.tiny)
        if why:
            report({"skipped": why})
        else:
            report({"machine": gpu_torch.machine()})
            attempt(gpu_torch.jobs(part.removeprefix("torch "), report, tiny=arguments.tiny, deadline=deadline))
        return
    import flax
    import jax

    versions = {"jax": jax.__version__, "flax": flax.__version__, "python": sys.version.split()[0]}
    device = jax.devices()[0]
    if device.platform == "cpu" and not arguments.tiny:
        raise SystemExit("JAX finds no accelerator here: --tiny runs on a CPU")
    report({"machine": {"device": device.device_kind, "versions": versions}})
    if part == "correct":
        import gpu_cases

        gpu_cases.run(report, tiny=arguments.tiny)
    else:
        import gpu_models

        attempt(gpu_models.jobs(part, report, tiny=arguments.tiny, deadline=deadline))


def attempt(jobs: list[Callable[[], None]]) -> None:
    """Runs them all, also after one that fails, for want of memory say; then the process's status tells."""
    failed = False
    for job in jobs:
        try:
            job()
        except Exception:
            traceback.print_exc()
            failed = True
    if failed:
        raise SystemExit(1)


def write(results: dict[str, Any], folder: Path) -> list[Path]:
    """Writes all there is so far, as JSON and as a table."""
    device = re.sub(r"[^a-z0-9]+", "-", (results["device"] or "unknown").lower()).strip("-")
    stem = f"{device}-{re.sub(r'[^0-9]+', '', results['date'])}" + ("-tiny" if results["tiny"] else "")
    texts = {".json": json.dumps(results, indent=1), ".md": table(results)}
    for ending, text in texts.items():
        (folder / f"{stem}{ending}").write_text(text + "\n")
    return [folder / f"{stem}{ending}" for ending in texts]


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [f"# {results['device'] or 'unknown device'}, {results['date']}", "", versions, ""]
    rows = [row for found in results["parts"].values() for row in found["rows"]]
    checks = [row for row in rows if "correct" in row]
    if checks:
        wrong = [row for row in checks if not row["correct"]]
        lines += [f"{len(checks) - len(wrong)} of {len(checks)} answers and gradients are as on a CPU in float64.", ""]
        lines += [f"- WRONG: {row['what']}, {row['dtype']}: {row['why']}" for row in wrong] + [""] * bool(wrong)
    columns = {
        "images_per_s": ("images/s", ".4g"), "seconds": ("s a call", ".4g"), "tflops": ("TFLOP/s", ".1f"),
        "utilization": ("of the peak", ".1%"), "compile_s": ("compile, s", ".1f"),
        "temp_gib": ("temporaries, GiB", ".2f"), "peak_gib": ("peak, GiB", ".2f"),
    }  # fmt: skip
    lines += ["| network | | batch | by | " + " | ".join(head for head, _ in columns.values()) + " |"]
    lines += ["|" + "---|" * (4 + len(columns))]
    for row in (row for row in rows if "correct" not in row):
        cells = [row["model"], row["what"], str(row["batch"]), row["by"]]
        cells += [format(row[key], form) if row.get(key) is not None else "" for key, (_, form) in columns.items()]
        lines.append("| " + " | ".join(cells) + (" (cache)" if row.get("from_cache") else "") + " |")
    lines += ["", *(f"- {part}: {found['status']}" for part, found in results["parts"].items())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
