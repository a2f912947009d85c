"""Where in a run's folder the recommender lies."""

from __future__ import annotations

from pathlib import Path

from .errors import AdapterError
from .recommender import RECOMMENDER_FILE
from .stages import STAGES


def recommender_folder(path: Path) -> Path:
    """Return the recommender folder that ``path`` is, or that of the last stage of the run that it is.

    Raises:
        AdapterError: it is neither.
    """
    for folder in (path, *(path / stage for stage in reversed(STAGES))):
        if (folder / RECOMMENDER_FILE).is_file():
            return folder
    raise AdapterError(
        f"{path}: wanted the folder of a run, or a recommender folder with {RECOMMENDER_FILE} in it"
    )
