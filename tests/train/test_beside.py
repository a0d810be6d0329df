"""Reading beside a run that goes on: what is deleted meanwhile is no damage."""

import threading

import jax
import numpy as np
import pytest
from helpers import toy

from jaxdiff import train

STEPS = 5  # that it comes to see, at least


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_parameters_are_read_while_checkpoints_come_and_go(tmp_path):
    _, state, _ = toy.new()
    stop, failed = threading.Event(), []

    def write():
        try:
            with train.Checkpointer(tmp_path, keep=2) as checkpointer:
                for step in range(1, 10_000):
                    # The numbers tell the step, so that a mixture of two would show.
                    checkpointer.save(jax.tree.map(lambda x, n=step: jax.numpy.full_like(x, n), state))
                    checkpointer.wait()
                    if stop.is_set():
                        return
        except Exception as error:
            failed.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    try:
        while not failed and len(set(seen)) < STEPS:
            if not seen and not any(path.name.isdecimal() for path in tmp_path.glob("checkpoints/*")):
                continue  # the first is still to come
            params = train.load_params(tmp_path)
            values = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])
            assert len(set(values.tolist())) == 1
            seen.append(float(values[0]))
    finally:
        stop.set()
        writer.join(timeout=60)
    assert not failed and seen == sorted(seen)
