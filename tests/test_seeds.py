"""Seeds: all 64 bits count, and those that 32 hold give what they gave."""

import jax
import numpy as np
import pytest

from jaxdiff.options import Range
from jaxdiff.seeds import example_keys, keys_at, seed_key

SEEDS = [0, 1, 5, 2**31, 705032704, 2**32 - 1, 2**32, 5000000000, 2**63 - 1, 2**63, 2**64 - 1]


def bits(key) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


def test_every_seed_has_its_own_key():
    """That of threefry's definition: the upper and the lower half."""
    assert [bits(seed_key(seed)) for seed in SEEDS] == [(seed >> 32, seed & 0xFFFFFFFF) for seed in SEEDS]
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("seed", [0, 3, 2**31 + 7, 2**32 - 1])
def test_seeds_of_32_bits_give_what_jax_does(seed):
    assert bits(seed_key(seed)) == bits(jax.random.key(seed))
    want = [bits(jax.random.fold_in(jax.random.key(seed), i)) for i in (2, 3)]
    assert [bits(key) for key in example_keys(seed, 2, first=2)] == want


def test_examples_of_large_seeds_differ():
    drawn = [np.asarray(jax.random.normal(example_keys(seed, 3)[1])) for seed in (5000000000, 705032704)]
    assert drawn[0] != drawn[1]
    assert bits(keys_at(seed_key(2**40), np.arange(3))) == bits(example_keys(2**40, 3))


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "3", None])
def test_other_seeds_are_refused(seed):
    with pytest.raises(ValueError, match=r"seed must be an integer from 0 to 18446744073709551615, got"):
        seed_key(seed)


def test_ranges():
    assert Range(1).check("rows", np.int64(3)) == 3 and type(Range(1).check("rows", np.int64(3))) is int
    for value in (0, -1, 2.0, False):
        with pytest.raises(ValueError, match=f"rows must be an integer of at least 1, got {value}"):
            Range(1).check("rows", value)
    with pytest.raises(ValueError, match="from 2 to 4, got 5"):
        Range(2, 4).check("rows", 5)
