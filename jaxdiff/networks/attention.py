"""Self- and cross-attention of [B, *spatial, C] data, its positions flattened to tokens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.initializers import kernel_init, zeros_init
from jaxdiff.networks.kernels import blockwise, fused, traceable
from jaxdiff.networks.layers import Dense, GroupNorm, at_least_float32
from jaxdiff.sharding import BATCH_AXES, constrain, platform

# With at least this many keys, attention runs over blocks of keys and never stores all logits.
BLOCKWISE_MIN_KEYS, KEY_BLOCK = 4096, 1024

# (attend, q, k, v, mask, cross) -> [B, N, H, D]; see `attention_control`.
Control = Callable[..., Array]
_control: ContextVar[Control | None] = ContextVar("control", default=None)


@contextmanager
def with_control(control: Control | None) -> Iterator[None]:
    """Compute all attention by `control`, or without control, in what is traced within."""
    token = _control.set(control)
    try:
        yield
    finally:
        _control.reset(token)


def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    causal: bool = False,
    scale: float | None = None,
    cross: bool = False,
) -> Array:
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, eq. 1), with the fastest kernel for the device.

    In half precision on a GPU this is cuDNN's fused kernel. Elsewhere, long sequences are processed in blocks of keys,
    which works on every device and with every sharding; so are forward-mode derivatives of cuDNN's. All kernels have
    forward- and reverse-mode derivatives.

    Args:
        q: [B, N, H, D].
        k: [B, L, H, D].
        v: [B, L, H, D].
        mask: bool[B, L], True for visible tokens; None: all are visible. A query with no visible key returns
            zeros.
        bias: added to the logits, broadcast against [B, H, N, L].
        causal: whether position n attends to the positions 0..n only.
        scale: of the logits; None is D^-0.5.
        cross: whether k and v are of a condition's tokens; read by attention control only.

    Returns:
        [B, N, H, D].
    """
    options: dict[str, Any] = {"bias": bias, "causal": causal, "scale": scale}
    control = _control.get()
    if control is None:
        return _attend(q, k, v, mask=mask, **options)
    return control(partial(_attend, **options), q, k, v, mask, cross)


def _attend(
    q: Array, k: Array, v: Array, *, mask: Array | None, bias: Array | None, causal: bool, scale: float | None
) -> Array:
    # Each device computes its share of heads and of queries, against all keys.
    q, k, v = (constrain(a, BATCH_AXES, axis, "tensor") for a, axis in ((q, "sequence"), (k, None), (v, None)))
    masks = () if mask is None else (mask[:, None, None, :],)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    kernel = partial(_cudnn, scale=scale, causal=causal)
    formula: Callable[..., Array] = partial(_formula, scale=scale, bias=bias, causal=causal)
    if bias is None and not causal and k.shape[1] >= BLOCKWISE_MIN_KEYS:
        formula = partial(_by_blocks, scale=scale)
    if bias is None and _fits_cudnn(kernel, q, k, v, *masks):
        formula = fused(kernel, formula)
    y = formula(q, k, v, *masks)
    if mask is None:
        return y
    return jnp.where(mask.any(axis=1)[:, None, None, None], y, jnp.zeros_like(y))


def _cudnn(q, k, v, where=None, *, scale: float, causal: bool) -> Array:
    channels = q.shape[-1]
    # cuDNN takes heads of 8, 16, 24, ... channels. Zeros change neither the products nor the first channels.
    q, k, v = (jnp.pad(a, [(0, 0)] * 3 + [(0, -channels % 8)]) for a in (q, k, v))
    if where is not None:
        where = jnp.broadcast_to(where, (*where.shape[:2], q.shape[1], k.shape[1]))
    y = jax.nn.dot_product_attention(q, k, v, None, where, scale=scale, is_causal=causal, implementation="cudnn")
    return y[..., :channels]


def _by_blocks(q, k, v, where=None, *, scale: float) -> Array:
    return blockwise(q, k, v, None if where is None else where[:, 0, 0], scale=scale, block=KEY_BLOCK)


