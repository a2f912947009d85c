"""Recommenders as models of MLflow: log one, and fetch one by its URI.

Fetching reads files and runs none of them, unlike MLflow's own loader, which runs the packaged code.
Everything goes through a client of its own with an explicit tracking URI and run id, so that a
training process keeps its active run and its tracking URI, in whichever thread this is called.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AdapterError
from ..hub import find_adapter
from ..language_model.adapter_folder import WEIGHTS_FILE
from ..storage import sha256_file, write_json
from .folder import ARTIFACT, ARTIFACT_FOLDER, is_plain_adapter, recommender_folder
from .mlflow_uri import find_tracking_uri, without_password
from .packaging import example_request, folder_size, package_code, package_recommender, requirements

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

logger = logging.getLogger(__name__)

MODEL_NAME = "model"  # of a logged model: runs:/<run id>/model
CODE_FILE = Path(__file__).with_name("pyfunc.py")


def log_model(folder: Path, *, run_id: str, tracking_uri: str, settings: Mapping[str, Any]) -> str:
    """Log a recommender folder as a model of a run and return its URI, ``models:/m-...``.

    The model holds the adapter, templates, catalogue, settings, the name and hash of the backbone, and our
    code; neither weights of the backbone nor a pickle.

    Args:
        folder: as a run leaves it in ``saved/<run>/preference``.
        run_id: the run that made it.
        tracking_uri: where that run is recorded.
        settings: what a later evaluation needs of the run; JSON values.

    Raises:
        AdapterError: the folder is incomplete.
        mlflow.exceptions.MlflowException: the store cannot be reached or refuses.
    """
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    client = MlflowClient(tracking_uri)
    experiment = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment, name=MODEL_NAME, source_run_id=run_id)
    try:
        with tempfile.TemporaryDirectory(prefix="recbole-dynamicpo-") as work:
            path = Path(work) / MODEL_NAME
            size = write_model(path, folder, settings, model_id=model.model_id, run_id=run_id)
            client.log_model_artifacts(model.model_id, str(path))
            adapter = path / ARTIFACT_FOLDER / WEIGHTS_FILE
            tags = {"size_bytes": str(size), "adapter_sha256": sha256_file(adapter)}
            adapter_size = adapter.stat().st_size
        client.set_logged_model_tags(model.model_id, tags)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    except BaseException:
        with contextlib.suppress(Exception):
            client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        raise
    uri = f"models:/{model.model_id}"
    logger.info("model %s: %d bytes, of which the adapter has %d", uri, size, adapter_size)
    return uri


def write_model(
    path: Path,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    model_id: str | None = None,
    run_id: str | None = None,
) -> int:
    """Write a recommender folder as an MLflow model folder and return its size in bytes.

    Args:
        path: new folder.
        folder: recommender folder.
        settings: see ``log_model``.
        model_id: of the logged model that it becomes.
        run_id: of the run that made it.
    """
    expect_any_type()
    import mlflow.pyfunc
    from mlflow.models import Model

    model = Model(artifact_path=MODEL_NAME, run_id=run_id, model_uuid=model_id, model_id=model_id)
    with _without_advice(), tempfile.TemporaryDirectory(prefix="recbole-dynamicpo-") as work:
        code = Path(work) / CODE_FILE.parents[1].name
        package_code(code)
        # An input example given here would make MLflow load the backbone to try it.
        mlflow.pyfunc.save_model(
            path=str(path),
            python_model=str(CODE_FILE),
            mlflow_model=model,
            code_paths=[str(code)],
            pip_requirements=requirements(),
        )
    package_recommender(folder, path / ARTIFACT_FOLDER, settings)
    request = [example_request(folder)]
    write_json(path / "input_example.json", request)
    write_json(path / "serving_input_example.json", {"inputs": request})
    model.saved_input_example_info = {
        "artifact_path": "input_example.json",
        "serving_input_path": "serving_input_example.json",
        "type": "json_object",
    }
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = CODE_FILE.name  # MLflow writes the whole path, and reads only its last part
    flavor["artifacts"] = {ARTIFACT: {"path": ARTIFACT_FOLDER, "uri": ARTIFACT_FOLDER}}
    size = folder_size(path)
    model.model_size_bytes = size
    model.save(str(path / "MLmodel"))
    return size


def expect_any_type() -> None:
    """Silence what MLflow, when it is imported, says of a class of its own."""
    warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Keep MLflow from saying that it does not check the elements of a list of titles and ids; we do."""
    advisor = logging.getLogger("mlflow.types.type_hints")
    level = advisor.level
    advisor.setLevel(logging.ERROR)
    try:
        yield
    finally:
        advisor.setLevel(level)


