"""A ControlNet trained here beside diffusers' U-Net, by the command line, is one that diffusers loads."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from parity.checkpoints import nchw, nhwc, randomize  # noqa: E402

from jaxdiff.cli import main  # noqa: E402
from jaxdiff.networks.controlnet import controlled  # noqa: E402

FILE = Path(__file__).parents[2] / "experiments" / "finetune.py"


@pytest.mark.slow
def test_a_trained_controlnet_is_diffusers_own(tmp_path):
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=6,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    )
    randomize(unet).save_pretrained(tmp_path / "unet")
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(11, 3, 6)).astype(np.float32)
    np.savez(tmp_path / "cond.npz", tokens=tokens)
    run = tmp_path / "run"
    knobs = {"directory": tmp_path / "unet", "cond": tmp_path / "cond.npz", "workdir": run, "mode": "control"}
    knobs |= {"steps": 3, "batch": 8, "lr": 0.05, "sample-steps": 2, "mesh": "data=8", "preview-every": 0}
    main(["train", str(FILE), *(str(part) for name, value in knobs.items() for part in (f"--{name}", value))])
    main(["sample", str(run), "--num", "3", "--label", "4", "--steps", "3", "--out", str(tmp_path / "x.npz")])
    assert np.load(tmp_path / "x.npz")["label"].tolist() == [4, 4, 4]

    main(["convert", str(run), "--out", str(tmp_path / "out"), "--params", "params"])
    theirs = diffusers.ControlNetModel.from_pretrained(tmp_path / "out")
    x, hint = rng.normal(size=(2, 8, 8, 1)).astype(np.float32), rng.random((2, 8, 8, 3), np.float32)
    given = (torch.tensor([3.0, 500.0]), torch.from_numpy(tokens[:2]))
    residuals = theirs(nchw(x), *given, controlnet_cond=nchw(hint), return_dict=False)
    want = unet(
        nchw(x), *given, down_block_additional_residuals=residuals[0], mid_block_additional_residual=residuals[1]
    ).sample
    control, plain = jd.interop.load(tmp_path / "out"), jd.interop.load(tmp_path / "unet")
    got = jax.jit(controlled(control.apply, plain.apply))(
        {"controlnet": control.params, "unet": plain.params},
        jnp.asarray(x),
        jnp.array([3.0, 500.0]),
        {"tokens": jnp.asarray(tokens[:2]), "hint": jnp.asarray(hint)},
    )
    np.testing.assert_allclose(got, nhwc(want), atol=5e-5)
    assert np.abs(nhwc(want) - nhwc(unet(nchw(x), *given).sample)).max() > 1e-2
