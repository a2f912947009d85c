"""One model and those beside it on several kinds of rows: a line each, a column a kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Share(NamedTuple):
    """A share of rows and its 95 % interval."""

    rate: float
    low: float
    high: float
    rows: int


def side_by_side(found: Mapping[str, Mapping[str, Share]]) -> list[str]:
    """Return the lines of a table of hit rates at the first place, each with its 95 % interval.

    Below it stands what every contestant loses between the first kind of rows and the last. A contestant that
    is not on some rows has no figure there.

    Args:
        found: kind of rows -> contestant -> its hit rate; the model last.
    """
    kinds, lines = list(found), list(dict.fromkeys(name for part in found.values() for name in part))
    last = list(found[kinds[-1]])[-1]
    lines = [*(name for name in lines if name != last), last]
    width = max(map(len, lines)) + 2
    cells = {name: [_cell(found[kind].get(name)) for kind in kinds] for name in lines}
    rows = {kind: next(iter(found[kind].values())).rows for kind in kinds}
    table = [f"{'HR@1 (95 % interval)':{width}}" + "".join(f"{kind:>24}" for kind in kinds)]
    table += [f"{name:{width}}" + "".join(f"{cell:>24}" for cell in cells[name]) for name in lines]
    table.append(f"{'rows':{width}}" + "".join(f"{rows[kind]:>24}" for kind in kinds))
    first, final = found[kinds[0]], found[kinds[-1]]
    both = [name for name in lines if name in first and name in final]
    table += [f"{name}: {_difference(first[name], final[name], kinds[0], kinds[-1])}" for name in both]
    return [line.rstrip() for line in table]


def lost(before: Share, after: Share) -> tuple[float, float, float]:
    """Return by how much a share falls, with the 95 % interval of the difference of two samples' shares.

    The interval is made of the two that they have (Newcombe 1998, method 10). Rows of both kinds count as
    independent, which is on the safe side where they are of the same users.
    """
    (p, low_p, high_p, _), (q, low_q, high_q, _) = before, after
    return p - q, p - q - math.hypot(p - low_p, high_q - q), p - q + math.hypot(high_p - p, q - low_q)


def _cell(share: Share | None) -> str:
    if share is None:
        return ""
    return f"{share.rate:.4f} [{share.low:.4f}, {share.high:.4f}]"


def _difference(before: Share, after: Share, first: str, last: str) -> str:
    fall, low, high = lost(before, after)
    way = "less" if fall >= 0 else "more"
    return f"HR@1 {abs(fall):.4f} {way} on {last} lists than on {first} ones ({-high:+.4f} to {-low:+.4f})"