def download_model(uri: str, target: Path, tracking_uri: str | None = None) -> Path:
    """Download what ``uri`` names below ``target`` and return its folder.

    Args:
        uri: ``models:/name@alias``, ``models:/name/version``, ``models:/m-...`` or ``runs:/<id>/<path>``.
        target: an existing folder.
        tracking_uri: see ``find_tracking_uri``.

    Raises:
        AdapterError: it cannot be had; the message says why.
    """
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # the files are small
    store = find_tracking_uri(tracking_uri)
    try:
        client = MlflowClient(store)
        place = _location(client, uri)
        found = download_artifacts(artifact_uri=place, dst_path=str(target), tracking_uri=store)
    except (MlflowException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AdapterError(f"{uri}: not found in {without_password(store)} ({reason})") from error
    return Path(found)


def _location(client: MlflowClient, uri: str) -> str:
    """Return the URI of the artifacts that a ``models:/`` or ``runs:/`` URI names.

    MLflow's own download looks up ``models:/`` in the process's one registry, whatever it is told.
    """
    kind, _, path = uri.partition(":/")
    first, _, rest = path.strip("/").partition("/")
    if kind == "runs":
        run = client.get_run(first)
        name, _, inside = rest.partition("/")
        for output in run.outputs.model_outputs if run.outputs else []:
            model = client.get_logged_model(output.model_id)
            if model.name == name:
                return _within(model, inside)
        return f"{run.info.artifact_uri.rstrip('/')}/{rest}"
    name, separator, alias = first.rpartition("@")
    if separator:
        version = client.get_model_version_by_alias(name, alias)
        name, number, inside = version.name, version.version, rest
    elif rest:
        name, (number, _, inside) = first, rest.partition("/")
    else:
        return _within(client.get_logged_model(first), "")
    source = client.get_model_version_download_uri(name, str(number))
    place = _location(client, source) if source.startswith(("models:/", "runs:/")) else source
    return f"{place}/{inside}" if inside else place


def _within(model: LoggedModel, inside: str) -> str:
    return f"{model.artifact_location}/{inside}" if inside else str(model.artifact_location)


@contextmanager
def opened_model(source: str | Path, tracking_uri: str | None = None) -> Iterator[Path]:
    """Yield the folder of ``source``: a recommender's, or that of a plain adapter.

    Args:
        source: a recommender folder, the folder of a run, a ``models:/`` or ``runs:/`` URI of MLflow, or an
            id of the Hugging Face hub (see ``find_adapter``). What comes from MLflow also holds
            ``settings.json``, and is gone after the block.
        tracking_uri: where MLflow's URIs are looked up; None: see ``find_tracking_uri``.

    Raises:
        AdapterError: there is neither.
    """
    if str(source).startswith(("models:/", "runs:/")):
        with tempfile.TemporaryDirectory(prefix="recbole-dynamicpo-") as work:
            yield recommender_folder(download_model(str(source), Path(work), tracking_uri))
        return
    path = find_adapter(source)
    yield path if is_plain_adapter(path) else recommender_folder(path)


@contextmanager
def opened_recommender(source: str | Path, tracking_uri: str | None = None) -> Iterator[Path]:
    """Yield the recommender folder of ``source``; see ``opened_model``.

    Raises:
        AdapterError: no recommender there.
    """
    with opened_model(source, tracking_uri) as folder:
        yield recommender_folder(folder)
