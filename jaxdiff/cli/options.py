"""The types of options that several commands have, with their help; a command's docstring may say more of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from jaxdiff.options import Help, Steps
from jaxdiff.quantize import Weights

__all__ = [
    "TRUST_PARTS",
    "Devices",
    "EightBits",
    "GridName",
    "Guidance",
    "GuidanceFn",
    "PicturesOut",
    "SampleSteps",
    "SolverName",
    "Trust",
    "WhichParams",
]

Guidance = Annotated[float | None, Help("scale, 1 is off; by default the usual one.")]
GuidanceFn = Annotated[str | None, Help("of jaxdiff.guidance such as apg(eta=0.5), or FILE.py:NAME.")]
SolverName = Annotated[str | None, Help("of jaxdiff.solvers such as ddim(eta=1.0), or FILE.py:NAME.")]
GridName = Annotated[str | None, Help("of jaxdiff.grids such as beta(alpha=0.5), or FILE.py:NAME.")]
SampleSteps = Annotated[Steps | None, Help("number of steps; by default the usual one.")]
WhichParams = Annotated[Literal["ema", "params"], Help("averaged or last parameters.")]
EightBits = Annotated[Weights | None, Help("kernels in 8 bits: docs/gpu.md.")]
PicturesOut = Annotated[Path | None, Help("FILE.png with all of them, FILE.npz with arrays, or a folder.")]
Devices = Annotated[str, Help("devices as data=4,fsdp=2,sequence=2; data takes the rest.")]
Trust = Annotated[bool, Help("execute a program that others can write.")]
# The same of commands whose options are made by hand: (type, default, help).
TRUST_PARTS = (bool, False, "execute programs that others can write, of the runs that this one is made of.")
