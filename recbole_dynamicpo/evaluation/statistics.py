"""What a figure over n rows can tell: intervals and paired tests.

A rank is the 1-based place of a row's positive among its candidates. Everything here works on ranks, so two
runs can be compared long after they ended, from the small Parquet files that their evaluations left.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from ..errors import DataError
from .by_user import Floats, Users, paired_hits, share_interval, totals
from .power import SIGNIFICANT, detectable_difference
from .ranks import Ranks, checked_ranks, read_ranks

__all__ = ["Comparison", "compare_runs"]

_BATCH = 100  # draws held at once: 16 MB for 20,000 users
MEANINGFUL = 0.02  # in HR@1: about what separates neighbouring methods in the published tables


def bootstrap_interval(
    values: np.ndarray, users: Users, seed: int = 0, draws: int = 2000
) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of ``values`` when whole users are drawn again.

    Args:
        values: (n,) one number per row.
        users: (n,).
        seed, draws: of the bootstrap.

    Raises:
        DataError: if there are no values, or not even one draw is wanted.
    """
    sums, rows = totals(values, users)
    if not len(sums) or draws < 1:
        raise DataError(
            f"a bootstrap needs one number per row and at least one draw, "
            f"got shape {np.shape(values)} and {draws} draws"
        )
    if len(sums) == 1:  # a user drawn from one user is that user; scipy wants two
        only = float(sums[0] / rows[0])
        return only, only
    found = _bootstrap(sums, rows, seed, draws).confidence_interval
    return float(found.low), float(found.high)


def _bootstrap(sums: Floats, rows: Floats, seed: int, draws: int) -> Any:
    """Return scipy's percentile bootstrap of a mean over the rows of at least two users."""
    return bootstrap(
        (sums, rows),
        _mean,
        paired=True,
        n_resamples=draws,
        batch=_BATCH,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(seed),
    )


def _mean(sums: Floats, rows: Floats, axis: int = -1) -> Floats:
    mean: Floats = sums.sum(axis=axis) / rows.sum(axis=axis)
    return mean


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, users: Users, seed: int = 0, draws: int = 2000
) -> tuple[float, float, float]:
    """Return the mean of ``b - a`` and its 95 % interval when whole users are drawn again.

    Args:
        a: (n,) one number per row of the first run.
        b: (n,) the second run's numbers for the same rows, in the same order.
        users: (n,).
        seed, draws: of the bootstrap.

    Returns:
        (difference, low, high); above zero where the second run's numbers are larger.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise DataError(f"a paired comparison needs the same rows in both, got {a.shape} and {b.shape}")
    low, high = bootstrap_interval(b - a, users, seed, draws)
    return float((b - a).mean()), low, high


def hit_at(ranks: np.ndarray, k: int) -> np.ndarray:
    """Return 1.0 for each row whose positive is among the first ``k``, else 0.0: shape (n,)."""
    return (np.asarray(ranks) <= k).astype(np.float64)


def ndcg_at(ranks: np.ndarray, k: int) -> np.ndarray:
    """Return 1 / log2(1 + rank) for each row whose positive is among the first ``k``, else 0.0: shape (n,).

    With one positive per row the ideal gain is 1, so this is the row's NDCG@k.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    return np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)


def reciprocal_rank(ranks: np.ndarray) -> np.ndarray:
    """Return 1 / rank for each row: shape (n,); their mean is MRR."""
    return 1.0 / np.asarray(ranks, dtype=np.float64)


@dataclass(frozen=True)
class Gain:
    """What one contestant's MRR has over another's on the same rows.

    Attributes:
        n: rows.
        mrr, other: of the two.
        p_better, p_worse: one-sided, of the paired bootstrap: how often users drawn again show no gain, or no
            loss; the draw that was observed is one of them, so that neither is below 1 / (draws + 1).
    """

    n: int
    mrr: float
    other: float
    p_better: float
    p_worse: float

    @property
    def better(self) -> bool:
        """Whether the first contestant ranks better, and not by chance."""
        return self.p_better < SIGNIFICANT

    @property
    def worse(self) -> bool:
        """Whether the first contestant ranks worse, and not by chance."""
        return self.p_worse < SIGNIFICANT


