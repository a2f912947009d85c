"""Where MLflow is: the URI of its store, and local databases."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AdapterError

if TYPE_CHECKING:
    pass

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
    uri = uri or f"sqlite:///{database}"
    file = local_database(uri)
    if file is not None and not file.is_file():
        raise AdapterError(f"{uri}: no such file; MLflow would make an empty store of it")
    return uri


def local_database(uri: str) -> Path | None:
    """Return the file of an sqlite URI; None for any other store."""
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix).partition("?")[0]) if uri.startswith(prefix) else None


def without_password(uri: str) -> str:
    """Return a URI without the user name and password that it may hold."""
    return re.sub(r"://[^/@]*@", "://", uri)


def resolve_uri(setting: str | None) -> str | None:
    """Return where to record: what setting ``mlflow_tracking_uri`` says; None: nowhere.

    ``auto`` is the environment variable MLFLOW_TRACKING_URI, else ``mlflow.db`` in the present folder.
    """
    if setting != "auto":
        return setting
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / DATABASE}"
