"""Every Python block of the pages runs as it stands there; docs/glossary.md fits a screen."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_pipeline as tiny

import jaxdiff as jd
from jaxdiff import networks, train

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
BLOCKS = {
    page: re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)
    for page in (TESTS.parent / "README.md", *sorted(DOCS.glob("*.md")))
}
# The pages with blocks that tests other than those below run.
ELSEWHERE = {
    "README.md": "test_readme.py",
    "experiment.md": "test_experiment_page.py",  # its files; its other block below
    "export.md": "cli/test_export.py",
    "imagine.md": "cli/test_imagine.py",
    "train.md": "train/test_page.py",
}
# The blocks that need what no test has without PyTorch.
PARITY = {"checkpoints.md": ("sd_xl_base_1.0.safetensors", "parity/test_single_file.py")}
FLOW = jd.processes.Flow()


def run(page, scope=None, *, blocks=slice(None)):
    """Execute blocks of a page in the names that it takes for granted, and return these and its own."""
    scope = {"__name__": "page"} | (scope or {})
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as a reader has them
        for block in BLOCKS[DOCS / page][blocks]:
            exec(block, scope)
    return scope


def test_no_page_is_left_out():
    here = set(re.findall(r'\brun\("(\w+\.md)"', Path(__file__).read_text()))
    with_blocks = {page.name for page, blocks in BLOCKS.items() if blocks}
    assert with_blocks == here | ELSEWHERE.keys()
    for name, test in ELSEWHERE.items():
        assert name in (TESTS / test).read_text()
    for name, (words, test) in PARITY.items():
        assert words in BLOCKS[DOCS / name][-1] and name in (TESTS / test).read_text()
    for page, blocks in BLOCKS.items():  # nothing that looks like a block escapes the expression above
        assert len(re.findall(r"(?:```|~~~) *py", page.read_text())) == len(blocks), page


@pytest.mark.slow
def test_parts_of_ones_own():
    scope = run("extend.md")
    process, t = scope["process"], jnp.array([0.1, 0.5, 0.9])
    level = process(t)
    np.testing.assert_allclose(process.time(level.lam), t, rtol=1e-5)
    np.testing.assert_allclose(level.alpha + level.sigma, 1, rtol=1e-6)
    f, g = process.sde(t)  # f = alpha'/alpha, g^2 = (sigma^2)' - 2 f sigma^2, for sigma = t^2
    np.testing.assert_allclose(f, -2 * t / (1 - t**2), rtol=1e-5)
    np.testing.assert_allclose(g**2, 4 * t**3 + 4 * t**5 / (1 - t**2), rtol=1e-4)


@pytest.mark.slow
def test_likelihood():
    scope = run("likelihood.md")
    x, exact = scope["x"], scope["exact"]
    level = scope["levels"].at(-1)
    std = np.hypot(0.5 * level.alpha, level.sigma)  # of the data at the last level
    log_prob = -0.5 * np.sum((x / std) ** 2, axis=1) - 2 * np.log(std * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(exact.log_prob, log_prob, atol=2e-3)
    np.testing.assert_allclose(scope["bits"].shape, (4,))
    assert jd.likelihood.bits_per_dim(exact.log_prob, 2, bins=None).shape == (256,)


def test_the_glossary_fits_a_screen():
    lines = (DOCS / "glossary.md").read_text().splitlines()
    assert len(lines) <= 25 and all(line.count("|") == 3 for line in lines[4:] if line.startswith("|"))


@pytest.mark.slow
def test_a_few_step_model_in_ones_own_training():
    scope = run("few_steps.md")
    assert int(scope["state"].step) == 1 and int(scope["metrics"]["skipped"]) == 0
    assert scope["x"].shape == (8, 2) and bool(np.isfinite(scope["x"]).all())


@pytest.mark.slow
def test_inverse_problems():
    scope = run("inverse.md")
    x, y, known = (np.asarray(scope[name]) for name in ("x", "y", "known"))
    assert x.shape == (4, 8, 8, 1)
    # The data is N(0, I): known pixels are y / (1 + 0.05^2) with a standard deviation of 0.05, the others new.
    away = (x - y)[np.broadcast_to(known > 0, x.shape)]
    assert abs(away.std() - 0.05) < 0.015 and 0.7 < x[np.broadcast_to(known == 0, x.shape)].std() < 1.3


def linear(params, x, noise, cond):
    """A network of two weights."""
    return params["w"] * x + params["b"] * noise[:, None]


WEIGHTS = {"w": jnp.float32(0.3), "b": jnp.float32(0.1)}


@pytest.mark.slow
def test_rewards_and_preferences():
    given = {
        "apply": linear, "params": WEIGHTS, "prediction": jd.parameterize.velocity, "process": FLOW,
        "levels": jd.grids.by_time(FLOW, 4), "reward": lambda x, cond: x.sum(axis=1), "optimizer": train.adamw(1e-3),
        "ema": train.ema.constant(0.9), "key": jax.random.key(0),
    }  # fmt: skip
    x = np.random.default_rng(0).normal(size=(2, 4, 2)).astype(np.float32)
    mesh = train.make_mesh(devices=jax.devices()[:1])
    found = []
    for batch, blocks in ({"x": x[0]}, slice(0, 1)), ({"x": x[0], "rejected": x[1]}, slice(0, 2)):
        scope = run("alignment.md", given, blocks=blocks)
        state = train.init_state(lambda key: WEIGHTS, given["optimizer"], given["key"], mesh, ema=given["ema"])
        found.append(scope["step"](state, batch)[1])
    assert {"reward", "kl"} <= found[0].keys() and found[0]["kl"] == 0
    np.testing.assert_allclose(found[1]["loss"], np.log(2), atol=1e-4)  # the network is its reference


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Other projects' directories in miniature, by the names that the pages have for them."""
    top = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "VISION", tiny.VISION | {"image_size": 224, "patch_size": 112})
        tiny.write_ip_adapter(top / "models").rename(top / "models" / "ip-adapter_sd15.safetensors")
        tiny.write_adapter(top / "t2iadapter_sketch_sd15v2")
        patch.setattr(tiny, "ADAPTER", tiny.ADAPTER | {"in_channels": 3})
        tiny.write_adapter(top / "t2iadapter_depth_sd15v2")
    same = {
        tiny.write(top / "stable-diffusion-v1-5"): top / "stable-diffusion-xl-base-1.0",
        tiny.write_control(top / "sd-controlnet-depth"): top / "sd-controlnet-canny",
    }
    for directory, link in same.items():
        link.symlink_to(directory)
    return top


