"""The table of `docs/plan.md`: each experiment planned on slices that suit it: python benchmarks/plan.py.

Takes more than an hour of two cores. What has been planned is kept in runs/plans for as long as the committed code is
the same; the page says which of its lines are of an earlier version.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax

from jaxdiff.recipe import load

ROOT = Path(__file__).parents[1]
# (experiment, slice, options of `jaxdiff plan`)
PLANS = [
    ("cifar10_ddpm", "v5e:2x4", "--batch 128"),
    ("cifar10_edm", "v5e:2x4", "--batch 512 --remat dots"),
    ("imagenet64_adm", "v5e:4x8", "--batch 2048 --grad-accum-steps 8"),
    ("imagenet256_dit", "v5p:4x4x4", "--mesh data=4,fsdp=16 --batch 256 --remat dots"),
    ("imagenet256_dit", "v6e:16x16", "--mesh data=8,fsdp=32 --batch 4096 --remat dots"),
    ("text_mmdit", "v5p:8x8x16", "--mesh data=16,fsdp=64 --batch 4096 --remat dots --moments bfloat16"),
]
GPUS = [
    ("cifar10_ddpm", "h100:1", "--batch 128"),
    ("cifar10_ddpm", "h100:1", "--batch 64 --sample"),
    ("imagenet256_dit", "h100:1", "--batch 64"),
    ("imagenet256_dit", "h100:8", "--mesh fsdp=8 --batch 512"),
    ("imagenet256_dit", "b200:2x8", "--mesh data=2,fsdp=8 --batch 1024"),
]
CHIPS = {"v5p:1x1x1": 1, "v5p:8x8x16": 1024}
WEAK = [
    (experiment, slice, f"--batch {each * count}")
    for experiment, each in (("cifar10_ddpm", 16), ("imagenet256_dit", 4))
    for slice, count in CHIPS.items()
]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="plan what has this in its name; 'nothing' plans no more")
    only = parser.parse_args().only
    for one in PLANS + GPUS + WEAK:
        if only in " ".join(one) and not kept(one).exists():
            words = command(one)
            print("jaxdiff", *words, flush=True)
            subprocess.run([sys.executable, "-m", "jaxdiff", *words, "--json", str(kept(one))], cwd=ROOT, check=True)
    page = ROOT / "docs" / "plan.md"
    text = page.read_text()
    for name, make, key, ones in (
        ("plans", table, key_of_plan, PLANS),
        ("GPUs", gpu_table, key_of_plan, GPUS),
        ("weak scaling", weak_table, key_of_weak, WEAK),
    ):
        before, old, after = parts(text, name)
        text = before + lines_of(make, key, ones, old) + after
    page.write_text(text)


def command(one):
    experiment, slice, options = one
    return ["plan", f"experiments/{experiment}.py", "--topology", slice, *options.split()]


def kept(one):
    """Where a plan by this version of the code is, or will be."""
    git = ["git", "rev-parse", "HEAD:jaxdiff", "HEAD:experiments"]
    trees = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    name = "-".join(word.strip("-").replace("/", "_") for word in command(one))
    return ROOT / "runs" / "plans" / "-".join(tree[:8] for tree in trees) / f"{name}.json"


def lines_of(make, key, ones, old):
    """The table of the plans that there are, with the page's old lines of others, and which these are."""
    there = [one for one in ones if kept(one).exists()]
    made = [(one, json.loads(kept(one).read_text())) for one in there]
    large = [one for one, plan in made if not plan["fits"]]
    if large:
        raise SystemExit(f"these do not fit, choose other options: {large}")
    head, rule, *rows = make(made)
    kept_rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in old.splitlines() if line[:1] == "|"]
    by_key = {tuple(row[:3]): row for row in kept_rows + rows}
    shown = [by_key[key(one)] for one in ones if key(one) in by_key]
    others = [f"{one[0]} on {one[1]}" for one in ones if one not in there]
    remark = f"\nOf an earlier version, or missing: {', '.join(others)}.\n" if others else ""
    return lines([head, rule, *shown]) + "\n" + remark


