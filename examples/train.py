"""Train DynamicPO on ml-100k with RecBole's own quick start and print the test figures.

    python examples/train.py --sft_rows=64 --preference_rows=32 --eval_rows=64

Any setting may follow as --key=value, another data set (--dataset=...) too.
"""

from pathlib import Path

from recbole.quick_start import run_recbole

import recbole_dynamicpo  # noqa: F401  # lets RecBole find the model

result = run_recbole(model="DynamicPO", config_dict={"dataset": "ml-100k", "checkpoint_dir": "saved"})
for metric, value in result["test_result"].items():
    print(f"{metric}: {value:.4f}")
newest = max(Path("saved").glob("DynamicPO-*"), key=lambda folder: folder.stat().st_mtime)
print(f"python examples/rank.py {newest}")
