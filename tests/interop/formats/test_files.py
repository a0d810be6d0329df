"""Files of tensors: what is broken, doubled or outside is an error that says so, and nothing is unpickled."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers.fuzzing import guarded
from helpers.tiny_model import halves, tensors, write, write_parts
from safetensors.numpy import save, save_file

from jaxdiff.interop.formats import files
from jaxdiff.interop.formats.files import open_tensors, read_config

WHOLE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4, dtype=np.float32)}


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start, stop, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def test_reads_parts_of_tensors(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(save(WHOLE))
    held = open_tensors(tmp_path / "x.safetensors")
    assert held.keys() == WHOLE.keys() and held["a"].shape == (2, 3) and held["a"].dtype == "F32"
    np.testing.assert_array_equal(held["a"][()], WHOLE["a"])
    np.testing.assert_array_equal(held["a"][1:2, 1:3], WHOLE["a"][1:2, 1:3])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the kernel doesn't tell what is mapped")
def test_what_has_been_read_is_let_go(tmp_path, monkeypatch):
    held = {str(i): np.full(2**20, i, np.uint8) for i in range(16)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(held))

    def resident(limit):
        """Bytes of the file that are the process's memory once all has been read."""
        monkeypatch.setattr(files, "MAPPED", limit)
        opened = open_tensors(path)
        for name, tensor in opened.items():
            np.testing.assert_array_equal(tensor[()], held[name])
        lines = Path("/proc/self/smaps").read_text().splitlines()
        starts = [i for i, line in enumerate(lines) if line.endswith(str(path))]
        return sum(1024 * int(next(x for x in lines[i:] if x.startswith("Rss:")).split()[1]) for i in starts)

    assert resident(2**30) >= 2**24 > 2**23 > resident(2**20)


BROKEN = {
    "empty": b"",
    "short": b"\x02\0\0",
    "truncated header": save(WHOLE)[:40],
    "truncated data": save(WHOLE)[:-4],
    "more data": save(WHOLE) + b"\0\0\0\0",
    "absurd length": struct.pack("<Q", 2**62) + b"{}",
    "no json": raw(b"{'a': 1}   "),
    "no utf-8": raw(b'{"\xff": 1}'),
    "deep": raw(b'{"a":' + b"[" * 100_000),
    "no object": raw(b"[1]     "),
    "no entry": raw({"a": 3}),
    "beyond the end": raw({"a": entry(0, 8, (2,))}, b"\0" * 4),
    "wrong size": raw({"a": entry(0, 8)}, b"\0" * 8),
    "negative": raw({"a": entry(-4, 0)}, b"\0" * 4),
    "overlap": raw({"a": entry(0, 4), "b": entry(2, 6)}, b"\0" * 6),
    "gap": raw({"a": entry(0, 4), "b": entry(8, 12)}, b"\0" * 12),
    "overflow": raw({"a": entry(0, 4, (2**62, 2**62))}, b"\0" * 4),
    "unknown type": raw({"a": entry(0, 4, (1,), "F31")}, b"\0" * 4),
}


@pytest.mark.parametrize("name", BROKEN)
def test_malformed_and_truncated_files(name, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(BROKEN[name])
    with pytest.raises(ValueError, match=r"x.safetensors is malformed"):
        open_tensors(tmp_path)


def test_a_name_twice_in_a_header(tmp_path):
    text = '{"a": %s, "a": %s}' % (json.dumps(entry(0, 4)), json.dumps(entry(4, 8)))  # noqa: UP031
    (tmp_path / "x.safetensors").write_bytes(raw(text.encode(), b"\0" * 8))
    with pytest.raises(ValueError, match="names twice: a"):
        open_tensors(tmp_path)


def test_a_name_in_two_files(tmp_path):
    parts = halves(tensors())
    first, second = parts
    parts[second]["gain"] = parts[first]["gain"]
    write_parts(tmp_path, parts)
    with pytest.raises(ValueError, match="'gain' is in another file"):
        open_tensors(tmp_path)


def test_reads_files_by_their_index(tmp_path):
    held = tensors()
    write_parts(tmp_path, halves(held))
    for path in tmp_path, tmp_path / "model.safetensors.index.json":
        got = open_tensors(path)
        assert got.keys() == held.keys()
        np.testing.assert_array_equal(got["conv_in.weight"][()], held["conv_in.weight"])


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "..", "x.bin", 7, ["x"]])
def test_an_index_that_leaves_the_directory(name, tmp_path):
    inside = tmp_path / "inside"
    write(tmp_path, tensors(), "x.safetensors")
    write_parts(inside, halves(tensors()), {"gain": name})
    with pytest.raises(ValueError, match=r"is no \.safetensors file in"):
        open_tensors(inside)


