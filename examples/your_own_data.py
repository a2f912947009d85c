"""From a table of your own to test figures: a CSV, TSV or Parquet file with user, item, time and title.

    python examples/your_own_data.py films.csv --sft_rows=64 --preference_rows=32

Any setting may follow as --key=value.
"""

import sys
from pathlib import Path

from recbole.quick_start import run_recbole

import recbole_dynamicpo  # noqa: F401  # lets RecBole find the model
from recbole_dynamicpo.data.prepare import prepare

table = Path(sys.argv.pop(1))
prepared = prepare(table.stem, table, "dataset")  # checked, and audited
print(prepared.table())

columns = {"inter": ["user_id", "item_id", "timestamp"]}
result = run_recbole("DynamicPO", table.stem, config_dict={"data_path": "dataset", "load_col": columns})
print(dict(result["test_result"]))
