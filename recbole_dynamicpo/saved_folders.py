"""Where a recommender lies: in its own folder, in that of a run, or in an MLflow store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import AdapterError
from .names import STAGES
from .packaging import ARTIFACT_FOLDER, RECOMMENDER_FILE


def recommender_folder(path: Path) -> Path:
    """Return the recommender folder that ``path`` is, or the last one of the run or logged model that it is.

    Raises:
        AdapterError: it is none of them.
    """
    for folder in (path, path / ARTIFACT_FOLDER, *(path / stage for stage in reversed(STAGES))):
        if (folder / RECOMMENDER_FILE).is_file():
            return folder
    raise AdapterError(
        f"{path}: wanted the folder of a run, or a recommender folder with {RECOMMENDER_FILE} in it"
    )


@contextmanager
def opened_recommender(source: str | Path, tracking_uri: str | None = None) -> Iterator[Path]:
    """Yield the recommender folder of ``source``; what has to be downloaded is gone after the block.

    Args:
        source: a recommender folder, the folder of a run, or a ``models:/`` or ``runs:/`` URI of MLflow.
            A downloaded folder also holds ``settings.json``.
        tracking_uri: where MLflow's URIs are looked up; None: see ``model_store.find_tracking_uri``.

    Raises:
        AdapterError: no recommender there.
    """
    if not str(source).startswith(("models:/", "runs:/")):
        yield recommender_folder(Path(source))
        return
    from .model_store import download_model

    with tempfile.TemporaryDirectory(prefix="recbole-dynamicpo-") as work:
        yield recommender_folder(download_model(str(source), Path(work), tracking_uri))
