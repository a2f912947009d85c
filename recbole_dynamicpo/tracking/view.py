"""What a tracking server should show of a run, read from the run's folder; knows no server.

A run is shown as a parent, with one nested run for each stage that has begun. Everything here can be
read again at any time: it says what should be there, ``tracking`` sends what is missing.
"""

from __future__ import annotations

import getpass
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..evaluation.ranks import POPULARITY, RANKS_FILE, valid_ranks_file
from ..evaluation.report import REPORT_FILE, metric_name, read_report
from ..ingredients import describes_run
from ..names import RECORDED
from ..serving.folder import MODEL_CARD_FILE, RECOMMENDER_FILE, content_digest
from ..serving.mlflow_uri import without_password
from ..serving.packaging import package_recommender
from ..storage import is_number, sha256_file, sha256_json
from .journal import Journal
from .points import Entry, Point, measured, milliseconds, spent
from .record import AUDIT_FILE, JOURNAL_FILE, Record

# Finds the runs of a folder again: the key of its record, and the stage.
KEY_TAG, STAGE_TAG = "recbole-dynamicpo.key", "stage"
PARENT = "run"  # in place of a stage
# MLflow's limits of a parameter's value and of a tag's.
LONGEST_PARAM, LONGEST_TAG = 6000, 8000


@dataclass(frozen=True)
class Upload:
    """Something to keep with a run.

    Attributes:
        name: of the file or folder within the run's artifacts.
        digest: of what it is made from; the same digest need not be sent twice.
        write: writes it, at its place, into an empty folder.
    """

    name: str
    digest: str
    write: Callable[[Path], None]


@dataclass(frozen=True)
class Part:
    """One run to show: the parent, or one stage.

    Attributes:
        stage: name of the stage; ``PARENT`` for the parent.
        name: to show.
        status: ``RUNNING``, ``FINISHED`` or ``FAILED``.
        start, end: in milliseconds since 1970; no end while it runs.
        tags, params: texts.
        points: by step.
        uploads: what to keep with it.
        data: name, digest and rows of the data set; None where that is said elsewhere.
    """

    stage: str
    name: str
    status: str
    start: int
    end: int | None
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    uploads: list[Upload] = field(default_factory=list)
    data: Mapping[str, Any] | None = None


def read_journals(folder: Path, record: Record) -> dict[str, list[Entry]]:
    """Return stage -> its entries, in the order in which stages follow each other."""
    here = list(Journal(folder / JOURNAL_FILE).entries(quiet=True))
    names = dict.fromkeys([*RECORDED, *(entry["stage"] for entry in here)])
    found = {}
    for stage in names:
        place = record.stage_folder(folder, stage)
        lines = Journal(place / JOURNAL_FILE).entries(quiet=True) if stage in record.stages else here
        found[stage] = [entry for entry in lines if entry["stage"] == stage and is_number(entry.get("time"))]
    # A model without training records its evaluation only: stages that follow none of ours come first.
    order = sorted(found, key=lambda stage: (stage == "evaluate", stage not in RECORDED[:1]))
    return {stage: found[stage] for stage in order if found[stage]}


def read_parts(folder: Path, record: Record) -> list[Part]:
    """Return the parent and the stages of the run in ``folder``; empty before the first entry."""
    journals = read_journals(folder, record)
    if not journals:
        return []
    stages = [_stage_part(folder, record, stage, entries) for stage, entries in journals.items()]
    return [_parent(folder, record, stages, journals), *stages]


def _stage_part(folder: Path, record: Record, stage: str, entries: list[Entry]) -> Part:
    place = record.stage_folder(folder, stage)
    status, start, end = _course(entries)
    uploads = []
    if stage == "prepare":
        uploads = _files(folder, AUDIT_FILE)
    if stage == "evaluate":
        uploads = _files(place, REPORT_FILE, RANKS_FILE)
    elif end is not None and (place / stage / RECOMMENDER_FILE).is_file():
        uploads += [_adapter(place / stage, record), *_model_card(place / stage)]
        uploads += _files(place, valid_ranks_file(stage), valid_ranks_file(POPULARITY))
    return Part(
        stage=stage,
        name=stage,
        status=status,
        start=start,
        end=end,
        tags=_tags(record, stage),
        points=[*measured(entries), *spent(entries)],
        uploads=uploads,
    )


def _parent(folder: Path, record: Record, stages: list[Part], journals: Mapping[str, list[Entry]]) -> Part:
    """Return the run as a whole; it bears the results too, so that runs can be compared in one table."""
    by_name = {part.stage: part for part in stages}
    last = by_name.get("evaluate")
    status = "RUNNING"
    if any(part.status == "FAILED" for part in stages):
        status = "FAILED"
    elif last is not None:
        status = last.status
    end = max((part.end or 0 for part in stages), default=0) if status != "RUNNING" else None
    points = [point for part in stages for point in part.points if point.kind == "test"]
    for part in stages:
        for point in part.points:
            if point.kind == "status":
                values = {f"usage/{part.stage}_seconds": point.values.get("usage/seconds", 0.0)}
                points.append(Point(f"status {part.stage}", point.step, point.time, values))
    place = record.stage_folder(folder, "evaluate")
    return Part(
        stage=PARENT,
        name=record.name,
        status=status,
        start=min(part.start for part in stages),
        end=end,
        tags={**_tags(record, PARENT), **_note(place, status)},
        params={_key(key): _text(value)[:LONGEST_PARAM] for key, value in record.params.items()},
        points=points,
        uploads=[
            *_files(folder, AUDIT_FILE),
            *_files(place, REPORT_FILE, RANKS_FILE),
            *_figures(place, record, stages, journals),
        ],
        data=record.data or None,
    )


