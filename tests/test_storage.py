import os
import stat

import pytest

from jaxdiff import storage


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "a.json"
    storage.write_text(path, "old")
    storage.write_text(path, "new")
    assert path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["a.json"]
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), storage.replacing(path) as beside:
        beside.write_text("half of the n")
        assert path.read_text() == "old" and beside.suffix == ".txt"
        raise OSError("full")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_it_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A machine may stop between any two calls: data first, then the name, then the folder."""
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("name"), replace(a, b)))
    monkeypatch.setattr(type(tmp_path), "replace", lambda a, b: os.replace(a, b))
    storage.write_text(tmp_path / "a.txt", "new")
    data, name, folder = done
    assert name == "name" and folder == str(tmp_path) and os.path.dirname(data) == folder and data != folder


def test_a_new_folder_has_its_name_on_disk(tmp_path, monkeypatch):
    """To sync a folder keeps what is in it, and not the folder: each parent is synced when it holds the new name."""
    synced = []
    monkeypatch.setattr(storage, "sync", lambda path: path.is_dir() and synced.append((path, os.listdir(path))))
    for _ in range(2):  # of which the second makes nothing
        storage.make_folder(tmp_path / "a" / "b")
    assert synced == [(tmp_path, ["a"]), (tmp_path / "a", ["b"])]
    storage.write_text(tmp_path / "c" / "d.txt", "new")
    assert synced[2][0] == tmp_path and "c" in synced[2][1]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        storage.make_folder(tmp_path / "file")


def nested(depth):
    return '{"a":' * depth + "1" + "}" * depth


def test_an_object_of_json_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, -Infinity], "ü": null}', encoding="utf-8")
    assert storage.read_json(path) == {"a": [1, -float("inf")], "ü": None}
    path.write_text(nested(100))
    assert list(storage.read_json(path)) == ["a"]


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff", b'{"a": 1', b'{"a": ' + b"9" * 5000 + b"}", b"[" * 10**5, b'{"a":' * 10**5],
)
def test_what_is_no_json_is_named(text, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"a\.json is no JSON: "):
        storage.read_json(path)


def test_what_is_no_object_or_too_much(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match=r"a\.json does not exist"):
        storage.read_json(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"a\.json must hold an object, got a list"):
        storage.read_json(path)
    path.write_text(nested(101))
    with pytest.raises(ValueError, match=r"a\.json is nested deeper than 100 levels"):
        storage.read_json(path)
    monkeypatch.setattr(storage, "JSON_BYTES", 10)
    with pytest.raises(ValueError, match=r"a\.json has 607 bytes, and JSON of at most 10 is read"):
        storage.read_json(path)
