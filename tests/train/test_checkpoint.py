import asyncio
import errno
import gc
import shutil
import threading
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import toy
from jax.experimental.layout import Format, Layout

from jaxdiff import faults, train
from jaxdiff.train import layouts
from jaxdiff.train.checkpoint import arrays, manifest, steps


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
    return train.state_shapes(toy.init, toy.ADAMW, toy.mesh(where))


@pytest.mark.parametrize("where", ["one", "data", "fsdp", "mixed"])
def test_restore_onto_any_mesh_bit_for_bit(saved, where):
    workdir, copies = saved
    with train.Checkpointer(workdir) as checkpointer:
        assert checkpointer.latest() == 3
        state = checkpointer.restore(like(where))
        assert toy.same(state, copies[3])
        assert toy.same(checkpointer.restore(like(where), step=2), copies[2])
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, like(where))


def test_a_restored_array_lies_in_the_layout_that_is_asked_for(saved):
    """A GPU's kernels are not in the order of their axes; a CPU has layouts, too."""
    workdir, copies = saved
    asked = like()
    kernel = asked.params["hidden"]["kernel"]
    turned = Format(Layout((1, 0)), kernel.sharding)
    asked.params["hidden"]["kernel"] = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype, sharding=turned)
    with train.Checkpointer(workdir, read_only=True) as checkpointer:
        state = checkpointer.restore(asked)
    assert state.params["hidden"]["kernel"].format.layout.major_to_minor == (1, 0)
    assert state.ema["hidden"]["kernel"].format.layout.major_to_minor == (0, 1)
    assert toy.same(jax.tree.map(np.asarray, state), copies[int(state.step)])
    mesh, _, step = toy.new("one")
    moved, _ = step(state, train.shard_batch(next(toy.batches()), mesh))  # the order of the sums may differ
    assert moved.params["hidden"]["kernel"].format.layout.major_to_minor == (1, 0)


def test_parameters_of_a_gpu_are_put_in_its_libraries_order(saved, monkeypatch):
    workdir, copies = saved
    monkeypatch.setattr(layouts, "PLATFORM", "cpu")
    monkeypatch.setattr(layouts, "_is_convolution", lambda names, shape: names[-2:] == ("hidden", "kernel"))
    loaded = train.load_params(workdir, "ema")
    assert loaded["hidden"]["kernel"].format.layout.major_to_minor == (1, 0)
    assert loaded["out"]["kernel"].format.layout.major_to_minor == (0, 1)
    assert toy.same(jax.tree.map(np.asarray, loaded), copies[3].ema)


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
    with pytest.raises(ValueError, match=r"no checkpoint 7 .* holds 2, 3"):
        train.load_params(saved[0], step=7)
    assert list(tmp_path.iterdir()) == []
    with (
        train.Checkpointer(saved[0], read_only=True) as checkpointer,
        pytest.raises(ValueError, match="has no 'ema/3'"),
    ):
        checkpointer.restore_params("ema/3")


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
def test_a_damaged_step_is_set_aside_and_the_one_before_it_is_read(saved, run, damage, capsys):
    damage(run / "checkpoints" / "3")
    there = sorted(path.name for path in run.rglob("*"))
    with pytest.raises(faults.Damaged, match=r"checkpoints/3 is damaged \(.*\); others: 2"):
        train.load_params(run, step=3)
    assert toy.same(train.load_params(run), saved[1][2].ema)
    assert "damaged" in capsys.readouterr().err and sorted(path.name for path in run.rglob("*")) == there
    with train.Checkpointer(run) as checkpointer:
        assert toy.same(checkpointer.restore(like()), saved[1][2])
        assert checkpointer.quarantined == [run / "checkpoints" / "quarantine-3"]
        assert checkpointer.latest() == 2 and checkpointer.steps() == [2]
        (line,) = capsys.readouterr().err.splitlines()
        assert "checkpoints/3 is damaged" in line and "set aside as quarantine-3" in line and len(line) < 500
        checkpointer.save(saved[1][3])  # its name is free again
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "3", "quarantine-3"]
    assert toy.same(restore(run, like()), saved[1][3])


