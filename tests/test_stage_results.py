"""The four stages as functions: equal to a whole run, cached by content, gone on with after a crash."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recbole_dynamicpo.errors import AdapterError, BackboneError, DataError, SettingsError
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.job import Job, check
from recbole_dynamicpo.pipeline import begin, evaluate, prepare, train
from recbole_dynamicpo.settings import package_folder, properties_folder
from recbole_dynamicpo.stage_results import StageResult, digest_of, finish, finished
from recbole_dynamicpo.title_trie.catalogue_scorer import CatalogueScorer
from recbole_dynamicpo.tracking.journal import Journal
from recbole_dynamicpo.tracking.record import read_record


@pytest.fixture
def settings(toy_settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in toy_settings.items() if key != "checkpoint_dir"} | {"eval_rows": 6}


@pytest.fixture
def job(settings: dict[str, Any], tmp_path: Path) -> Job:
    return Job("DynamicPO", "toy", (), settings, str(tmp_path / "store"))


def run_stages(job: Job) -> dict[str, StageResult]:
    """Run all stages in order."""
    prepared = prepare(job)
    begin(job, prepared)
    sft = train(job, "sft", prepared)
    preference = train(job, "preference", prepared)
    return {"prepare": prepared, "sft": sft, "preference": preference, "evaluate": evaluate(job, prepared)}


def with_settings(job: Job, **more: Any) -> Job:
    return Job(job.model, job.dataset, (), {**job.overrides, **more}, job.store)


def done_again(results: dict[str, StageResult]) -> list[str]:
    """Return the stages that were not cached."""
    return [stage for stage, result in results.items() if not result.cached]


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter_model.safetensors")


def test_stages_one_by_one_equal_a_whole_run(job: Job, settings: dict[str, Any], tmp_path: Path) -> None:
    results = run_stages(job)
    whole = run("DynamicPO", "toy", overrides={**settings, "checkpoint_dir": str(tmp_path / "whole")})
    (folder,) = (tmp_path / "whole").iterdir()
    for stage in ("sft", "preference"):
        expected, found = weights(folder / stage), weights(results[stage].outputs["adapter"])
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert results["evaluate"].outputs["test"] == pytest.approx(dict(whole["test_result"]), abs=0)
    report = json.loads((folder / "report.json").read_text())
    assert results["evaluate"].outputs["contestants"] == report["contestants"]


def test_stages_hand_on_what_is_trained_beside_an_adapter(
    job: Job, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scale, weights of the priors and mean opinion after SFT are where the preference stage begins."""
    dense = {
        **settings, "likelihood": "catalogue", "positions": "all", "prompt": "sequence", "window": 4,
        "catalogue_prior": ["popularity"], "centre": True, "sft_rows": 0, "preference_rows": 0,
    }  # fmt: skip
    run("DynamicPO", "toy", overrides={**dense, "checkpoint_dir": str(tmp_path / "whole")})
    (whole,) = (tmp_path / "whole").iterdir()
    own = with_settings(job, **dense)
    prepared = prepare(own)
    train(own, "sft", prepared)
    looked: list[int] = []
    mean = CatalogueScorer.mean_logits
    monkeypatch.setattr(
        CatalogueScorer, "mean_logits", lambda self, rows: looked.append(len(rows)) or mean(self, rows)
    )
    done = train(own, "preference", prepared)
    evaluate(own, prepared)
    for name in ("scalars.json", "adapter_model.safetensors"):
        assert (Path(done.outputs["adapter"]) / name).read_bytes() == (
            whole / "preference" / name
        ).read_bytes()
    assert looked == [], "the mean opinion is taken over"


def test_what_is_done_is_not_done_again(job: Job) -> None:
    first = run_stages(job)
    assert done_again(first) == ["prepare", "sft", "preference", "evaluate"]
    second = run_stages(job)
    assert done_again(second) == []
    assert [r.outputs for r in second.values()] == [r.outputs for r in first.values()]
    assert done_again(run_stages(with_settings(job, beta=0.5))) == ["preference", "evaluate"]
    assert done_again(run_stages(with_settings(job, eval_rows=5))) == ["evaluate"]
    assert done_again(run_stages(with_settings(job, num_negatives=2))) == ["preference", "evaluate"]
    assert done_again(run_stages(with_settings(job, seed=7))) == [
        *("prepare", "sft", "preference", "evaluate")
    ]
    assert done_again(run_stages(with_settings(job, register=False))) == []


