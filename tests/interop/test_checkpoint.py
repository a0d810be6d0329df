"""Loading and saving: every tensor in its place, or an error that lists them; little memory; the same bits."""

import json
import tracemalloc
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers.tiny_model import CONFIG, halves, tensors, tiny, write, write_parts
from safetensors.numpy import load_file

import jaxdiff as jd
from jaxdiff import train
from jaxdiff.interop.formats import files
from jaxdiff.interop.models import classes, fill


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(classes.CLASSES, "Tiny", tiny)


def check(loaded, held):
    """Every leaf is what the file holds, in our layout."""
    p = loaded.params
    np.testing.assert_array_equal(p["conv_in"]["kernel"], held["conv_in.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(p["conv_in"]["bias"], held["conv_in.bias"])
    np.testing.assert_array_equal(p["label"]["embedding"], held["label.weight"])
    np.testing.assert_array_equal(p["gain"], held["gain"])
    blocks = p["blocks.*"]
    assert len(blocks["norm"]["scale"]) == sum("norm" in key for key in held)
    for i in range(len(blocks["norm"]["scale"])):
        np.testing.assert_array_equal(blocks["norm"]["scale"][i], held[f"layers.{i}.norm.weight"])
        np.testing.assert_array_equal(blocks["to_out.0"]["kernel"][i], held[f"layers.{i}.to_out.0.weight"].T)


def test_every_tensor_in_its_place(tmp_path):
    held = write(tmp_path)
    loaded = jd.interop.load(tmp_path)
    check(loaded, held)
    assert loaded.config == CONFIG
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(loaded.params))
    x = np.ones((2, 3), np.float32)
    assert loaded.apply(loaded.params, x).dtype == jnp.float32
    assert jd.interop.load(tmp_path, dtype=jnp.bfloat16).apply(loaded.params, x).dtype == jnp.bfloat16


def test_older_names_and_buffers(tmp_path):
    held = tensors()
    old = {key.replace("to_out.0", "to_out_0"): value for key, value in held.items()}
    write(tmp_path, old | {"positions": np.arange(4)})
    check(jd.interop.load(tmp_path), held)
    both = held | {"layers.0.to_out_0.weight": held["layers.0.to_out.0.weight"]}
    write(tmp_path, both)
    with pytest.raises(ValueError, match=r"names 'layers.0.to_out.0.weight' twice"):
        jd.interop.load(tmp_path)


def test_lists_what_is_missing_extra_and_misshapen(tmp_path):
    held = tensors()
    del held["gain"], held["layers.1.norm.weight"]
    held |= {"ghost": np.ones(2, np.float32), "layers.3.norm.weight": np.ones(8, np.float32)}
    held |= {"conv_in.bias": np.ones(9, np.float32), "label.weight": np.ones((5, 8), np.int8)}
    write(tmp_path, held)
    with pytest.raises(ValueError) as error:
        jd.interop.load(tmp_path)
    for part in (
        "missing: gain, layers.1.norm.weight;",
        "not of this network: ghost, layers.3.norm.weight;",
        "misshapen: conv_in.bias is (9,), not (8,);",
        "of a type that is not read: label.weight is I8",
    ):
        assert part in str(error.value)
    # A kernel in our layout is not taken for theirs.
    write(tmp_path, tensors() | {"layers.0.to_out.0.weight": np.ones((8, 16), np.float32)})
    with pytest.raises(ValueError, match=r"layers.0.to_out.0.weight is \(8, 16\), not \(16, 8\)"):
        jd.interop.load(tmp_path)


def test_refuses_what_it_does_not_know(tmp_path):
    write(tmp_path, _class_name="Huge")
    with pytest.raises(ValueError, match=r"unknown class 'Huge'; there are: .*UNet2DModel"):
        jd.interop.load(tmp_path)
    write(tmp_path, act="gelu")
    with pytest.raises(ValueError, match="Tiny: act must be 'silu', got 'gelu'"):
        jd.interop.load(tmp_path)
    write(tmp_path, new=3, off=False, none=None, _private=1)
    with pytest.raises(ValueError, match=r"Tiny: fields that are not supported: \{'new': 3\}"):
        jd.interop.load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json does not exist"):
        jd.interop.load(tmp_path)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pickled" / "model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"model.bin is pickled"):
        jd.interop.load(tmp_path / "pickled")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_types_of_the_file(dtype, tmp_path):
    held = write(tmp_path, tensors(dtype=dtype))
    kept = jd.interop.load(tmp_path)
    # Without 64-bit types a double is what JAX makes of it.
    assert {a.dtype for a in jax.tree.leaves(kept.params)} == {np.dtype(np.float32 if dtype == np.float64 else dtype)}
    check(kept, {key: value.astype(np.float32) if dtype == np.float64 else value for key, value in held.items()})
    wide = jd.interop.load(tmp_path, param_dtype=jnp.float32)
    check(wide, {key: value.astype(np.float32) for key, value in held.items()})
    narrow = jd.interop.load(tmp_path, param_dtype=jnp.bfloat16)
    check(narrow, {key: value.astype(ml_dtypes.bfloat16) for key, value in held.items()})


