"""A saved model of ours under both kinds of lists, and what is written of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_dynamicpo.cli import main
from recbole_dynamicpo.evaluation.ranks import ALL_RANKS_FILE, read_ranks
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.storage import load_json

from ..helpers.published_data import small_published


def test_our_own_model_under_both_kinds_of_lists(
    toy_settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under fresh ones as in its run; `show` reads what is written, and counting stands beside it."""
    assert main(["prepare", "--dataset", "lastfm", "--source", str(small_published(tmp_path / "in"))]) == 0
    own = {
        **toy_settings, "data_path": "dataset", "likelihood": "catalogue", "prompt": "sequence",
        "catalogue_prior": ["popularity"], "rank_among": ["candidates", "all"], "epochs": 0,
    }  # fmt: skip
    own.pop("load_col")
    run("SFTRec", "lastfm", overrides=own)
    (folder,) = Path(own["checkpoint_dir"]).iterdir()
    capsys.readouterr()
    words = ["evaluate", "--model", str(folder), "--dataset", "lastfm", "--lists", "published,fresh"]
    assert main([*words, "--out", "both"]) == 0
    text = capsys.readouterr().out
    assert text.count("coverage@10") == 2
    assert text.count("among all titles of the catalogue") == 2
    for file in ("ranks.parquet", ALL_RANKS_FILE):
        kept, again = read_ranks(folder / file), read_ranks(Path("both/fresh") / file)
        assert (kept.ranks == again.ranks).all()
        assert kept.rows == again.rows
    logged, found = (load_json(place / "report.json") for place in (folder, Path("both/fresh")))
    for key in ("all", "beyond"):
        by_name = {line["name"]: line for line in logged[key]}
        *counted, model = found[key]
        assert counted == [by_name[line["name"]] for line in counted]
        assert model == {**by_name["after SFTRec"], "name": str(folder)}
    published = read_ranks(Path("both/published"))
    assert f"{np.mean(published.ranks == 1):.4f} [" in text.split("HR@1 (95 % interval)")[1]
    assert main(["show", "both/published", "--segments"]) == 0
    assert "places by popularity tenth of the title" in capsys.readouterr().out