def restore(run, like):
    with train.Checkpointer(run) as checkpointer:
        return checkpointer.restore(like)


def test_damage_without_an_older_step(run):
    shutil.rmtree(run / "checkpoints" / "2")
    empty(run / "checkpoints" / "3")
    with train.Checkpointer(run) as checkpointer, pytest.raises(faults.Damaged, match="3 has no good manifest"):
        checkpointer.latest()  # not None: a run would begin anew, and write over what there is
    with pytest.raises(faults.Damaged, match=r"is intact \(3: manifest\.json is missing\)"):
        restore(run, like())
    for _ in range(2):  # nor the next time
        with train.Checkpointer(run) as checkpointer, pytest.raises(faults.Damaged, match=r"intact \(quarantine-3\)"):
            checkpointer.latest()
        with pytest.raises(faults.Damaged, match=r"intact \(quarantine-3\)"):
            restore(run, like())
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["quarantine-3"]


def test_a_step_that_is_deleted_while_it_is_read_is_not_damaged(saved, run, monkeypatch, capsys):
    """As a trainer does it; once in the middle of reading, where what is missing would be read as zeros."""
    reading = arrays.Arrays.read

    def slowly(self, folder, wanted):
        if folder.parent.name == "3":
            read = reading(self, folder, wanted)
            steps.remove(folder.parent.parent, 3)
            return read
        return reading(self, folder, wanted)

    monkeypatch.setattr(arrays.Arrays, "read", slowly)
    assert toy.same(train.load_params(run), saved[1][2].ema)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match=r"no checkpoint 3 .* holds 2"):
        train.load_params(run, step=3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's, of files that are gone
def test_reading_beside_a_trainer_that_deletes_what_it_reads(tmp_path, capsys):
    """Each read is a whole state, that of one step."""
    _, state, _ = trained()
    made = lambda step: state._replace(step=jnp.int32(step), params={"w": jnp.full((300, 300), float(step))})  # noqa: E731
    ended = threading.Event()

    def trainer():
        with train.Checkpointer(tmp_path, keep=1) as checkpointer:
            for step in range(2, 14):
                checkpointer.save(made(step))
        ended.set()

    with train.Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(made(1))
    beside = threading.Thread(target=trainer)
    beside.start()
    seen = []
    while not ended.is_set():
        with train.Checkpointer(tmp_path, read_only=True) as checkpointer:
            found = checkpointer.restore(made(0))
        seen.append(int(found.step))
        assert toy.same(found, made(seen[-1]))
    beside.join()
    assert seen == sorted(seen) and len(set(seen)) >= 3 and capsys.readouterr().err == ""


def test_a_good_step_is_not_blamed_for_what_the_devices_refuse(run, monkeypatch):
    def refuse(self, folder, wanted):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(arrays.Arrays, "read", refuse)
    with pytest.raises(RuntimeError, match="out of memory"):
        restore(run, like())
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "3"]


@pytest.mark.parametrize("place", ["start", "finish", "seal", "write", "publish"])
def test_a_full_disk_fails_the_save_and_nothing_else(saved, run, place, monkeypatch):
    """At each stage of a save: once by the error that TensorStore raises, else by the system's."""
    state = jax.tree.map(jnp.asarray, saved[1][3])._replace(step=jnp.int32(4))
    owner = {"start": arrays.Arrays, "finish": arrays.Arrays, "publish": steps}.get(place, manifest)
    whole = getattr(owner, place)

    def full(*_):
        if place == "start":
            raise ValueError("RESOURCE_EXHAUSTED: Error writing \"x\": pages of it [os_error_code='28']")
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    with train.Checkpointer(run) as checkpointer:
        monkeypatch.setattr(owner, place, full)
        checkpointer.save(state)
        with pytest.raises(OSError, match="No space left") as caught:
            checkpointer.wait()
        assert faults.status(caught.value) == faults.STORAGE and len(str(caught.value)) < 300
        failure = checkpointer.failure()
        assert failure.errno == errno.ENOSPC and checkpointer.failure() is None  # said once
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "3"]
        assert checkpointer.latest() == 3 and toy.same(checkpointer.restore(like()), saved[1][3])
        with pytest.raises(OSError, match="No space left"):
            checkpointer.wait()  # as long as no other save has ended well
        monkeypatch.setattr(owner, place, whole)
        checkpointer.save(state)
        checkpointer.wait()
        assert checkpointer.failure() is None
        assert toy.same(checkpointer.restore(like()), state)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("said", ["write failed [os_error_code='{}']", "Error opening: OS error {} (reason)"])
