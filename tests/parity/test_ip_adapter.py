"""IP-Adapters: diffusers' answers with the same file, by the numbers that it gives the attentions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
safetensors = pytest.importorskip("safetensors.torch")

from parity.checkpoints import close, nchw, nhwc, randomize, roundtrip  # noqa: E402

import jaxdiff as jd  # noqa: E402

WIDTHS, TEXT, EMBEDDING = (8, 12), 6, 5
draw = np.random.default_rng(0)
X, TOKENS = draw.standard_normal((2, 8, 8, 4), np.float32), draw.standard_normal((2, 5, TEXT), np.float32)
EMBEDDED, NOISE = draw.standard_normal((2, EMBEDDING), np.float32), np.float32([3, 700])


def unet():
    return randomize(
        diffusers.UNet2DConditionModel(
            block_out_channels=WIDTHS, down_block_types=("CrossAttnDownBlock2D",) * 2, layers_per_block=1,
            up_block_types=("CrossAttnUpBlock2D",) * 2, norm_num_groups=4, attention_head_dim=2,
            cross_attention_dim=TEXT, transformer_layers_per_block=(1, 2),
        )
    )  # fmt: skip


def adapter(model):
    """Random weights by the file's names: attentions have odd numbers, in the order of diffusers' processors."""
    generator = torch.Generator().manual_seed(1)
    normal = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    projection = {"proj.weight": normal(4 * TEXT, EMBEDDING), "proj.bias": normal(4 * TEXT)}
    projection |= {"norm.weight": 1 + normal(TEXT), "norm.bias": normal(TEXT)}
    widths = [model.get_submodule(name.removesuffix(".processor")).to_q.out_features for name in model.attn_processors]
    own = {
        f"{i}.to_{to}_ip.weight": normal(width, TEXT) for i, width in enumerate(widths) if i % 2 for to in ("k", "v")
    }
    return {"image_proj": projection, "ip_adapter": own}


@pytest.mark.slow
def test_an_image_prompt(tmp_path):
    model = unet()
    plain, weights = roundtrip(model, tmp_path / "unet"), adapter(model)
    file = tmp_path / "ip-adapter.safetensors"
    safetensors.save_file({f"{part}.{k}": v for part, kept in weights.items() for k, v in kept.items()}, file)
    loaded = jd.interop.load_ip_adapter(file, plain)

    @jax.jit
    def ours(params, scale):
        prompt = loaded.projection.apply(loaded.projection.params, EMBEDDED)
        network = jd.networks.image_prompted(loaded.unet.apply, scale)
        return network(params, X, NOISE, {"tokens": TOKENS, "image_prompt": prompt})

    given = nchw(X), torch.from_numpy(NOISE).int(), torch.from_numpy(TOKENS)
    with torch.no_grad():
        without = nhwc(model(*given).sample)
        model._load_ip_adapter_weights([weights], low_cpu_mem_usage=False)
        wanted = {}
        for scale in (0.7, 0.2):
            for processor in model.attn_processors.values():
                if hasattr(processor, "scale"):
                    processor.scale = [scale]
            embeds = {"image_embeds": [torch.from_numpy(EMBEDDED)[:, None]]}
            wanted[scale] = nhwc(model(*given, added_cond_kwargs=embeds).sample)
    for scale, want in wanted.items():
        close(ours(loaded.unet.params, np.float32(scale)), want, 5e-5)
        assert np.abs(want - without).max() > 0.05
    each = ours(loaded.unet.params, np.float32([0.7, 0.2]))
    close(each[0], wanted[0.7][0], 5e-5)
    close(each[1], wanted[0.2][1], 5e-5)
    # Off bit for bit: no weight of the adapter matters, and no other program either.
    off = ours(loaded.unet.params, np.float32(0))
    spoiled = jax.tree_util.tree_map_with_path(lambda p, a: a + 1 if "processor" in str(p) else a, loaded.unet.params)
    np.testing.assert_array_equal(ours(spoiled, np.float32(0)), off)
    close(off, without, 5e-5)
    np.testing.assert_allclose(off, jax.jit(plain.apply)(plain.params, X, NOISE, {"tokens": TOKENS}), atol=2e-6)
    late = jax.jit(jd.networks.image_prompted(loaded.unet.apply, lambda noise: jnp.where(noise < 100, 0.7, 0.0)))
    prompt = loaded.projection.apply(loaded.projection.params, EMBEDDED)
    got = late(loaded.unet.params, X, NOISE, {"tokens": TOKENS, "image_prompt": prompt})
    close(got, np.stack([wanted[0.7][0], without[1]]), 5e-5)
