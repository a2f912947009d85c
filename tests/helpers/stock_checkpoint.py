"""A stock model that RecBole trained and saved, on data whose order in time RecBole itself can tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_dynamicpo.host.run import run

from ..conftest import write_dataset

SMALL = {
    **{"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 1, "MAX_ITEM_LIST_LENGTH": 6},
    **{"train_batch_size": 16, "learning_rate": 0.01, "train_neg_sample_args": None},
}
# What the last of these says is RecBole's to train by, and no hyper-parameter of a model.
OWN = {key: value for key, value in SMALL.items() if key != "train_neg_sample_args"}


@dataclass(frozen=True)
class StockFile:
    """A checkpoint, and where its data lie."""

    path: Path
    data_path: Path

    def loaded(self) -> dict[str, Any]:
        """Return what torch finds in the file, which a test has just written."""
        found: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=False)
        return found

    def changed(self, path: Path, **settings: Any) -> Path:
        """Write a file like it whose run had other settings."""
        saved = self.loaded()
        saved["config"].final_config_dict.update(settings)
        torch.save(saved, path, pickle_protocol=4)
        return path


def write_ordered(folder: Path, shift: int = 1, **how: Any) -> Path:
    """Write the data set of tests in the order of time, with pairs of equal times.

    Args:
        folder: of data sets.
        shift: 1: a user's last row of training and that of validation are a pair; 0: the last two rows are.
        how: see ``write_dataset``.
    """
    path = write_dataset(folder, **how) / "toy" / "toy.inter"
    head, *lines = path.read_text().splitlines()
    cells = sorted((line.split("\t") for line in lines), key=lambda cell: int(cell[2]))
    for number, cell in enumerate(cells):
        cell[2] = str(1_000_000 + 300 * ((number + shift) // 2))
    path.write_text("\n".join([head, *("\t".join(cell) for cell in cells)]) + "\n")
    return folder


def train_stock(folder: Path, model: str = "SASRec", **settings: Any) -> StockFile:
    """Let RecBole train a model for an epoch and save it as it does."""
    data_path = folder / "dataset"
    if not data_path.exists():
        write_ordered(data_path)
    own = {
        **{"data_path": str(data_path), "load_col": {"inter": ["user_id", "item_id", "timestamp"]}},
        **{"epochs": 1, "checkpoint_dir": str(folder / "saved"), "show_progress": False, "state": "WARNING"},
        **{"mlflow_tracking_uri": None, **SMALL, **settings},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(model, "toy", overrides=own)
    return StockFile(max((folder / "saved").glob(f"{model}-*.pth")), data_path)