def key_of_plan(one):
    """The first cells of its line."""
    experiment, slice, options = one
    return experiment, slice, f"`{options}`"


def key_of_weak(one):
    experiment, slice, options = one
    return experiment, f"{CHIPS[slice]:,}", f"{int(options.split()[-1]):,}"


def table(made):
    """Cells of a line for each experiment on its slice."""
    head = "experiment|slice|options|GiB of|TFLOP|GB moved|GB sent|at least|bound|images/s|utilization|compiled in"
    rows = [head.split("|"), ["---"] * len(head.split("|"))]
    for (experiment, slice, options), plan in made:
        roof, total = plan["roofline"], plan["memory"]["total"]
        rows.append([
            experiment, slice, f"`{options}`", f"{total / 2**30:.1f} of {plan['capacity'] / 2**30:.0f}",
            f"{plan['flops'] / 1e12:.3g}", f"{plan['bytes'] / 1e9:.3g}", f"{sent(plan) / 1e9:.3g}",
            f"{1e3 * roof['seconds']:.3g} ms", roof["bound"], f"{plan['batch'] / roof['seconds']:,.0f}",
            f"{roof['utilization']:.0%}", f"{plan['compile_seconds']:.0f} s",
        ])  # fmt: skip
    return rows


def gpu_table(made):
    """Cells of a line for each experiment on GPUs."""
    head = "experiment|GPUs|options|GiB of|kernels|GB read|GB written|GB sent|at least|bound|images/s|utilization"
    rows = [head.split("|"), ["---"] * len(head.split("|"))]
    for (experiment, slice, options), plan in made:
        roof, total, kernels = plan["roofline"], plan["memory"]["total"], plan["kernels"]
        count, read, written = (sum(each[name] for each in kernels) for name in ("count", "read", "written"))
        rows.append([
            experiment, slice, f"`{options}`", f"{total / 2**30:.1f} of {plan['capacity'] / 2**30:.0f}",
            f"{count:,}", f"{read / 1e9:,.3g}", f"{written / 1e9:,.3g}", f"{sent(plan) / 1e9:.3g}",
            f"{1e3 * roof['seconds']:,.3g} ms", roof["bound"], f"{plan['batch'] / roof['seconds']:,.0f}",
            f"{roof['utilization']:.0%}",
        ])  # fmt: skip
    return rows


def weak_table(made):
    """Cells of a line for each experiment and number of chips, with ratios to one chip and to theory."""
    head = ["experiment", "chips", "batch", "FLOPs", "memory", "bytes moved", "GB sent", "2 (n-1)/n 2 B x parameters"]
    rows = [head, ["---"] * len(head)]
    first = {}
    for (experiment, slice, _), plan in made:
        one, count = first.setdefault(experiment, plan), CHIPS[slice]
        pairs = [(each["flops"], each["memory"]["total"], each["bytes"]) for each in (plan, one)]
        theory = 2 * (count - 1) / count * 2 * parameters(experiment)
        rows.append([
            experiment, f"{count:,}", f"{plan['batch']:,}", *(f"{a / b:.3f}" for a, b in zip(*pairs, strict=True)),
            f"{sent(plan) / 1e9:.3f}", f"{theory / 1e9:.3f}",
        ])  # fmt: skip
    return rows


def parameters(experiment):
    made = load(ROOT / "experiments" / f"{experiment}.py")()
    return sum(one.size for one in jax.tree.leaves(jax.eval_shape(made.model.init, jax.random.key(0))))


def sent(plan):
    return sum(each["sent"] for each in plan["collectives"])


def lines(rows):
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def parts(page, name):
    """What the page has before, between and after the comments that name a place."""
    before, begin, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->\n")
    if not begin or not end:
        raise SystemExit(f"docs/plan.md has no place for {name}")
    return before + begin, rest[: len(rest) - len(end + after)], end + after


if __name__ == "__main__":
    main()
