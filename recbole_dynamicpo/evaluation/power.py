"""What could have been seen: the least detectable difference, and p-values of several tests at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

POWER = 0.80
SIGNIFICANT = 0.05  # the p-value below which a difference is taken for one


def detectable_difference(n: int, discordant: int, level: float = SIGNIFICANT) -> float:
    """Return the smallest HR@1 difference that McNemar's test finds at ``level`` with about 80 % power.

    From Connor (1987), d = (z(1 - level / 2) sqrt(q) + z.80 sqrt(q - d^2)) / sqrt(n), without the d^2, which
    errs upwards. q is the share of rows that one run alone has right, plus one row so that equal results on
    few rows are not taken for proof. Fewer than k such rows are never significant, as 2 / 2^k > level: hence
    k / n, and 6 / n at 5 %.

    Args:
        n: rows.
        discordant: rows that one run alone has right; where users have several rows, the sum over users of
            the squared difference, which is the variance of what ``sign_flip`` tests.
        level: two-sided.
    """
    share = (discordant + 1) / (n + 1)
    normal = NormalDist()
    quantiles = normal.inv_cdf(1 - level / 2) + normal.inv_cdf(POWER)
    fewest = math.ceil(math.log2(2 / level))
    return min(1.0, max(fewest / n, quantiles * math.sqrt(share / n)))


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979), in the order given.

    The i-th smallest of m is multiplied by m - i + 1, is no smaller than the one before, and at most 1. Those
    below a level are significant with an error of at most that level over all of them together.
    """
    found, highest = [0.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=lambda number: values[number])):
        highest = max(highest, min(1.0, (len(values) - place) * values[index]))
        found[index] = highest
    return found