def test_layers_of_several_types_lose_nothing(tmp_path):
    held = tensors()
    held["layers.0.norm.weight"] = held["layers.0.norm.weight"].astype(np.float16)
    write(tmp_path, held)
    check(jd.interop.load(tmp_path), held)


def test_a_variant_beside_the_plain_file(tmp_path):
    half = write(tmp_path, tensors(dtype=np.float16), "model.fp16.safetensors")
    held = write(tmp_path)
    check(jd.interop.load(tmp_path), held)
    check(jd.interop.load(tmp_path, variant="fp16"), half)


def test_several_files(tmp_path):
    held = tensors()
    write_parts(tmp_path, halves(held))
    check(jd.interop.load(tmp_path), held)


@pytest.fixture
def reads(monkeypatch):
    """The shapes of all that is read."""
    seen, read = [], files.Tensor.__getitem__

    def spy(self, index):
        value = read(self, index)
        seen.append(value.shape)
        return value

    monkeypatch.setattr(files.Tensor, "__getitem__", spy)
    return seen


# With 1 byte for a group the layers go one by one.
@pytest.mark.parametrize(("data", "fsdp", "group"), [(1, 8, 2**28), (2, 4, 1), (8, 1, 2**28)])
def test_on_many_devices_each_reads_its_slice(data, fsdp, group, tmp_path, monkeypatch, reads):
    monkeypatch.setattr(fill, "GROUP", group)
    held = write(tmp_path, tensors(width=64), width=64)
    mesh = train.make_mesh(data, fsdp)
    loaded = jd.interop.load(tmp_path, place=lambda shapes: train.shard_params(shapes, mesh))
    check(loaded, held)
    want = train.shard_params(loaded.params, mesh)
    jax.tree.map(lambda a, sharding: (a.sharding == sharding) or pytest.fail(str(a.sharding)), loaded.params, want)
    # The kernels of the layers, [64, 128] each, are split along what comes out: rows in the file.
    assert reads.count((128 // fsdp, 64)) == 3 * fsdp and (fsdp == 1 or (128, 64) not in reads)
    # Nothing is read twice.
    assert sum(np.prod(shape, dtype=int) for shape in reads) == sum(value.size for value in held.values())


@pytest.mark.parametrize("place", [None, lambda t: train.shard_params(t, train.make_mesh(2, 4))], ids=["one", "mesh"])
def test_the_host_holds_little(place, tmp_path, monkeypatch):
    """A stack of 16 layers, of which the host may hold two, and what the runtime has not let go of yet."""
    layer = 256 * 512 * 4
    monkeypatch.setattr(fill, "GROUP", 2 * layer)
    # What lies on a simulated device must not be the host's memory.
    monkeypatch.setattr(fill.jax, "device_put", partial(jax.device_put, may_alias=False))
    held = write(tmp_path, tensors(width=256, layers=16), width=256, layers=16)
    jd.interop.load(tmp_path, place=place)  # compiles
    tracemalloc.start()
    loaded = jd.interop.load(tmp_path, place=place)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    check(loaded, held)
    assert layer < peak < 8 * layer


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_saves_what_it_loads_bit_for_bit(dtype, tmp_path):
    held = write(tmp_path / "in", tensors(dtype=dtype))
    loaded = jd.interop.load(tmp_path / "in")
    jd.interop.save(loaded, tmp_path / "out" / "deep")
    assert sorted(p.name for p in (tmp_path / "out" / "deep").iterdir()) == ["config.json", "model.safetensors"]
    saved = load_file(tmp_path / "out" / "deep" / "model.safetensors")
    assert saved.keys() == held.keys()
    for key, value in held.items():
        assert saved[key].dtype == value.dtype and saved[key].shape == value.shape
        assert saved[key].tobytes() == value.tobytes()
    again = jd.interop.load(tmp_path / "out" / "deep")
    assert again.config == loaded.config
    check(again, held)


def test_a_config_that_tells_a_type_tells_that_of_what_is_saved(tmp_path):
    write(tmp_path / "in", tensors(dtype=np.float16), dtype="float16", torch_dtype=None)
    jd.interop.save(jd.interop.load(tmp_path / "in"), tmp_path / "same")
    jd.interop.save(jd.interop.load(tmp_path / "in", param_dtype=jnp.float32), tmp_path / "wide")
    for name, dtype in ("same", "float16"), ("wide", "float32"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config == CONFIG | {"dtype": dtype, "torch_dtype": None}


def test_saves_in_parts(tmp_path):
    """Of at most 1200 bytes, but for a tensor that is larger itself."""
    held = write(tmp_path / "in", tensors(width=16), width=16)  # layers of 2048 bytes, the rest is smaller
    mesh = train.make_mesh(1, 8)
    loaded = jd.interop.load(tmp_path / "in", place=lambda shapes: train.shard_params(shapes, mesh))
    jd.interop.save(loaded, tmp_path / "out", shard_bytes=1200)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert names == [f"model-{i:05}-of-{len(names):05}.safetensors" for i in range(1, len(names) + 1)]
    assert len(names) > 3 and index["metadata"]["total_size"] == sum(value.nbytes for value in held.values())
    for name in names:
        part = load_file(tmp_path / "out" / name)
        assert part.keys() == {key for key, file in index["weight_map"].items() if file == name}
        assert sum(value.nbytes for value in part.values()) <= 1200 or len(part) == 1
    check(jd.interop.load(tmp_path / "out"), held)


def test_saves_over_no_weights(tmp_path):
    loaded = write(tmp_path) and jd.interop.load(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds weights already"):
        jd.interop.save(loaded, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    # An index alone would mix with what is saved, too.
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="holds weights already"):
        jd.interop.save(loaded, tmp_path / "index")


def test_saves_only_what_fits_the_config(tmp_path):
    loaded = write(tmp_path / "in") and jd.interop.load(tmp_path / "in")
    wrong = loaded.params | {"gain": jnp.ones(3), "more": jnp.ones(2)}
    with pytest.raises(ValueError, match=r": gain is \(3,\), not \(\), more is \(2,\), not None"):
        jd.interop.save(loaded._replace(params=wrong), tmp_path / "out")
    with pytest.raises(ValueError, match=r"is \(8,\), not \(16,\)"):
        jd.interop.save(loaded._replace(config=CONFIG | {"width": 16}), tmp_path / "out")
    with pytest.raises(ValueError, match="unknown class"):
        jd.interop.save(loaded._replace(config={"width": 8}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_a_prefix_of_the_file_is_named(prefix, tmp_path):
    write(tmp_path, {prefix + name: value for name, value in tensors(layers=12).items()}, layers=12)
    with pytest.raises(ValueError, match=rf"and 8 more \(28 in all.*names in the file begin with '{prefix}'") as error:
        jd.interop.load(tmp_path)
    assert len(str(error.value)) < 2500


def test_a_file_in_a_directory(tmp_path):
    held = write(tmp_path)
    other = write(tmp_path, {name: np.asarray(value + 1) for name, value in held.items()}, "tiny.safetensors")
    check(jd.interop.load(tmp_path), held)
    check(jd.interop.load(tmp_path / "tiny.safetensors"), other)
    with pytest.raises(ValueError, match="a variant is of a directory's weights"):
        jd.interop.load(tmp_path / "tiny.safetensors", variant="fp16")
    with pytest.raises(ValueError, match="act must be 'silu', got 'relu'"):
        jd.interop.load(tmp_path, config={"act": "relu"})
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"tiny.safetensors has no config.json next to it"):
        jd.interop.load(tmp_path / "tiny.safetensors")
