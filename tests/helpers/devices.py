"""The meshes that nobody asked for, of one device: programs for eight take longer to compile, and to run."""

from contextlib import contextmanager
from unittest import mock

import jax

from jaxdiff import sharding


@contextmanager
def one_device():
    """Commands without --mesh and runs without a mesh take one device within; a mesh by its sizes has to be of one."""
    alone = {"devices": jax.devices()[:1]}
    makers = sharding.make_mesh, sharding.parse_mesh
    with mock.patch.dict(makers[0].__kwdefaults__, alone), mock.patch.dict(makers[1].__kwdefaults__, alone):
        yield
