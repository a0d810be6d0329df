"""`jaxdiff convert RUN --out FOLDER`: a run's parameters as another project's files."""

from __future__ import annotations

from pathlib import Path

import tyro

from jaxdiff import train
from jaxdiff.cli.options import Trust, WhichParams
from jaxdiff.cli.places import try_folder
from jaxdiff.recipe import load_run
from jaxdiff.train.lock import Lock


def command(
    run: tyro.conf.Positional[Path],
    out: Path,
    form: str = "model",
    params: WhichParams = "ema",
    trust: Trust = False,
) -> None:
    """Write what a run has trained as a Hugging Face folder, which PyTorch programs load.

    Args:
        run: the run's folder.
        out: the folder to write; must not hold weights.
        form: model is the whole network, with adapters merged into it; lora the adapters alone.
    """
    try_folder(out, "--out")
    _check_free(out)
    export = load_run(run, trust=trust).model.export
    if not export:
        raise ValueError("this run's experiment does not say how its parameters are written: see Model.export")
    if form not in export:
        raise ValueError(f"this run is written as {' or '.join(export)}, got --form {form}")
    trained = train.load_params(run, params)
    with Lock(out, what="converting"):
        _check_free(out)
        export[form](trained, out)
    print(out)


def _check_free(out: Path) -> None:
    if any(out.glob("[!.]*.safetensors*")):
        raise ValueError(f"{out} holds weights already: choose another --out")
