"""Go on training another project's network: all of it, a part, low-rank adapters, or a ControlNet that steers it."""

from jaxdiff.finetune.asked import Asked, open_condition
from jaxdiff.finetune.knobs import Network, Pictures
from jaxdiff.finetune.origin import Origin, read_origin
from jaxdiff.finetune.parts import make_loss, make_medium, make_model
from jaxdiff.finetune.tuned import Tuned, tune

__all__ = [
    "Asked",
    "Network",
    "Origin",
    "Pictures",
    "Tuned",
    "make_loss",
    "make_medium",
    "make_model",
    "open_condition",
    "read_origin",
    "tune",
]