def _course(entries: list[Entry]) -> tuple[str, int, int | None]:
    """Return a stage's status, start and end, by what the journal says of it last."""
    said = [entry for entry in entries if entry["kind"] == "status"]
    status = str(said[-1].get("status")) if said else "running"
    starts = [entry["time"] for entry in entries[:1]]
    starts += [entry["time"] - entry["seconds"] for entry in said if is_number(entry.get("seconds"))]
    if status not in ("finished", "failed"):
        return "RUNNING", milliseconds(min(starts)), None
    return status.upper(), milliseconds(min(starts)), milliseconds(said[-1]["time"])


def _tags(record: Record, stage: str) -> dict[str, str]:
    """Return what every run of a record is tagged with."""
    commit = record.tags.get("git_commit")
    named = {
        KEY_TAG: record.key,
        STAGE_TAG: stage,
        "model": record.model,
        "dataset": record.dataset,
        "seed": str(record.seed),
        "config_hash": record.config_hash,
        "mlflow.source.name": "recbole-dynamicpo",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        **({"mlflow.source.git.commit": commit} if commit else {}),
    }
    return {**{_key(key): _text(value)[:LONGEST_TAG] for key, value in record.tags.items()}, **named}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no such user, as in many containers
        return "unknown"


def _note(place: Path, status: str) -> dict[str, str]:
    """Return the text that is shown above a run: its final table."""
    contestants = _contestants(place)
    if status != "FINISHED" or not contestants:
        return {}
    lines = ["| | HR@1 | 95 % interval | NDCG@5 | MRR | rows |", "|---|---|---|---|---|---|"]
    for c in contestants:
        interval = f"{c['hr_at_1_low']:.4f} to {c['hr_at_1_high']:.4f}"
        lines.append(
            f"| {c['name']} | {c['hr_at_1']:.4f} | {interval} | {c['ndcg_at_5']:.4f} "
            f"| {c['mrr']:.4f} | {c['rows']} |"
        )
    return {"mlflow.note.content": "\n".join(lines)}


def _contestants(place: Path) -> list[dict[str, Any]]:
    """Return the lines of a stage's report; models of others leave none."""
    return read_report(place)["contestants"] if (place / REPORT_FILE).is_file() else []


def _files(place: Path, *names: str) -> list[Upload]:
    """Return uploads of the files that are there."""
    paths = [place / name for name in names if (place / name).is_file()]
    return [Upload(path.name, sha256_file(path), partial(_copy, path)) for path in paths]


def _copy(path: Path, target: Path) -> None:
    shutil.copyfile(path, target / path.name)


def _adapter(folder: Path, record: Record) -> Upload:
    """Return the upload of a recommender folder, without what only this machine knows."""
    return Upload("adapter", content_digest(folder), partial(_package, folder, model_settings(record)))


def _model_card(folder: Path) -> list[Upload]:
    """Return the upload of a recommender's model card, which changes when the run is evaluated."""
    path = folder / MODEL_CARD_FILE
    if not path.is_file():  # as runs of earlier versions left it
        return []
    return [Upload(f"adapter/{MODEL_CARD_FILE}", sha256_file(path), partial(_copy_card, path))]


def _copy_card(path: Path, target: Path) -> None:
    (target / "adapter").mkdir()
    _copy(path, target / "adapter")


def model_settings(record: Record) -> dict[str, Any]:
    """Return what a later evaluation of a run's adapter needs: its settings, no places of this machine."""
    named = {"model": record.model, "dataset": record.dataset}
    return {**{key: value for key, value in record.params.items() if describes_run(key)}, **named}


def _package(folder: Path, settings: Mapping[str, Any], target: Path) -> None:
    package_recommender(folder, target / "adapter", settings)


def _figures(
    place: Path, record: Record, stages: list[Part], journals: Mapping[str, list[Entry]]
) -> list[Upload]:
    """Return the figures that the stages that ended have data for."""
    from . import figures

    ended = {part.stage for part in stages if part.end is not None}
    shown = {stage: journals[stage] for stage in journals if stage in ended}
    metric = metric_name(str(record.params.get("valid_metric", "")))
    contestants = _contestants(place) if "evaluate" in ended else []
    wanted = figures.available(shown, contestants, metric, record.params.get("num_candidates"))
    return [
        Upload(f"figures/{name}.png", sha256_json(data), partial(_draw, name, draw))
        for name, data, draw in wanted
    ]


def _draw(name: str, draw: Callable[[], Any], target: Path) -> None:
    (target / "figures").mkdir()
    draw().savefig(target / "figures" / f"{name}.png")


def _key(name: str) -> str:
    """Return a name with the characters that MLflow takes in keys."""
    return re.sub(r"[^\w./: -]", "_", name)


def _text(value: Any) -> str:
    """Return a setting as text; what a URI holds of a user's password is left out."""
    if isinstance(value, str):
        return without_password(value)
    return json.dumps(value) if isinstance(value, list | dict) else str(value)
