"""Go on training another project's network, or distil it: all of it, a part, low-rank adapters, or a ControlNet."""

from jaxdiff.finetune.asked import Asked, open_condition
from jaxdiff.finetune.knobs import Network, Pictures
from jaxdiff.finetune.origin import Origin, read_origin
from jaxdiff.finetune.parts import make_medium, make_model, make_objective, make_sampling
from jaxdiff.finetune.tuned import Tuned, tune

__all__ = [
    "Asked",
    "Network",
    "Origin",
    "Pictures",
    "Tuned",
    "make_medium",
    "make_model",
    "make_objective",
    "make_sampling",
    "open_condition",
    "read_origin",
    "tune",
]
