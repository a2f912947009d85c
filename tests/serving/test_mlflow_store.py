"""A real `mlflow models serve` in a process of its own, asked over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo import Recommender, load_recommender
from recbole_dynamicpo.cli import main
from recbole_dynamicpo.serving.folder import BACKBONE_VARIABLE

from ..helpers.mlflow_world import Store, load_logged, make_store
from ..helpers.saved_recommender import BY_POPULARITY, as_json
from ..helpers.served_model import post, served

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def store(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("served"), tiny_backbone)


@pytest.fixture(scope="module")
def recommender(store: Store) -> Recommender:
    return load_logged(store)


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[str]:
    with served(store, store.champion) as address:
        yield address


def test_given_candidates_are_ranked(server: str, recommender: Recommender) -> None:
    """Scores are float32 values, so that JSON brings them back exactly."""
    request = {"history": ["Bear", "Nobody's"], "candidates": [2, "Amber", "Unheard Of", 3], "k": 2}
    expected = recommender.rank(request["history"], request["candidates"], 2)
    assert post(server, {"inputs": [request]}) == (
        200,
        {
            "predictions": [
                {
                    "ranked": as_json(expected),
                    "candidates": "given",
                    "num_candidates": 3,
                    "likelihood": "vocabulary",
                }
            ]
        },
    )


def test_without_candidates_popular_ones_are_ranked_and_the_answer_says_so(
    server: str, recommender: Recommender
) -> None:
    status, body = post(server, {"inputs": [{"history": [3]}, {"history": ["Bear"], "candidates": None}]})
    assert status == 200
    amber, bear = body["predictions"]
    assert (amber["candidates"], amber["num_candidates"]) == ("popular", 5)
    assert {item["title"] for item in amber["ranked"]} == set(BY_POPULARITY) - {"Amber"}
    assert bear == {
        "ranked": as_json(recommender.rank(["Bear"])),
        "candidates": "popular",
        "num_candidates": 5,
        "likelihood": "vocabulary",
    }


def test_the_whole_catalogue_is_ranked(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a model of catalogue likelihood: over HTTP, from Python and by the command, the same."""
    store = make_store(tmp_path, tiny_backbone, ["popularity"])
    monkeypatch.setenv(BACKBONE_VARIABLE, str(store.backbone))
    expected = load_recommender(store.folder).rank(["Bear", "Delta"], k=10)
    assert {item.title for item in expected} == set(BY_POPULARITY) - {"Bear", "Delta"}
    with served(store, store.champion) as address:
        status, body = post(address, {"inputs": [{"history": ["Bear", "Delta"], "k": 10}]})
    assert status == 200
    (found,) = body["predictions"]
    assert (found["candidates"], found["likelihood"], found["num_candidates"]) == (
        "catalogue",
        "catalogue",
        4,
    )
    assert found["ranked"] == as_json(expected)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    assert main(["rank", "--model", store.champion, "--history", "Bear|Delta"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(item.title) for item in expected]
    assert places == sorted(places)


_WRONG = [
    ({"candidates": ["Bear"]}, "history: missing, wanted a list of titles (texts) and item ids"),
    ({"history": ["Bear"], "candidates": []}, "candidates: got [], wanted a list of at least one title"),
    ({"history": ["Bear", 99]}, "history[1]: got item id 99, which the catalogue does not have"),
    ({"history": ["Bear"], "candidates": [8]}, "candidates[0]: got item id 8, which the catalogue does not"),
    ({"history": ["Bear"], "k": 0}, "k: got 0, wanted a whole number of at least 1"),
    ({"history": ["Bear"], "k": "3"}, "k: got '3', wanted a whole number of at least 1"),
    ({"history": "Bear"}, "history: got 'Bear', wanted a list of titles (texts) and item ids"),
    ({"history": [1.5]}, "history[0]: got 1.5, wanted a title (text) or an item id (whole number)"),
    ({"history": [True]}, "history[0]: got True, wanted a title (text) or an item id (whole number)"),
    ({"history": [""]}, "history[0]: got '', wanted a non-empty title or an item id"),
    ({"history": ["\ud800"]}, "history[0]: got '\\ud800', wanted a non-empty title"),
    ({"history": ["Bear"], "candidate": []}, "candidate: unknown (did you mean 'candidates'?)"),
    ("Bear", "got str, wanted an object with the key 'history'"),
]


@pytest.mark.parametrize(("request_", "message"), _WRONG, ids=[message[:30] for _, message in _WRONG])
def test_wrong_requests_are_refused_in_one_line(server: str, request_: Any, message: str) -> None:
    """A good request before it does not help; nothing of the server's inside is shown."""
    status, body = post(server, {"inputs": [{"history": ["Bear"]}, request_]})
    assert status == 400
    assert body.keys() == {"error_code", "message"}
    assert body["error_code"] == "INVALID_PARAMETER_VALUE"
    assert body["message"].startswith(f"inputs[1]: {message}")
    assert "\n" not in body["message"]


def test_inputs_that_are_no_list_are_refused(server: str) -> None:
    status, body = post(server, {"inputs": {"history": ["Bear"]}})
    assert status == 400
    assert body["message"] == "inputs: got dict, wanted a list of objects with the key 'history'"
    status, body = post(server, {"history": ["Bear"]})
    assert status == 400
    assert "'inputs'" in body["message"]
    assert "Traceback" not in json.dumps(body)


def test_requests_at_the_same_time_do_not_disturb_one_another(server: str, recommender: Recommender) -> None:
    requests = [{"history": ["Bear"], "candidates": [f"title {n}", "Canyon", "Delta"]} for n in range(12)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda request: post(server, {"inputs": [request]}), requests))
    for request, (status, body) in zip(requests, answers, strict=True):
        assert status == 200
        expected = recommender.rank(request["history"], request["candidates"])
        assert body["predictions"][0]["ranked"] == as_json(expected)
