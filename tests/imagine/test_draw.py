"""Pictures of histories: against the formula in numpy, again bit for bit, and by one program."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_classes as tiny
from helpers import tiny_pictures

from jaxdiff import imagine
from jaxdiff.cli.errors import sentence
from jaxdiff.experiment import UserError
from jaxdiff.sampler import sampler
from jaxdiff.seeds import example_keys


@pytest.fixture(scope="module")
def generator():
    made = tiny.experiment()
    return imagine.of_experiment(made, made.model.init(None))


@pytest.fixture(scope="module")
def history(generator):
    """Four begun, four variations of the second with half of the steps, two of the sixth with another prompt."""
    begun = imagine.begin(generator.history, "Bag", seed=3)
    return imagine.remix(
        imagine.vary(begun, 2, strength=0.5), 6, "Sneaker", strength=0.3, num=2, seed=2**40, guidance=2
    )


@pytest.fixture(scope="module")
def drawn(generator, history):
    return imagine.draw(generator, history, range(1, 11))


@pytest.mark.slow
def test_pictures_are_those_of_the_formula(drawn):
    """Each from the noise of its own number and seed, its parent's x0 and the level of its strength."""
    second = tiny.by_hand(2, tiny.noise(3, 2))
    sixth = tiny.by_hand(2, tiny.noise(0, 6), second, 0.5)
    tenth = tiny.by_hand(0, tiny.noise(2**40, 10), sixth, 0.3, guidance=2)
    for n, want in ((2, second), (6, sixth), (10, tenth)):
        np.testing.assert_allclose(drawn[n].x0, want, atol=1e-5)
        np.testing.assert_array_equal(drawn[n].x0, drawn[n].picture)  # of a medium that decodes nothing
    apart = [np.abs(drawn[n].x0 - drawn[m].x0).max() for n in drawn for m in drawn if n < m]
    assert min(apart) > 0.05  # no two pictures are alike


def test_a_picture_is_made_again_bit_for_bit(generator, history, drawn):
    """From its history alone, whatever is drawn with it, and by a generator that is made anew."""
    made = tiny.experiment()
    other = imagine.of_experiment(made, made.model.init(None))
    for who, numbers in ((generator, [10]), (generator, [7, 2]), (other, [6, 10])):
        for n, each in imagine.draw(who, history, numbers).items():
            np.testing.assert_array_equal(each.x0, drawn[n].x0)
    fewer = imagine.begin(generator.history, "Bag", seed=3, num=2)
    np.testing.assert_array_equal(imagine.draw(generator, fewer, [2])[2].x0, drawn[2].x0)
    signed = imagine.sign(history, drawn)
    assert signed.picture(7).x0 == imagine.fingerprint(drawn[7].x0) != signed.picture(8).x0
    # What is known is not drawn for others.
    moved = imagine.draw(generator, history, [6], known={2: np.zeros(tiny.SHAPE, np.float32)})[6].x0
    np.testing.assert_allclose(moved, tiny.by_hand(2, tiny.noise(0, 6), np.zeros(tiny.SHAPE), 0.5), atol=1e-5)


def test_strength_moves_a_picture_from_its_parent_to_a_new_one(generator, drawn):
    strengths = (0.01, 0.25, 0.5, 1.0)
    history = imagine.begin(generator.history, "Bag", seed=3)
    for strength in strengths:
        history = imagine.vary(history, 2, strength=strength, num=8, seed=1)
    variations = imagine.draw(generator, history, range(5, 37), known={2: drawn[2].x0})
    x0 = np.stack([variations[n].x0 for n in range(5, 37)]).reshape(4, 8, -1)
    distances = np.sqrt(np.mean((x0 - drawn[2].x0.reshape(-1)) ** 2, axis=(1, 2)))
    assert (np.diff(distances) > 0.005).all() and 0.02 < distances[0] < 0.15, distances
    # A strength of 1 keeps nothing of the parent.
    np.testing.assert_allclose(variations[36].x0, tiny.by_hand(2, tiny.noise(1, 36)), atol=1e-5)


@pytest.mark.slow
def test_the_first_pictures_are_those_of_sample(generator, drawn):
    made = tiny.experiment()
    generate = sampler(made.model, made.sampling, made.condition, made.medium)
    cond = {"label": jnp.full(4, 2, jnp.int32)}
    x = generate(made.model.init(None), example_keys(3, 4), cond, jnp.float32(tiny.GUIDANCE))
    np.testing.assert_allclose(x, [drawn[n].x0 for n in range(1, 5)], atol=1e-6)


def test_one_program_draws_whatever_is_asked_for(generator, history, drawn):
    compiled = generator.sampler(1, True)._cache_size()
    assert compiled == 1
    more = imagine.remix(imagine.begin(history, "Ankle boot", guidance=4.5), 3, "Sneaker", strength=0.9)
    imagine.draw(generator, more, [3, 12, 15, 18])
    assert generator.sampler(1, True)._cache_size() == compiled


