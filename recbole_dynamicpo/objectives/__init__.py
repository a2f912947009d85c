"""Log-probabilities in, a loss out: torch alone.

B rows, K negatives, C = 1 + K candidates with the positive in column 0; everything in nats.
"""

from .boundary import Boundary, find_boundary
from .diagnostics import Diagnostics
from .losses import dmpo_loss, mppo_loss, sdpo_loss, sft_loss
from .preference import PreferenceLoss, preference_loss
from .strategies import Objective, find_objective

__all__ = [
    "Boundary",
    "Diagnostics",
    "Objective",
    "PreferenceLoss",
    "dmpo_loss",
    "find_boundary",
    "find_objective",
    "mppo_loss",
    "preference_loss",
    "sdpo_loss",
    "sft_loss",
]
