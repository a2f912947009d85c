"""Log-probabilities in, a loss out: torch alone.

B rows, K negatives, C = 1 + K candidates with the positive in column 0; everything in nats.
"""

from .boundary import Boundary, find_boundary
from .diagnostics import Diagnostics
from .losses import dmpo_loss, mppo_loss, sdpo_loss, sft_loss
from .preference import PreferenceLoss, preference_loss

__all__ = [
    "Boundary",
    "Diagnostics",
    "PreferenceLoss",
    "dmpo_loss",
    "find_boundary",
    "mppo_loss",
    "preference_loss",
    "sdpo_loss",
    "sft_loss",
]
