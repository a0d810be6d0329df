"""What the comparisons of networks with PyTorch share: random weights without zeros, a directory, both answers."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jaxdiff as jd


def randomize(model, seed=0):
    """Gives every parameter of a torch model random numbers without zeros, of a size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            norm = p.ndim == 1 and name.endswith("weight")
            fan = p[0].numel() if p.ndim > 1 else 25
            p.copy_(norm + noise / fan**0.5)
    return model.eval()


def roundtrip(model, directory, dtype=jnp.float32):
    """Saves a torch model with random weights and loads it with ours."""
    model.save_pretrained(directory)
    return jd.interop.load(directory, dtype=dtype)


class Double:
    """torch, with float64 for float32."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def lift(monkeypatch):
    """Has diffusers compute in double precision what it rounds otherwise: features of times, positions, a softmax."""
    monkeypatch.setattr("diffusers.models.embeddings.torch", Double())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def nchw(x):
    """Our [B, *spatial, C] as a torch tensor [B, C, *spatial]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def nhwc(x):
    """A torch tensor [B, C, *spatial] as our [B, *spatial, C]."""
    return np.moveaxis(x.detach().numpy(), 1, -1)


def close(got, want, tolerance):
    """Holds |got - want| below the tolerance, absolute, on arrays of about unit size."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.abs(want).max() > 0.1, "an answer of zeros compares nothing"
    assert np.abs(got - want).max() < tolerance * max(1, np.abs(want).max()), np.abs(got - want).max()


def gradients(loaded, loss):
    """Our gradient of loss(params) by the checkpoint's keys, in its layout."""
    grads = jax.jit(jax.grad(loss))(loaded.params)
    built = jd.interop.architecture(loaded.config)
    return dict(jd.interop.flatten(grads, built.rename))
