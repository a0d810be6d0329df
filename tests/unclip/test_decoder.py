"""What a decoder is given of an embedding, of a prompt and of nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_unclip import TRAINED, D, embedder, pairs

from jaxdiff import unclip
from jaxdiff.noise import normal_like
from jaxdiff.seeds import example_keys


@pytest.fixture(scope="module")
def given():
    """A prior that draws twice a token's vector and its noise; its own previews show other captions."""
    condition = unclip.of_texts(embedder(), pairs()._replace(captions=("d", "b")))
    return unclip.Prior(
        jnp.float32(2), condition, lambda params, noise, cond: params * jax.nn.one_hot(cond["ids"][:, 1] - 2, D) + noise
    )


def vectors(condition, cond, keys, frozen=None):
    cond = condition.augment(keys, jax.tree.map(jnp.asarray, cond))
    return condition.encode((TRAINED, frozen), cond)


def test_an_embedding_becomes_a_vector_and_four_tokens():
    condition = unclip.of_embeddings(embedder(), pairs())
    cond = condition.choose(np.arange(4))
    np.testing.assert_allclose(np.linalg.norm(cond["embedding"], axis=1), D**0.5, rtol=1e-6)
    np.testing.assert_array_equal(cond["embedding"][3], cond["embedding"][0])  # three pairs take turns
    made = vectors(condition, cond, example_keys(0, 4))
    np.testing.assert_array_equal(made["vector"], cond["embedding"])
    tokens = cond["embedding"] @ TRAINED["tokens"]["kernel"] + TRAINED["tokens"]["bias"]
    np.testing.assert_allclose(made["tokens"], tokens.reshape(4, 4, D), rtol=1e-5)
    nothing = vectors(condition, condition.without(cond), example_keys(0, 4))
    np.testing.assert_array_equal(nothing["vector"], 0)
    assert condition.held_out == (2,) and condition.names == ("a", "b", "c")
    with pytest.raises(ValueError, match="--prior"):
        condition.parse("a")


@pytest.mark.slow
def test_a_prompt_is_drawn_by_the_prior_and_an_embedding_is_not(given):
    condition, keys = unclip.of_embeddings(embedder(), pairs(), given), example_keys(0, 3)
    frozen = {"prior": jnp.float32(3)}
    prompt = condition.parse("b")
    prompt = {name: np.repeat(a, 3, axis=0) for name, a in prompt.items()}
    made = vectors(condition, prompt, keys, frozen)["vector"]
    noise = normal_like(keys, jnp.zeros((3, D)))
    np.testing.assert_allclose(made, 3 * np.eye(D)[[1, 1, 1]] + noise, rtol=1e-5, atol=1e-6)
    # The third sample is the same in another batch.
    alone = vectors(condition, {name: a[2:] for name, a in prompt.items()}, keys[2:], frozen)["vector"]
    np.testing.assert_allclose(alone[0], made[2], rtol=1e-5)
    z = np.arange(3 * D, dtype=np.float32).reshape(3, D)
    fixed = vectors(condition, prompt | {"embedding": z, "given": np.ones(3, bool)}, keys, frozen)["vector"]
    np.testing.assert_array_equal(fixed, z)
    augmented = condition.augment(keys, jax.tree.map(jnp.asarray, prompt))
    learned = condition.encode((TRAINED, frozen), {"embedding": z})  # of a batch, which has no prompts
    plain = vectors(unclip.of_embeddings(embedder(), pairs()), {"embedding": z}, keys)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), learned, plain)
    nothing = condition.encode((TRAINED, frozen), condition.without(augmented))
    np.testing.assert_array_equal(nothing["vector"], 0)
    shown = condition.choose(np.array([2, 0]))
    assert shown["ids"][:, 1].tolist() == [4, 2] and not shown["given"].any()
    assert condition.vocabulary == ("a", "b", "c", "d")