# What is traced, not compiled, below has tests of its own for what it computes.


@pytest.mark.slow
def test_other_projects_checkpoints(directories, monkeypatch):
    monkeypatch.chdir(directories)
    given = {"x": jnp.ones((1, 4, 4, 4)), "noise": jnp.ones(1), "tokens": jnp.ones((1, 8, 8))}
    scope = run("checkpoints.md", given, blocks=slice(0, 2))
    again = jd.interop.load("out")
    jax.tree.map(np.testing.assert_array_equal, again.params, scope["unet"].params)
    assert scope["F"].shape == (1, 4, 4, 4) and scope["levels"].t.shape == (31,)
    images = jax.eval_shape(lambda: run("checkpoints.md", scope, blocks=slice(2, 3))["images"])
    assert images.shape == (4, 8, 8, 3)


@pytest.mark.slow
def test_control(directories, monkeypatch):
    monkeypatch.chdir(directories)
    image = jax.random.uniform(jax.random.key(0), (1, 8, 8, 3))
    given = {
        "x": jnp.ones((1, 4, 4, 4)), "noise": jnp.ones(1), "tokens": jnp.ones((1, 8, 8)), "key": jax.random.key(1),
        "hint": image, "other": image, "photo": image, "picture": image, "distance": image[..., 0],
        "sketch": image[..., :1],
    }  # fmt: skip

    def outputs():
        scope = run("control.md", given)
        guided = scope["network"](scope["ip"].unet.params, given["x"], given["noise"], scope["cond"])
        return scope["F"], guided, scope["images"]

    assert [a.shape for a in jax.eval_shape(outputs)] == [(1, 4, 4, 4), (1, 4, 4, 4), (1, 8, 8, 3)]


