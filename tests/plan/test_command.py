"""`jaxdiff plan` of an experiment on simulated devices, against the run itself; and on described TPUs."""

import re
from pathlib import Path

import jax
import pytest
from helpers.plans import EXPERIMENT, plan

from jaxdiff import train
from jaxdiff.cli import main
from jaxdiff.cli.plan import OWN
from jaxdiff.plan import table
from jaxdiff.plan.compiling import Memory
from jaxdiff.plan.report import Estimate
from jaxdiff.recipe import load
from jaxdiff.sharding import make_mesh, shard_batch, use_mesh


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "points.py"
    path.write_text(EXPERIMENT)
    return path


def _held(tree, device):
    shards = [shard for x in jax.tree.leaves(tree) for shard in x.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


@pytest.mark.slow
def test_memory_is_what_the_run_holds(path, capsys):
    told = plan(path, "--topology", "cpu:8", "--mesh", "data=2,fsdp=4")
    assert "not measurements" in capsys.readouterr().out
    real = make_mesh(2, 4)
    with use_mesh(real):
        experiment = load(path)()
    model, part = experiment.model, experiment.training
    state = train.init_state(model.init, part.optimizer, jax.random.key(0), real)
    batch = shard_batch(next(part.batches(0)), real)
    held = [_held((state, batch), device) for device in real.devices.flat]
    assert told["memory"]["arguments"] == pytest.approx(max(held), rel=0.1)
    step = train.make_step(part.loss, part.optimizer, key=jax.random.key(0), ema=part.ema)
    analysis = step.lower(state, batch).compile().memory_analysis()
    assert told["memory"]["temporaries"] == pytest.approx(analysis.temp_size_in_bytes, rel=0.1)
    after, _ = step(state, batch)  # the old state's buffers are the new one's
    assert told["memory"]["outputs"] == pytest.approx(max(_held(after, d) for d in real.devices.flat), rel=0.1)
    assert told["memory"]["shared"] == pytest.approx(told["memory"]["outputs"], rel=0.1)


@pytest.mark.slow
def test_gradients_cross_the_data_axis_once(path):
    told = plan(path, "--topology", "cpu:8", "--mesh", "data=8")
    params = jax.eval_shape(load(path)().model.init, jax.random.key(0))
    size = sum(4 * x.size for x in jax.tree.leaves(params))
    assert {tuple(each["axes"]) for each in told["collectives"]} == {("data",)}
    assert {each["kind"] for each in told["collectives"]} == {"all-reduce"}
    assert sum(each["bytes"] for each in told["collectives"]) == pytest.approx(size, rel=0.01)


@pytest.mark.slow
def test_accumulation_computes_as_much(path):
    one = plan(path, "--topology", "cpu:8")
    four = plan(path, "--topology", "cpu:8", "--grad_accum_steps", "4")
    assert four["flops"] == pytest.approx(one["flops"], rel=0.02)
    assert four["model_flops"] == one["model_flops"]


@pytest.mark.slow
def test_a_sampler_asks_its_network_twice_a_step_of_heun(path):
    training, sampling = (plan(path, "--topology", "cpu:1", *more) for more in ((), ("--sample",)))
    # Training asks for three times as much, but for the gradient of the pictures, which nobody asks for.
    assert sampling["model_flops"] / 8 * 3 == pytest.approx(training["model_flops"], rel=0.03)


@pytest.mark.slow
def test_a_sampler_of_8_bits_holds_a_byte_a_weight(path):
    plain, small = (
        plan(path, "--topology", "cpu:4", "--mesh", "fsdp=4", "--sample", *more) for more in ((), ("--weights", "int8"))
    )
    assert small["model_flops"] == plain["model_flops"]
    params = jax.eval_shape(load(path)().model.init, jax.random.key(0))
    kernels = [x for x in jax.tree.leaves(params) if x.ndim == 2 and x.size >= 4096]
    # Three bytes less of each fourth; a scale of each column, whole on each device.
    saved = sum(3 * x.size / 4 - 4 * x.shape[-1] for x in kernels)
    assert kernels and plain["memory"]["arguments"] - small["memory"]["arguments"] == pytest.approx(saved, abs=64)


def test_the_page_names_the_options_and_the_lines_of_memory():
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
    options = set(re.findall(r"^\| `--([a-z]+)", page, re.M))
    assert options == OWN.keys()
    plan = Estimate("points", "cpu:1", {}, 1, "", Memory(1, 1, 1, 0, 1, 4), None, True, 1, 1, 1, [], [], None, None, 1)
    shown = [line.split("  ")[0] for line in table(plan).splitlines()]
    assert {"arguments", "outputs in new memory", "temporaries", "total"} <= set(shown)
    named = re.findall(r"\*(\w[^*]*)\*", page.partition("- **Memory.**")[2].partition("\n- ")[0])
    assert len(named) == 4 and {name.lower() for name in named} <= set(shown)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--topology", "v9:2x2"], "known chips are"),
        (["--topology", "cpu:8", "--mesh", "data=3"], "number of devices, 8"),
        (["--topology", "cpu:8", "--mesh", "rows=8"], "a mesh is written like"),
        (["--topology", "cpu:8", "--batch", "12"], "must be a multiple of 8"),
        (["--topology", "cpu:8", "--weights", "int8"], "they need --sample"),
    ],
)
def test_mistakes(path, options, hint, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(path), *options])
    assert stop.value.code == 2
    assert hint in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x4", "v6e:2x4", "tpu7x:2x2x1"])
def test_described_tpus(path, topology):
    pytest.importorskip("libtpu")
    told = plan(path, "--topology", topology, "--mesh", "fsdp=4", "--width", "256", "--batch", "1024")
    params = jax.eval_shape(load(path)(width=256).model.init, jax.random.key(0))
    bytes = sum(4 * x.size for x in jax.tree.leaves(params))
    # Parameters, their average and two moments, most of them in four parts.
    assert bytes < told["memory"]["arguments"] < 2 * bytes
    assert told["fits"] and told["flops"] >= 0.9 * told["model_flops"]
    kinds = {(each["kind"], tuple(each["axes"])) for each in told["collectives"]}
    assert ("all-gather", ("fsdp",)) in kinds
    assert any("data" in axes for kind, axes in kinds if kind in ("all-reduce", "reduce-scatter"))
    roof = told["roofline"]
    assert roof["seconds"] == max(roof["compute"], roof["memory"], roof["interconnect"]) == roof[roof["bound"]]
    assert 0 < roof["utilization"] <= 1


@pytest.mark.slow
def test_what_does_not_fit_says_by_how_much(path, capsys):
    pytest.importorskip("libtpu")
    # 2^13 x 2^13 weights, with their average and two moments, are 1 GiB; the network has 14 such matrices and more.
    main(["plan", str(path), "--topology", "v5e:2x4", "--batch", "8", "--width", str(2**13)])
    assert "of 16.000 GiB: does not fit, " in capsys.readouterr().out
