"""A run on a catalogue of a million items, in a process of its own; prints the most memory that it took."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import numpy as np

from ..conftest import make_model, make_tokenizer

ITEMS, USERS = 1_000_000, 50_000


def write_data(home: Path, name: str) -> None:
    """Write a data set in which every item was taken once."""
    (home / name).mkdir(parents=True)
    with (home / name / f"{name}.item").open("w", encoding="utf-8") as handle:
        handle.write("item_id:token\ttitle:token_seq\n")
        handle.writelines(f"i{item}\tTitle number {item}\n" for item in range(ITEMS))
    order = np.random.default_rng(0).permutation(ITEMS).reshape(USERS, -1)
    with (home / name / f"{name}.inter").open("w", encoding="utf-8") as handle:
        handle.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, items in enumerate(order):
            lines = (f"u{user}\ti{item}\t{1_700_000_000 + place}\n" for place, item in enumerate(items))
            handle.writelines(lines)


def main(home: Path) -> None:
    """Prepare, take the first steps of both stages, validate and evaluate, all else as shipped."""
    import torch

    from recbole_dynamicpo.host.run import run

    torch.set_num_threads(1)
    os.chdir(home)
    make_model().save_pretrained(home / "backbone")
    make_tokenizer().save_pretrained(home / "backbone")
    write_data(home / "dataset", "large")
    sys.argv = ["test"]
    values = {
        "data_path": str(home / "dataset"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "backbone": str(home / "backbone"),
        "dtype": "float32",
        "checkpoint_dir": str(home / "saved"),
        "max_length": 1500,  # its tokenizer makes a token of every byte
        "sft_rows": 16,
        "preference_rows": 8,
        "lora_layers": 0,
        "eval_rows": 64,
        "show_progress": False,
        "state": "WARNING",
        "mlflow_tracking_uri": None,
    }
    found = run("DynamicPO", "large", overrides=values)["test_result"]
    assert 0.0 <= found["hit@1"] <= found["hit@10"] <= 1.0
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