def test_other_data_are_another_result(job: Job) -> None:
    run_stages(job)
    path = Path(job.overrides["data_path"]) / "toy" / "toy.item"
    path.write_text(path.read_text().replace("amber", "umber"))
    assert done_again(run_stages(job)) == ["prepare", "sft", "preference", "evaluate"]


def test_a_damaged_result_is_not_used(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    first = run_stages(job)
    path = Path(first["preference"].outputs["adapter"]) / "adapter_model.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        again = run_stages(job)
    assert done_again(again) == ["preference"]
    assert "adapter_model.safetensors has changed" in caplog.text
    assert path.read_bytes() == good


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("stage", ["sft", "preference"])
def test_an_interrupted_stage_goes_on(
    job: Job, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = with_settings(job, checkpoint_every=1, sft_epochs=2, epochs=2)
    undisturbed = run_stages(Job(job.model, job.dataset, (), job.overrides, str(tmp_path / "other")))
    write, seen = Journal.write, []

    def dying(self: Journal, of: str, step: int, kind: str, values: dict[str, Any]) -> None:
        write(self, of, step, kind, values)
        if (of, kind) == (stage, "train"):
            seen.append(step)
            if len(seen) == 4:
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", dying)
        with pytest.raises(Killed):
            run_stages(job)
    results = run_stages(job)
    journal = Journal(Path(results[stage].folder) / "metrics.jsonl")
    steps = [entry["step"] for entry in journal.entries() if entry["kind"] == "train"]
    assert seen == [1, 2, 3, 4]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert ("sft" in done_again(results)) == (stage == "sft")
    expected, found = (weights(r["preference"].outputs["adapter"]) for r in (undisturbed, results))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_model_without_preference_stage(job: Job) -> None:
    results = run_stages(Job("SFTRec", job.dataset, (), job.overrides, job.store))
    assert results["preference"].outputs["adapter"] == results["sft"].outputs["adapter"]
    names = [line["name"] for line in results["evaluate"].outputs["contestants"]]
    counted = ["popularity", "co-occurrence", "transitions", "EASE"]
    assert names == [*counted, f"{Path(job.overrides['backbone']).name} zero-shot", "after SFTRec"]


def test_the_record_names_the_folder_of_every_stage(job: Job) -> None:
    results = run_stages(job)
    folder = begin(job, results["prepare"])
    record = read_record(folder)
    assert folder.name == record.name
    assert record.name.startswith("DynamicPO-toy-")
    assert record.name.endswith("-s2020")
    assert {stage: Path(path) for stage, path in record.stages.items()} == {
        stage: Path(result.folder).resolve() for stage, result in results.items()
    }
    assert read_record(begin(job, results["prepare"])).key == record.key
    assert record.data["rows"]["test"] == 6


@pytest.mark.parametrize(
    ("more", "error", "named"),
    [
        ({"beta": -1}, SettingsError, "beta"),
        ({"betta": 1}, SettingsError, "betta"),
        ({"backbone": "__import__('os').system('true')"}, BackboneError, "backbone"),
        ({"sft_adapter": "nowhere"}, AdapterError, "nowhere"),
    ],
)
def test_what_cannot_run_is_refused_before_the_first_stage(
    job: Job, more: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        check(with_settings(job, **more))
    assert not Path(job.store).exists()


def test_an_unknown_data_set_is_refused(job: Job) -> None:
    with pytest.raises(DataError, match="nonesuch"):
        check(Job(job.model, "nonesuch", (), job.overrides, job.store))
    check(job)


def test_every_module_and_shipped_file_decides_a_result(tmp_path: Path) -> None:
    """A file touched in any folder of the package, or moved, makes other results; compiled files do not."""
    home, shipped = tmp_path / "package", tmp_path / "properties"
    leave_out = shutil.ignore_patterns("__pycache__", "flows", "properties")
    shutil.copytree(package_folder(), home, ignore=leave_out)
    shutil.copytree(properties_folder(), shipped)
    digests = [digest_of(home, shipped)]
    folders = {path.parent for path in home.rglob("*.py")} | {path.parent for path in shipped.rglob("*.yaml")}
    for folder in sorted(folders):
        touched = min([*folder.glob("*.py"), *folder.glob("*.yaml")])
        touched.write_text(touched.read_text(encoding="utf-8") + "# another line\n", encoding="utf-8")
        digests.append(digest_of(home, shipped))
    (home / "errors.py").rename(home / "mistakes.py")
    digests.append(digest_of(home, shipped))
    assert len(set(digests)) == len(folders) + 2
    (home / "errors.pyc").write_bytes(b"compiled")
    assert digest_of(home, shipped) == digests[-1]


# --- results on a disk that fails, and results that are damaged ---


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A whole result with the key ``key``."""
    folder = tmp_path / "stages" / "sft-1"
    (folder / "sft").mkdir(parents=True)
    (folder / "sft" / "adapter.bin").write_bytes(b"weights")
    finish(folder, StageResult("sft", "key", str(folder), {"valid": 0.5}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EACCES])
@pytest.mark.parametrize("place", ["hash", "manifest", "look"])
def test_an_error_of_the_disk_comes_out_and_touches_nothing(
    kept: Path, monkeypatch: pytest.MonkeyPatch, code: int, place: str
) -> None:
    """Whether a file is hashed, read or only looked for; the error names the file."""
    before = contents(kept)

    def fail(*args: object, **how: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if place == "hash":
            patch.setattr(hashlib, "file_digest", fail)
        elif place == "manifest":
            patch.setattr(Path, "read_text", fail)
        else:
            patch.setattr(Path, "is_file", fail)
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            finished(kept, "key")
        assert caught.value.errno == code
    named = {"hash": kept / "sft" / "adapter.bin", "manifest": kept / "done.json", "look": None}[place]
    assert caught.value.filename == (str(named) if named else None)
    assert contents(kept) == before
    found = finished(kept, "key")
    assert found is not None
    assert found.cached


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("sft/adapter.bin", b"other", "sft/adapter.bin has changed"),
        ("sft/adapter.bin", None, "sft/adapter.bin is missing"),
        ("done.json", b'{"key": ', "damaged manifest"),
        ("done.json", b"[]", "damaged manifest"),
        ("done.json", b"\xff\xfe", "damaged manifest"),
        ("done.json", b'{"key": "key", "files": {}}', "damaged manifest"),
        ("done.json", b'{"key": "another", "files": {}}', "it has another key"),
    ],
)
def test_damage_is_moved_aside_and_kept(
    kept: Path, caplog: pytest.LogCaptureFixture, file: str, content: bytes | None, reason: str
) -> None:
    if content is None:
        (kept / file).unlink()
    else:
        (kept / file).write_bytes(content)
    before = contents(kept)
    (kept.parent / "sft-1.damaged-1").mkdir()  # of an earlier time
    assert finished(kept, "key") is None
    assert not kept.exists()
    assert contents(kept.parent / "sft-1.damaged-2") == before
    (said,) = caplog.messages
    assert reason in said
    assert str(kept.parent / "sft-1.damaged-2") in said
    assert finished(kept, "key") is None
    assert len(caplog.messages) == 1


def test_a_stage_that_cannot_be_gone_on_with_is_moved_aside(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = prepare(job)
    write = Journal.write

    def dying(self: Journal, of: str, step: int, kind: str, values: dict[str, Any]) -> None:
        write(self, of, step, kind, values)
        if (of, step, kind) == ("sft", 2, "train"):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", dying)
        with pytest.raises(Killed):
            train(job, "sft", prepared)
    folder = Path(prepared.outputs["places"]["sft"][1])
    state = folder / "checkpoint" / "state.json"
    state.write_text("{")
    with caplog.at_level(logging.WARNING):
        result = train(job, "sft", prepared)
    assert (Path(result.folder), result.cached) == (folder, False)
    aside = folder.with_name(f"{folder.name}.damaged-1")
    assert (aside / "checkpoint" / "state.json").read_text() == "{"
    assert str(aside) in caplog.text
