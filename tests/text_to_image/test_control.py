"""What steers a pipeline: off at 0 bit for bit, each at its own scale; parity is in tests/parity."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_pipeline as tiny

import jaxdiff as jd


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pipeline, and two ControlNets for it."""
    top = tmp_path_factory.mktemp("controlled")
    return tiny.write(top / "model"), [tiny.write_control(top / f"control-{seed}", seed) for seed in (7, 8)]


@pytest.mark.slow
def test_scales_are_traced_turn_each_control_off_and_keep_a_picture_its_own(folders):
    directory, controls = folders
    pipe = jd.text_to_image.load(directory, steps=2, controls=controls)
    assert sorted(pipe.params) == ["controlnet", "controlnet_1", "text_encoder", "unet", "vae"]
    keys = jax.random.split(jax.random.key(0), 2)
    hints = [jax.random.uniform(jax.random.key(i), (2, 8, 8, 3)) for i in range(2)]

    @jax.jit
    def generate(scales, params, hints, keys):
        given = pipe.tokenize(["a", "b"]), keys, 3.0
        return pipe.generate(params, *given, negative=pipe.tokenize(["", ""]), hints=hints, control_scale=scales)

    def by(*scales, params=pipe.params, hints=hints, keys=keys):
        return np.asarray(generate([jnp.float32(s) for s in scales], params, hints, keys))

    off, first, both = by(0, 0), by(1, 0), by(1, 1)
    compiled = generate._cache_size()
    # At a scale of 0 no weight of a control matters.
    others = {**pipe.params, "controlnet": jax.tree.map(lambda a: 3 * a + 1, pipe.params["controlnet"])}
    np.testing.assert_array_equal(by(0, 0, params=others), off)
    np.testing.assert_array_equal(by(1, 0, hints=[hints[0], hints[0]]), first)
    swapped = {**pipe.params, "controlnet": pipe.params["controlnet_1"], "controlnet_1": pipe.params["controlnet"]}
    np.testing.assert_allclose(by(1, 1, params=swapped, hints=hints[::-1]), both, atol=1e-5)
    assert np.abs(first - off).max() > 1e-3 and np.abs(both - first).max() > 1e-3
    changed = by(1, 1, hints=[h.at[1].set(0.5) for h in hints])
    np.testing.assert_array_equal(changed[0], both[0])
    assert np.abs(changed[1] - both[1]).max() > 1e-4 and generate._cache_size() == compiled


