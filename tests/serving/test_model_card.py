"""Model cards: read by the hub's own reader, no figure without interval and rows, out of every digest."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from recbole_dynamicpo import load_recommender, stage_results
from recbole_dynamicpo.errors import AdapterError
from recbole_dynamicpo.evaluation.report import Contestant, summarize
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.serving.export import export_merged
from recbole_dynamicpo.serving.folder import MODEL_CARD_FILE, content_digest
from recbole_dynamicpo.serving.model_card import write_model_card
from recbole_dynamicpo.serving.packaging import package_recommender
from recbole_dynamicpo.training.reporting import card_results

from ..helpers.saved_recommender import write_recommender

RANKS = {"popularity": [4, 1, 9, 2, 30], "a|b": [1, 1, 3, 2, 12]}


@pytest.fixture
def folder(tiny_backbone: Path, tmp_path: Path) -> Path:
    return write_recommender(tmp_path / "preference", tiny_backbone, priors=["popularity"])


def report() -> dict[str, Any]:
    contestants = [Contestant(name, np.array(ranks), np.arange(5)) for name, ranks in RANKS.items()]
    return {"contestants": [summarize(one) for one in contestants]}


def read(folder: Path) -> Any:
    """Return what the hub's reader makes of a card."""
    return ModelCard.load(folder / MODEL_CARD_FILE)


def test_the_header_is_what_hubs_read(folder: Path, tiny_backbone: Path) -> None:
    write_model_card(folder, card_results(report(), ["About."]))
    data = read(folder).data.to_dict()
    assert (data["base_model"], data["library_name"]) == (tiny_backbone.name, "peft")
    assert {"recommendation", "lora", "DynamicPO"} <= set(data["tags"])
    assert data["metrics"] == ["HR@1", "NDCG@5", "MRR"]
    assert "license" not in data


def test_every_figure_has_its_interval_and_its_rows(folder: Path) -> None:
    write_model_card(folder, card_results(report(), ["About."]))
    text = read(folder).text
    table = [line for line in text.splitlines() if re.match(r"\| (\*\*)?(popularity|a)", line)]
    for line, ranks in zip(table, RANKS.values(), strict=True):
        *figures, rows = line.replace("\\|", "").strip("| ").split(" | ")[1:]
        assert int(rows) == len(ranks)
        assert len(figures) == 3
        for figure in figures:
            value, low, high = map(float, re.findall(r"\d\.\d{4}", figure))
            assert low <= value <= high
    assert table[1].count("**") == 6  # the best of all three columns
    assert text.index("About.") < text.index("HR@1")


def test_figures_without_intervals_are_left_out(folder: Path) -> None:
    """As reports of earlier versions have them."""
    old = report()
    for line in old["contestants"]:
        for key in ("mrr_low", "mrr_high"):
            del line[key]
    write_model_card(folder, card_results(old, []))
    head = next(line for line in read(folder).text.splitlines() if "HR@1" in line)
    assert "MRR" not in head
    assert "NDCG@5" in head


def test_before_an_evaluation_it_says_so(folder: Path) -> None:
    write_model_card(folder)
    text = read(folder).text
    assert "Not evaluated yet." in text
    assert "below the language model: popularity" in text
    assert "7 items with 6 distinct titles, 41 interactions in training" in text
    code = re.search(r"rank\((\[.*\]), k=5\)", text)
    assert code is not None
    assert code[1] == '["Delta", "Amber"]'


def test_no_digest_holds_it(folder: Path, tmp_path: Path) -> None:
    """Neither that of a registered model nor that of a stage's result."""
    whole = tmp_path / "stage"
    shutil.copytree(folder, whole / "preference")
    result = stage_results.StageResult("preference", "k", str(whole))
    stage_results.finish(whole, result)
    before = content_digest(whole / "preference")
    write_model_card(whole / "preference", card_results(report(), ["About."]))
    assert content_digest(whole / "preference") == before
    assert stage_results.finished(whole, "k") is not None
    (whole / "preference" / "catalogue.json").write_text("{}")
    assert content_digest(whole / "preference") != before
    assert stage_results.finished(whole, "k") is None


def test_a_card_that_cannot_be_written_leaves_the_old_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model_card(folder)
    before = (folder / MODEL_CARD_FILE).read_text()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_model_card(folder, card_results(report(), ["About."]))
    monkeypatch.undo()
    assert (folder / MODEL_CARD_FILE).read_text() == before
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_folder_without_a_recommender_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="wanted a recommender folder"):
        write_model_card(tmp_path)


def test_it_goes_with_the_packaged_and_the_merged_model(folder: Path, tmp_path: Path) -> None:
    write_model_card(folder)
    package_recommender(folder, tmp_path / "packaged", {})
    assert read(tmp_path / "packaged").text == read(folder).text
    export_merged(load_recommender(folder), tmp_path / "merged")
    merged = read(tmp_path / "merged")
    assert merged.data.library_name == "transformers"
    assert "merged into its weights" in merged.text


def test_a_run_writes_its_table_into_the_cards_of_its_adapters(toy_settings: dict[str, Any]) -> None:
    run("DynamicPO", "toy", [], toy_settings)
    (folder,) = Path(toy_settings["checkpoint_dir"]).iterdir()
    for stage, name in (("sft", "after SFT"), ("preference", "after DynamicPO")):
        card = read(folder / stage)
        assert card.data.datasets == ["toy"]
        assert f"This adapter is the line *{name}*" in card.text
        assert f"Run {folder.name}, seed" in card.text
        assert "12 test rows" in card.text
        assert f"| {name} | " in card.text
    assert "Among the candidates of each row" in read(folder / "sft").text
    # Training that goes on writes the folder anew, and the next evaluation the table.
    (folder / "sft" / MODEL_CARD_FILE).unlink()
    run("DynamicPO", "toy", [], {**toy_settings, "resume": str(folder)})
    assert "This adapter is the line *after SFT*" in read(folder / "sft").text
