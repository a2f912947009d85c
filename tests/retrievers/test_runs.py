"""Whole runs with a retriever: its row of the tables, hard negatives from its list, two stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recbole_dynamicpo.cli import main
from recbole_dynamicpo.dataset.columns import CHAIN, NEGATIVES, START, STOP
from recbole_dynamicpo.errors import AdapterError, DataError, SettingsError
from recbole_dynamicpo.evaluation.ranks import ALL_RANKS_FILE, read_ranks
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import load, run
from recbole_dynamicpo.job import Job
from recbole_dynamicpo.language_model.adapter_folder import adapter_digest
from recbole_dynamicpo.likelihoods.catalogue import CatalogueLikelihood
from recbole_dynamicpo.pipeline import evaluate, prepare, train
from recbole_dynamicpo.retrievers import fitted
from recbole_dynamicpo.saved_models.evaluation import evaluate_saved
from recbole_dynamicpo.serving.packaging import package_recommender
from recbole_dynamicpo.serving.recommender import load_recommender
from recbole_dynamicpo.serving.requests import answer as answer_requests
from recbole_dynamicpo.storage import load_json
from recbole_dynamicpo.title_trie.prior import Histories
from recbole_dynamicpo.training.contestants import rank_by_retrieving, retrieving, rows_of
from recbole_dynamicpo.training.dense_rows import DenseRows
from recbole_dynamicpo.training.plan import plan_stages

from .test_fitted import OURS, model_of, prior_of


@pytest.fixture
def settings(toy_settings: dict[str, Any]) -> dict[str, Any]:
    """EASE is made in a moment."""
    ease = {"catalogue_prior": ["popularity", "recbole:EASE"], "retriever_settings": {"reg_weight": 5.0}}
    return {**toy_settings, **OURS, **ease}


def test_hard_negatives_are_drawn_from_the_list_of_who_has_not_seen_the_user(
    settings: dict[str, Any],
) -> None:
    model = model_of(settings, catalogue_prior=["recbole:EASE"], hard_pool=6, num_negatives=3)
    prior, likelihood, chains = prior_of(model), model.likelihood, model.dataset.chains
    assert isinstance(likelihood, CatalogueLikelihood)
    plan = next(plan for plan in plan_stages(model.settings) if plan.name == "preference")
    drawn = 0
    for step in DenseRows(model, plan).batches(0, 0):
        for part in step:
            spans = zip(*(part[name].tolist() for name in (CHAIN, START, STOP)), strict=True)
            for row, (chain, start, stop) in enumerate(spans):
                user, items = int(chains.users[chain]), chains.items[chain]
                for at in range(max(start, 1), stop):
                    asked = Histories([likelihood.numbers[items[:at]]], np.array([user]))
                    p0 = prior(asked).masses(np.array([[0]]), prior.popularity.trie.title_edge[None])[0]
                    likely = set((np.argsort(-p0, kind="stable")[:6] + 1).tolist())
                    negatives = [item for item in part[NEGATIVES][row, at - start].tolist() if item]
                    assert set(negatives) <= likely - set(items.tolist())
                    drawn += len(negatives)
    assert drawn > 50


def test_the_retriever_is_a_contestant_in_both_tables(settings: dict[str, Any]) -> None:
    more = {"rank_among": ["candidates", "all"], "eval_batch_size": 5}
    found = run("DynamicPO", "toy", overrides={**settings, **more})
    report = load_json(Path(found["run_folder"]) / "report.json")
    for table in ("contestants", "all"):
        names = [line["name"] for line in report[table]]
        assert names.index("retriever EASE") > names.index("transitions")
    model = model_of(settings)
    prior, data = prior_of(model), model.dataset.built["test"]
    rows = rows_of(data)
    shares = prior.likelihoods(Histories([history - 1 for history in rows.histories], np.full(12, -1)))
    own = shares[np.arange(12), rows.targets - 1]
    shown = np.take_along_axis(shares, rows.candidates - 1, axis=1)
    lines = {table: {line["name"]: line for line in report[table]} for table in ("contestants", "all")}
    ranks = rank_by_retrieving(retrieving(model.likelihood), data)["retriever EASE"].ranks
    assert between((shown > own[:, None]).sum(axis=1), ranks - 1, (shown >= own[:, None]).sum(axis=1) - 1)
    assert lines["contestants"]["retriever EASE"]["mrr"] == pytest.approx((1 / ranks).mean())
    for row, history in enumerate(rows.histories):
        shares[row, history - 1] = -1.0
    least, most = 1 + (shares > own[:, None]).sum(axis=1), (shares >= own[:, None]).sum(axis=1)
    assert (1 / most).mean() <= lines["all"]["retriever EASE"]["mrr"] <= (1 / least).mean()
    assert np.median(most - least) == 0
    out = Path(found["run_folder"]).parent / "again"
    evaluate_saved(found["run_folder"], "toy", "likelihood", overrides=more, out=out, progress=False)
    again = load_json(out / "report.json")
    for table in ("contestants", "all"):
        line = next(line for line in again[table] if line["name"] == "retriever EASE")
        assert line == lines[table]["retriever EASE"]  # the saved model's, on the same rows


def between(least: Any, found: Any, most: Any) -> bool:
    """Say whether ranks are those that scores give; equal scores are settled by a draw."""
    return bool(((least <= found) & (found <= most)).all() and (least == most).mean() >= 0.5)


def test_two_stages_of_all_titles_rank_as_one(settings: dict[str, Any]) -> None:
    """And of few: who is chosen keeps the place among those, in the run as by the saved model."""
    common = {**settings, "rank_among": ["candidates", "all"]}
    ranks, among = {}, {}
    for count in (0, 38, 5):
        own = {**common, "first_stage": count, "checkpoint_dir": f"{settings['checkpoint_dir']}{count}"}
        folder = Path(run("DynamicPO", "toy", overrides=own)["run_folder"])
        ranks[count], among[count] = read_ranks(folder / ALL_RANKS_FILE).ranks, read_ranks(folder).ranks
        recommender = load_recommender(folder)
        assert recommender.card.first_stage == count
    assert ranks[0].tolist() == ranks[38].tolist()
    assert among[0].tolist() == among[38].tolist() == among[5].tolist()
    # A target that is found keeps the order of the exact ranking, with fewer before it.
    found = ranks[5] <= 5
    assert 0 < found.sum() < len(found)
    assert (ranks[5][found] <= ranks[0][found]).all()
    text = evaluate_saved(folder, "toy", "likelihood", overrides={**common, "first_stage": 5}, progress=False)
    again = evaluate_saved(folder, "toy", "likelihood", overrides=common, progress=False)
    assert text == again  # as the run was made
    out = folder.parent / "again"
    evaluate_saved(folder, "toy", "likelihood", overrides=common, out=out, progress=False)
    assert read_ranks(out / ALL_RANKS_FILE).ranks.tolist() == ranks[5].tolist()
    assert read_ranks(out).ranks.tolist() == among[5].tolist()


def test_what_mlflow_holds_ranks_alike(
    settings: dict[str, Any], tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(run("DynamicPO", "toy", overrides={**settings, "first_stage": 9})["run_folder"])
    package_recommender(folder / "preference", tmp_path / "packaged", {"seed": 1})
    names = {path.name for path in (tmp_path / "packaged").iterdir()}
    assert {"retriever-EASE.safetensors", "recommender.json"} < names
    assert "recbole:EASE, trained by RecBole" in (tmp_path / "packaged" / "README.md").read_text()
    monkeypatch.setenv("RECBOLE_DYNAMICPO_BACKBONE", str(tiny_backbone))
    found, wanted = load_recommender(tmp_path / "packaged"), load_recommender(folder)
    (answer,) = answer_requests(found, [{"history": list(found.catalogue.titles[:3]), "k": 20}])
    ranked = wanted.rank(found.catalogue.titles[:3], k=20)
    assert [one.title for one in answer.ranked] == [one.title for one in ranked]
    assert answer.num_candidates == len(answer.ranked) == 9
    (tmp_path / "packaged" / "retriever-EASE.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"retriever-EASE\.safetensors: missing"):
        load_recommender(tmp_path / "packaged")


def test_a_saved_model_ranks_in_two_stages(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("DynamicPO", "toy", overrides=settings)["run_folder"]
    exact = load_recommender(folder)
    history = list(exact.catalogue.titles[:3])
    whole = exact.rank(history, k=100)
    everything = exact.rank(history, k=100, first_stage=1000)
    assert [one.title for one in everything] == [one.title for one in whole]
    few = exact.ranking(history, k=100, explain=True, first_stage=7)
    assert (few.source, few.num_candidates, few.likelihood) == ("catalogue", 7, "catalogue")
    scores = {one.title: one.score for one in whole}
    assert [one.score for one in few.ranked] == pytest.approx(
        [scores[one.title] for one in few.ranked], abs=1e-5
    )
    by_prior = {one.title: one.prior for one in exact.rank(history, k=100, explain=True)}
    assert {one.title for one in few.ranked} == set(sorted(by_prior, key=lambda t: -by_prior[t])[:7])
    given = exact.rank(history, list(exact.catalogue.titles[4:9]), first_stage=2)
    assert len(given) == 5  # candidates that are named are all ranked

    users, out = tmp_path / "users.jsonl", tmp_path / "ranked"
    users.write_text(json.dumps({"user": "u", "history": history}) + "\n")
    words = ["rank", f"--model={folder}", "--among-top=7"]
    assert main([*words, f"--input={users}", f"--out={out}", "-k=100"]) == 0
    table = pd.read_parquet(out / "part-00000.parquet")
    assert table["title"].tolist() == [one.title for one in few.ranked]
    assert main([*words[:2], f"--input={users}", f"--out={out}", "-k=100"]) == 2
    capsys.readouterr()
    assert main([*words, f"--history={'|'.join(history)}", "-k=3"]) == 0
    assert "candidates: the priors' first 7 titles of the catalogue" in capsys.readouterr().out


def test_two_stages_want_a_prior(settings: dict[str, Any]) -> None:
    own = {**settings, "catalogue_prior": None, "negatives": "uniform", "first_stage": 5}
    with pytest.raises(SettingsError, match="first_stage: wanted 0, as there is no catalogue_prior"):
        PlainConfig("DynamicPO", "toy", [], own)
    folder = run("SFTRec", "toy", overrides={**own, "first_stage": 0})["run_folder"]
    recommender = load_recommender(folder)
    with pytest.raises(DataError, match="first_stage: got 5, but this model has no prior"):
        recommender.rank([], first_stage=5)
    for wrong in (-1, True, 2.5):
        with pytest.raises(DataError, match=f"first_stage: got {wrong}, wanted a whole number of at least 0"):
            recommender.rank([], first_stage=wrong)  # type: ignore[arg-type]


def test_stages_of_a_job_read_what_the_first_one_trained(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And end as a run in one go; its settings decide the training's key, not that of the data."""
    common = {**settings, "rank_among": ["candidates", "all"], "first_stage": 9}
    whole = Path(run("DynamicPO", "toy", overrides=common)["run_folder"])
    for path in (tmp_path / "cache" / "retrievers").iterdir():
        path.unlink()
    more = {name: value for name, value in common.items() if name != "checkpoint_dir"}
    job = Job("DynamicPO", "toy", overrides=more, store=str(tmp_path / "store"))
    prepared, trained = prepare(job), []
    really = fitted.train
    monkeypatch.setattr(fitted, "train", lambda *given: trained.append(1) or really(*given))
    for stage in ("sft", "preference"):
        found = Path(train(job, stage, prepared).outputs["adapter"])
        assert adapter_digest(found) == adapter_digest(whole / stage)
        names = [path.name for path in (whole / stage).iterdir() if path.suffix == ".safetensors"]
        assert "retriever-EASE.safetensors" in names
        assert all((found / name).read_bytes() == (whole / stage / name).read_bytes() for name in names)
    assert len(trained) == 3
    said = evaluate(job, prepared).outputs["contestants"]
    assert len(trained) == 3
    assert said == load_json(whole / "report.json")["contestants"]
    other = Job(
        "DynamicPO", "toy", overrides={**more, "retriever_settings": {"reg_weight": 6.0}}, store=job.store
    )
    keys = [prepare(one).outputs["places"] for one in (job, other)]
    assert keys[0]["prepare"] == keys[1]["prepare"]
    assert keys[0]["sft"] != keys[1]["sft"]


def test_a_retriever_needs_no_language_models_vocabulary(settings: dict[str, Any]) -> None:
    """Rows with listed candidates under the catalogue likelihood have it as prior, too."""
    own = {**settings, "positions": "last", "negatives": "uniform", "prompt": "neutral", "sft_rows": 8}
    assert load(PlainConfig("DynamicPO", "toy", [], own)).model.likelihood.priors.retrievers.keys() == {
        "recbole:EASE"
    }