@partial(jax.jit, static_argnames=("scale", "causal"))
def _formula(q, k, v, where=None, *, scale: float, bias=None, causal: bool = False) -> Array:
    """softmax(q k^T) v with logits and sums in float32 at least.

    Heads come before positions, and the division by the sum comes last, on D numbers per position instead of L: on a
    CPU the forward pass takes a quarter of the time of jax.nn's order.
    """
    input_dtype, dtype = q.dtype, at_least_float32(q.dtype)
    if input_dtype == jnp.float16:
        q, k, v = (a.astype(dtype) for a in (q, k, v))  # a CPU can't multiply float16 into float32
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q, k, v))
    logits = jnp.einsum("bhnd,bhld->bhnl", q, k, preferred_element_type=dtype) * scale
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias, logits.shape).astype(dtype)
    hidden = jnp.finfo(dtype).min
    if where is not None:
        logits = jnp.where(where, logits, hidden)
    if causal:
        logits = jnp.where(jnp.tri(q.shape[2], k.shape[2], dtype=bool), logits, hidden)
    # Softmax does not depend on a shift of the logits, so the shift needs no derivative.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    y = jnp.einsum("bhnl,bhld->bhnd", weights.astype(v.dtype), v, preferred_element_type=dtype)
    return jnp.swapaxes(y / weights.sum(-1, keepdims=True), 1, 2).astype(input_dtype)


def _fits_cudnn(kernel: Callable[..., Array], q: Array, *others: Array) -> bool:
    """Whether cuDNN has a kernel: JAX knows its conditions for the device, e.g. 256 channels a head since Hopper."""
    return platform() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16) and traceable(kernel, q, *others)


def visible(tokens: Array, mask: Array) -> Array:
    """Replace hidden tokens of [B, L, D] by zeros: a weight of zero times a NaN would be NaN."""
    return jnp.where(mask[..., None], tokens, jnp.zeros_like(tokens))


def split_heads(x: Array, num_heads: int) -> Array:
    """Reshape [B, N, C] to [B, N, H, C / H]."""
    return x.reshape(*x.shape[:2], num_heads, x.shape[2] // num_heads)


class Attention(nn.Module):
    """Residual multi-head attention: norm, attention, and a projection that is zero at initialization.

    Attributes:
        head_dim: channels per head; None is a single head.
        groups: of the group norm.
        eps: of the group norm.
        dtype: type of the computation; softmax is float32 at least.
        identity: replace self-attention's map by the identity, so that every position attends to itself only (Ahn et
            al. 2024, arXiv:2403.17377); cross-attention is not changed.
        norm: whether there is a group norm.
        divide: divisor of the sum with the input.
    """

    head_dim: int | None = None
    groups: int = 32
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    identity: bool = False
    norm: bool = True
    divide: float = 1.0

    @nn.compact
    def __call__(self, x: Array, tokens: Array | None = None, mask: Array | None = None) -> Array:
        """Attend from every position of x to all positions, or to the tokens if given.

        Args:
            x: [B, *spatial, C].
            tokens: [B, L, D], or None for self-attention.
            mask: bool[B, L], True for visible tokens.

        Returns:
            like x.

        Raises:
            ValueError: head_dim does not divide C.
        """
        batch, channels = x.shape[0], x.shape[-1]
        head_dim = channels if self.head_dim is None else self.head_dim
        if channels % head_dim:
            raise ValueError(f"head_dim must divide the channels, got {head_dim} for {channels} channels")

        def dense(name, init=kernel_init):
            return Dense(channels, dtype=self.dtype, kernel_init=init, name=name)

        h = GroupNorm(self.groups, self.eps, name="group_norm")(x) if self.norm else x
        h = h.reshape(batch, -1, channels)
        source = h if tokens is None else tokens.astype(self.dtype)
        if mask is not None:
            source = visible(source, mask)
        q, k, v = dense("to_q")(h), dense("to_k")(source), dense("to_v")(source)
        # An identity map returns the values; queries and keys only keep their parameters, and `jit` removes them.
        if not (self.identity and tokens is None):
            q, k, v = (split_heads(a, channels // head_dim) for a in (q, k, v))
            v = attend(q, k, v, mask=mask, cross=tokens is not None).reshape(h.shape)
        y = x + dense("to_out.0", zeros_init)(v).reshape(x.shape)
        return y if self.divide == 1 else y / self.divide