def test_what_tensorstore_says_of_a_disk_is_the_systems_error(said, number, tmp_path):
    error = arrays.storage_error(ValueError(f"RESOURCE_EXHAUSTED: {said.format(number)}"), tmp_path)
    assert isinstance(error, OSError) and error.errno == number and faults.status(error) == faults.STORAGE
    other = ValueError("RESOURCE_EXHAUSTED: memory")
    assert arrays.storage_error(other, tmp_path) is other


def test_a_disk_without_room_for_another_step_is_not_filled(saved, run, monkeypatch):
    state = jax.tree.map(jnp.asarray, saved[1][3])._replace(step=jnp.int32(4))
    size = sum(path.stat().st_size for path in (run / "checkpoints" / "3").rglob("*") if path.name != "manifest.json"
               and path.is_file())  # fmt: skip
    monkeypatch.setattr(arrays.Arrays, "start", lambda *_: pytest.fail("it was begun"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, size - 1))
    with train.Checkpointer(run) as checkpointer:
        checkpointer.save(state)
        with pytest.raises(OSError, match=rf"No space left on device \({size} bytes are needed, {size - 1} are free\)"):
            checkpointer.wait()
        monkeypatch.undo()
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, size))
        checkpointer.save(state)
    assert toy.same(restore(run, like()), state)


def test_what_cannot_be_saved_at_all_is_said_at_once(tmp_path):
    _, state, _ = trained()
    with train.Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(ValueError, match="zero"):
            checkpointer.save(state._replace(params={"w": jnp.zeros((0, 3))}))
        checkpointer.save(state)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_room(run):
    _, state, _ = trained()
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    for workdir, keep, more in [(run, 2, 1), (run, 4, 3), (run, None, 1), (run / "new", 2, 3)]:
        with train.Checkpointer(workdir, keep=keep) as checkpointer:
            needed, free = checkpointer.room(like())
        assert needed == more * size and 0 < free == pytest.approx(shutil.disk_usage(run).free, rel=0.2)


def test_differences_are_listed(run):
    def other(key):
        params = toy.init(key)
        params["hidden"]["kernel"] = jnp.zeros((toy.WIDTH, 4))
        params["out"]["bias"] = params["out"]["bias"].astype(jnp.bfloat16)
        params["new"] = params.pop("hidden")
        params["hidden"] = {"kernel": params["new"].pop("kernel")}
        return params

    described = train.state_shapes(other, toy.ADAMW, toy.mesh("one"))
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
        restore(run, train.state_shapes(toy.init, optax.sgd(0.1), toy.mesh("one")))


def test_nothing_to_restore(tmp_path):
    with train.Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest() is None
        with pytest.raises(ValueError, match=r"no checkpoint in .*: none has been saved yet"):
            checkpointer.restore(like())


def test_keep_of_zero(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        train.Checkpointer(tmp_path, keep=0)


def test_orbax_is_heard_once(tmp_path, caplog):
    """Of writes that fail together one error is raised; asyncio would show the others, and shows anybody else's."""
    train.Checkpointer(tmp_path).close()
    held = {}
    for name in ("site-packages/orbax/checkpoint/a.py", "mine.py"):
        exec(compile("async def write():\n    raise OSError('full')", name, "exec"), held)

        async def both(write=held["write"]):
            first, _second = (asyncio.create_task(write()) for _ in range(2))
            await first

        with pytest.raises(OSError, match="full"):
            asyncio.run(both())
    gc.collect()
    traces = [record for record in caplog.records if record.exc_info]
    assert [traceback.extract_tb(trace.exc_info[2])[-1].filename for trace in traces] == ["mine.py"]
