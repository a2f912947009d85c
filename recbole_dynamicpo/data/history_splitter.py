"""Published histories, joined by a separator that titles may contain, cut back into titles exactly."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

SEPARATOR = "::"


@dataclass(frozen=True)
class SplitHistory:
    """A history string's titles, oldest first; ``ambiguous`` if another split explains it as well."""

    titles: tuple[str, ...]
    ambiguous: bool


class HistorySplitter:
    """Splits history strings at ``::`` although titles may contain, begin or end with colons.

    Of all ways to cut a string into pieces joined by ``::`` it takes one that leaves the fewest characters in
    pieces that are no known title (one more for each such piece), and among those the longest title first. So
    a string that known titles explain is split into known titles, and an unknown piece becomes a title of its
    own. ``"::".join(titles)`` is always the string again.
    """

    def __init__(self, known: Iterable[str]) -> None:
        """Args: known: the titles that occur in the data's candidate lists."""
        self.known = frozenset(known)
        # Only titles with a separator inside reach beyond the next one: most data have a handful of lengths.
        self.lengths = sorted({len(title) for title in self.known if SEPARATOR in title})

    def split(self, history: str) -> SplitHistory:
        """Return the titles of one history; none for an empty string."""
        if not history:
            return SplitHistory((), False)
        cuts = [i for i in range(len(history) - 1) if history.startswith(SEPARATOR, i)] + [len(history)]
        # best[start]: (cost of the rest, number of equally good splits up to 2, end of the first piece)
        best: dict[int, tuple[int, int, int]] = {len(history) + len(SEPARATOR): (0, 1, -1)}
        for start in [cut + len(SEPARATOR) for cut in reversed(cuts[:-1])] + [0]:
            best[start] = self._best_first(history, start, cuts, best)
        titles, start = [], 0
        while start <= len(history):
            end = best[start][2]
            titles.append(history[start:end])
            start = end + len(SEPARATOR)
        return SplitHistory(tuple(titles), best[0][1] > 1)

    def _best_first(
        self, history: str, start: int, cuts: list[int], best: dict[int, tuple[int, int, int]]
    ) -> tuple[int, int, int]:
        """Choose the first piece of what begins at ``start``; ``cuts`` are all possible ends, ascending."""
        cost, ways, chosen = len(history) * 2 + 2, 0, -1
        first = bisect_left(cuts, start)
        plain = [end for end in cuts[first : first + 2] if end - cuts[first] < len(SEPARATOR)]  # none inside
        for end in sorted({*plain, *(start + length for length in self.lengths)}):
            known = history[start:end] in self.known
            if end not in plain and not (known and end + len(SEPARATOR) in best):
                continue
            rest, rest_ways, _ = best[end + len(SEPARATOR)]
            total = rest + (0 if known else end - start + 1)
            if total < cost:
                cost, ways, chosen = total, rest_ways, end
            elif total == cost:
                ways, chosen = min(2, ways + rest_ways), end
        return cost, ways, chosen
