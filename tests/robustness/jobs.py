"""What the children of the warm process do, each in a home folder of its own, and what came of it."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recbole_dynamicpo import cli
from recbole_dynamicpo.evaluation.ranks import read_ranks
from recbole_dynamicpo.language_model.adapter_folder import SCALARS_FILE
from recbole_dynamicpo.serving.priors import PRIORS_FILE
from recbole_dynamicpo.tracking.journal import Journal
from recbole_dynamicpo.training.checkpoint import has_checkpoint

from ..conftest import make_model, make_tokenizer, small_settings, write_dataset
from ..helpers import near_gate
from ..helpers.published_data import small_published

# Windows of whole sequences under the catalogue likelihood, above priors.
DENSE = {
    "likelihood": "catalogue", "prompt": "sequence", "positions": "all", "window": 4, "negatives": "prior",
    "catalogue_prior": "['popularity','transitions']", "centre": True, "rank_among": "['candidates','all']",
    "sft_batch_size": 24, "train_batch_size": 24, "sft_rows": 0, "preference_rows": 0,
}  # fmt: skip
STEPS = 12  # of the job: two stages of two epochs with three steps each


def make_world(world: Path) -> None:
    """Write backbone and data, and import everything that a job needs."""
    import recbole.quick_start
    import torch

    import recbole_dynamicpo.host.registration
    import recbole_dynamicpo.pipeline

    torch.set_num_threads(1)
    recbole_dynamicpo.host.registration.register()
    assert recbole.quick_start
    make_model().save_pretrained(world / "backbone")
    make_tokenizer().save_pretrained(world / "backbone")
    write_dataset(world / "dataset")
    small_published(world / "published")


def settings(world: Path, **more: Any) -> dict[str, Any]:
    """Return the settings of a run that takes a second and passes every kind of place to be killed at."""
    return {
        **small_settings(world / "dataset", world / "backbone"),
        "valid_rows": 4,
        "eval_rows": 6,
        "eval_batch_size": 4,
        "sft_epochs": 2,
        "epochs": 2,
        "validate_every": 2,
        "lora_dropout": 0.1,
        "checkpoint_every": 2,
        **more,
    }


def run_folder(home: Path) -> Path:
    """Return the folder of the run that got furthest; a run that left no checkpoint is begun anew."""
    folders = sorted(path for path in (home / "saved").glob("[!.]*") if path.is_dir())
    return max(folders, key=has_checkpoint)


def run(world: Path, home: Path, torch_threads: int = 1, **more: Any) -> int:
    """Run the console script, resuming what is there."""
    import torch

    torch.set_num_threads(torch_threads)
    parent = home / "saved"
    left = [path for path in parent.glob("[!.]*") if path.is_dir() and has_checkpoint(path)]
    chosen = settings(world, checkpoint_dir=str(parent), **more)
    if left:
        chosen["resume"] = str(left[0])
    return cli.run_recbole(["--model=DynamicPO", "--dataset=toy", *(f"--{k}={v}" for k, v in chosen.items())])


def dense(world: Path, home: Path) -> int:
    """The same with windows of whole sequences above counting priors."""
    return run(world, home, **DENSE)


def resume(world: Path, home: Path, folder: str) -> int:
    """Run the console script in the folder of a run."""
    chosen = settings(world, checkpoint_dir=str(home / "saved"), resume=folder)
    return cli.run_recbole(["--model=DynamicPO", "--dataset=toy", *(f"--{k}={v}" for k, v in chosen.items())])


def stages(world: Path, home: Path, **more: Any) -> int:
    """Run the four stages as the flows do."""
    from recbole_dynamicpo.job import Job
    from recbole_dynamicpo.pipeline import begin, evaluate, prepare, train

    def command(arguments: Any) -> None:
        job = Job("DynamicPO", "toy", (), settings(world, **more), str(home / "saved"))
        prepared = prepare(job)
        begin(job, prepared)
        results = [prepared, train(job, "sft", prepared), train(job, "preference", prepared)]
        results.append(evaluate(job, prepared))
        told = [{"folder": r.folder, "cached": r.cached, "outputs": r.outputs} for r in results]
        print(json.dumps(told), flush=True)

    return _guarded(command)


def prepare(world: Path, home: Path, out: str = "data") -> int:
    """Prepare the published data."""
    source, where = str(world / "published"), str(home / out)
    return cli.main(["prepare", "--dataset", "lastfm", "--source", source, "--out", where])


def fetch(world: Path, home: Path) -> int:
    """Download a data set of RecBole's, from an archive in the world."""
    from recbole_dynamicpo.dataset import data_files as known_data
    from recbole_dynamicpo.host.config import plain_config

    def download(address: str, folder: str) -> str:
        return shutil.make_archive(f"{folder}/ml-1m", "zip", world / "dataset" / "toy")

    known_data.decide_download, known_data.download_url = lambda address: True, download
    chosen = settings(world, data_path=str(home / "data"))
    return _guarded(lambda _: known_data.require_data(plain_config("DynamicPO", "ml-1m", (), chosen)))


