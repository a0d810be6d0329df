"""`import jaxdiff` against `import jax, flax, optax`, each in new processes, in turn; prints the ratio of medians."""

import statistics
import subprocess
import sys

STATEMENTS = ("import jax, flax, optax", "import jaxdiff")


def seconds(statement: str) -> float:
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    runs = [[seconds(statement) for statement in STATEMENTS] for _ in range(11)]
    base, ours = (statistics.median(times) for times in zip(*runs, strict=True))
    print(f"{STATEMENTS[1]} / {STATEMENTS[0]}: {ours / base:.2f}  ({ours:.2f} s / {base:.2f} s)")
