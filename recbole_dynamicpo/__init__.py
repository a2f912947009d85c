"""DynamicPO for RecBole: language-model recommenders aligned with boundary negatives.

Importing this package lets RecBole find the models DynamicPO, SFTRec, DMPO, MPPO and SDPO by name.
It imports neither RecBole nor transformers, MLflow or Prefect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .host.registration import register
from .names import MODEL_NAMES
from .version import __version__

if TYPE_CHECKING:
    from .serving.recommender import Recommender, load_recommender

__all__ = ["MODEL_NAMES", "Recommender", "__version__", "load_recommender", "register"]

register()


def __getattr__(name: str) -> Any:
    """Import the recommender only when it is asked for; it needs torch."""
    if name in ("Recommender", "load_recommender"):
        from .serving import recommender

        return getattr(recommender, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
