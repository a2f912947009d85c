"""A merged export is a plain model: the same log-probabilities, without peft and without this package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recbole_dynamicpo import load_recommender
from recbole_dynamicpo.cli import main
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.storage import load_json

from ..helpers.saved_recommender import TITLES, write_recommender


@pytest.mark.parametrize("priors", [None, ["popularity"]])
def test_the_same_log_probabilities_in_plain_transformers(
    priors: list[str] | None, tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = write_recommender(tmp_path / "kept", tiny_backbone, priors=priors)
    assert main(["export", "--model", str(folder), "--merged", str(tmp_path / "merged")]) == 0
    assert "a model of transformers" in capsys.readouterr().out
    recommender = load_recommender(folder)
    row = PromptRow(["Bear", "Delta"], ["Canyon", "Ember"], ["Canyon", "Ember"])
    ours = recommender.scorer([row])[0]
    (prompt,) = recommender.scorer.collator.prompt_ids([row], [200])

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokens = load_json(tmp_path / "merged" / "catalogue_tokens.json")
    assert [line["title"] for line in tokens["titles"]] == list(dict.fromkeys(TITLES))
    assert next(line["ids"] for line in tokens["titles"] if line["title"] == "Amber") == ["3", "5"]
    of_title = {line["title"]: line["tokens"] for line in tokens["titles"]}
    assert {line[-1] for line in of_title.values()} == {tokens["terminator"]}
    for title, wanted in zip(row.completions, ours.tolist(), strict=True):
        ids = torch.tensor([[*prompt, *of_title[title]]])
        with torch.no_grad():
            logps = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
        found = logps.gather(1, ids[0, len(prompt) :, None]).sum().item()
        assert found == pytest.approx(wanted, abs=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("Bear").input_ids

    assert main(["export", "--model", str(folder), "--merged", str(tmp_path / "merged")]) == 2
    assert "exists; wanted a new folder" in capsys.readouterr().err
