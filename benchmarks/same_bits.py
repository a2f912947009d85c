"""Does a change leave the numbers alone? Train two small fixed runs and print what they came to, bit for bit.

    python benchmarks/same_bits.py

One with listed candidates, as published, and one of dense rows above counting priors, as the default job.
Both stages in float32, one thread, fixed seed, ml-100k, the embedded backbone; some minutes. A refactoring
prints the same digests before and after on one machine; where a line of the table differs, say why.
Other keys are settings, such as --backbone=FOLDER. Only the public face of the package is used, so that the
script runs unchanged on either side of a move.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from recbole.quick_start import run_recbole

import recbole_dynamicpo  # registers the models

SETTINGS = {
    "dtype": "float32",
    "threads": 1,
    "valid_rows": 8,
    "eval_rows": 24,
    "mlflow_tracking_uri": "none",
    "show_progress": False,
    "state": "WARNING",
}
# What sets the runs apart; neither has rows enough to learn from.
RUNS = {
    "listed": {
        "likelihood": "vocabulary", "catalogue_prior": "none", "centre": False, "positions": "last",
        "negatives": "uniform", "prompt": "movie", "rank_among": ["candidates"], "max_history": 6,
        "valid_metric": "NDCG@5", "sft_rows": 24, "sft_batch_size": 8, "sft_learning_rate": 0.002,
        "preference_rows": 16, "train_batch_size": 8, "learning_rate": 0.001,
    },
    "dense": {"sft_rows": 600, "preference_rows": 240, "eval_rows": 8},
}  # fmt: skip


def main(arguments: list[str]) -> None:
    """Run and print. ``arguments``: ``--key=value`` settings that win over those above."""
    overrides = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments)
    sys.argv = sys.argv[:1]  # RecBole reads it too
    warnings.filterwarnings("ignore", category=FutureWarning)  # RecBole's and peft's uses of old names
    torch.set_num_threads(1)
    print(f"recbole-dynamicpo {recbole_dynamicpo.__version__}, torch {torch.__version__}")
    for name, own in RUNS.items():
        with tempfile.TemporaryDirectory() as work:
            settings = {**SETTINGS, **own, "checkpoint_dir": work, **overrides}
            run_recbole(model="DynamicPO", dataset="ml-100k", config_dict=settings)
            (run,) = (path for path in Path(work).iterdir() if (path / "record.json").is_file())
            print(name)
            for stage in ("sft", "preference"):
                weights = (run / stage / "adapter_model.safetensors").read_bytes()
                print(f"{stage:<11} adapter sha256 {hashlib.sha256(weights).hexdigest()}")
            report = json.loads((run / "report.json").read_text(encoding="utf-8"))
            for line in [*report["contestants"], *report.get("all", [])]:
                print(json.dumps(line))


if __name__ == "__main__":
    main(sys.argv[1:])
