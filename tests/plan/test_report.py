"""The roofline's arithmetic by hand, names of slices, and what a sweep tries and ranks."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxdiff.plan import as_json, sweep, table, topology
from jaxdiff.plan.chips import GPUS, TPUS, Chip
from jaxdiff.plan.collectives import Collective
from jaxdiff.plan.compiling import Memory
from jaxdiff.plan.links import hosts_of, seconds, share_of_torus, times
from jaxdiff.plan.report import Estimate, roofline
from jaxdiff.sharding import AXES

CHIP = Chip(hbm=100.0, flops=1000.0, bandwidth=50.0, interconnect=40.0, torus=2)


def _torus(shape, mesh, cores=1):
    """What is read of a mesh, of described devices: chips in rows, the cores of a chip next to each other."""
    devices = [SimpleNamespace(coords=(*place, 0)) for place in np.ndindex(shape) for _ in range(cores)]
    array = np.empty(len(devices), object)
    array[:] = devices
    return SimpleNamespace(devices=array.reshape(mesh), axis_names=AXES)


def test_links_follow_the_dimensions_that_a_collective_spans():
    mesh = _torus((2, 4), (2, 4, 1, 1))
    assert share_of_torus(CHIP, mesh, ("data",)) == 0.5
    assert share_of_torus(CHIP, mesh, ("fsdp",)) == 0.5
    assert share_of_torus(CHIP, mesh, ("data", "fsdp")) == 1.0
    assert share_of_torus(TPUS["v5p"], mesh, ("fsdp",)) == pytest.approx(1 / 3)


def test_a_part_of_a_side_has_half_of_its_links():
    """A ring of 4 sends both ways at once, a line of 2 one way."""
    mesh = _torus((4, 4), (2, 8, 1, 1))  # 8 devices are two rows of 4, and 2 are two rows apart
    assert share_of_torus(CHIP, mesh, ("data",)) == 0.25
    assert share_of_torus(CHIP, mesh, ("fsdp",)) == 0.75
    assert share_of_torus(CHIP, mesh, ("data", "fsdp")) == 1.0


def test_links_within_a_chip():
    mesh = _torus((2, 2), (4, 2, 1, 1), cores=2)
    assert share_of_torus(CHIP, mesh, ("fsdp",)) == 0.5
    assert share_of_torus(CHIP, mesh, ("data",)) == 1.0


def _hosts(hosts, each, mesh):
    devices = np.empty(hosts * each, object)
    devices[:] = [SimpleNamespace(process_index=i // each) for i in range(hosts * each)]
    return SimpleNamespace(devices=devices.reshape(mesh), axis_names=AXES)


def test_a_switch_in_each_host_and_a_network_between_them():
    # 2 hosts of 4: "fsdp" stays in a host. NVLink sends 20 bytes a second one way, a chip's adapter 2.
    chip = Chip(hbm=100.0, flops=1000.0, bandwidth=50.0, interconnect=40.0, network=4.0)
    mesh = _hosts(2, 4, (2, 4, 1, 1))
    assert hosts_of(mesh, ("fsdp",)) == (1, 4) and hosts_of(mesh, ("data",)) == (2, 1)
    assert hosts_of(mesh, ("data", "fsdp")) == (2, 4)
    time = lambda kind, axes: seconds(chip, mesh, Collective(kind, axes, 1, 80, 0.0))  # noqa: E731
    assert time("all-gather", ("fsdp",)) == 80 * 3 / 4 / 20
    assert time("all-reduce", ("data",)) == 80 / 2  # half is scattered, half gathered, and each crosses once
    # Of 80 bytes half must reach each host, over four adapters; within a host three quarters are missing.
    assert time("all-gather", ("data", "fsdp")) == max(80 / 2 / 4 / 2, 80 * 3 / 4 / 20)
    found = times(chip, mesh, Collective("all-gather", ("data", "fsdp"), 1, 80, 0.0))
    assert found == {"in a host": 80 * 3 / 4 / 20, "between hosts": 80 / 2 / 4 / 2}
    assert time("all-to-all", ("data", "fsdp")) == 80 / 2 / 2
    quick = chip._replace(network=4000.0)  # of what a chip sends to 8, three parts stay in its host
    assert seconds(quick, mesh, Collective("all-to-all", ("data", "fsdp"), 1, 80, 0.0)) == 80 * 3 / 8 / 20
    assert time("collective-permute", ("data",)) == 80 / 2


@pytest.mark.parametrize(
    ("flops", "bytes", "sent", "bound", "seconds"),
    [(8000, 50, 20, "compute", 8), (1000, 250, 20, "memory", 5), (1000, 50, 70, "interconnect", 7)],
)
def test_roofline(flops, bytes, sent, bound, seconds):
    # Of 40 bytes a second in both directions 20 leave a chip, half of them along the one dimension of "fsdp".
    collective = Collective("all-gather", ("fsdp",), 1, 100, sent)
    mesh = _torus((2, 4), (2, 4, 1, 1))
    made = roofline(CHIP, mesh, flops=flops, bytes=bytes, sent=[collective], model_flops=800)
    assert (made.compute, made.memory, made.interconnect) == (flops / 1000, bytes / 50, sent / 10)
    assert (made.bound, made.seconds) == (bound, seconds)
    assert made.utilization == pytest.approx(800 / (seconds * 1000))


def test_two_devices_share_a_chip():
    mesh = _torus((2, 2), (4, 2, 1, 1), cores=2)
    sent = [Collective("all-reduce", ("data",), 1, 100, 30.0)]
    made = roofline(CHIP._replace(devices=2), mesh, flops=1000, bytes=50, sent=sent, model_flops=1000)
    assert (made.compute, made.memory, made.interconnect) == (2, 2, 3)
    assert made.utilization == pytest.approx(1000 / (3 * 500))


def test_published_figures():
    # Per chip, as Google Cloud's pages of v5e, v5p, v6e and tpu7x give them.
    teraflops = {name: chip.flops / 1e12 for name, chip in TPUS.items()}
    assert teraflops == {"v5e": 197, "v5p": 459, "v6e": 918, "tpu7x": 2307}
    assert {name: chip.hbm / 2**30 for name, chip in TPUS.items()} == {"v5e": 16, "v5p": 95, "v6e": 32, "tpu7x": 192}

    # NVIDIA's data sheets: teraflops without sparsity, GB/s of memory, GB/s of NVLink (L40S: PCIe).
    sheets = {name: (chip.flops / 1e12, chip.bandwidth / 1e9, chip.interconnect / 1e9) for name, chip in GPUS.items()}
    assert (
        sheets["h100"] == (989, 3352, 900) and sheets["a100"] == (312, 2039, 600) and sheets["l40s"] == (362, 864, 64)
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("v9:2x2", "known chips are v5e, v5p, v6e, tpu7x, a100, h100, h200, b200, l40s and cpu"),
        ("v5e", "written v5e:NxM"),
        ("v5p:4x4", "written v5p:NxMxK"),
        ("v5e:0x4", "written v5e:NxM"),
        ("h100:8x2x2", "written h100:N or h100:HOSTSxN"),
        ("h100:0", "written h100:N"),
        ("h100:64", "a host has at most 8 h100, got 'h100:64': several hosts are written h100:2x8"),
        ("cpu:none", "cpu:8"),
        ("cpu:512", "this process has 8"),
        ("cpu:100000000", "at most 4,096 devices are simulated, got cpu:100000000"),
        (f"cpu:{'9' * 5000}", "at most 4,096 devices are simulated, got cpu:999"),
    ],
)
def test_unknown_topologies(name, hint):
    with pytest.raises(ValueError, match=hint):
        topology(name)


def test_simulated_devices():
    made = topology("cpu:4")
    assert made.chip is None
    assert made.devices == jax.devices()[:4]


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x4", "plan"), ("h100:8", "plan-gpu")])
def test_without_a_compiler(name, extra, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"pip install 'jaxdiff\[{extra}\]'"):
        topology(name)


def _estimate(total, seconds, batch=8, fits=True):
    memory = Memory(total, 0, 0, 0, 0, total)
    roof = roofline(CHIP, _torus((2, 4), (2, 4, 1, 1)), flops=1000 * seconds, bytes=0, sent=[], model_flops=1)
    mesh = dict(zip(AXES, (2, 4, 1, 1), strict=True))
    return Estimate("toy", "v5e:2x4", mesh, batch, "dots", memory, 100.0, fits, 1.0, 1.0, 0, [], [], None, roof, 0.1)


def test_a_sweep_ranks_by_time_an_example_and_puts_last_what_does_not_fit():
    plans = {
        "slow": _estimate(1, 4), "large": _estimate(300, 1, fits=False), "twice": _estimate(1, 4, batch=16),
        "fast": _estimate(1, 1), "larger": _estimate(400, 1, fits=False),
    }  # fmt: skip

    def plan(candidate):
        if candidate.mesh == "bad":
            raise ValueError("a batch that does not divide")
        return plans[candidate.mesh]

    tried = [sweep.Candidate(name, {"batch": 8}) for name in ("bad", *plans)]
    made, failed = sweep.sweep(tried, plan)
    assert made == [plans[name] for name in ("fast", "twice", "slow", "large", "larger")]
    assert [(each.candidate.mesh, each.why) for each in failed] == [("bad", "a batch that does not divide")]
    lines = sweep.table(made, failed).splitlines()
    assert "does not fit" in lines[-2] and lines[-1] == "not planned: bad, batch 8: a batch that does not divide"
    assert len(json.loads(as_json(made))["plans"]) == 5


def test_a_sweep_varies_what_is_left_open():
    knobs = {"batch": 32, "remat": "none", "lr": 0.1}
    fixed = sweep.candidates("fsdp=8", 8, knobs, free=())
    assert fixed == [sweep.Candidate("fsdp=8", knobs)]
    several = sweep.candidates("fsdp=8", 8, knobs, free=("batch", "remat"))
    assert {(c.knobs["batch"], c.knobs["remat"]) for c in several} == {
        (batch, remat) for batch in (32, 64, 128) for remat in ("none", "dots", "full")
    }
    assert all(c.knobs["lr"] == 0.1 for c in several)


@pytest.mark.parametrize("devices", [1, 4, 6, 8, 64, 1024])
def test_meshes_to_try_fit_the_slice(devices):
    names = sweep.meshes(devices)
    assert len(set(names)) == len(names) <= 8
    for name in names:
        sizes = dict(part.split("=") for part in name.split(","))
        assert np.prod([int(size) for size in sizes.values()]) == devices


def test_json_and_table_tell_what_the_figures_are():
    made = _estimate(120, 1, fits=False)
    told = json.loads(as_json(made))
    assert "not measurements" in told["note"] and "not measurements" in table(made)
    assert (told["memory"]["total"], told["mesh"]["fsdp"], told["roofline"]["bound"]) == (120, 4, "compute")
    assert "does not fit, 0.000 MiB too much" in table(made)
