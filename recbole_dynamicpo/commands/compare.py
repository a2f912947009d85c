"""``recbole-dynamicpo compare``: test whether one run ranks better than another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_command

if TYPE_CHECKING:
    from ..evaluation.statistics import Comparison


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "compare", _run, "test whether one run ranks better than another")
    parser.add_argument("run_a", type=Path, help="folder that holds ranks.parquet, or such a file")
    parser.add_argument("run_b", type=Path, help="likewise")


def _run(options: argparse.Namespace) -> None:
    from ..evaluation.statistics import compare_runs

    print(comparison_table(compare_runs(options.run_a, options.run_b), options.run_a, options.run_b))


def comparison_table(found: Comparison, run_a: Path, run_b: Path) -> str:
    """Return a comparison of two runs as text."""
    from ..evaluation.by_user import p_name

    of_users = f" of {found.users} users, a user's being one observation" if found.users < found.n else ""
    return "\n".join(
        [
            f"A = {run_a}",
            f"B = {run_b}",
            f"the same {found.n} rows{of_users}; 95 % intervals in brackets",
            f"HR@1 of A        {found.hit_a:.4f}  {_interval(found.hit_a_interval)}",
            f"HR@1 of B        {found.hit_b:.4f}  {_interval(found.hit_b_interval)}",
            f"rows that only A ranks first: {found.only_a}; only B: {found.only_b}; "
            f"{p_name(found.n, found.users)} = {found.p_value:.3g}",
            f"NDCG@5, B - A   {found.ndcg_difference:+.4f}  {_interval(found.ndcg_interval)}  (bootstrap)",
            found.verdict,
        ]
    )


def _interval(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.4f}, {interval[1]:.4f}]"
