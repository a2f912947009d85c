"""Recommenders as models of MLflow: what is stored, what is not, and that it ranks as the folder does."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import threading
from pathlib import Path

import mlflow
import pytest

from recbole_dynamicpo import Recommender, load_recommender
from recbole_dynamicpo.cli import main
from recbole_dynamicpo.errors import AdapterError, BackboneError
from recbole_dynamicpo.serving import mlflow_store as model_store
from recbole_dynamicpo.serving.folder import BACKBONE_VARIABLE
from recbole_dynamicpo.serving.mlflow_store import log_model
from recbole_dynamicpo.serving.mlflow_uri import find_tracking_uri
from recbole_dynamicpo.serving.packaging import package_recommender, portable_backbone, requirements
from recbole_dynamicpo.storage import sha256_file

from ..conftest import make_model, make_tokenizer
from ..helpers.mlflow_world import REGISTERED, Store, make_store
from ..helpers.saved_recommender import BY_POPULARITY, IDS, POPULARITY, TITLES, as_json

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def store(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store"), tiny_backbone)


@pytest.fixture
def here(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """A user who has the store and the backbone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv(BACKBONE_VARIABLE, str(store.backbone))
    monkeypatch.chdir(tmp_path)
    return store


@pytest.fixture
def original(here: Store) -> Recommender:
    """The folder that was logged."""
    return load_recommender(here.folder)


# --- what is stored ---


def test_the_files_of_a_model(store: Store) -> None:
    """Code, adapter and words; no pickle, no reference adapter, no weights of the backbone."""
    inside = {path.relative_to(store.files).as_posix() for path in store.files.rglob("*") if path.is_file()}
    code = {name for name in inside if name.startswith("code/recbole_dynamicpo/")}
    assert {Path(name).suffix for name in code} == {".py", ".yaml", ".txt", ".typed"}
    recommender = ["adapter_model.safetensors", "adapter_config.json", "recommender.json"]
    recommender += ["catalogue.json", "templates.json", "settings.json"]
    assert inside - code - {"registered_model_meta"} == {
        *("MLmodel", "pyfunc.py", "conda.yaml", "python_env.yaml", "requirements.txt"),
        *("input_example.json", "serving_input_example.json"),
        *(f"artifacts/recommender/{name}" for name in recommender),
    }


def test_the_adapter_is_all_that_is_large(store: Store) -> None:
    from mlflow import MlflowClient

    adapter = store.files / "artifacts/recommender/adapter_model.safetensors"
    size = sum(path.stat().st_size for path in store.files.rglob("*") if path.is_file())
    assert size < adapter.stat().st_size + 2 * MEGABYTE
    model = MlflowClient(store.uri).get_logged_model(store.model.removeprefix("models:/"))
    assert adapter.stat().st_size < int(model.tags["size_bytes"]) <= size
    assert model.tags["adapter_sha256"] == sha256_file(store.folder / "adapter_model.safetensors")


