"""The recipes of docs/scale.md: every command is one that the command line takes, every manifest is whole."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import jaxdiff.cli.train as command_line
from jaxdiff import distributed

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scale.md").read_text()
MANIFESTS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]


def pod(manifest):
    (job,) = manifest["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    return job, job["template"]["spec"]


def commands():
    """Arguments of `jaxdiff train` on the page, and how many devices each is for."""
    shells = re.findall(r"```bash\n(.*?)```", PAGE.replace("\\\n", " "), re.S)
    found = [words for shell in shells for words in re.findall(r"jaxdiff train ([^\"&\n]*)", shell)]
    yield from zip(map(shlex.split, found), (8, 16, 32, 32), strict=True)
    for manifest in MANIFESTS:
        job, spec = pod(manifest)
        (container,) = spec["containers"]
        (chips,) = container["resources"]["limits"].values()
        assert container["command"][:2] == ["jaxdiff", "train"]
        yield container["command"][2:], chips * job["completions"]


@pytest.mark.slow
def test_commands_are_taken(monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = []
    # The devices of the mesh are not here; the rest is read and built as ever, up to the training.
    monkeypatch.setattr(command_line, "parse_mesh", lambda text: text)
    monkeypatch.setattr(
        command_line.run,
        "train",
        lambda experiment, workdir, mesh, **_: (
            runs.append((workdir, mesh)) or SimpleNamespace(step=experiment.training.steps)
        ),
    )
    for arguments, devices in commands():
        command_line.command(arguments)
        workdir, mesh = runs[-1]
        sizes = dict(part.split("=") for part in mesh.split(","))
        assert int(sizes["data"]) * int(sizes["fsdp"]) == devices
        assert workdir.parent.name == "runs"
    assert len(runs) == 6


@pytest.mark.parametrize("manifest", MANIFESTS, ids=["gpu", "tpu"])
def test_pods_of_a_manifest_find_each_other(manifest):
    job, spec = pod(manifest)
    assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
    (container,) = spec["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    workdir = container["command"][container["command"].index("--workdir") + 1]
    assert any(workdir.startswith(path + "/") for path in mounted.values())
    assert mounted.keys() <= {volume["name"] for volume in spec["volumes"]}
    environ = {entry["name"]: entry.get("value") for entry in container.get("env", ())}
    if not environ:  # GKE tells TPU pods itself
        assert "google.com/tpu" in container["resources"]["limits"]
        return
    (source,) = (entry["valueFrom"] for entry in container["env"] if "valueFrom" in entry)
    assert source == {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    settings = distributed.arguments(environ | {"JAX_PROCESS_ID": str(job["completions"] - 1)})
    assert settings["num_processes"] == job["completions"]
    name, replicated = manifest["metadata"]["name"], manifest["spec"]["replicatedJobs"][0]["name"]
    assert settings["coordinator_address"].startswith(f"{name}-{replicated}-0-0.{name}:")
