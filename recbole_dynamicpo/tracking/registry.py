"""Registered models: a version for every final adapter, ``champion`` for one that passed the gate."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import StoppedError, TrackingError
from ..evaluation.report import metric_name
from ..names import STAGES
from ..serving import gate
from ..serving.folder import RECOMMENDER_FILE, read_card
from ..serving.mlflow_store import log_model
from ..serving.mlflow_uri import without_password
from ..storage import is_number, load_json, locked, sha256_file, sha256_json
from .client import connect, find_runs, open_experiment
from .live import reason
from .points import Entry
from .record import PROBE_FILE, Record, read_record
from .view import PARENT, model_settings, read_journals, read_parts

logger = logging.getLogger(__name__)

CANDIDATE, CHAMPION = "candidate", "champion"
# Tags of a version. The first one finds it again.
CONTENT, GATE, REASON = "recommender_sha256", "gate", "gate_reason"
METRIC, VALUE, BIGGER = "valid_metric_name", "valid_metric", "valid_metric_bigger"
# Validation results are compared only where these agree.
_COMPARABLE = {METRIC: "metric", "data_digest": "data", "num_candidates": "candidates", "valid_rows": "rows"}


@dataclass(frozen=True)
class Registered:
    """A version of a registered model.

    Attributes:
        name: of the registered model.
        version: its number.
        champion: whether it bears that alias now.
        size_bytes: of everything that the registry holds of it.
        uri: of this version.
    """

    name: str
    version: str
    champion: bool
    size_bytes: int
    uri: str


def register(folder: Path, uri: str) -> Registered | None:
    """Register the final adapter of a finished run; trouble is one warning, the run is safe.

    Args:
        folder: of the run, already sent by ``tracking.sync`` or a tracker.
        uri: of the MLflow store.

    Raises:
        StoppedError: the process was asked to end; says how to register the model later.
    """
    shown = without_password(uri)
    remedy = f"recbole-dynamicpo sync {folder} --mlflow-tracking-uri {shown}"
    try:
        return register_model(folder, uri)
    except StoppedError as error:
        raise StoppedError(f"{error} before the model was registered; do it later: {remedy}") from error
    except Exception as error:  # whatever is wrong with MLflow, the run's result stays
        logger.warning("%s: not registered at %s (%s). Do it later: %s", folder, shown, reason(error), remedy)
        return None


def final_recommender(folder: Path, record: Record) -> tuple[str, Path] | None:
    """Return the stage and the recommender folder that are a run's result; None for models without one."""
    for stage in reversed(STAGES):
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
    run's own folder, and it validates no worse than the present champion (setting ``require_improvement``).

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
            _judge(client, uri, version, folder, record, result[1])
        return _registered(client, version)


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


def content_digest(recommender: Path) -> str:
    """Return the SHA-256 of all that is in a recommender folder."""
    return sha256_json({path.name: sha256_file(path) for path in recommender.iterdir() if path.is_file()})


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
        "seed": record.seed,
        "config_hash": record.config_hash,
        "data_digest": record.data.get("digest", ""),
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
    best = {VALUE: max(values) if bigger else min(values)} if values else {}
    return {METRIC: name, BIGGER: bigger, **best}


def _tested(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the last test results."""
    last = [entry for entry in entries if entry["kind"] == "test"][-1:]
    return {
        f"test.{name}": value
        for entry in last
        for name, value in entry.items()
        if name not in ("step", "time") and is_number(value)
    }


def _judge(client: Any, uri: str, version: Any, folder: Path, record: Record, recommender: Path) -> None:
    """Ask the gate, say what it found, and make the version ``champion`` if nothing speaks against it."""
    name, number = version.name, version.version
    backbone, probe = read_card(recommender).backbone, load_json(folder / PROBE_FILE)
    verdict = gate.ask(recommender, f"models:/{name}/{number}", uri, probe, backbone)
    reasons = list(verdict.reasons)
    if verdict.passed and record.params.get("require_improvement", True):
        champion = _champion(client, name)
        reasons += worse_than(version.tags, champion.tags if champion is not None else {})
    said = "; ".join(reasons) or f"{verdict.rows} rows ranked alike"
    client.set_model_version_tag(name, number, "gate_largest_difference", repr(verdict.largest_difference))
    client.set_model_version_tag(name, number, REASON, said)
    if not reasons:
        client.set_registered_model_alias(name, CHAMPION, number)
    # Last, because a version with it is not judged again.
    client.set_model_version_tag(name, number, GATE, "failed" if reasons else "passed")
    state = "stays candidate" if reasons else "is champion"
    logger.info("models:/%s/%s %s: %s (scores within %.2g nats)", name, number, state, said,
                verdict.largest_difference)  # fmt: skip


def _champion(client: Any, name: str) -> Any:
    """Return the version that bears the alias ``champion``, or None."""
    number = client.get_registered_model(name).aliases.get(CHAMPION)
    return client.get_model_version(name, number) if number else None


def worse_than(tags: Mapping[str, str], champion: Mapping[str, str]) -> list[str]:
    """Return why a version may not replace the champion; empty if it may.

    Args:
        tags: of the version.
        champion: tags of the champion; empty where there is none.
    """
    if not champion:
        return []
    different = [word for key, word in _COMPARABLE.items() if tags.get(key) != champion.get(key)]
    if different:
        return [f"validated otherwise than the champion (other {', '.join(different)}), so not comparable"]
    if VALUE not in tags or VALUE not in champion:
        return ["it or the champion was not validated, so not comparable"]
    mine, theirs = float(tags[VALUE]), float(champion[VALUE])
    worse = mine < theirs if tags.get(BIGGER) == "True" else mine > theirs
    return [f"valid {tags[METRIC]} {mine:g} is worse than the champion's {theirs:g}"] if worse else []


def _registered(client: Any, version: Any) -> Registered:
    name, number = version.name, str(version.version)
    champion = client.get_registered_model(name).aliases.get(CHAMPION)
    size = int(version.tags.get("size_bytes", 0))
    found = Registered(name, number, str(champion) == number, size, f"models:/{name}/{number}")
    logger.info("registered: %s, %d bytes%s", found.uri, size, ", champion" if found.champion else "")
    return found