def test_nothing_tells_where_it_was_made(store: Store) -> None:
    """Not one file holds a path of the maker's machine; what was one is a bare name."""
    home = str(store.folder.parents[1])
    assert home in (store.folder / "recommender.json").read_text()  # so that the search below finds something
    package = str(Path(model_store.__file__).parent)
    for path in filter(Path.is_file, store.files.rglob("*")):
        text = path.read_bytes().decode("utf-8", errors="replace")
        assert home not in text, path.name
        assert package not in text, path.name
    inside = store.files / "artifacts/recommender"
    card = json.loads((inside / "recommender.json").read_text())
    assert card["backbone"] == "tiny-llama"
    assert card["fingerprint"] == json.loads((store.folder / "recommender.json").read_text())["fingerprint"]
    assert json.loads((inside / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny-llama"
    assert json.loads((inside / "settings.json").read_text()) == {
        "dataset": "toy",
        "seed": 7,
        "num_candidates": 4,
        "data_path": "data",
        "backbone": "tiny-llama",
        "nested": {"files": ["a.yaml", "b.yaml", "c/d.yaml", 3, None]},
    }
    catalogue = json.loads((inside / "catalogue.json").read_text())
    assert catalogue == {"ids": [*IDS], "titles": [*TITLES], "popularity": [*POPULARITY]}


def test_signature_example_and_requirements(store: Store) -> None:
    from mlflow.models import Model

    model = Model.load(str(store.files))
    (request,) = model.signature.inputs.to_dict()
    fields = {name: (field["type"], field["required"]) for name, field in request["properties"].items()}
    assert fields == {
        "history": ("array", True), "candidates": ("array", False), "k": ("long", False),
        "exclude_history": ("boolean", False), "first_stage": ("long", False),
    }  # fmt: skip
    (response,) = model.signature.outputs.to_dict()
    assert sorted(response["properties"]) == ["candidates", "likelihood", "num_candidates", "ranked"]
    example = {"history": BY_POPULARITY[:2], "candidates": BY_POPULARITY[2:5], "k": 3}
    assert model.load_input_example(str(store.files)) == [example]
    assert json.loads(model.get_serving_input(str(store.files))) == {"inputs": [example]}
    lines = (store.files / "requirements.txt").read_text().split("\n")
    assert lines == requirements()


def test_logging_leaves_the_process_as_it_was(store: Store, tmp_path: Path) -> None:
    """From another thread, while a run of another store is active."""
    from mlflow import MlflowClient

    before = mlflow.get_tracking_uri()
    found: list[str] = []

    def log() -> None:
        found.append(log_model(store.folder, run_id=store.run_id, tracking_uri=store.uri, settings={}))

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")
    try:
        with mlflow.start_run() as active:
            thread = threading.Thread(target=log)
            thread.start()
            thread.join()
            assert mlflow.active_run().info.run_id == active.info.run_id
            assert mlflow.get_tracking_uri() == f"sqlite:///{tmp_path}/other.db"
            assert mlflow.get_run(active.info.run_id).outputs.model_outputs == []
    finally:
        mlflow.set_tracking_uri(before)
    model = MlflowClient(store.uri).get_logged_model(found[0].removeprefix("models:/"))
    assert (model.source_run_id, model.name, model.status.name) == (store.run_id, "model", "READY")


def test_a_folder_that_lacks_a_file_is_named_and_the_model_marked(store: Store, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store.uri)
    run = client.create_run(client.get_run(store.run_id).info.experiment_id).info
    for name in ("adapter_model.safetensors", "adapter_config.json", "recommender.json"):
        (tmp_path / name).write_bytes((store.folder / name).read_bytes())
    with pytest.raises(AdapterError, match=r"catalogue\.json: cannot be read \(No such file"):
        log_model(tmp_path, run_id=run.run_id, tracking_uri=store.uri, settings={})
    (model,) = (m for m in client.search_logged_models([run.experiment_id]) if m.source_run_id == run.run_id)
    assert model.status.name == "FAILED"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("owner/model", "owner/model"),
        ("/models/llama", "llama"),
        ("/models", "models"),
        ("models/here", "here"),
        ("./llama", "llama"),
        ("~/llama", "llama"),
        ("../models/llama/", "llama"),
    ],
)
def test_names_of_backbones(
    name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert portable_backbone(name) == expected


# --- what is loaded ---


def test_every_way_to_name_it_ranks_as_the_folder(here: Store, original: Recommender) -> None:
    """Bit for bit: on one machine, in one dtype, the same weights score alike."""
    expected = original.rank(["Bear"], [2, "Ember", "Unheard Of"])
    ways = [here.model, here.champion, f"models:/{REGISTERED}/1", f"runs:/{here.run_id}/model"]
    ways += [f"runs:/{here.run_id}/preference", f"runs:/{here.run_id}/model/artifacts/recommender"]
    for way in ways:
        loaded = load_recommender(way)
        assert loaded.rank(["Bear"], [2, "Ember", "Unheard Of"]) == expected, way
        assert (loaded.catalogue, loaded.card.num_candidates) == (original.catalogue, 4)


def test_mlflows_own_loader_scores_as_the_folder(
    here: Store, original: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs the file that was packaged; in a fresh process: test_serving.py."""
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    model = mlflow.pyfunc.load_model(here.champion, model_config={"dtype": "float32"})
    (answer,) = model.predict([{"history": ["Bear", 4], "candidates": ["Canyon", 3, "Unheard Of"], "k": 2}])
    ranked = original.rank(["Bear", "Delta"], ["Canyon", "Amber", "Unheard Of"], k=2)
    assert answer.model_dump() == {
        "ranked": as_json(ranked), "candidates": "given", "num_candidates": 3, "likelihood": "vocabulary",
    }  # fmt: skip


def test_nothing_downloaded_is_left(here: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    load_recommender(here.champion).rank(["Bear"])
    assert list((tmp_path / "temporary").iterdir()) == []


def test_fetching_runs_no_code_of_the_store(here: Store, original: Recommender) -> None:
    from mlflow import MlflowClient

    model = log_model(here.folder, run_id=here.run_id, tracking_uri=here.uri, settings={})
    place = MlflowClient(here.uri).get_logged_model(model.removeprefix("models:/")).artifact_location
    (Path(place.removeprefix("file://")) / "pyfunc.py").write_text("raise SystemExit('run')")
    assert load_recommender(model).rank(["Bear"]) == original.rank(["Bear"])


@pytest.mark.parametrize("code", ["mlflow_model.py", "rank_model.py", None])
@pytest.mark.parametrize(
    "way", ["models:/{id}", "runs:/{run}/model", "models:/old/1", "models:/old@champion"]
)
def test_models_of_earlier_layouts_load(
    code: str | None, way: str, here: Store, original: Recommender
) -> None:
    """Their packaged code imports modules that have moved since, and their card says less."""
    from mlflow import MlflowClient

    client = MlflowClient(here.uri)
    model = log_model(here.folder, run_id=here.run_id, tracking_uri=here.uri, settings={})
    place = Path(
        client.get_logged_model(model.removeprefix("models:/")).artifact_location.removeprefix("file://")
    )
    (place / "pyfunc.py").unlink()
    if code is not None:
        (place / code).write_text("from recbole_dynamicpo.mlflow_model import RankModel\n")
    path = place / "artifacts" / "recommender" / "recommender.json"
    card = json.loads(path.read_text())
    for name in ("likelihood", "priors", "trie_sha256"):
        card.pop(name)
    path.write_text(json.dumps(card))
    if "old" in way:
        with contextlib.suppress(Exception):
            client.create_registered_model("old")
        version = client.create_model_version("old", place.as_uri(), run_id=here.run_id).version
        client.set_registered_model_alias("old", "champion", version)
        way = way.replace("/1", f"/{version}")
    loaded = load_recommender(way.format(id=model.removeprefix("models:/"), run=here.run_id))
    assert loaded.rank(["Bear"]) == original.rank(["Bear"])


@pytest.mark.parametrize("content", ["[]", '{"r": 4}', '{"backbone": 1, "base_model_name_or_path": null}'])
@pytest.mark.parametrize("name", ["recommender.json", "adapter_config.json"])
def test_a_folder_that_names_no_backbone_is_refused(
    store: Store, name: str, content: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(store.folder, tmp_path / "folder"))
    (folder / name).write_text(content)
    said = (
        "not a recommender card"
        if name == "recommender.json"
        else "wanted the name of the backbone as 'base_"
    )
    with pytest.raises(AdapterError, match=f"{name}: {said}"):
        package_recommender(folder, tmp_path / "packaged", {})


def test_where_the_store_is_looked_for(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is given, then the environment, then mlflow.db of the present folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(AdapterError, match=rf"MLFLOW_TRACKING_URI, or {tmp_path}/mlflow\.db"):
        find_tracking_uri()
    (tmp_path / "mlflow.db").touch()
    assert find_tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert find_tracking_uri() == "http://127.0.0.1:1"
    assert find_tracking_uri(store.uri) == store.uri
    monkeypatch.setenv(BACKBONE_VARIABLE, str(store.backbone))
    assert load_recommender(store.model, tracking_uri=store.uri).catalogue.titles == TITLES


@pytest.mark.parametrize(
    "uri",
    [
        f"models:/{REGISTERED}@nobody",
        f"models:/{REGISTERED}/9",
        "models:/unknown@champion",
        f"models:/m-{'0' * 32}",
        f"runs:/{'0' * 32}/model",
    ],
)
def test_what_is_not_there_is_named(here: Store, uri: str) -> None:
    with pytest.raises(AdapterError, match=f"^{uri}: not found in sqlite:///") as caught:
        load_recommender(uri)
    assert "\n" not in str(caught.value)


def test_a_path_of_the_run_that_holds_no_recommender_is_named(here: Store) -> None:
    with pytest.raises(AdapterError, match=r"not found in|wanted the folder of a run"):
        load_recommender(f"runs:/{here.run_id}/nothing")


def test_a_missing_database_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"gone\.db: no such file"):
        load_recommender("models:/a@b", tracking_uri=f"sqlite:///{tmp_path}/gone.db")
    assert list(tmp_path.iterdir()) == []


def test_passwords_are_not_repeated() -> None:
    shown = model_store.without_password("https://ann:secret@host:5000/x")
    assert shown == "https://host:5000/x"
    assert model_store.without_password("sqlite:////a/b.db") == "sqlite:////a/b.db"


# --- its backbone ---


def test_a_local_backbone_has_to_be_named_elsewhere(here: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BACKBONE_VARIABLE)
    with pytest.raises(BackboneError, match=rf"'tiny-llama'.*SHA-256 \w{{12}}.*{BACKBONE_VARIABLE}"):
        load_recommender(here.champion)


def test_another_backbone_is_refused(here: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "tiny-llama"  # found by its name in the present folder, but it is another one
    make_model(seed=5).save_pretrained(other)
    make_tokenizer().save_pretrained(other)
    monkeypatch.delenv(BACKBONE_VARIABLE)
    with pytest.raises(AdapterError, match=rf"^{here.champion}: made for .* the backbone of that name here"):
        load_recommender(here.champion)
    monkeypatch.setenv(BACKBONE_VARIABLE, str(other))
    with pytest.raises(AdapterError, match=rf"but that of {BACKBONE_VARIABLE}"):
        load_recommender(here.champion)


# --- the command line ---


def test_rank_prints_a_table(here: Store, original: Recommender, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", "--model", here.champion, "--history", "Bear|Nobody's", "-k", "3"]) == 0
    note, head, *lines = capsys.readouterr().out.splitlines()
    assert note == "candidates: the 5 most popular titles that are not in the history"
    assert head.split() == ["score,", "nats", "title", "ids"]
    ranked = original.rank(["Bear", "Nobody's"], k=3)
    assert [line.split(maxsplit=3) for line in lines] == [
        [str(place), f"{item.score:.3f}", item.title, ", ".join(item.ids)]
        for place, item in enumerate(ranked, start=1)
    ]
    assert main(["rank", "--model", here.model, "--history", "Bear", "--candidates", "New One|Bear"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["score,", "nats", "title", "ids"]
    assert {tuple(line.split()[2:]) for line in lines} == {
        ("New", "One", "not", "in", "the", "catalogue"),
        ("Bear", "1"),
    }


def test_rank_ends_in_one_line_where_there_is_no_model(
    here: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rank", "--model", f"models:/{REGISTERED}@nobody", "--history", "Bear"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: models:/{REGISTERED}@nobody: not found in sqlite:///")
