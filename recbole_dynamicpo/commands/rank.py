"""``recbole-dynamicpo rank``: rank titles with a saved adapter, for one history or for a file of users."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import SettingsError, nearest, short
from ..parallel import join
from .arguments import add_command, add_data, add_model, settings_of


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "rank", _run, "rank titles with a saved adapter", settings=True)
    add_model(parser, plain=True)
    add_data(parser, plain=True)
    parser.add_argument(
        "--history",
        help="titles or item ids, oldest first, separated by |, or as a JSON list, which titles with a | "
        "want; may be empty",
    )
    parser.add_argument(
        "--candidates", help="titles to rank, written like a history; default: the whole catalogue"
    )
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
    return load_recommender(options.model, device=device)


def _rank_file(options: argparse.Namespace) -> None:
    from ..saved_models.batch import check_batch, rank_file

    if options.out is None:
        raise SettingsError("rank --input: wanted --out, a folder for the parts")
    if options.candidates is not None or options.explain:
        raise SettingsError("rank --input: takes neither --candidates nor --explain, which go with --history")
    processes = join()
    if processes.first:
        check_batch(options.input, options.out)  # before the model is loaded, which takes longest
    recommender = _recommender(options)
    found = rank_file(
        recommender,
        options.input,
        options.out,
        k=options.k,
        exclude_history=not options.keep_history,
        first_stage=options.among_top,
    )
    if processes.first:
        parts = f"{found.parts} part{'' if found.parts == 1 else 's'}"
        said = f"{found.ranked} users ranked in {parts}, {found.rejected} rows set aside"
        print(f"{said}: {options.out}")
    if processes.first and found.unknown:
        some = ", ".join(_named(recommender, title) for title in found.examples)
        _note(
            f"--input: {found.unknown} of {found.ranked + found.rejected} histories have titles that are not "
            f"in the catalogue, such as {some}; {_of_history(recommender)}"
        )


def _rank_one(options: argparse.Namespace) -> None:
    candidates = _entries(options.candidates) if options.candidates is not None else None
    history = _entries(options.history) if options.history else []
    recommender = _recommender(options)
    _say_unknown(recommender, "--history", history, _of_history(recommender))
    switched = "so all candidates are scored by the vocabulary likelihood, without priors"
    by_words = "it is scored as text" if recommender.ranker is None else switched
    _say_unknown(recommender, "--candidates", candidates, by_words)
    found = recommender.ranking(
        history,
        candidates,
        options.k,
        exclude_history=not options.keep_history,
        explain=options.explain,
        first_stage=options.among_top,
    )
    if found.source == "catalogue":
        kept = "" if options.keep_history else " that are not in the history"
        among_top = recommender.card.first_stage if options.among_top is None else options.among_top
        every = "the priors' first" if among_top else "all"
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


def _entries(text: str) -> list[Any]:
    """Return the titles and item ids of an argument: of a JSON list, else what bars part."""
    if text.startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):  # a title that begins so
            found = None
        if isinstance(found, list):
            return found
    return text.split("|")


def _say_unknown(recommender: Any, name: str, entries: Sequence[Any] | None, what: str) -> None:
    """Say of each title that the catalogue does not have what happens with it."""
    from ..serving.ranking import unknown_titles

    for title in unknown_titles(recommender.catalogue, entries):
        _note(f"{name}: not in the catalogue: {_named(recommender, title)}; {what}")


def _of_history(recommender: Any) -> str:
    passed = ", and the priors pass over it" if recommender.card.priors else ""
    return f"such a title stands in the prompt as text{passed}"


def _named(recommender: Any, title: str) -> str:
    return f"{short(title)}{nearest(title, recommender.catalogue.distinct_titles)}"


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