@pytest.mark.slow
def test_fewer_evaluations_one_after_the_other():
    levels, keys = jd.grids.by_time(FLOW, 50, start=0.9), jax.random.split(jax.random.key(0), 2)
    x = np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32)
    scope = {
        "apply": linear, "params": WEIGHTS, "prediction": jd.parameterize.velocity, "levels": levels, "keys": keys,
        "denoise": jd.denoiser(linear, WEIGHTS, jd.parameterize.velocity), "one_cond": {"label": jnp.zeros(())},
    }  # fmt: skip
    want = jd.sample(scope["denoise"], jd.solvers.ddim(), levels, jnp.asarray(x), keys)
    found = run("parallel.md", scope | {"x": jnp.asarray(x)}, blocks=slice(0, 1))
    np.testing.assert_allclose(found["x"], want, atol=1e-3)
    found = run("parallel.md", scope | {"jax": jax, "jd": jd, "x": jnp.asarray(x)}, blocks=slice(1, 2))
    for _ in range(49):
        found["state"], done = found["push"](found["state"], x[0], keys[0], found["one_cond"])
    np.testing.assert_allclose(done, want[1], atol=1e-5)  # of 50 calls, the first took it in
    small = networks.UNet(widths=(8, 8, 8), num_blocks=1, num_classes=2, head_dim=8, groups=4)
    pictures, cond, null = jnp.ones((2, 8, 8, 1)), {"label": jnp.array([0, 1])}, {"label": jnp.array([2, 2])}
    given = {
        "jd": jd, "networks": networks, "unet": small, "prediction": jd.parameterize.velocity, "keys": keys,
        "cond": cond, "null": null, "levels": jd.grids.by_time(FLOW, 6), "x": pictures,
    }  # fmt: skip

    def drawn():
        params = networks.init(small, keys[0], pictures, cond)
        return run("parallel.md", given | {"params": params}, blocks=slice(2, None))["x"]

    assert jax.eval_shape(drawn).shape == pictures.shape


def test_solvers_a_lower_order_at_the_end():
    x = jnp.ones((2, 2))
    given = {"jd": jd, "process": FLOW, "x": x, "key": jax.random.key(0), "denoise": lambda x, level: 0.5 * x}
    scope = run("solvers.md", given)
    assert scope["ab2"]().order == 2 and scope["x"].shape == (2, 2)


@pytest.mark.slow
def test_prompts_of_an_experiment():
    given = {
        "captions": ["a red square", "a blue circle"] * 10, "held_out": ["a blue square"],
        "process": FLOW, "shape": (8, 8, 3), "prediction": jd.parameterize.time_scaled(jd.parameterize.velocity),
    }  # fmt: skip
    (block,) = [i for i, text in enumerate(BLOCKS[DOCS / "experiment.md"]) if "of_captions" in text]
    scope = run("experiment.md", given, blocks=slice(block, block + 1))
    batch = {"x": jnp.zeros((2, 8, 8, 3)), **scope["encoder"].tokenize(given["captions"][:2])}
    params = jax.eval_shape(scope["model"].init, jax.random.key(0))
    assert jax.eval_shape(scope["loss"], params, jax.random.key(0), batch)[0].shape == ()
    assert params.keys() == {"text", "network"} and scope["medium"].shape == (8, 8, 3)