def test_an_index_that_does_not_fit_its_files(tmp_path):
    parts = halves(tensors())
    right = {key: file for file, held in parts.items() for key in held}
    for index, message in (
        (right | {"ghost": next(iter(parts))}, "differ in 1 tensors: ghost"),
        ({key: file for key, file in right.items() if key != "gain"}, "differ in 1 tensors: gain"),
        (right | {"gain": "model-00003-of-00002.safetensors"}, "'model-00003-of-00002.safetensors', which is missing"),
        ({}, "must hold a weight_map"),
        ([], "must hold a weight_map"),
        (
            right | {f"ghost.{i:02}": next(iter(parts)) for i in range(25)},
            "25 tensors: ghost.00, .* and 5 more .25 in all",
        ),
    ):
        write_parts(tmp_path, parts, index)
        with pytest.raises(ValueError, match=message):
            open_tensors(tmp_path)
    for text in "[]", "{", "[" * 100_000:
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match=r"index.json (is no JSON|must hold an object)"):
            open_tensors(tmp_path)


@pytest.mark.parametrize(
    ("held", "variant", "want"),
    [
        (["own", "a"], None, "own"),  # the own name, whatever else there is: a shorter name, too
        (["own", "own.fp16", "own.non_ema", "a"], None, "own"),
        (["own.fp16", "a", "b"], None, "own.fp16"),
        (["own.fp16", "own"], "fp16", "own.fp16"),
        (["a"], None, "a"),
        ([".a", "b"], None, "b"),  # hidden files are other programs'
        (["own.fp16", "own.bf16", "a"], None, "several weights, but no own.safetensors: .*own.bf16.*own.fp16.*variant"),
        (["a", "b"], None, "several weights, but no own.safetensors: a.safetensors, b.safetensors; give the path"),
        (["own", "own.bf16"], "fp16", "no own.fp16.safetensors: own.bf16.safetensors, own.safetensors"),
        (["owner", "a"], None, "several weights"),
    ],
)
def test_which_of_several_files(held, variant, want, tmp_path):
    for name in held:
        save_file({name: np.zeros(1, np.float32)}, tmp_path / f"{name}.safetensors")
    if want in held:
        assert list(open_tensors(tmp_path, "own", variant)) == [want]
        return
    with pytest.raises(ValueError, match=want):
        open_tensors(tmp_path, "own", variant)


def test_which_of_files_and_indices(tmp_path):
    plain, half = tensors(), tensors(dtype=np.float16)
    write(tmp_path, half, "model.fp16.safetensors")
    assert open_tensors(tmp_path, "model")["gain"].dtype == "F16"
    write_parts(tmp_path, {f"model.fp16-{k[6:]}": v for k, v in halves(half).items()},
                name="model.safetensors.index.fp16.json")  # fmt: skip
    write_parts(tmp_path, halves(plain))
    assert open_tensors(tmp_path, "model")["gain"].dtype == "F32"
    assert open_tensors(tmp_path, "model", "fp16")["gain"].dtype == "F16"
    with pytest.raises(ValueError, match="several weights: "):
        open_tensors(tmp_path)
    assert open_tensors(tmp_path / "model.safetensors.index.fp16.json")["gain"].dtype == "F16"
    assert open_tensors(tmp_path / "model.fp16.safetensors")["gain"].dtype == "F16"
    # Under one name a whole file comes before an index of parts.
    write(tmp_path, {"whole": np.zeros(1, np.float32)}, "model.safetensors")
    assert list(open_tensors(tmp_path, "model")) == ["whole"]


def test_only_a_variant_in_parts(tmp_path):
    parts = {f"model.fp16-{k[6:]}": v for k, v in halves(tensors(dtype=np.float16)).items()}
    write_parts(tmp_path, parts, name="model.safetensors.index.fp16.json")
    assert open_tensors(tmp_path).keys() == tensors().keys()


