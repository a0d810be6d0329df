"""T2I-Adapters of diffusers: equal features, and equal answers of the U-Nets that they steer."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from parity.checkpoints import close, nchw, nhwc, randomize, roundtrip  # noqa: E402

import jaxdiff as jd  # noqa: E402

PLAIN, CROSS = "DownBlock2D", "CrossAttnDownBlock2D"
UP = {PLAIN: "UpBlock2D", CROSS: "CrossAttnUpBlock2D"}
# Stable Diffusion's and XL's order of blocks: the feature of a level without attention comes after resampling, and XL
# has one for the bottom.
LAYOUTS = {
    "full_adapter": ((CROSS, CROSS, PLAIN), (8, 12, 12), 2),
    "full_adapter_xl": ((PLAIN, CROSS, CROSS), (8, 12, 16, 16), 4),
    "light_adapter": ((CROSS, CROSS, PLAIN), (8, 12), 2),
}
draw = np.random.default_rng(0)
HINT, X = draw.random((2, 16, 16, 3), np.float32), draw.standard_normal((2, 8, 8, 4), np.float32)
TOKENS = draw.standard_normal((2, 5, 6), np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYOUTS)
def test_an_adapter_and_its_unet(kind, tmp_path):
    blocks, channels, factor = LAYOUTS[kind]
    widths = channels[:3] if len(channels) > 2 else (8, 12, 12)
    adapter = randomize(diffusers.T2IAdapter(3, list(channels), 2, factor, kind))
    model = randomize(
        diffusers.UNet2DConditionModel(
            block_out_channels=widths, down_block_types=blocks, up_block_types=[UP[b] for b in blocks[::-1]],
            layers_per_block=1, norm_num_groups=4, attention_head_dim=2, cross_attention_dim=6,
        )
    )  # fmt: skip
    ours, unet = roundtrip(adapter, tmp_path / "adapter"), roundtrip(model, tmp_path / "unet")
    with torch.no_grad():
        features = adapter(nchw(HINT))
        given = nchw(X), torch.tensor([3, 700]), torch.from_numpy(TOKENS)
        scaled = [0.7 * f for f in features]
        want, plain = (
            nhwc(model(*given, **more).sample) for more in ({"down_intrablock_additional_residuals": scaled}, {})
        )

    @jax.jit
    def steered(params, unet_params, scale):
        made = ours.apply(params, HINT)
        cond = {"tokens": TOKENS, "features": made}
        noise = np.float32([3, 700])
        return made, jd.networks.adapted(unet.apply, scale)(unet_params, X, noise, cond)

    made, got = steered(ours.params, unet.params, np.float32(0.7))
    for a, b in zip(made, features, strict=True):
        close(a, nhwc(b), 2e-5)
    close(got, want, 5e-5)
    close(steered(ours.params, unet.params, np.float32(0))[1], plain, 5e-5)
    assert np.abs(want - plain).max() > 0.1
    jd.interop.save(ours, tmp_path / "ours")
    again = diffusers.T2IAdapter.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in adapter.state_dict().items())
