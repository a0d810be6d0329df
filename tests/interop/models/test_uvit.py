"""The names and shapes of the reference code's U-ViT, as its constructor makes them."""

import jax
import pytest

import jaxdiff as jd
from jaxdiff.interop.formats.keys import places

CONFIG = {"_class_name": "UViT", "name": "uvit_t2i", "img_size": 8, "patch_size": 4, "in_chans": 4, "embed_dim": 16}
CONFIG |= {"depth": 4, "num_heads": 2, "mlp_ratio": 4, "qkv_bias": False, "mlp_time_embed": False}


def keys(**changes):
    built = jd.interop.architecture(CONFIG | changes)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    return {key: place.shape for key, place in places(shapes, built.rename).items()}


def block(name, **more):
    norms = {f"norm{i}.{kind}": (16,) for i in (1, 2) for kind in ("weight", "bias")}
    attention = {"attn.qkv.weight": (48, 16), "attn.proj.weight": (16, 16), "attn.proj.bias": (16,)}
    mlp = {"mlp.fc1.weight": (64, 16), "mlp.fc1.bias": (64,), "mlp.fc2.weight": (16, 64), "mlp.fc2.bias": (16,)}
    return {f"{name}.{key}": shape for key, shape in (norms | attention | mlp | more).items()}


SKIP = {"skip_linear.weight": (16, 32), "skip_linear.bias": (16,)}
WHOLE = {
    "patch_embed.proj.weight": (16, 4, 4, 4),
    "patch_embed.proj.bias": (16,),
    "pos_embed": (1, 5, 16),
    "norm.weight": (16,),
    "norm.bias": (16,),
    "decoder_pred.weight": (64, 16),
    "decoder_pred.bias": (64,),
    "final_layer.weight": (4, 4, 3, 3),
    "final_layer.bias": (4,),
    **block("in_blocks.0"),
    **block("in_blocks.1"),
    **block("mid_block"),
    **block("out_blocks.0", **SKIP),
    **block("out_blocks.1", **SKIP),
}


@pytest.mark.slow
def test_names_and_shapes_of_the_reference():
    assert keys() == WHOLE
    text = keys(clip_dim=6, num_clip_token=7)
    assert text == WHOLE | {"pos_embed": (1, 12, 16), "context_embed.weight": (16, 6), "context_embed.bias": (16,)}
    label = keys(num_classes=11, conv=False)
    final = {"final_layer.weight", "final_layer.bias"}
    more = {"pos_embed": (1, 6, 16), "label_emb.weight": (11, 16)}
    assert label == {k: v for k, v in WHOLE.items() if k not in final} | more


@pytest.mark.parametrize(
    ("field", "value"), [("qkv_bias", True), ("mlp_time_embed", True), ("mlp_ratio", 2.5), ("new", 1)]
)
def test_refuses_what_it_does_not_compute(field, value):
    with pytest.raises(ValueError, match=field):
        keys(**{field: value})