@pytest.mark.slow
def test_mistakes(folders, tmp_path, monkeypatch):
    directory, controls = folders
    pipe = jd.text_to_image.load(directory, steps=2, controls=controls[:1])
    hint = jnp.zeros((1, 8, 8, 3))
    for options, words in (
        ({}, "of 1 controls takes as many hints, got 0"),
        ({"hints": [hint[:, :4]]}, r"of shape \(1, 8, 8, 3\), got float32, \(1, 4, 8, 3\)"),
        ({"hints": [hint.astype(jnp.uint8)]}, "floats in"),
        ({"hints": [hint], "control_scale": [1.0, 1.0]}, "take one scale, or as many, got 2"),
    ):
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(lambda o=options: pipe.generate(pipe.params, pipe.tokenize(["a"]), jax.random.key(0), **o))
    monkeypatch.setattr("jaxdiff.text_to_image.pipeline.load_model", None)  # all is found before the weights are read
    config = json.loads((controls[0] / "config.json").read_text())
    for changes, words in (
        ({"cross_attention_dim": 6}, "its cross_attention_dim is 6, and the U-Net's is 8"),
        ({"conditioning_embedding_out_channels": [4, 6, 8]}, "hints 4 times the size"),
        (tiny.ADAPTER | {"channels": [16]}, r"its features have \[16\] channels, and the U-Net's \[8\]"),
        (tiny.ADAPTER | {"downscale_factor": 8}, "hints 8 times the size of its features"),
        (tiny.VAE, "must be a ControlNetModel or a T2IAdapter, or an IP-Adapter's file, got AutoencoderKL"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(changes if "_class_name" in changes else config | changes))
        with pytest.raises(ValueError, match=words):
            jd.text_to_image.load(directory, controls=[tmp_path])
    with pytest.raises(ValueError, match="controls are for a UNet2DConditionModel, got FluxTransformer2DModel"):
        jd.text_to_image.load(tiny.write_flux(tmp_path / "flux"), controls=controls)


@pytest.mark.slow
def test_adapters_add_up_with_a_control(folders, tmp_path):
    directory, controls = folders
    adapters = [tiny.write_adapter(tmp_path / f"adapter-{seed}", seed) for seed in (11, 12)]
    pipe = jd.text_to_image.load(directory, steps=2, controls=[adapters[0], controls[0], adapters[1]])
    assert sorted(pipe.params)[:3] == ["adapter", "adapter_1", "controlnet"]
    assert pipe.hint_shapes == ((8, 8, 1), (8, 8, 3), (8, 8, 1))
    hints = [jax.random.uniform(jax.random.key(i), (1, *shape)) for i, shape in enumerate(pipe.hint_shapes)]

    @jax.jit
    def generate(params, scales, hints):
        return pipe.generate(
            params, pipe.tokenize(["a"]), jax.random.key(0), 3.0, negative=pipe.tokenize([""]), hints=hints,
            control_scale=[*scales],
        )  # fmt: skip

    def by(*scales, params=pipe.params, hints=hints):
        return np.asarray(generate(params, jnp.float32(scales), hints))

    swapped = {**pipe.params, "adapter": pipe.params["adapter_1"], "adapter_1": pipe.params["adapter"]}
    np.testing.assert_allclose(by(1, 1, 0.3, params=swapped, hints=hints[::-1]), by(0.3, 1, 1), atol=1e-5)
    off = by(0, 0, 0)
    spoiled = {
        name: jax.tree.map(lambda a: 2 * a + 1, p) if name[:7] == "adapter" else p for name, p in pipe.params.items()
    }
    np.testing.assert_array_equal(by(0, 0, 0, params=spoiled), off)
    pictures = [by(*scales) for scales in ((1, 0, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 0, 0))]
    assert min(np.abs(a - b).max() for i, a in enumerate(pictures) for b in pictures[:i]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("patches", [False, True])
def test_an_image_prompt_is_off_at_0_and_goes_with_a_control(folders, tmp_path, patches):
    directory, controls = folders
    adapter = tiny.write_ip_adapter(tmp_path / "ip", patches=patches)
    pipe = jd.text_to_image.load(directory, steps=2, controls=[controls[0], adapter])
    assert pipe.hint_shapes == ((8, 8, 3), None)
    hint, picture = (
        jax.random.uniform(jax.random.key(1), (1, 8, 8, 3)),
        jax.random.uniform(jax.random.key(2), (1, 9, 8, 3)),
    )

    @jax.jit
    def generate(params, scales, picture):
        late = lambda level: jnp.where(level.t < 400, scales[2], scales[1])  # noqa: E731
        return pipe.generate(
            params, pipe.tokenize(["a"]), jax.random.key(0), 3.0, negative=pipe.tokenize([""]), hints=[hint, picture],
            control_scale=[scales[0], late],
        )  # fmt: skip

    def by(*scales, params=pipe.params, picture=picture):
        return np.asarray(generate(params, jnp.float32(scales), picture))

    off = by(0, 0, 0)
    spoiled = {**pipe.params, "ip_adapter": jax.tree.map(lambda a: 2 * a + 1, pipe.params["ip_adapter"])}
    np.testing.assert_array_equal(by(0, 0, 0, params=spoiled), off)
    shown, both, first = by(0, 1, 1), by(1, 1, 1), by(0, 1, 0)
    for a, b in ((shown, off), (both, shown), (first, shown), (first, off), (by(0, 1, 1, picture=1 - picture), shown)):
        assert np.abs(a - b).max() > 1e-5
    # The pictures of the parts, which a sampler draws, are those without controls.
    plain = jd.text_to_image.load(directory, steps=2)
    x, noise = jax.random.normal(jax.random.key(3), (1, 4, 4, 4)), jnp.full(1, 7.0)
    cond = {"tokens": jnp.ones((1, 3, 8))}
    np.testing.assert_array_equal(*(p.model.apply(p.params, x, noise, cond) for p in (pipe, plain)))


@pytest.mark.slow
def test_ip_adapters_that_do_not_fit(folders, tmp_path, monkeypatch):
    directory, _ = folders
    monkeypatch.setattr("jaxdiff.text_to_image.pipeline.load_model", None)
    adapter = tiny.write_ip_adapter(tmp_path / "ip")
    other = tiny.write_ip_adapter(tmp_path / "other", features=5)
    with pytest.raises(
        ValueError, match=r"image encoder with 5 features of a picture, in one of the folders .*other/im"
    ):
        jd.text_to_image.load(directory, controls=[other])
    with pytest.raises(ValueError, match="an IP-Adapter is for a UNet2DConditionModel"):
        jd.text_to_image.load(tiny.write_flux(tmp_path / "flux"), controls=[adapter])
