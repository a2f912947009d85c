"""The subcommands of ``recbole-dynamicpo``: each takes parsed options and prints its result."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import SettingsError

if TYPE_CHECKING:
    from .evaluation.statistics import Comparison


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands; the parsed options' ``action`` runs the one that was called."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_prepare(commands)
    _add_evaluate(commands)
    _add_baselines(commands)
    _add_compare(commands)
    _add_rank(commands)
    _add_bootstrap(commands)
    _add_sync(commands)


def _command(commands: Any, name: str, action: Any, text: str, settings: bool = False) -> Any:
    """Add one subcommand; one with ``settings`` also takes --key=value arguments."""
    more = ""
    if settings:
        more = (
            " Further --key=value arguments are settings, as for run_recbole; those that choose and filter "
            "the data must be the ones of the run that the figures are compared with."
        )
    parser = commands.add_parser(name, help=text, description=f"{text}.{more}", allow_abbrev=False)
    parser.set_defaults(action=action, takes_settings=settings)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, help="name of the data set")
    parser.add_argument("--data-path", help="folder of the data sets (default: dataset/)")
    parser.add_argument("--config_files", default="", help="YAML files, separated by spaces")


def _add_prepare(commands: Any) -> None:
    parser = _command(commands, "prepare", _prepare, "write a data set's RecBole files and audit them")
    parser.add_argument("--dataset", required=True, help="lastfm, goodreads, steam, or a name of your own")
    parser.add_argument(
        "--source",
        default="hub",
        help="folder with NAME-train.json, NAME-val.json and perhaps NAME-test.json (or .json.gz), one such "
        "file, a CSV, TSV or Parquet file with user, item, time[, title], or hub (default): download",
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


def _add_evaluate(commands: Any) -> None:
    text = "evaluate a saved adapter on a data set's test rows"
    parser = _command(commands, "evaluate", _evaluate, text, settings=True)
    parser.add_argument(
        "--model", required=True, help="folder of a run, recommender folder in it, models:/... or runs:/..."
    )
    _add_data(parser)
    parser.add_argument(
        "--protocol",
        choices=("likelihood", "generate"),
        default="likelihood",
        help="rank candidates by log-probability, or judge greedy answers as the paper does",
    )
    parser.add_argument("--rows", type=int, help="test rows, drawn by the seed; 0: all (default: eval_rows)")
    parser.add_argument("--batch-size", type=int, default=16, help="rows per batch of generation")
    parser.add_argument("--out", type=Path, help="folder for the rows' ranks, the figures and the answers")


def _add_baselines(commands: Any) -> None:
    text = "rank the same candidates by popularity and by one of RecBole's models"
    parser = _command(commands, "baselines", _baselines, text, settings=True)
    _add_data(parser)
    parser.add_argument("--model", default="SASRec", help="a sequential model of RecBole (default: SASRec)")


def _add_compare(commands: Any) -> None:
    parser = _command(commands, "compare", _compare, "test whether one run ranks better than another")
    parser.add_argument("run_a", type=Path, help="folder that holds ranks.parquet, or such a file")
    parser.add_argument("run_b", type=Path, help="likewise")


def _add_rank(commands: Any) -> None:
    parser = _command(commands, "rank", _rank, "rank titles with a saved adapter")
    parser.add_argument(
        "--model", required=True, help="folder of a run, recommender folder in it, models:/... or runs:/..."
    )
    parser.add_argument("--history", required=True, help="titles, oldest first, separated by |")
    parser.add_argument("--candidates", help="titles to rank, separated by |; default: popular ones")
    parser.add_argument("-k", type=int, default=10, help="how many to print")


def _add_sync(commands: Any) -> None:
    parser = _command(commands, "sync", _sync, "send MLflow what it does not have yet of a run")
    parser.add_argument("run", type=Path, help="folder of a run, as in saved/")
    parser.add_argument(
        "--mlflow-tracking-uri",
        help="MLflow server or database (default: where the run was recorded; else MLFLOW_TRACKING_URI, else "
        "mlflow.db in the present folder)",
    )


def _add_bootstrap(commands: Any) -> None:
    text = "check what the flows need, and make their work pool, limit, automation and MLflow database"
    parser = _command(commands, "bootstrap", _bootstrap, text)
    parser.add_argument("--gpu-runs", type=int, default=1, help="training tasks at a time (default: 1)")
    parser.add_argument("--free-gb", type=float, default=2.0, help="disk space that a run needs (default: 2)")
    parser.add_argument("--deploy", action="store_true", help="also deploy the flows from this folder")


def _prepare(options: argparse.Namespace) -> None:
    from .data.prepare import prepare
    from .scoring.prompt_lengths import load_prompt_check

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
    columns = "{'inter': ['user_id', 'item_id', 'timestamp']}"
    load = f' --load_col="{columns}"' if "sequences" in found.audit else ""
    print(f"next: run_recbole --model=DynamicPO --dataset={options.dataset} --data_path={options.out}{load}")


def _settings(options: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Return the settings files and the overrides of a subcommand that takes settings."""
    from .host.config import parse_overrides

    overrides = parse_overrides(options.settings)
    if options.data_path is not None:
        overrides["data_path"] = options.data_path
    return options.config_files.split(), overrides


