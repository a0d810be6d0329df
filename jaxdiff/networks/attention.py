"""Self- and cross-attention of [B, *spatial, C] data, its positions flattened to tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.initializers import kernel_init, zeros_init
from jaxdiff.networks.layers import GroupNorm


def attend(query: Array, key: Array, value: Array, *, heads: int, mask: Array | None = None) -> Array:
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, eq. 1).

    Args:
        query: [B, N, C].
        key: [B, L, C].
        value: [B, L, C].
        heads: number of heads; divides C.
        mask: bool[B, L], True for the tokens that may be seen; None shows all. Who may see nothing gets zero.

    Returns:
        [B, N, C].
    """

    def split(x):
        return x.reshape(*x.shape[:2], heads, x.shape[2] // heads)

    where = None if mask is None else mask[:, None, None, :]
    if query.dtype == jnp.float64:
        # jax.nn.dot_product_attention rounds the logits to float32.
        logits = jnp.einsum("bnhc,blhc->bhnl", split(query), split(key)) * (heads / query.shape[-1]) ** 0.5
        logits = logits if where is None else jnp.where(where, logits, jnp.finfo(logits.dtype).min)
        y = jnp.einsum("bhnl,blhc->bnhc", jax.nn.softmax(logits), split(value))
    else:
        # It promotes bfloat16 to float32 implicitly, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            y = jax.nn.dot_product_attention(split(query), split(key), split(value), mask=where)
    y = y.reshape(query.shape)
    if mask is None:
        return y
    return jnp.where(mask.any(axis=1)[:, None, None], y, jnp.zeros_like(y))


class Attention(nn.Module):
    """Normalizes, attends, projects (from zero) and adds to its input.

    Attributes:
        head_dim: channels per head; None is a single head.
        groups: of the group norm.
        eps: of the group norm.
        dtype: type of the computation; softmax is float32 at least.
        identity: self-attention's map is the identity, every position sees itself alone (Ahn et al. 2024,
            arXiv:2403.17377); cross-attention stays.
    """

    head_dim: int | None = None
    groups: int = 32
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    identity: bool = False

    @nn.compact
    def __call__(self, x: Array, tokens: Array | None = None, mask: Array | None = None) -> Array:
        """Lets every position of x see every other, or, where tokens are given, see the tokens.

        Args:
            x: [B, *spatial, C].
            tokens: [B, L, D], or None for self-attention.
            mask: bool[B, L], True for the tokens that may be seen.

        Returns:
            Like x.

        Raises:
            ValueError: if head_dim does not divide C.
        """
        batch, channels = x.shape[0], x.shape[-1]
        head_dim = channels if self.head_dim is None else self.head_dim
        if channels % head_dim:
            raise ValueError(f"head_dim must divide the channels, got {head_dim} for {channels} channels")

        def dense(name, init=kernel_init):
            return nn.Dense(channels, dtype=self.dtype, kernel_init=init, name=name)

        h = GroupNorm(self.groups, self.eps, name="group_norm")(x).reshape(batch, -1, channels)
        source = h if tokens is None else tokens.astype(self.dtype)
        if mask is not None:
            # A weight of zero times a hidden NaN or infinity would still be NaN.
            source = jnp.where(mask[..., None], source, jnp.zeros_like(source))
        q, k, v = dense("to_q")(h), dense("to_k")(source), dense("to_v")(source)
        # An identity map passes the values through; queries and keys keep their parameters, `jit` drops the rest.
        h = v if self.identity and tokens is None else attend(q, k, v, heads=channels // head_dim, mask=mask)
        return x + dense("to_out.0", zeros_init)(h).reshape(x.shape)
