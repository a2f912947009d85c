"""Where MLflow is: the URI of its store, and local databases."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from ..errors import AdapterError
from ..language_model.embedded import cache_folder
from ..storage import sha256_json

DATABASE = "mlflow.db"  # what a local run keeps its record in


def find_tracking_uri(given: str | None = None) -> str:
    """Return where to look: ``given``, else MLFLOW_TRACKING_URI, else ``mlflow.db`` of this folder.

    Raises:
        AdapterError: none of them, or a database that does not exist.
    """
    database = Path.cwd() / DATABASE
    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and not database.is_file():
        raise AdapterError(
            "got no MLflow store to look in; wanted a tracking_uri, the environment variable "
            f"MLFLOW_TRACKING_URI, or {database}"
        )
    uri = uri or database_uri(database)
    file = local_database(uri)
    if file is not None and not file.is_file():
        raise AdapterError(f"{uri}: no such file; MLflow would make an empty store of it")
    return uri


def database_uri(file: Path) -> str:
    """Return the URI of a local database, whatever the names of its folders hold."""
    from sqlalchemy import URL

    # Which characters have to be quoted depends on the release that will read it.
    return URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)


def local_database(uri: str) -> Path | None:
    """Return the file of an sqlite URI; None for any other store, and for a database in memory."""
    if not uri.startswith("sqlite:///"):
        return None
    from sqlalchemy import make_url

    file = make_url(uri).database
    return Path(file) if file and file != ":memory:" else None


def lock_place(uri: str, name: str) -> Path:
    """Return what the processes of this machine lock for what only one of them may do in a store at a time.

    Args:
        uri: of the store.
        name: of what is done.
    """
    database = local_database(uri)
    if database is not None:
        return database.resolve().with_name(f"{database.name}.{name}")
    return cache_folder() / "locks" / sha256_json([without_password(uri), name])[:16]


def sync_command(folder: Path, uri: str) -> str:
    """Return the command that sends the run in ``folder`` to a store, as a shell takes it."""
    arguments = ["sync", str(folder), "--mlflow-tracking-uri", without_password(uri)]
    return shlex.join(["recbole-dynamicpo", *arguments])


def without_password(uri: str) -> str:
    """Return a URI without the user name and password that it may hold."""
    return re.sub(r"://[^/@]*@", "://", uri)


def resolve_uri(setting: str | None) -> str | None:
    """Return where to record: what setting ``mlflow_tracking_uri`` says; None: nowhere.

    ``auto`` is the environment variable MLFLOW_TRACKING_URI, else ``mlflow.db`` in the present folder.
    """
    if setting != "auto":
        return setting
    return os.environ.get("MLFLOW_TRACKING_URI") or database_uri(Path.cwd() / DATABASE)