def test_a_network_whose_guidance_is_distilled_is_given_it():
    """Its condition has the scale as an entry, which replaces guidance by a null condition."""
    made = tiny.experiment(guidance=1.0)
    labels = made.condition

    def apply(params, x, noise, cond):
        return tiny.denoised(x, cond["guidance"][:, None, None, None] / 10, noise[:, None, None, None])

    condition = replace(
        labels,
        choose=lambda index: labels.choose(index) | {"guidance": np.full(len(index), 3.5, np.float32)},
        parse=lambda words: labels.parse(words) | {"guidance": np.full(1, 3.5, np.float32)},
        null=None,
    )
    made = replace(made, model=replace(made.model, apply=apply), condition=condition)
    generator = imagine.of_experiment(made, made.model.init(None))
    assert generator.history.guidance == 3.5
    history = imagine.begin(imagine.begin(generator.history, "Sneaker", num=1), "Sneaker", num=1, guidance=-2)
    first, second = (each.x0.mean() for each in imagine.draw(generator, history, [1, 2]).values())
    assert abs(first - 0.35) < 0.2 < 0.3 < first - second


def test_a_history_of_another_model_is_refused(generator, history):
    made = tiny.experiment(times=1.001)
    other = imagine.of_experiment(made, made.model.init(None))
    with pytest.raises(ValueError, match=f"{history.weights}, and that of these is {other.history.weights}"):
        imagine.draw(other, history, [1])
    for name, value in (("steps", 9), ("solver", "heun"), ("size", (6, 6))):
        with pytest.raises(ValueError, match=f"begun with {name} {value}".replace("(", r"\(").replace(")", r"\)")):
            imagine.draw(generator, history._replace(**{name: value}), [1])
    with pytest.raises(ValueError, match="there is no picture 11"):
        imagine.draw(generator, history, [11])
    with pytest.raises(ValueError, match="label must be in") as error:
        imagine.draw(generator, imagine.begin(history, "Bags"), [11])
    assert sentence(error.value).endswith("got 'Bags'")
    alone = replace(made, sampling=replace(made.sampling, guidance=1), condition=replace(made.condition, null=None))
    unguided = imagine.of_experiment(alone, made.model.init(None))
    with pytest.raises(ValueError, match="--guidance 1"):
        imagine.draw(unguided, imagine.begin(unguided.history, "Sneaker", guidance=2), [1])


@pytest.mark.slow
def test_a_picture_that_grows_begins_with_what_it_was():
    """Enlarged, encoded and noised, it is denoised by the run's own network on the larger grid."""
    made = tiny.experiment()
    pixels = replace(made.medium, decode=lambda params, x: x - 0.5, encode=lambda params, x: x + 0.5)
    made = replace(made, medium=pixels)
    growing, other = (imagine.of_experiment(made, made.model.init(None)) for _ in range(2))
    history = imagine.upscale(imagine.begin(growing.history, "Bag", num=1), 1, strength=0.1)
    history = imagine.upscale(imagine.remix(history, 2, "Sneaker", num=1), 2)
    pictures = imagine.draw(growing, history, [1, 2, 3, 4])
    larger = jnp.clip(jax.image.resize(pictures[1].picture, (12, 12, 1), "bicubic"), -1, 1)
    np.testing.assert_allclose(growing.enlarge(2)(jnp.asarray(pictures[1].x0[None]))[0], larger + 0.5, atol=1e-6)
    want = tiny.by_hand(2, tiny.noise(0, 2, (12, 12, 1)), np.asarray(larger) + 0.5, 0.1)
    np.testing.assert_allclose(pictures[2].x0, want, atol=1e-5)
    np.testing.assert_allclose(pictures[2].picture, want - 0.5, atol=1e-5)
    remixed = tiny.by_hand(0, tiny.noise(0, 3, (12, 12, 1)), pictures[2].x0, 0.6)
    np.testing.assert_allclose(pictures[3].x0, remixed, atol=1e-5)
    assert pictures[4].picture.shape == (24, 24, 1)
    again = imagine.draw(other, history, [4])[4]  # by its history alone
    np.testing.assert_array_equal(again.picture, pictures[4].picture)


def test_what_does_not_grow_is_refused_before_anything_is_drawn(monkeypatch):
    """A network of one size, and what is no picture."""
    dense, plain = tiny_pictures.experiment(), tiny.experiment()
    plain = replace(plain, medium=replace(plain.medium, encode=None))
    for experiment, words in (
        (dense, "the network of this run does not draw pictures of 16 x 16, as convolutional ones do: .*(256, 16)"),
        (plain, "what grows is a picture, and this run makes other data, of shape [6, 6, 1]"),
    ):
        one = imagine.of_experiment(experiment, experiment.model.init(jax.random.key(0)))
        monkeypatch.setattr(one, "sampler", None)
        with pytest.raises(UserError, match=re.escape(words).replace(r"\.\*", ".*")):
            imagine.draw(one, imagine.upscale(imagine.begin(one.history, "1", num=1), 1), [2])


def test_fingerprints_are_of_names_types_shapes_and_bits():
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones((), jnp.bfloat16)}
    first = imagine.fingerprint(tree)
    assert first == imagine.fingerprint(dict(reversed(tree.items()))) and len(first) == 32
    for other in (
        {"a": tree["a"], "c": tree["b"]},
        {"a": tree["a"].reshape(3, 2), "b": tree["b"]},
        {"a": tree["a"], "b": tree["b"].reshape(1)},
        {"a": tree["a"].astype(jnp.int32), "b": tree["b"]},
        {"a": tree["a"].at[1, 1].add(1e-6), "b": tree["b"]},
    ):
        assert imagine.fingerprint(other) != first