def test_refuses_pickles_and_says_how_to_convert(tmp_path):
    for name in "diffusion_pytorch_model.bin", "model.ckpt":
        (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
        for path in tmp_path, tmp_path / name:
            with pytest.raises(ValueError, match=rf"(?s){name}.* is pickled.*weights_only=True.*save_file"):
                open_tensors(path)
    # Beside tensors nobody looks at them.
    write(tmp_path)
    assert "gain" in open_tensors(tmp_path)


def test_no_tensors(tmp_path):
    with pytest.raises(ValueError, match=r"no whole \.safetensors file and no index"):
        open_tensors(tmp_path)
    for name in "x", "x.safetensors", "x.safetensors.index.json":
        with pytest.raises(ValueError, match="does not exist"):
            open_tensors(tmp_path / name)
    # Parts whose index is lost are not one of them at random.
    write_parts(tmp_path, halves(tensors()))
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"no whole \.safetensors file and no index"):
        open_tensors(tmp_path)


def test_the_class_of_a_config(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(ValueError, match="does not exist"):
        read_config(tmp_path)
    for text, kind in ('{"_class_name": "A", "x": -Infinity}', "A"), ('{"architectures": ["B"]}', "B"):
        path.write_text(text)
        assert read_config(tmp_path)[0] == kind
    for text in (
        "{}",
        '{"architectures": []}',
        '{"architectures": ["A", "B"]}',
        '{"_class_name": 3}',
        '{"architectures": 3}',
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match="must name one class"):
            read_config(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is no JSON"):
        read_config(tmp_path)


def test_tensors_without_elements(tmp_path):
    held = {"empty": np.zeros((3, 0), np.float32), "none": np.zeros(0, np.float16), "a": np.ones(2, np.float32)}
    save_file(held, tmp_path / "x.safetensors")
    got = open_tensors(tmp_path)
    assert got["empty"].shape == (3, 0) and got["none"].dtype == "F16"
    assert got["empty"][()].shape == (3, 0) and got["empty"][1:, :].shape == (2, 0) and got["none"][()].shape == (0,)
    np.testing.assert_array_equal(got["a"][()], held["a"])


@pytest.mark.slow
def test_a_hundred_thousand_tensors_cost_little_more_than_their_header(tmp_path):
    """A quarter of a second on an idle machine, of which the header's JSON is half; by squares it would be minutes."""
    header = {f"n{i}": entry(4 * i, 4 * i + 4) for i in range(10**5)}
    (tmp_path / "x.safetensors").write_bytes(raw(header, b"\0" * 4 * 10**5))
    with guarded(tmp_path, seconds=10):
        held = open_tensors(tmp_path)
    assert len(held) == 10**5 and held["n99999"][()] == 0


def test_a_header_longer_than_any(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LIMIT", 100)
    save_file({f"tensor {i}": np.zeros(1) for i in range(9)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="its header is not whole"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("name", ["n" * 300 + ".safetensors", "\0.safetensors", "\ud800.safetensors"])
def test_an_index_of_names_that_no_file_can_have(name, tmp_path):
    parts = halves(tensors())
    right = {key: file for file, held in parts.items() for key in held}
    write_parts(tmp_path, parts, right | {"gain": name})
    with pytest.raises(ValueError, match=r"index\.json names .*which is missing"):
        open_tensors(tmp_path)


def test_links_in_a_directory_are_followed_and_names_are_not(tmp_path):
    """As the hub's cache has them: each entry of a snapshot is a link to a file elsewhere."""
    held, real, snapshot = tensors(), tmp_path / "blobs", tmp_path / "snapshot"
    write_parts(real, halves(held))
    snapshot.mkdir()
    for path in real.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert open_tensors(snapshot).keys() == held.keys()
    (snapshot / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="which is missing"):
        open_tensors(snapshot)
    (snapshot / "model-00001-of-00002.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="which is missing"):
        open_tensors(snapshot)


def test_a_type_that_numpy_lacks(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(raw({"a": entry(0, 4, (4,), "F8_E4M3")}, b"\0" * 4))
    held = open_tensors(tmp_path)
    assert held["a"].dtype == "F8_E4M3"
    with pytest.raises(ValueError, match="'a' can't be read"):
        held["a"][()]
