"""``recbole-dynamicpo rank``: rank titles with a saved adapter, for one history or for a file of users."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from ..parallel import join
from .arguments import add_command, add_data, add_model, settings_of


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "rank", _run, "rank titles with a saved adapter", settings=True)
    add_model(parser, plain=True)
    add_data(parser, plain=True)
    parser.add_argument("--history", help="titles or item ids, oldest first, separated by |; may be empty")
    parser.add_argument("--candidates", help="titles to rank, separated by |; default: the whole catalogue")
    parser.add_argument(
        "--input", type=Path, help="Parquet, CSV or JSON lines of users instead: columns user and history"
    )
    parser.add_argument("--out", type=Path, help="folder that takes the parts of --input's ranking")
    parser.add_argument(
        "--keep-history",
        action="store_true",
        help="rank the history's titles too, where no candidates are given",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="two more columns, which sum to the score: what the prior says alone, and what the language "
        "model adds to it or takes (models with a prior)",
    )
    parser.add_argument(
        "--among-top",
        type=int,
        metavar="N",
        help="where no candidates are given, rank the N titles that the priors find likeliest; 0: all "
        "(default: as the model was made, setting first_stage)",
    )
    parser.add_argument("-k", type=int, default=10, help="how many titles a history (10)")


def _run(options: argparse.Namespace) -> None:
    if (options.input is None) == (options.history is None):
        raise SettingsError("rank: wanted either --history or --input")
    if options.k < 1:
        raise SettingsError(f"-k: got {options.k}, wanted at least 1")
    if options.input is not None:
        _rank_file(options)
    else:
        _rank_one(options)


def _recommender(options: argparse.Namespace) -> Any:
    """Return the saved recommender, or the plain adapter with the titles of a data set."""
    if options.dataset is not None:
        if options.among_top is not None:
            raise SettingsError("rank: got --among-top, but a plain adapter has no priors to choose titles")
        from ..saved_models.plain_adapter import rank_plainly

        return rank_plainly(options.model, options.dataset, *settings_of(options))
    if options.settings or options.config_files or options.data_path:
        more = options.settings[0] if options.settings else "settings"
        raise SettingsError(f"rank: got {more}, but settings are for a plain adapter, with --dataset")
    from ..serving.folder import default_device
    from ..serving.recommender import load_recommender

    # One history takes less time than to bring a model to a GPU.
    device = default_device() if options.input else "cpu"
    return load_recommender(options.model, device=device, first_stage=options.among_top)


def _rank_file(options: argparse.Namespace) -> None:
    from ..serving.batch import rank_file

    if options.out is None:
        raise SettingsError("rank --input: wanted --out, a folder for the parts")
    if options.candidates is not None or options.explain:
        raise SettingsError("rank --input: takes neither --candidates nor --explain, which go with --history")
    processes = join()
    found = rank_file(
        _recommender(options), options.input, options.out, k=options.k,
        exclude_history=not options.keep_history,
    )  # fmt: skip
    if processes.first:
        parts = f"{found.parts} part{'' if found.parts == 1 else 's'}"
        said = f"{found.ranked} users ranked in {parts}, {found.rejected} rows set aside"
        print(f"{said}: {options.out}")


def _rank_one(options: argparse.Namespace) -> None:
    candidates = options.candidates.split("|") if options.candidates is not None else None
    history = options.history.split("|") if options.history else []
    recommender = _recommender(options)
    found = recommender.ranking(
        history, candidates, options.k, exclude_history=not options.keep_history, explain=options.explain
    )
    if found.source == "catalogue":
        kept = "" if options.keep_history else " that are not in the history"
        every = "the priors' first" if recommender.card.first_stage else "all"
        print(f"candidates: {every} {found.num_candidates} titles of the catalogue{kept}")
    if found.source == "popular":
        print(f"candidates: the {found.num_candidates} most popular titles that are not in the history")
    width = max(len(item.title) for item in found.ranked)
    shares = f"{'= prior':>10}{'+ language model':>18}" if options.explain else ""
    print(f"{'':4}{'score, nats':>11}{shares}  {'title':{width}}  ids")
    for place, item in enumerate(found.ranked, start=1):
        ids = ", ".join(item.ids) or "not in the catalogue"
        shares = f"{item.prior:10.3f}{item.language_model:+18.3f}" if options.explain else ""
        print(f"{place:3d} {item.score:11.3f}{shares}  {item.title:{width}}  {ids}")
