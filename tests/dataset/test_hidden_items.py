"""Items kept from training: nothing of them is seen there, what is held out stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_dynamicpo.dataset.dataset import DynamicPODataset
from recbole_dynamicpo.errors import SettingsError
from recbole_dynamicpo.host.run import run

from .test_row_order import build


def held_out(data: DynamicPODataset, phase: str) -> list[tuple[int, int]]:
    rows = data.built[phase].inter_feat
    return sorted(zip(rows[data.uid_field].tolist(), rows[data.iid_field].tolist(), strict=True))


def test_training_never_sees_a_hidden_item(toy_settings: dict[str, Any]) -> None:
    own = {**toy_settings, "valid_rows": 0, "eval_rows": 0}
    whole, data = build(own), build({**own, "hidden_items": 0.3})
    for phase in ("valid", "test"):
        assert held_out(data, phase) == held_out(whole, phase)
    hidden = np.flatnonzero((data.popularity() == 0) & (whole.popularity() > 0))
    assert len(hidden) >= 0.2 * (whole.item_num - 1)
    rows = data.built["train"].inter_feat
    assert not np.isin(rows[data.iid_field].numpy(), hidden).any()
    assert not np.isin(np.concatenate(data.history(rows)), hidden).any()
    kept = ~np.isin(np.arange(whole.item_num), hidden)
    assert data.popularity()[kept].tolist() == whole.popularity()[kept].tolist()
    assert data.catalogue == whole.catalogue
    assert any(note.startswith("hidden from training: ") for note in data.notes)
    assert any(target in hidden for _, target in held_out(data, "test"))


def test_which_are_hidden_depends_on_the_seed(toy_settings: dict[str, Any]) -> None:
    own = {**toy_settings, "hidden_items": 0.3}
    first, again, other = build(own), build(own), build({**own, "seed": 5})
    assert first.popularity().tolist() == again.popularity().tolist()
    assert first.popularity().tolist() != other.popularity().tolist()


def test_a_split_that_is_none_of_recboles_leave_one_out_is_refused(toy_settings: dict[str, Any]) -> None:
    split = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "full"}
    with pytest.raises(SettingsError, match=r"hidden_items: got 0\.3 with split .*; wanted times and"):
        build({**toy_settings, "hidden_items": 0.3, "eval_args": split})


def test_the_report_says_how_well_hidden_items_are_ranked(
    toy_settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from recbole_dynamicpo.cli import main
    from recbole_dynamicpo.evaluation.segments import COLD

    own = {**toy_settings, "hidden_items": 0.3, "eval_rows": 0, "compare_stages": False}
    run("SFTRec", "toy", overrides=own)
    (folder,) = Path(own["checkpoint_dir"]).iterdir()
    capsys.readouterr()
    assert main(["show", str(folder), "--segments"]) == 0
    shown = capsys.readouterr().out
    assert f"{COLD}, " in shown
    assert "hidden from training: " in shown
    assert "among the candidates of each row" in shown
    assert "test rows: 12 of 12" in shown
    (folder / "report.json").write_text('{"contestants": []')
    assert main(["show", str(folder)]) == 2
    assert "report.json: not a readable report" in capsys.readouterr().err
