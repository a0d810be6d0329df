"""The type of a linear operator; matrices, and any linear function by its transpose and conjugate residuals.

An operator A acts on batches, [B, *shape] -> [B, *measured], each example alone. x is real; a measurement may be
complex, and then stands for the vector of its real and imaginary parts: the inner product is Re <u, v>, and the
standard deviation of noise is that of each part. The adjoint A^T belongs to this inner product (A^H where x holds the
two parts of a complex picture).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.checks import check_function, concrete, is_traced

__all__ = [
    "Operator",
    "check_binary",
    "check_count",
    "conjugate_gradients",
    "conjugate_residuals",
    "linear",
    "matrix",
    "reciprocal",
    "times",
]

Spectrum = Callable[[Array], Array]  # singular values, with the axes of what they multiply -> factors


class Operator(NamedTuple):
    """A linear operator A with the singular value decomposition U S V^T.

    Attributes:
        apply: x [B, *shape] -> A x, [B, *measured].
        adjoint: v [B, *measured] -> A^T v, [B, *shape].
        solve: (v, c, d) -> (c A A^T + d I)^-1 v, for c and d that are not negative and broadcast against v; where
            that is singular, A^T solve(v, 1, 0) is A^+ v.
        spectral: (f, x) -> V f(S) V^T x, with f from singular values, [1 or B, ...], to factors; 0 is the singular
            value of what A does not see. None where no decomposition is at hand.
        measured: where a measurement has entries, 1 or 0, broadcast against it; None for everywhere.
        inverse: v -> A^+ v, where A^T solve(v, 1, 0) would lose digits to small singular values; else None.
    """

    apply: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    solve: Callable[[Array, float | Array, float | Array], Array]
    spectral: Callable[[Spectrum, Array], Array] | None = None
    measured: Array | None = None
    inverse: Callable[[Array], Array] | None = None

    def pseudoinverse(self, v: Array) -> Array:
        """A^+ v, the smallest x of those whose A x is nearest to v."""
        return self.adjoint(self.solve(v, 1.0, 0.0)) if self.inverse is None else self.inverse(v)


def linear(f: Callable[[Array], Array], shape: tuple[int, ...], *, iterations: int = 50) -> Operator:
    """Any linear function, its adjoint by transposition, its solve by conjugate residuals (Stiefel 1955).

    Args:
        f: x [B, *shape] -> [B, *measured], linear over the reals and of each example alone; may be complex.
        shape: of an example.
        iterations: of conjugate residuals, each one f and one adjoint. In exact arithmetic as many as A A^T has
            distinct eigenvalues suffice.

    Returns:
        the operator, without a decomposition.

    Raises:
        ValueError: f is not a function, or iterations < 1.
    """
    check_function("f", f, "(x) -> A x")
    check_count("iterations", iterations)

    def adjoint(v: Array) -> Array:
        x = jax.ShapeDtypeStruct((len(v), *shape), v.real.dtype)
        # The transpose is that of Re sum(u v), without a conjugate.
        return jax.linear_transpose(f, x)(jnp.conj(v))[0]

    def solve(v: Array, c: float | Array, d: float | Array) -> Array:
        return conjugate_residuals(lambda u: times(c, f(adjoint(u))) + times(d, u), v, iterations)

    return Operator(f, adjoint, solve)


@concrete
def matrix(a: Array, shape: tuple[int, ...] | None = None) -> Operator:
    """A matrix times the flattened example, by its singular value decomposition.

    Args:
        a: real [M, N]; complex ones are functions for `linear`.
        shape: of an example, N numbers; None is [N].

    Returns:
        the operator, to [B, M].

    Raises:
        ValueError: `a` is not a real matrix, or `shape` has not N numbers.
    """
    a = jnp.asarray(a)
    if a.ndim != 2 or not jnp.issubdtype(a.dtype, jnp.floating):
        raise ValueError(f"a must be a real matrix [M, N], got {a.dtype}{list(a.shape)}")
    m, n = a.shape
    shape = (n,) if shape is None else tuple(shape)
    if int(np.prod(shape)) != n:
        raise ValueError(f"an example of a matrix {[m, n]} has {n} numbers, got shape {list(shape)}")
    u, s, vt = jnp.linalg.svd(a, full_matrices=True)
    # What rounding leaves of a singular value 0 is none: as numpy.linalg.matrix_rank has it.
    s = jnp.where(s > s[:1] * (max(m, n) * jnp.finfo(s.dtype).eps), s, 0)
    left, right = (jnp.pad(s, (0, k - len(s)))[None] for k in (m, n))
    flat = lambda x: x.reshape(len(x), -1)  # noqa: E731
    # Accelerators multiply in half precision by default, and A x = y would hold to 1 %.
    matmul = partial(jnp.matmul, precision="highest")

    def solve(v: Array, c: float | Array, d: float | Array) -> Array:
        return matmul(matmul(v, u) * reciprocal(c * jnp.square(left) + d), u.T)

    def spectral(f: Spectrum, x: Array) -> Array:
        return matmul(matmul(flat(x), vt.T) * f(right), vt).reshape(x.shape)

    def inverse(v: Array) -> Array:
        return matmul(matmul(v, u[:, : len(s)]) * reciprocal(s)[None], vt[: len(s)]).reshape(-1, *shape)

    apply, adjoint = lambda x: matmul(flat(x), a.T), lambda v: matmul(v, a).reshape(-1, *shape)
    return Operator(apply, adjoint, solve, spectral, inverse=inverse)


def conjugate_gradients(
    matvec: Callable[[Array], Array], v: Array, iterations: int, *, least: float | Array = 0.0
) -> Array:
    """Solve matvec(u) = v for each example, with a symmetric matvec that is positive semi-definite.

    An example whose residual has come down to rounding stays as it is, whatever the others do: it doesn't depend on
    them. So does one whose matvec shows that it is not what it should be: no positive curvature, or less than half of
    its least eigenvalue, as far as that is known. The solution of least norm where v is in the range.
    """
    axes = tuple(range(1, v.ndim))
    dot = lambda a, b: jnp.sum((jnp.conj(a) * b).real, axis=axes, keepdims=True)  # noqa: E731
    first = dot(v, v)
    enough = jnp.square(jnp.finfo(v.dtype).eps) * first

    def body(carry: tuple[Array, Array, Array, Array], _: None):
        u, r, p, rr = carry
        q = matvec(p)
        curvature = dot(p, q)
        go = (rr > enough) & (curvature > 0.5 * least * dot(p, p))
        step = jnp.where(go, rr / jnp.where(go, curvature, 1), 0)
        u, r = u + times(step, p), r - times(step, q)
        new = dot(r, r)
        p = jnp.where(go, r + times(new / jnp.where(go, rr, 1), p), p)
        return (u, r, p, jnp.where(go, new, rr)), None

    return jax.lax.scan(body, (jnp.zeros_like(v), v, v, first), length=iterations)[0][0]


def conjugate_residuals(matvec: Callable[[Array], Array], v: Array, iterations: int) -> Array:
    """Solve matvec(u) = v for each example in least squares, with a symmetric positive semi-definite matvec.

    Where v is not in the range, as a measurement with noise, the residual does not come down to 0, and the steps of
    `conjugate_gradients` explode; those that make the residual least do not (Stiefel 1955). In the range the solution
    is that of least norm. An example that is solved stays as it is, whatever the others do.
    """
    axes = tuple(range(1, v.ndim))
    dot = lambda a, b: jnp.sum((jnp.conj(a) * b).real, axis=axes, keepdims=True)  # noqa: E731
    kv = matvec(v)
    first = dot(v, kv)
    enough = jnp.square(jnp.finfo(v.dtype).eps) * first

    def body(carry: tuple[Array, Array, Array, Array, Array], _: None):
        u, r, p, kp, rkr = carry
        square = dot(kp, kp)
        go = (rkr > enough) & (square > 0)
        step = jnp.where(go, rkr / jnp.where(go, square, 1), 0)
        u, r = u + times(step, p), r - times(step, kp)
        kr = matvec(r)
        new = dot(r, kr)
        share = new / jnp.where(go, rkr, 1)
        p, kp = (jnp.where(go, a + times(share, b), b) for a, b in ((r, p), (kr, kp)))
        return (u, r, p, kp, jnp.where(go, new, rkr)), None

    return jax.lax.scan(body, (jnp.zeros_like(v), v, v, kv, first), length=iterations)[0][0]


def times(factor: float | Array, v: Array) -> Array:
    """A real factor times v, which may be complex."""
    return jnp.asarray(factor, v.dtype) * v


def reciprocal(x: float | Array) -> Array:
    """1 / x, and 0 where x is 0."""
    x = jnp.asarray(x)
    return jnp.where(x == 0, 0, 1 / jnp.where(x == 0, 1, x))


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise ValueError unless `value` is an integer of at least `least`."""
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} is an integer of at least {least}, got {value!r:.80}")


def check_binary(name: str, mask: Array) -> None:
    """Raise ValueError unless a mask, if it is concrete, is 0 or 1 everywhere."""
    if not is_traced(mask):
        values = np.asarray(mask)
        wrong = values[(values != 0) & (values != 1)]
        if wrong.size:
            raise ValueError(f"{name} must be 1 where there is a measurement and else 0, got {wrong.flat[0]}")
