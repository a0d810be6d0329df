"""Every change to a step on disk is noticed before one of its arrays is used, and an older one is read in its place."""

import itertools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xxhash
from helpers import toy

from jaxdiff import faults, train
from jaxdiff.train.checkpoint import manifest, steps

FLIPS = 200


def state(seed, step):
    """Values that do not compress, so that most of a step's bytes are theirs; two arrays of one shape and dtype."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, dtype=np.float32))  # noqa: E731
    params = {"a": draw(16, 64), "b": draw(16, 64), "half": draw(3, 5).astype(jnp.bfloat16), "flags": draw(7) > 0}
    return train.TrainState(
        jnp.int32(step), params, jax.tree.map(jnp.zeros_like, params), {"count": jnp.int32(step)}, jnp.int32(0)
    )


STATES = {1: state(1, 1), 2: state(2, 2)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    with train.Checkpointer(workdir) as checkpointer:
        for one in STATES.values():
            checkpointer.save(one)
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    """A copy of a run with steps 1 and 2; its newest step is damaged by the tests."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def newest(run):
    return run / "checkpoints" / "2"


def files(run):
    return sorted(path for path in newest(run).rglob("*") if path.is_file())


def refused(run, said="is damaged"):
    """Whether the newest step is refused, by what it says; nothing is changed."""
    with train.Checkpointer(run, read_only=True) as checkpointer:
        return refused_by(checkpointer, said)


def refused_by(checkpointer, said):
    try:
        checkpointer.restore(STATES[2], step=2)
    except faults.Damaged as error:
        return said in str(error) and len(str(error)) < 500
    return False


def falls_back(run):
    """Whether step 1 is what is read, bit for bit, in both ways."""
    with train.Checkpointer(run, read_only=True) as checkpointer:
        reading = checkpointer.restore(STATES[2])
    with train.Checkpointer(run) as checkpointer:
        going_on = checkpointer.restore(STATES[2])
        assert [path.name for path in checkpointer.quarantined] == ["quarantine-2"]
    return toy.same(reading, STATES[1]) and toy.same(going_on, STATES[1])


def test_a_good_step_is_good(run):
    with train.Checkpointer(run) as checkpointer:
        assert toy.same(checkpointer.restore(STATES[2]), STATES[2])
        assert checkpointer.quarantined == []
    assert not refused(run)


def flip(path, places):
    whole = path.read_bytes()
    changed = bytearray(whole)
    for place, bit in places:
        changed[place] ^= 1 << bit
    path.write_bytes(bytes(changed))
    return whole


@pytest.mark.slow
def test_single_flips_in_all_files(run):
    """Half of them uniform over files, so that the small ones get theirs; half over bytes."""
    rng, found = np.random.default_rng(0), files(run)
    sizes = np.array([path.stat().st_size for path in found])
    assert len(found) >= 10 and newest(run) / "manifest.json" in found
    noticed = []
    with train.Checkpointer(run, read_only=True) as checkpointer:
        for number in range(FLIPS):
            which = rng.choice(len(found), p=None if number % 2 else sizes / sizes.sum())
            whole = flip(found[which], [(rng.integers(sizes[which]), rng.integers(8))])
            said = found[which].relative_to(newest(run)).as_posix() + " has changed"
            noticed.append(refused_by(checkpointer, said))
            found[which].write_bytes(whole)
    assert sum(noticed) == FLIPS
    assert not refused(run)
    flip(found[3], [(0, 0)])
    assert falls_back(run)


def test_all_over_the_manifest(run):
    path = newest(run) / "manifest.json"
    for place in range(0, path.stat().st_size, 11):
        whole = flip(path, [(place, place % 8)])
        with pytest.raises(faults.Damaged, match=r"manifest\.json has changed"):
            manifest.read(newest(run))
        path.write_bytes(whole)
    assert manifest.read(newest(run)).step == 2


