"""A GAN's losses and penalties in closed form, and the dynamics of the smallest GAN through the train step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import toy
from helpers.nodes import hermite

from jaxdiff import distill, train

KEY = jax.random.key(0)
LOSSES = {"hinge": distill.hinge, "softplus": distill.softplus, "relativistic": distill.relativistic}


def softplus(x):
    return np.log1p(np.exp(x))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_logits(name):
    real, fake = np.array([0.3, -2.0, 1.7]), np.array([-0.4, 1.1, 0.2])
    critic, generator = {
        "hinge": (np.maximum(0, 1 - real) + np.maximum(0, 1 + fake), -fake),
        "softplus": (softplus(-real) + softplus(fake), softplus(-fake)),
        "relativistic": (softplus(-(real - fake)), softplus(-(fake - real))),
    }[name]
    np.testing.assert_allclose(LOSSES[name].critic(jnp.asarray(real), jnp.asarray(fake)), critic, rtol=1e-5)
    np.testing.assert_allclose(LOSSES[name].generator(jnp.asarray(real), jnp.asarray(fake)), generator, rtol=1e-5)


def quadratic(params, x, t, cond):
    """D = a x^2 / 2 + b x, twice: the mean of an example's two logits is 1.5 D."""
    a, b = params
    value = a * x[:, 0] ** 2 / 2 + b * x[:, 0]
    return jnp.stack([value, 2 * value], axis=1)


@pytest.mark.usefixtures("x64")
def test_penalties_of_a_quadratic_critic():
    x, made = np.array([[0.3], [-1.2], [2.0]]), np.array([[1.0], [0.5], [-0.7]])
    a, b = 0.8, -0.4
    seen = ({"generator": jnp.asarray(made), "critic": (a, b)}, None)

    @jax.jit
    def values(seen, x):
        generate = lambda params, key, batch: params  # noqa: E731
        choices = ({"r1": r1, "r2": r2} for r1, r2 in ((0.0, 0.0), (3.0, 0.0), (0.0, 3.0)))
        return [distill.gan(generate, quadratic, **c)["critic"](seen, KEY, {"x": x})[0] for c in choices]

    plain, on_real, on_made = values(seen, jnp.asarray(x))
    slope = lambda x: np.mean((1.5 * (a * x + b)) ** 2)  # noqa: E731
    np.testing.assert_allclose(on_real - plain, 1.5 * slope(x), rtol=1e-12)
    np.testing.assert_allclose(on_made - plain, 1.5 * slope(made), rtol=1e-12)

    (z,), w = hermite(8)
    for std in (0.1, 1.0):
        logits = lambda h: quadratic((a, b), h, None, {})  # noqa: E731
        h = jnp.full((8, 1), 2.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("jaxdiff.distill.critics.normal_like", lambda key, x: jnp.asarray(z)[:, None])
            each = jax.jit(lambda h: distill.difference_penalty(std)(logits, h, KEY))(h)  # noqa: B023
        np.testing.assert_allclose(w @ np.asarray(each), 2.25 * ((2 * a + b) ** 2 + 0.75 * (std * a) ** 2), rtol=1e-10)


def dirac(turn, g, h=0.1):
    """Eigenvalues of a round of a GAN of two numbers: data 0, generator th, critic ps x (Mescheder et al. 2018)."""
    losses = distill.gan(
        lambda params, key, batch: jnp.full_like(batch["x"], params),
        lambda params, x, t, cond: params * x[:, 0],
        loss=distill.softplus, r1=g, r2=0.0,
    )  # fmt: skip
    game = train.players({name: train.Player(loss, optax.sgd(h)) for name, loss in losses.items()}, turn)
    step = train.make_step(game.loss, game.optimizer, key=KEY, ema=train.ema.constant(0.0), given=game.given)
    rounds = 1 if all(turn(0).values()) else 2
    small, columns = 1e-5, []
    for th, ps in ((small, 0.0), (0.0, small)):
        params = {"generator": jnp.full((), th, float), "critic": jnp.full((), ps, float)}
        state = train.state_from_params(params, game.optimizer, toy.mesh("one"))
        for _ in range(rounds):
            state, _ = step(state, {"x": jnp.zeros((1, 1))})
        columns.append([float(state.params[name]) / small for name in ("generator", "critic")])
    assert step.cache_size() == 1
    return np.abs(np.linalg.eigvals(np.array(columns)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("g", [pytest.param(0.5, marks=pytest.mark.slow), 0.0])
def test_the_smallest_gan_circles_without_a_penalty_and_spirals_out_if_both_move_at_once(g):
    h = 0.1
    in_turns = distill.alternate({"critic": 1, "generator": 1})
    at_once = distill.alternate({("critic", "generator"): 1})
    np.testing.assert_allclose(dirac(in_turns, g), np.sqrt(1 - h * g), rtol=1e-8)
    np.testing.assert_allclose(dirac(at_once, g), np.sqrt(1 - h * g + h**2 / 4), rtol=1e-8)


def test_turns():
    turn = distill.alternate({("fake", "critic"): 3, "student": 2})
    on = [{name for name, plays in jax.jit(turn)(made).items() if plays} for made in range(10)]
    others, student = {"fake", "critic"}, {"student"}
    assert on == [others, others, others, student, student] * 2


def test_mistakes():
    network = lambda params, x, t, cond: x  # noqa: E731
    make = lambda params, key, batch: batch["x"]  # noqa: E731
    with pytest.raises(ValueError, match=r"generate must be a function \(params, key, batch\) -> x"):
        distill.gan(lambda params: params, network)
    with pytest.raises(ValueError, match=r"critic must be a function \(params, x, t, cond\) -> logits"):
        distill.gan(make, lambda params, x: x)
    with pytest.raises(ValueError, match="hinge, softplus or relativistic"):
        distill.gan(make, network, loss="hinge")
    with pytest.raises(ValueError, match="r1 must be a finite number"):
        distill.gan(make, network, r1=-1.0)
    with pytest.raises(ValueError, match="penalty is difference_penalty, which is a factory"):
        distill.gan(make, network, penalty=distill.difference_penalty)
    for loss in distill.gan(make, network).values():
        with pytest.raises(ValueError, match=r"given \(params, Context\)"):
            loss({"generator": (), "critic": ()}, KEY, {"x": jnp.ones((2, 1))})
    with pytest.raises(ValueError, match="std must be a finite number"):
        distill.difference_penalty(0.0)
    for turns in ({}, {"a": 0}, {("a", "b"): 1, "b": 2}):
        with pytest.raises(ValueError, match="each player has a turn of at least 1 update"):
            distill.alternate(turns)
