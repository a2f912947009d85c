"""Registered models: a version for every final adapter, ``champion`` for one that earned it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import StoppedError, TrackingError
from ..evaluation.report import metric_name
from ..names import STAGES
from ..serving import gate
from ..serving.folder import RECOMMENDER_FILE, content_digest, final_stage, read_card
from ..serving.mlflow_store import log_model
from ..serving.mlflow_uri import sync_command, without_password
from ..storage import is_number, locked
from .champion import DATA, GATE, REASON, SEED, STAGE, champion_of, judge
from .client import connect, find_runs, open_experiment
from .live import reason
from .points import Entry
from .record import Record, read_record
from .view import PARENT, model_settings, read_journals, read_parts

logger = logging.getLogger(__name__)

CANDIDATE = "candidate"
CONTENT = "recommender_sha256"  # the tag of a version that finds it again


@dataclass(frozen=True)
class Registered:
    """A version of a registered model.

    Attributes:
        name: of the registered model.
        version: its number.
        champion: whether it bears that alias now.
        reason: why it became champion, or did not.
        size_bytes: of everything that the registry holds of it.
        uri: of this version.
    """

    name: str
    version: str
    champion: bool
    reason: str
    size_bytes: int
    uri: str

    @property
    def line(self) -> str:
        """What to say of it at the end of a run."""
        state = "champion" if self.champion else "not champion"
        return f"registered: {self.uri}, {self.size_bytes} bytes, {state}: {self.reason}"


def register(folder: Path, uri: str) -> Registered | None:
    """Register the final adapter of a finished run; trouble is one warning, the run is safe.

    Args:
        folder: of the run, already sent by ``tracking.sync`` or a tracker.
        uri: of the MLflow store.

    Raises:
        StoppedError: the process was asked to end; says how to register the model later.
    """
    shown = without_password(uri)
    remedy = sync_command(folder, uri)
    try:
        return register_model(folder, uri)
    except StoppedError as error:
        raise StoppedError(f"{error} before the model was registered; do it later: {remedy}") from error
    except Exception as error:  # whatever is wrong with MLflow, the run's result stays
        logger.warning("%s: not registered at %s (%s). Do it later: %s", folder, shown, reason(error), remedy)
        return None


def final_recommender(folder: Path, record: Record) -> tuple[str, Path] | None:
    """Return the stage and the recommender folder that are a run's result; None for models without one."""
    chosen = final_stage(record.stage_folder(folder, "evaluate"))
    for stage in sorted(STAGES, key=lambda stage: (stage == chosen, STAGES.index(stage)), reverse=True):
        found = record.stage_folder(folder, stage) / stage
        if (found / RECOMMENDER_FILE).is_file():
            return stage, found
    return None


def wants_registration(folder: Path) -> bool:
    """Return whether a run is finished, has an adapter, and is to be registered (setting ``register``)."""
    record = read_record(folder)
    parts = read_parts(folder, record)
    done = bool(parts) and parts[0].status == "FINISHED"
    return (
        done and record.params.get("register", True) is True and final_recommender(folder, record) is not None
    )


def register_model(folder: Path, uri: str) -> Registered:
    """Register the final adapter of a run as ``dynamicpo-<dataset>``, once.

    The version is ``candidate`` at once, and ``champion`` if a fresh process ranks with it as with the
    run's own folder, and it ranks its validation rows better than popularity and no worse than the present
    champion (the latter by setting ``require_improvement``).

    Raises:
        DynamicPOError: the run has no adapter or is not recorded yet, or the gate could not be asked.
        Exception: whatever MLflow and its store raise.
    """
    record = read_record(folder)
    result = final_recommender(folder, record)
    if result is None:
        raise TrackingError(f"{folder}: has no adapter to register")
    name = f"dynamicpo-{record.dataset}"
    with locked(folder / "register", wait=True, within=gate.GATE_WITHIN):
        client = connect(uri)
        version = _find_version(client, name, result[1])
        if version is None:
            version = _new_version(client, uri, name, folder, record, result)
        if GATE not in version.tags:
            client.set_registered_model_alias(name, CANDIDATE, version.version)
            judge(client, uri, version, folder, record, result[1])
        found = _registered(client, name, str(version.version))
    logger.info("%s", found.line)
    return found