def test_the_same_bit_of_two_words(run):
    """A sum of words, weighted or not, misses some: the sign bit of two, say, which negates both."""
    rng = np.random.default_rng(0)
    data = max(files(run), key=lambda path: path.stat().st_size)
    words = data.stat().st_size // 4
    for number in range(60):
        bit = 31 if number % 2 else int(rng.integers(32))
        two = rng.choice(words, 2, replace=False)
        whole = flip(data, [(4 * int(word) + bit // 8, bit % 8) for word in two])
        assert refused(run, "has changed")
        data.write_bytes(whole)
    whole = data.read_bytes()
    data.write_bytes(whole[:400] + whole[404:408] + whole[400:404] + whole[408:])  # two words exchanged
    assert refused(run, "has changed")


def test_files_exchanged(run):
    """Within a step, with those of another one, and with those of another run that has the same names."""
    found = files(run)
    tried = 0
    for one, other in itertools.combinations(found, 2):
        if one.read_bytes() == other.read_bytes():
            continue
        contents = one.read_bytes(), other.read_bytes()
        one.write_bytes(contents[1]), other.write_bytes(contents[0])
        assert refused(run)
        one.write_bytes(contents[0]), other.write_bytes(contents[1])
        tried += 1
    assert tried >= 40
    mark = newest(run) / "manifest.json"
    whole = mark.read_bytes()
    mark.write_bytes((run / "checkpoints" / "1" / "manifest.json").read_bytes())
    assert refused(run, "manifest.json is that of step 1")
    mark.write_bytes(whole)
    shutil.rmtree(newest(run) / "state")
    shutil.copytree(run / "checkpoints" / "1" / "state", newest(run) / "state")
    assert refused(run) and falls_back(run)


@pytest.mark.parametrize("change", ["exchanged", "negated", "cast", "renamed"])
def test_arrays_written_by_another_hand(run, tmp_path, change):
    """The files are a checkpoint that is good in itself; only the manifest tells that it is not the one saved."""
    params = dict(STATES[2].params)
    if change == "exchanged":
        params["a"], params["b"] = params["b"], params["a"]
    elif change == "negated":
        params["a"] = -params["a"]
    elif change == "cast":
        params["a"] = params["a"].astype(jnp.bfloat16)
    else:
        params["c"] = params.pop("a")
    with train.Checkpointer(tmp_path / "other") as checkpointer:
        checkpointer.save(STATES[2]._replace(params=params))
    shutil.rmtree(newest(run) / "state")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "2" / "state", newest(run) / "state")
    assert refused(run) and falls_back(run)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


def emptied(path):
    path.write_bytes(b"")


def gone(path):
    path.unlink()


def a_link(path):
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [cut, longer, emptied, gone, a_link, a_folder, a_pipe])
def test_each_file(saved, tmp_path, damage):
    for number, path in enumerate(files(saved)):
        run = tmp_path / f"{number}"
        shutil.copytree(saved, run)
        damage(newest(run) / path.relative_to(newest(saved)))
        assert refused(run, path.name)
    assert number >= 10 and falls_back(run)


def test_what_is_added(run):
    for make in (
        lambda path: path.write_bytes(b"more"),
        lambda path: path.symlink_to("/etc"),
        lambda path: path.symlink_to("nowhere"),
        os.mkfifo,
    ):
        for name in ("more", "state/more", "state/d/0123456789abcdef"):
            make(newest(run) / name)
            assert refused(run, f"{name} is no part of it")
            (newest(run) / name).unlink()
    (newest(run) / "state" / "more").write_bytes(b"more")
    assert falls_back(run)


def test_copied_and_renamed_steps(run):
    """A step's number is part of it."""
    folder = run / "checkpoints"
    shutil.copytree(folder / "1", folder / "70")
    shutil.copytree(folder / "2", folder / "0")
    with train.Checkpointer(run) as checkpointer:
        assert checkpointer.latest() == 2 and checkpointer.steps() == [1, 2]
        with pytest.raises(faults.Damaged, match=r"70 is damaged \(manifest.json is that of step 1\); others: 1, 2"):
            checkpointer.restore(STATES[2], step=70)
        assert toy.same(checkpointer.restore(STATES[2]), STATES[2])
        assert [path.name for path in checkpointer.quarantined] == ["quarantine-70"]
    shutil.rmtree(folder / "2")
    shutil.copytree(folder / "1", folder / "2")
    assert refused(run, "manifest.json is that of step 1") and falls_back(run)


def test_junk_is_ignored_with_its_reason(run, capsys):
    folder = run / "checkpoints"
    junk = {"best": "its name is not a step's", "007": "its name is not a step's", "-5": "its name is not a step's",
            "²": "its name is not a step's", "9" * 250: "its name is not a step's", "8": "it is not a folder",
            "20": "it is a link", "30": "it is a link", "31": "it is a link"}  # fmt: skip
    for name in ("best", "007", "-5", "²", "9" * 250):
        (folder / name).mkdir()
    (folder / "8").write_text("8")
    (folder / "20").symlink_to("/etc")
    (folder / "30").symlink_to("2")
    (folder / "31").symlink_to("nowhere")
    (folder / ".DS_Store").write_text("")
    (folder / "99").mkdir()  # empty: something was to be a step
    found = steps.ignored(folder)
    assert found.pop(".DS_Store") and found == junk
    with train.Checkpointer(run) as checkpointer:
        assert checkpointer.latest() == 2 and checkpointer.steps() == [1, 2]
        for _ in range(2):
            assert toy.same(checkpointer.restore(STATES[2]), STATES[2])
        assert [path.name for path in checkpointer.quarantined] == ["quarantine-99"]
        checkpointer.save(STATES[2]._replace(step=jnp.int32(20)))
        checkpointer.wait()
        assert checkpointer.failure() is None and checkpointer.steps() == [2, 20]
    said = capsys.readouterr().err
    assert said.count("holds more than steps") == 1 and all(f"{name} ({why})" in said for name, why in junk.items())
    assert (folder / "quarantine-20").is_symlink() and os.path.isdir("/etc")


def test_several_bad_ones_in_a_row(run, capsys):
    for number in (3, 4, 5):
        shutil.copytree(newest(run), run / "checkpoints" / f"{number}")
    flip(files(run)[0], [(7, 3)])
    (run / "checkpoints" / "quarantine-4").mkdir()
    with train.Checkpointer(run) as checkpointer:
        assert toy.same(checkpointer.restore(STATES[2]), STATES[1])
        names = [path.name for path in checkpointer.quarantined]
    assert names == ["quarantine-5", "quarantine-4-2", "quarantine-3", "quarantine-2"]
    assert len(capsys.readouterr().err.splitlines()) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's, of damaged files
def test_large_files_are_hashed_beside_the_reading(run, monkeypatch):
    """Large is 1 KB in place of 16 MB: most flips are in files that are read before they are known to be good."""
    monkeypatch.setattr(manifest, "LARGE", 1024)
    monkeypatch.setattr(manifest, "_READ", 256)
    with train.Checkpointer(run) as checkpointer:
        checkpointer.save(state(3, 3))
    folder = run / "checkpoints" / "3"
    listed = manifest.read(folder).files
    large = [folder / name for name in sorted(listed.keys() - manifest.small(listed))]
    assert any("/d/" in str(path) for path in large)  # the arrays; how many files they are in depends on the clock
    with train.Checkpointer(run, read_only=True) as checkpointer:
        assert toy.same(checkpointer.restore(STATES[2], step=3), state(3, 3))
        rng = np.random.default_rng(0)
        for path in large * 8:
            whole = flip(path, [(rng.integers(path.stat().st_size), rng.integers(8))])
            with pytest.raises(faults.Damaged, match=f"{path.name} has changed"):
                checkpointer.restore(STATES[2], step=3)
            path.write_bytes(whole)
        largest = max(large, key=lambda path: path.stat().st_size)
        whole = largest.read_bytes()
        third = len(whole) // 3
        for start in (0, third):  # parts exchanged
            parts = whole[start + third : start + 2 * third] + whole[start : start + third]
            largest.write_bytes(whole[:start] + parts + whole[start + 2 * third :])
            with pytest.raises(faults.Damaged, match="has changed"):
                checkpointer.restore(STATES[2], step=3)


def test_the_hash_is_xxh3_of_the_whole_file(tmp_path):
    """By XXH3's published value for nothing, and for more than is read at a time by the library itself."""
    (tmp_path / "x").write_bytes(b"")
    assert manifest.seal(tmp_path, ["x"]) == {"x": (0, "99aa06d3014798d86001c324468d497f")}
    whole = np.random.default_rng(0).bytes(2**20 + 1)
    (tmp_path / "x").write_bytes(whole)
    assert manifest.seal(tmp_path, ["x"]) == {"x": (len(whole), xxhash.xxh3_128_hexdigest(whole))}


def test_what_the_manifest_says(saved):
    said = json.loads((newest(saved) / "manifest.json").read_text())
    assert said["step"] == 2
    assert said["arrays"]["params/half"] == {"shape": [3, 5], "dtype": "bfloat16"}
    assert said["arrays"]["params/flags"] == {"shape": [7], "dtype": "bool"}
    assert said["arrays"].keys() == {"step", "skipped", "opt/count"} | {f"{tree}/{name}" for tree in ("params", "ema")
                                                            for name in STATES[2].params}  # fmt: skip
    listed = {path.relative_to(newest(saved)).as_posix(): path.stat().st_size for path in files(saved)}
    del listed["manifest.json"]
    assert {name: file["size"] for name, file in said["files"].items()} == listed
    # Another one with another number is as good in itself, but not here.
    (step,) = (path for path in (saved / "checkpoints").iterdir() if path.name == "1")
    assert json.loads((step / "manifest.json").read_text())["files"].keys() != said["files"].keys()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_cannot_be_read_for_a_while_is_no_damage(run, monkeypatch):
    """A server that is away says nothing of a file; an unreadable sector does."""
    import errno

    read = os.readv
    for number, damage in [(errno.ESTALE, False), (errno.EACCES, False), (errno.EIO, True)]:

        def failing(*arguments, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "readv", failing)
        with train.Checkpointer(run, read_only=True) as checkpointer:
            with pytest.raises(faults.Damaged if damage else OSError) as caught:
                checkpointer.restore(STATES[2], step=2)
            assert damage or caught.value.errno == number
        monkeypatch.setattr(os, "readv", read)
    assert not refused(run)
