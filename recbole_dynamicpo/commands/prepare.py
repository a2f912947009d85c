"""``recbole-dynamicpo prepare``: write a data set's RecBole files and audit them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from .arguments import add_command


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "prepare", _run, "write a data set's RecBole files and audit them")
    parser.add_argument("--dataset", required=True, help="lastfm, goodreads, steam, or a name of your own")
    parser.add_argument(
        "--source",
        default="hub",
        help="folder with NAME-train.json, NAME-val.json and perhaps NAME-test.json (or .json.gz), one such "
        "file, a CSV, TSV or Parquet file with user, item, time[, title, rating], or hub (default): download",
    )
    parser.add_argument("--out", default="dataset/", type=Path, help="folder of the data sets")
    parser.add_argument("--seed", default=2020, type=int, help="of what is dealt at random")
    parser.add_argument(
        "--skip-bad-rows", action="store_true", help="drop and count them instead of stopping"
    )
    parser.add_argument(
        "--backbone",
        help="count the prompts that are too long for it (default: the embedded one, if it is in the cache)",
    )
    parser.add_argument("--max-length", default=0, type=int, help="tokens of a prompt (default: the setting)")


def _run(options: argparse.Namespace) -> None:
    from ..data.prepare import prepare
    from ..scoring.prompt_lengths import load_prompt_check

    if options.max_length < 0:
        raise SettingsError(f"--max-length: got {options.max_length}, wanted at least 1")
    check = load_prompt_check(options.dataset, options.backbone, options.max_length)
    found = prepare(
        options.dataset,
        options.source,
        options.out,
        seed=options.seed,
        skip_bad_rows=options.skip_bad_rows,
        check=check,
    )
    print(found.table())
    if check is None:
        print("prompts that are too long were not counted: name a backbone with --backbone")
    print(f"{'unchanged' if found.unchanged else 'written'}: {found.folder}")
    columns = (
        f"{{'inter': {['user_id', 'item_id', 'timestamp'] + ['rating'] * found.manifest.get('rated', 0)}}}"
    )
    load = f' --load_col="{columns}"' if "sequences" in found.audit else ""
    print(f"next: run_recbole --model=DynamicPO --dataset={options.dataset} --data_path={options.out}{load}")
