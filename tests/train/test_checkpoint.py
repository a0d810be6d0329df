import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train import toy

from jaxdiff import train


def trained(where="one", steps=2):
    mesh, state, step = toy.new(where)
    for _, batch in zip(range(steps), toy.batches(), strict=False):
        state, _ = step(state, train.shard_batch(batch, mesh))
    return mesh, state, step


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints of steps 2 and 3, and the numpy copies of their states."""
    workdir = tmp_path_factory.mktemp("run")
    mesh, state, step = trained("mixed")
    copies = {}
    with train.Checkpointer(workdir) as checkpointer:
        for batch in toy.batches(start=2):
            copies[int(state.step)] = jax.tree.map(np.array, state)
            checkpointer.save(state)
            if len(copies) == 2:
                break
            # The buffers that are being saved are donated at once.
            state, _ = step(state, train.shard_batch(batch, mesh))
    return workdir, copies


@pytest.fixture
def run(saved, tmp_path):
    """A copy of the saved run to damage."""
    shutil.copytree(saved[0], tmp_path / "run")
    return tmp_path / "run"


def like(where="one"):
    return train.abstract(toy.init, toy.ADAMW, toy.mesh(where))


@pytest.mark.parametrize("where", ["one", "data", "fsdp", "mixed"])
def test_restore_onto_any_mesh_bit_for_bit(saved, where):
    workdir, copies = saved
    with train.Checkpointer(workdir) as checkpointer:
        assert checkpointer.latest() == 3
        state = checkpointer.restore(like(where))
        assert toy.same(state, copies[3])
        assert toy.same(checkpointer.restore(like(where), step=2), copies[2])
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, like(where))


def test_restored_state_trains_on(saved):
    workdir, _ = saved
    mesh, _, step = toy.new("mixed")
    with train.Checkpointer(workdir) as checkpointer:
        state = checkpointer.restore(like("mixed"))
    state, _ = step(state, train.shard_batch(next(toy.batches(start=3)), mesh))
    _, straight, _ = trained("mixed", steps=4)
    assert toy.same(state, straight)


@pytest.mark.parametrize("which", ["ema", "params"])
def test_load_params(saved, which):
    workdir, copies = saved
    loaded = train.load_params(workdir, which)
    assert toy.same(loaded, getattr(copies[3], which))
    assert toy.same(train.load_params(workdir, which, step=2), getattr(copies[2], which))
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(loaded))


def test_load_params_refuses(saved, tmp_path):
    with pytest.raises(ValueError, match="'ema' or 'params', got 'opt'"):
        train.load_params(saved[0], "opt")
    with pytest.raises(ValueError, match="not a run"):
        train.load_params(tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint 7 .* holds \[2, 3\]"):
        train.load_params(saved[0], step=7)
    assert list(tmp_path.iterdir()) == []


def test_keeps_the_newest(tmp_path):
    _, state, _ = trained()
    with train.Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in (1, 5, 7):
            checkpointer.save(state._replace(step=jnp.int32(step)))
        checkpointer.wait()
    kept = sorted(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir())
    assert kept == [5, 7]


def test_never_overwrites(run):
    _, state, _ = trained()
    with train.Checkpointer(run) as checkpointer, pytest.raises(ValueError, match=r"step 2.*already holds step 3"):
        checkpointer.save(state)


def test_read_only_saves_nothing(saved):
    _, state, _ = trained(steps=4)
    with train.Checkpointer(saved[0], read_only=True) as checkpointer:
        with pytest.raises(ValueError, match=r"step 4 was not saved.*reading only"):
            checkpointer.save(state)
        assert checkpointer.latest() == 3


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def without_data(folder):
    for path in (folder / "state").rglob("d/*"):
        path.unlink()


def without_metadata(folder):
    (folder / "state" / "_METADATA").unlink()


def cut(folder):
    for path in (folder / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [empty, without_data, without_metadata, cut])
@pytest.mark.parametrize("load", [lambda run, like: train.load_params(run), lambda run, like: restore(run, like)])
def test_damage_names_the_step_to_go_on_from(run, damage, load):
    damage(run / "checkpoints" / "3")
    with pytest.raises(ValueError, match=r"checkpoints/3 is damaged; move it away to go on from step 2"):
        load(run, like())
    shutil.rmtree(run / "checkpoints" / "3")
    assert int(restore(run, like()).step) == 2


def restore(run, like):
    with train.Checkpointer(run) as checkpointer:
        return checkpointer.restore(like)


def test_damage_without_an_older_step(run):
    shutil.rmtree(run / "checkpoints" / "2")
    empty(run / "checkpoints" / "3")
    with pytest.raises(ValueError, match="damaged; there is no older one"):
        restore(run, like())


def test_one_flipped_bit_is_noticed(tmp_path):
    """Uncompressed data on disk: flip a bit of a known value. Orbax itself restores it silently."""
    _, state, _ = trained()
    marker = np.frombuffer(np.random.default_rng(0).bytes(4 * 16 * 1024), np.uint32).view(np.float32)
    marker = np.where(np.isfinite(marker), marker, 1.0).reshape(16, 1024)
    state = state._replace(params={"w": jnp.asarray(marker)}, ema={}, opt={})
    with train.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state)
    rng, checked = np.random.default_rng(1), 0
    for path in (tmp_path / "checkpoints" / "2" / "state").rglob("d/*"):
        whole = path.read_bytes()
        if len(whole) < marker.nbytes // 2:
            continue
        for place in rng.integers(len(whole) // 4, 3 * len(whole) // 4, 4):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(bytes(flipped))
            with pytest.raises(ValueError, match="damaged"):
                restore(tmp_path, state)
            checked += 1
        path.write_bytes(whole)
    assert checked >= 4
    assert toy.same(restore(tmp_path, state), state)


def test_differences_are_listed(run):
    def other(key):
        params = toy.init(key)
        params["hidden"]["kernel"] = jnp.zeros((toy.WIDTH, 4))
        params["out"]["bias"] = params["out"]["bias"].astype(jnp.bfloat16)
        params["new"] = params.pop("hidden")
        params["hidden"] = {"kernel": params["new"].pop("kernel")}
        return params

    described = train.abstract(other, toy.ADAMW, toy.mesh("one"))
    with pytest.raises(ValueError) as caught:
        restore(run, described)
    message = str(caught.value)
    assert "params/hidden/kernel: float32[8, 512] saved, float32[8, 4] expected" in message
    assert "params/out/bias: float32[8] saved, bfloat16[8] expected" in message
    assert "params/hidden/bias: float32[512] saved, absent expected" in message
    assert "params/new/bias: absent saved, float32[512] expected" in message
    assert "params/out/kernel" not in message


def test_another_optimizer_is_a_difference(run):
    with pytest.raises(ValueError, match="opt/"):
        restore(run, train.abstract(toy.init, optax.sgd(0.1), toy.mesh("one")))


def test_nothing_to_restore(tmp_path):
    with train.Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest() is None
        with pytest.raises(ValueError, match=r"no checkpoint in .*holds \[\]"):
            checkpointer.restore(like())


def test_keep_of_zero(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        train.Checkpointer(tmp_path, keep=0)


def test_knobs(tmp_path):
    workdir = tmp_path / "new" / "run"
    knobs = {"lr": 1e-3, "channels": (32, 64), "steps": 100, "name": None}
    train.write_knobs(workdir, knobs)
    assert train.read_knobs(workdir) == {"lr": 1e-3, "channels": [32, 64], "steps": 100, "name": None}
    train.write_knobs(workdir, knobs)  # the same run again
    train.write_knobs(workdir, knobs | {"steps": 200}, may_change={"steps"})
    assert train.read_knobs(workdir)["steps"] == 200
    assert [path.name for path in workdir.iterdir()] == ["run.json"]


def test_knobs_of_another_run_are_refused_with_the_difference(tmp_path):
    train.write_knobs(tmp_path, {"lr": 1e-3, "batch": 64, "old": 1})
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(ValueError) as caught:
        train.write_knobs(tmp_path, {"lr": 2e-3, "batch": 64, "new": None}, may_change={"steps"})
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines == ["lr: 0.001 -> 0.002", "new: absent -> null", "old: 1 -> absent"]
    assert (tmp_path / "run.json").read_text() == before


def test_knobs_missing_or_damaged(tmp_path):
    with pytest.raises(ValueError, match=r"not a run: it has no run\.json"):
        train.read_knobs(tmp_path)
    Path(tmp_path, "run.json").write_text('{"lr": ')
    with pytest.raises(ValueError, match="damaged"):
        train.read_knobs(tmp_path)


def test_knobs_are_checked_without_being_written(tmp_path):
    train.check_knobs(tmp_path / "new", {"steps": 1})
    assert not (tmp_path / "new").exists() and not train.has_knobs(tmp_path)
    with pytest.raises(ValueError, match=r"the knob 'folder' is a PosixPath, which run\.json cannot hold"):
        train.check_knobs(tmp_path, {"folder": tmp_path})
    train.write_knobs(tmp_path, {"steps": 1, "widths": (1, 2)})
    assert train.has_knobs(tmp_path)
    train.check_knobs(tmp_path, {"steps": 9, "widths": (1, 2)}, may_change=("steps",))
    with pytest.raises(ValueError, match=r"steps: 1 -> 9"):
        train.check_knobs(tmp_path, {"steps": 9, "widths": (1, 2)})
    assert train.read_knobs(tmp_path)["steps"] == 1
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"damaged: it must hold names and values, got \[1\]"):
        train.read_knobs(tmp_path)
