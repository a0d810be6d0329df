"""Single files without PyTorch: what is recognized, what the file itself says, and what is refused.

The names and numbers of whole models are held against PyTorch in tests/parity/test_single_file.py.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxdiff as jd
from jaxdiff.cli import main
from jaxdiff.interop.models.single_file import read_single
from jaxdiff.interop.sources import find_part, pipeline_of

CROSS = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
VECTOR = "model.diffusion_model.label_emb.0.0.weight"


def tensors(**shapes):
    return {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}


SD1 = tensors(**{CROSS: (1280, 768), "cond_stage_model.transformer.text_model.x": (), "first_stage_model.x": ()})
SD2 = tensors(**{CROSS: (1280, 1024), "cond_stage_model.model.x": ()})
XL = tensors(**{CROSS: (1280, 2048), VECTOR: (1280, 2816), "conditioner.embedders.0.transformer.x": ()})
XL |= tensors(**{"conditioner.embedders.1.model.x": ()})
REFINER = tensors(**{CROSS: (1536, 1280), VECTOR: (1536, 2560), "conditioner.embedders.0.model.x": ()})


@pytest.mark.parametrize(
    ("held", "pipeline", "scheduler", "parts"),
    [
        (SD1, "StableDiffusionPipeline", "PNDMScheduler", {"unet", "vae", "text_encoder"}),
        (SD2, "StableDiffusionPipeline", "DDIMScheduler", {"unet", "text_encoder"}),
        (XL, "StableDiffusionXLPipeline", "EulerDiscreteScheduler", {"unet", "text_encoder", "text_encoder_2"}),
        (REFINER, "StableDiffusionXLImg2ImgPipeline", "EulerDiscreteScheduler", {"unet", "text_encoder_2"}),
    ],
)
def test_families(held, pipeline, scheduler, parts):
    single = read_single(held)
    assert single.fields["_class_name"] == pipeline and single.parts.keys() == parts
    assert single.scheduler["_class_name"] == scheduler and not single.scheduler_overrides
    # Of all these models: the betas' square roots lie on a line, and steps are counted from 1.
    expected = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    assert expected.items() <= single.scheduler.items()
    assert single.fields["force_zeros_for_empty_prompt"] == (pipeline == "StableDiffusionXLPipeline")


class Step(SimpleNamespace):
    def __getitem__(self, index):
        return np.int64(self.number)


def test_what_a_file_says_of_its_prediction():
    assert read_single(SD2).scheduler["prediction_type"] == "v_prediction"
    assert read_single(SD2 | {"global_step": Step(number=110000)}).scheduler["prediction_type"] == "v_prediction"
    base = read_single(SD2 | {"global_step": Step(number=875000)})  # the model of 512 pixels
    assert "prediction_type" not in base.scheduler
    painting = read_single(SD2 | tensors(**{"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}))
    assert "prediction_type" not in painting.scheduler
    overrides = read_single(XL | tensors(v_pred=(), ztsnr=())).scheduler_overrides
    assert overrides == {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def test_refusals(tmp_path):
    for name in "edm_mean", "edm_vpred.sigma_max":
        with pytest.raises(ValueError, match=f"{name} is of another noise schedule"):
            read_single(XL | tensors(**{name: ()}))
    assert read_single(tensors(**{"conv_in.weight": (1,), "model.layer": (2,)})) is None
    with pytest.raises(ValueError, match="a table of classes, such as the 4x upscaler's"):
        read_single(SD1 | tensors(**{"model.diffusion_model.label_emb.weight": (1000, 8)})).parts["unet"].read({})
    with pytest.raises(ValueError, match=r"decoder.mid|encoder.down|conv_in.weight is missing"):
        read_single(SD1).parts["vae"].read({})
    save_file({"conv_in.weight": np.zeros(1, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is no checkpoint of Stable Diffusion or Flux in one file"):
        jd.text_to_image.load(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="has no part 'unet'"):
        jd.interop.load(tmp_path / "x.safetensors" / "unet")
    (tmp_path / "v1-5-pruned.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"v1-5-pruned.ckpt is pickled.*save_file"):
        jd.interop.load(tmp_path / "v1-5-pruned.ckpt")


def test_where_parts_lie(tmp_path, capsys):
    file, folder = tmp_path / "sd.safetensors", tmp_path / "sd"
    held = {CROSS: np.zeros((2, 768), np.float32), "first_stage_model.x": np.zeros(1, np.float32)}
    save_file(held, file)
    assert find_part(file, "transformer", "unet") == file / "unet" and find_part(file, "text_encoder") == file
    assert pipeline_of(file / "unet") == file
    (folder / "vae").mkdir(parents=True)
    (folder / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    save_file({"a": np.zeros(1, np.float32)}, folder / "vae" / "x.safetensors")
    assert find_part(folder, "unet", "vae") == folder / "vae" and find_part(folder, "unet") == folder
    assert pipeline_of(folder / "vae") == pipeline_of(folder / "vae" / "x.safetensors") == folder

    with pytest.raises(SystemExit):
        main(["sample", str(file), "--prompt", "a cat", "--out", str(tmp_path / "x.png")])
    assert "holds unet, vae, and lacks text_encoder, tokenizer: give a base" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sample", str(tmp_path / "other.safetensors"), "--prompt", "a cat", "--out", str(tmp_path / "x.png")])
    assert "other.safetensors does not exist" in capsys.readouterr().err
