"""An MLflow store of one logged and registered recommender, for the tests that load or serve it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from recbole_dynamicpo import Recommender, load_recommender
from recbole_dynamicpo.serving.folder import BACKBONE_VARIABLE
from recbole_dynamicpo.serving.mlflow_store import log_model

from .saved_recommender import write_recommender

REGISTERED = "dynamicpo-toy"


class Store(NamedTuple):
    """Where everything lies.

    Attributes:
        uri: of the store, a file of its own.
        folder: the recommender that was logged.
        backbone: its backbone, no longer where it was when it was logged.
        run_id: of the run that it was logged for.
        model: URI of the logged model.
        champion: URI by name and alias.
        files: folder of the logged model in the store.
    """

    uri: str
    folder: Path
    backbone: Path
    run_id: str
    model: str
    champion: str
    files: Path


def load_logged(store: Store) -> Recommender:
    """Return the recommender of the folder that was logged, on the same backbone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(BACKBONE_VARIABLE, str(store.backbone))
        return load_recommender(store.folder)


def make_store(home: Path, tiny_backbone: Path, priors: list[str] | None = None) -> Store:
    """Log a recommender, register it as champion, and move its backbone away; see ``write_recommender``."""
    from mlflow import MlflowClient

    backbone = Path(shutil.copytree(tiny_backbone, home / "maker" / "tiny-llama"))
    folder = write_recommender(home / "saved" / "preference", backbone, priors=priors)
    uri = f"sqlite:///{home}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("toy", artifact_location=(home / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    settings = {
        "dataset": "toy",
        "seed": 7,
        "num_candidates": 4,
        "data_path": f"{home}/data/",
        "backbone": str(backbone),
        "nested": {"files": [f"{home}/a.yaml", "~/b.yaml", "c/d.yaml", 3, None]},
    }
    model = log_model(folder, run_id=run_id, tracking_uri=uri, settings=settings)
    client.log_artifacts(run_id, str(folder), "preference")
    place = client.get_logged_model(model.removeprefix("models:/")).artifact_location
    client.create_registered_model(REGISTERED)
    version = client.create_model_version(
        REGISTERED, source=place, run_id=run_id, model_id=model.removeprefix("models:/")
    )
    client.set_registered_model_alias(REGISTERED, "champion", version.version)
    moved = Path(shutil.move(backbone, home / "elsewhere"))
    return Store(
        uri,
        folder,
        moved,
        run_id,
        model,
        f"models:/{REGISTERED}@champion",
        Path(place.removeprefix("file://")),
    )