def _new_version(
    client: Any, uri: str, name: str, folder: Path, record: Record, result: tuple[str, Path]
) -> Any:
    """Log the model into the parent run and register it as ``candidate``."""
    runs = find_runs(client, open_experiment(client, uri, record.dataset), record.key)
    if PARENT not in runs:
        raise TrackingError(f"{folder}: not recorded at {without_password(uri)} yet")
    stage, recommender = result
    run_id = runs[PARENT].run_id
    model = log_model(recommender, run_id=run_id, tracking_uri=uri, settings=model_settings(record))
    logged = client.get_logged_model(model.removeprefix("models:/"))
    ids = {f"run_id.{part}": run.run_id for part, run in runs.items()}
    if not client.search_registered_models(f"name = '{name}'"):
        _create_registered_model(client, name)
    version = client.create_model_version(
        name,
        # A models:/ URI would be looked up in the process's own store, wherever this client's is.
        source=logged.artifact_location,
        run_id=run_id,
        model_id=logged.model_id,
        tags={
            "size_bytes": logged.tags["size_bytes"],
            **version_tags(folder, record, stage, recommender),
            **ids,
        },
    )
    return client.get_model_version(name, version.version)


def _create_registered_model(client: Any, name: str) -> None:
    try:
        client.create_registered_model(name)
    except Exception:
        if not client.search_registered_models(f"name = '{name}'"):  # else another process was faster
            raise


def _find_version(client: Any, name: str, recommender: Path) -> Any:
    """Return the version that holds just this recommender, or None."""
    digest = content_digest(recommender)
    found = [v for v in client.search_model_versions(f"name = '{name}'") if v.tags.get(CONTENT) == digest]
    return min(found, key=lambda version: int(version.version), default=None)


def version_tags(folder: Path, record: Record, stage: str, recommender: Path) -> dict[str, str]:
    """Return what a version says of itself: its run, its adapter, its results."""
    journals = read_journals(folder, record)
    tags = {
        CONTENT: content_digest(recommender),
        "adapter_sha256": read_card(recommender).adapter_sha256,
        "run_key": record.key,
        "run_name": record.name,
        "model_class": record.model,
        STAGE: stage,
        SEED: record.seed,
        "config_hash": record.config_hash,
        DATA: record.data.get("digest", ""),
        "num_candidates": record.params.get("num_candidates", ""),
        "valid_rows": record.data.get("rows", {}).get("valid", ""),
        **_validated(record, journals.get(stage, [])),
        **_tested(journals.get("evaluate", [])),
    }
    return {key: str(value) for key, value in tags.items()}


def _validated(record: Record, entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the best result of the metric that validation decides by."""
    name = metric_name(str(record.params.get("valid_metric", "")))
    bigger = bool(record.params.get("valid_metric_bigger", True))
    values = [entry[name] for entry in entries if entry["kind"] == "valid" and is_number(entry.get(name))]
    best = {"valid_metric": max(values) if bigger else min(values)} if values else {}
    return {"valid_metric_name": name, **best}


def _tested(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the last test results."""
    last = [entry for entry in entries if entry["kind"] == "test"][-1:]
    return {
        f"test.{name}": value
        for entry in last
        for name, value in entry.items()
        if name not in ("step", "time") and is_number(value)
    }


def _registered(client: Any, name: str, number: str) -> Registered:
    version, champion = client.get_model_version(name, number), champion_of(client, name)
    return Registered(
        name=name,
        version=number,
        champion=champion is not None and str(champion.version) == number,
        reason=version.tags.get(REASON, ""),
        size_bytes=int(version.tags.get("size_bytes", 0)),
        uri=f"models:/{name}/{number}",
    )