def outcome_of_fetch(home: Path) -> dict[str, Any]:
    """Return the data set's files by their hash."""
    return {path.name: digest(path) for path in (home / "data" / "ml-1m").iterdir()}


def _guarded(command: Callable[[Any], None]) -> int:
    return cli._guarded(command, [])


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def outcome_of_run(home: Path) -> dict[str, Any]:
    """Return all that may not differ between a run and its resumed like."""
    folder = run_folder(home)
    return outcome(dict.fromkeys(("sft", "preference", "evaluate"), folder))


def outcome_of_dense(home: Path) -> dict[str, Any]:
    """Return the same, with priors and scalars of each stage."""
    folder = run_folder(home)
    kept = [folder / stage / name for stage in ("sft", "preference") for name in (PRIORS_FILE, SCALARS_FILE)]
    return {**outcome_of_run(home), **{f"{path.parent.name} {path.name}": digest(path) for path in kept}}


def outcome_of_stages(home: Path) -> dict[str, Any]:
    """Return all that may not differ between stages and their repeated like."""
    found = {}
    for stage in ("sft", "preference", "evaluate"):
        (found[stage],) = (home / "saved" / "stages").glob(f"{stage}-*")
    return outcome(found)


def outcome(folders: dict[str, Path]) -> dict[str, Any]:
    """Return adapters, losses and metrics."""
    found: dict[str, Any] = {}
    for stage in ("sft", "preference"):
        entries = [
            entry for entry in Journal(folders[stage] / "metrics.jsonl").entries() if entry["stage"] == stage
        ]
        found[f"{stage} adapter"] = digest(folders[stage] / stage / "adapter_model.safetensors")
        found[f"{stage} losses"] = [entry["loss"] for entry in entries if entry["kind"] == "train"]
        valid = [entry for entry in entries if entry["kind"] == "valid"]
        found[f"{stage} valid"] = [{k: v for k, v in entry.items() if k != "time"} for entry in valid]
    report = json.loads((folders["evaluate"] / "report.json").read_text(encoding="utf-8"))
    found["test"] = report["contestants"]
    ranks = read_ranks(folders["evaluate"])
    found["ranks"] = [list(ranks.row_ids), list(ranks.user_ids), [int(rank) for rank in ranks.ranks]]
    return found


def outcome_of_prepare(home: Path) -> dict[str, Any]:
    """Return the prepared files by their hash, and the audit; the manifest tells the date."""
    folder = home / "data" / "lastfm"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    files = {path.name: digest(path) for path in folder.iterdir() if path.name != "manifest.json"}
    assert {name: files[name] for name in manifest["files"]} == manifest["files"]
    return {"files": files, "manifest": {k: v for k, v in manifest.items() if k != "date"}}


def import_mlflow(world: Path) -> None:
    """Import what registration needs."""
    for name in (
        "mlflow.pyfunc",
        "sqlalchemy.orm",
        "recbole_dynamicpo.serving.gate",
        "recbole_dynamicpo.tracking.registry",
    ):
        importlib.import_module(name)


def make_store(world: Path, home: Path) -> int:
    """Make what ``register`` needs: a finished run, and MLflow's tables, which take long to make."""
    from recbole_dynamicpo.tracking.client import connect

    connect(f"sqlite:///{world}/mlflow.db")
    return run(world, home)


def register(world: Path, home: Path) -> int:
    """Show a finished run in MLflow and register its adapter."""
    from recbole_dynamicpo.serving import gate
    from recbole_dynamicpo.tracking.registry import register_model
    from recbole_dynamicpo.tracking.sync import sync

    gate.subprocess = near_gate  # type: ignore

    def command(arguments: Any) -> None:
        if not (home / "saved").is_dir():
            shutil.copyfile(world / "mlflow.db", home / "mlflow.db")
            shutil.copytree(world / "finished" / "saved", home / ".saved")
            os.replace(home / ".saved", home / "saved")
        uri, folder = f"sqlite:///{home}/mlflow.db", run_folder(home)
        sync(folder, uri)
        print(json.dumps(asdict(register_model(folder, uri))), flush=True)

    return _guarded(command)


def outcome_of_register(home: Path) -> dict[str, Any]:
    """Return what the registry says of the one version, and what files it keeps."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    versions = client.search_model_versions("name = 'dynamicpo-toy'")
    champion = client.get_model_version_by_alias("dynamicpo-toy", "champion")
    files = Path(champion.source.removeprefix("file://")) / "artifacts" / "recommender"
    told = {
        key: champion.tags[key] for key in ("recommender_sha256", "adapter_sha256", "gate", "valid_metric")
    }
    return {
        "versions": len(versions),
        "tags": told,
        "files": {path.name: digest(path) for path in sorted(files.iterdir())},
    }
