"""What others may rely on: these names, under these paths; all else may change without notice.

CONTRIBUTING.md and the CHANGELOG speak of the same list.
"""

from __future__ import annotations

ERRORS = [
    *("DynamicPOError", "SettingsError", "DataError", "BackboneError", "AdapterError", "CheckpointError"),
    *("TrackingError", "NumericsError", "LockedError", "StoppedError"),
]
# Modules with an ``__all__`` that holds just this.
WHOLE = {
    "recbole_dynamicpo": ["MODEL_NAMES", "Recommender", "__version__", "load_recommender", "register"],
    "recbole_dynamicpo.errors": ERRORS,
    "recbole_dynamicpo.objectives": [
        *("dmpo_loss", "find_boundary", "mppo_loss", "preference_loss", "sdpo_loss", "sft_loss"),
    ],
}