def mrr_gain(
    ranks: np.ndarray, others: np.ndarray, users: Users, *, seed: int = 0, draws: int = 10_000
) -> Gain:
    """Compare the 1-based ranks, shape (n,) each, that two contestants gave to the same rows' positives.

    Raises:
        DataError: if the shapes differ, there are rows of fewer than two users, or a rank is below 1.
    """
    ranks, others = checked_ranks(ranks, "the first contestant"), checked_ranks(others, "the second one")
    if ranks.shape != others.shape:
        raise DataError(f"a paired test needs the same rows twice, got {ranks.shape} and {others.shape}")
    mine, theirs = reciprocal_rank(ranks), reciprocal_rank(others)
    sums, rows = totals(mine - theirs, users)
    if len(sums) < 2:
        raise DataError(f"a paired test needs rows of at least two users, got {len(sums)}")
    means = _bootstrap(sums, rows, seed, draws).bootstrap_distribution
    no_gain, no_loss = int((means <= 0).sum()), int((means >= 0).sum())
    return Gain(
        n=len(ranks),
        mrr=float(mine.mean()),
        other=float(theirs.mean()),
        p_better=(1 + no_gain) / (1 + draws),
        p_worse=(1 + no_loss) / (1 + draws),
    )


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same n rows of some users: differences are B minus A, intervals (low, high) at 95 %."""

    n: int
    users: int
    hit_a: float
    hit_a_interval: tuple[float, float]
    hit_b: float
    hit_b_interval: tuple[float, float]
    only_a: int
    only_b: int
    p_value: float
    ndcg_difference: float
    ndcg_interval: tuple[float, float]
    detectable: float
    too_small: bool
    verdict: str


def compare_ranks(
    a: np.ndarray,
    b: np.ndarray,
    users: Users,
    *,
    seed: int = 0,
    draws: int = 2000,
    meaningful: float = MEANINGFUL,
) -> Comparison:
    """Compare two runs by the 1-based ranks, shape (n,) each, that they gave to the same rows' positives.

    Without a significant difference there is either none worth having, or n is too small to tell: so it is
    called when an HR@1 difference of ``meaningful`` would be missed more often than one time in five. (With
    the observed difference in its place, every insignificant comparison would be called too small.)

    Raises:
        DataError: if the shapes differ, there are no rows, or a rank is below 1.
    """
    a, b = checked_ranks(a, "the first run"), checked_ranks(b, "the second run")
    difference, low, high = paired_bootstrap(ndcg_at(a, 5), ndcg_at(b, 5), users, seed, draws)
    n, right_a, right_b = len(a), a == 1, b == 1
    paired = paired_hits(right_a, right_b, users)
    p_value, detectable = paired.p, detectable_difference(n, paired.spread)
    return Comparison(
        n=n,
        users=paired.users,
        hit_a=float(right_a.mean()),
        hit_a_interval=share_interval(right_a, users),
        hit_b=float(right_b.mean()),
        hit_b_interval=share_interval(right_b, users),
        only_a=paired.only_a,
        only_b=paired.only_b,
        p_value=p_value,
        ndcg_difference=difference,
        ndcg_interval=(low, high),
        detectable=detectable,
        too_small=p_value >= 0.05 and detectable > meaningful,
        verdict=_verdict(n, float(right_b.mean() - right_a.mean()), p_value, detectable, meaningful),
    )


def _verdict(n: int, difference: float, p: float, detectable: float, meaningful: float) -> str:
    """Say in one sentence what the paired test supports."""
    if p < 0.05:
        better, worse = ("B", "A") if difference > 0 else ("A", "B")
        return f"{better} has a higher HR@1 than {worse}: by {abs(difference):.4f} on {n} rows, p = {p:.2g}"
    start = f"no significant difference in HR@1: {difference:+.4f} (B - A) on {n} rows, p = {p:.2g}"
    if detectable > meaningful:
        return (
            f"{start}; n = {n} is too small to tell: only a difference of {detectable:.4f} or more would be "
            f"found four times in five, {meaningful:.4f} is what one would not want to miss"
        )
    return f"{start}; a difference of {detectable:.4f} or more would most likely have been found"


def compare_runs(path_a: Path, path_b: Path, *, seed: int = 0, draws: int = 2000) -> Comparison:
    """Compare the ranks that two evaluations saved, paired by row id whatever the order of the rows.

    Each path is a ranks file, or a folder that holds ``ranks.parquet``.

    Raises:
        DataError: if the two did not evaluate the same rows, or ranked other candidates in them.
    """
    pair = paired_ranks(read_ranks(path_a), read_ranks(path_b), str(path_a), str(path_b))
    return compare_ranks(*pair, seed=seed, draws=draws)


def paired_ranks(
    first: Ranks, second: Ranks, name_a: str, name_b: str
) -> tuple[np.ndarray, np.ndarray, Users]:
    """Return the ranks (n,) of two evaluations of the same rows and the rows' users, in the first's order.

    Raises:
        DataError: if the two did not evaluate the same rows, or ranked other candidates in them, or only one
            of them says what it ranked.
    """
    place = {row_id: index for index, row_id in enumerate(second.row_ids)}
    shared = sum(row_id in place for row_id in first.row_ids)
    if not shared == len(first.row_ids) == len(second.row_ids):
        raise DataError(
            f"{name_a} has {len(first.row_ids)} rows and {name_b} has {len(second.row_ids)}, {shared} of "
            f"them shared: a paired comparison needs both runs evaluated on the same rows"
        )
    if bool(first.rows) != bool(second.rows):
        silent = name_a if second.rows else name_b
        raise DataError(
            f"{silent} does not say which rows, histories and candidates it ranked (version 0.1.0 left that "
            "out): wanted both of a paired comparison evaluated anew, or neither"
        )
    if first.rows:
        other = sorted(
            name for name in {*first.rows, *second.rows} if first.rows.get(name) != second.rows.get(name)
        )
        if other:
            raise DataError(
                f"{name_a} and {name_b} ranked rows with other {', '.join(other)}: a paired comparison needs "
                "the same rows, histories and candidates (data, candidate seed, order and mode)"
            )
    order = [place[row_id] for row_id in first.row_ids]
    return first.ranks, second.ranks[order], np.array(first.user_ids)
