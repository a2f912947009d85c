"""The URI of a local database, whatever its folders are called, and what is locked for a store."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from recbole_dynamicpo.errors import AdapterError
from recbole_dynamicpo.serving.mlflow_uri import (
    database_uri,
    find_tracking_uri,
    local_database,
    lock_place,
    resolve_uri,
    sync_command,
    without_password,
)

FOLDERS = [
    "a%20b",
    "a b",
    "100%",
    "x#y",
    "what?",
    "a&b=c",
    "é\u0301 ü",
    "a+b",
    "%2F",
    "q'uote",
    "semi;colon",
    "a@b:c",
]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_database_lies_where_its_folder_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the text that SQLAlchemy reads, and of nothing that looks like it."""
    from sqlalchemy import create_engine, text

    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = resolve_uri("auto")
    assert uri == database_uri(folder / "mlflow.db")
    engine = create_engine(uri)
    with engine.begin() as connection:
        connection.execute(text("create table mine (x int)"))
    engine.dispose()
    with sqlite3.connect(folder / "mlflow.db") as database:
        assert database.execute("select name from sqlite_master").fetchall() == [("mine",)]
    assert local_database(uri) == folder / "mlflow.db"
    assert find_tracking_uri() == uri
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a%20b", "x#y", "what?", "100%"])
def test_a_run_in_such_a_folder_is_recorded_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recbole_dynamicpo.tracking.sync import sync

    from ..helpers.run_folders import RunFolder

    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = RunFolder(tmp_path / name / "saved" / "run")
    run.add("sft", 1, "train", loss=1.0)
    uri = resolve_uri("auto")
    assert uri is not None
    sync(run.path, uri)
    assert [path for path in tmp_path.rglob("*.db") if path.is_file()] == [tmp_path / name / "mlflow.db"]
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parts[0] for path in files} == {name}  # MLflow leaves an empty folder of the quoted name


def test_other_stores_are_no_local_database(tmp_path: Path) -> None:
    for uri in (
        "http://host:5000",
        "postgresql://ann:x@host/db",
        "sqlite:///:memory:",
        "databricks",
        "mlruns",
    ):
        assert local_database(uri) is None


@pytest.mark.parametrize("name", ["gone.db", "a%20b/gone.db", "none/at/all.db"])
def test_a_database_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no such file; MLflow would make an empty store of it"):
        find_tracking_uri(database_uri(tmp_path / name))


def test_one_store_has_one_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However its URI is spelt: by another way to its folder, or with another password."""
    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a b")
    places = {lock_place(database_uri(tmp_path / way / "mlflow.db"), "m") for way in ("a b", "link")}
    assert places == {tmp_path / "a b" / "mlflow.db.m"}
    remote = {lock_place(f"http://{user}host:5000", "m") for user in ("", "ann:secret@", "bob@")}
    assert len(remote) == 1
    assert lock_place("http://host:5000", "m") != lock_place("http://host:5000", "n")
    assert lock_place("http://host:5000", "m") != lock_place("http://host:5001", "m")


def test_the_command_that_sends_a_run_is_one_for_a_shell() -> None:
    import shlex

    said = sync_command(Path("/a b/$x"), "http://ann:se cret@host:5000/?a&b")
    assert shlex.split(said) == [
        *("recbole-dynamicpo", "sync", "/a b/$x", "--mlflow-tracking-uri", "http://host:5000/?a&b")
    ]
    assert without_password("sqlite:////a@b/mlflow.db") == "sqlite:////a@b/mlflow.db"
