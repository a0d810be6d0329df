import pytest

from jaxdiff import faults, train


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


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("text", ['{"lr": ', "[]", "null", "1", '"x"', DEEP, '{"a": ' + DEEP + "}", b"\xff\x00{}", b""])
def test_damaged_knobs(tmp_path, text):
    (tmp_path / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (train.read_knobs, lambda run: train.check_knobs(run, {}), lambda run: train.write_knobs(run, {})):
        with pytest.raises(faults.Damaged, match=r"run\.json is damaged: ") as caught:
            read(tmp_path)
        assert len(str(caught.value)) < 300


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
    nested = []
    nested.append(nested)
    with pytest.raises(ValueError, match=r"the knob 'deep' is a list, which run\.json cannot hold"):
        train.check_knobs(tmp_path, {"deep": nested})