def _evaluate(options: argparse.Namespace) -> None:
    from .host.saved_evaluation import evaluate_saved

    files, overrides = _settings(options)
    if options.rows is not None:
        overrides["eval_rows"] = options.rows
    text = evaluate_saved(
        options.model,
        options.dataset,
        options.protocol,
        config_files=files,
        overrides=overrides,
        batch_size=options.batch_size,
        out=options.out,
    )
    print(text)


def _baselines(options: argparse.Namespace) -> None:
    from .host.baselines import run_baselines

    files, overrides = _settings(options)
    found = run_baselines(options.dataset, files, overrides, options.model)
    print(found.table)
    figures = ", ".join(f"{name} {value:.4f}" for name, value in found.result.items())
    print(f"{options.model}, RecBole's metrics over the candidates: {figures}")


def _compare(options: argparse.Namespace) -> None:
    from .evaluation.statistics import compare_runs

    print(comparison_table(compare_runs(options.run_a, options.run_b), options.run_a, options.run_b))


def comparison_table(found: Comparison, run_a: Path, run_b: Path) -> str:
    """Return a comparison of two runs as text."""
    return "\n".join(
        [
            f"A = {run_a}",
            f"B = {run_b}",
            f"the same {found.n} rows; 95 % intervals in brackets",
            f"HR@1 of A        {found.hit_a:.4f}  {_interval(found.hit_a_interval)}",
            f"HR@1 of B        {found.hit_b:.4f}  {_interval(found.hit_b_interval)}",
            f"rows that only A ranks first: {found.only_a}; only B: {found.only_b}; "
            f"McNemar p = {found.p_value:.3g}",
            f"NDCG@5, B - A   {found.ndcg_difference:+.4f}  {_interval(found.ndcg_interval)}  (bootstrap)",
            found.verdict,
        ]
    )


def _interval(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.4f}, {interval[1]:.4f}]"


def _rank(options: argparse.Namespace) -> None:
    from .serving.recommender import load_recommender

    candidates = options.candidates.split("|") if options.candidates is not None else None
    found = load_recommender(options.model).ranking(options.history.split("|"), candidates, options.k)
    if found.source == "popular":
        print(f"candidates: the {found.num_candidates} most popular titles that are not in the history")
    width = max(len(item.title) for item in found.ranked)
    print(f"{'':4}{'score, nats':>11}  {'title':{width}}  ids")
    for place, item in enumerate(found.ranked, start=1):
        ids = ", ".join(item.ids) or "not in the catalogue"
        print(f"{place:3d} {item.score:11.3f}  {item.title:{width}}  {ids}")


def _sync(options: argparse.Namespace) -> None:
    from .tracking.registry import register_model, wants_registration
    from .tracking.sync import recorded_at, sync

    uri = options.mlflow_tracking_uri or recorded_at(options.run)
    run_id = sync(options.run, uri)
    print(f"MLflow has all of {options.run}: run {run_id}")
    if wants_registration(options.run):
        found = register_model(options.run, uri)
        state = "champion" if found.champion else "candidate"
        print(f"registered: {found.uri}, {state}, {found.size_bytes} bytes")


def _bootstrap(options: argparse.Namespace) -> None:
    # The flows know this package, not the other way round; and they need Prefect.
    flows = importlib.import_module(f"{__package__}.flows.bootstrap")
    flows.bootstrap(flows.Options(options.gpu_runs, options.free_gb, options.deploy))
