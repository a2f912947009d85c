"""Paired tests between the cells of a study, corrected for their number, and the sentence that sums up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.by_user import paired_hits
from ..evaluation.power import SIGNIFICANT, detectable_difference, holm
from ..evaluation.ranks import read_ranks
from ..evaluation.statistics import paired_ranks
from .grid import kind_of

Arm = tuple[str, bool, int]  # objective, dynamic, number of negatives
Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Paired:
    """HR@1 of two arms of a study on the same rows; the second minus the first.

    Attributes:
        first, second: arms: objective, dynamic, number of negatives.
        seeds: that both have; their rows are counted together, those of one user as one observation.
        rows: of all these seeds.
        hit_first, hit_second: HR@1.
        only_first, only_second: rows that one alone ranks first.
        spread: sum over users of the squared difference of their hits; with a row a user, rows that differ.
        p: of the exact test over the signs of users' differences, McNemar's where each user has one row.
        corrected: p by Holm, for all comparisons of the study.
        detectable: the smallest difference that is found four times in five at the strictest level of Holm's.
    """

    first: Arm
    second: Arm
    seeds: int
    rows: int
    hit_first: float
    hit_second: float
    only_first: int
    only_second: int
    spread: int
    p: float
    corrected: float = 1.0
    detectable: float = 1.0

    @property
    def difference(self) -> float:
        """Return the second's HR@1 minus the first's."""
        return self.hit_second - self.hit_first

    @property
    def found(self) -> bool:
        """Whether there is a difference, and not by chance."""
        return self.corrected < SIGNIFICANT

    def says(self) -> str:
        """Return what the test supports, in words."""
        if self.found:
            return f"{'higher' if self.difference > 0 else 'lower'} by {abs(self.difference):.4f}"
        return f"not detectable below {self.detectable:.4f}"


def compare_cells(results: Results) -> list[Paired]:
    """Compare plain with dynamic at each K, and each K with the smallest, as far as there are cells.

    Raises:
        DataError: cells of one seed ranked other rows.
    """
    by_arm: dict[Arm, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for found in results:
        by_arm[found["objective"], found["dynamic"], found["num_negatives"]][found["seed"]] = found
    pairs = [(a, b) for a, b in _pairs(by_arm) if by_arm[a].keys() & by_arm[b].keys()]
    tested = [_test(first, second, by_arm) for first, second in pairs]
    level = SIGNIFICANT / max(1, len(tested))
    return [
        replace(
            one,
            corrected=p,
            detectable=detectable_difference(one.rows, one.spread, level),
        )
        for one, p in zip(tested, holm([one.p for one in tested]), strict=True)
    ]


def _pairs(arms: Mapping[Arm, Any]) -> Iterator[tuple[Arm, Arm]]:
    for objective, dynamic, width in sorted(arms):
        if not dynamic and (objective, True, width) in arms:
            yield (objective, False, width), (objective, True, width)
    for objective, dynamic, width in sorted(arms):
        least = min(k for o, d, k in arms if (o, d) == (objective, dynamic))
        if width != least:
            yield (objective, dynamic, least), (objective, dynamic, width)


def _test(first: Arm, second: Arm, cells: Mapping[Arm, Mapping[int, Mapping[str, Any]]]) -> Paired:
    seeds = sorted(cells[first].keys() & cells[second].keys())
    pairs = []
    for seed in seeds:
        one, other = (Path(cells[arm][seed]["ranks"]) for arm in (first, second))
        pairs.append(paired_ranks(read_ranks(one), read_ranks(other), str(one), str(other)))
    ranks_a, ranks_b, users = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    right_a, right_b = ranks_a == 1, ranks_b == 1
    paired = paired_hits(right_a, right_b, users)
    return Paired(
        first=first,
        second=second,
        seeds=len(seeds),
        rows=len(users),
        hit_first=float(right_a.mean()),
        hit_second=float(right_b.mean()),
        only_first=paired.only_a,
        only_second=paired.only_b,
        spread=paired.spread,
        p=paired.p,
    )


def arm_name(arm: Arm) -> str:
    """Return an arm in words."""
    objective, dynamic, width = arm
    return f"{objective} {kind_of(dynamic)}, K = {width}"


def verdict(tested: Sequence[Paired]) -> str:
    """Return in words whether the plain forms collapse, and whether the dynamic ones cure it.

    A collapse is a lower HR@1 of the plain form at the largest K than at the smallest; a cure a higher one of
    the dynamic form than of the plain one at the largest K. Both have to be significant after correction.
    """
    known = {(one.first, one.second): one for one in tested}
    parts = []
    for objective in sorted({one.first[0] for one in tested}):
        plain = [arm for pair in known for arm in pair if arm[:2] == (objective, False)]
        if not plain:
            continue
        low, high = (pick(plain, key=lambda arm: arm[2]) for pick in (min, max))
        fall, gain = known.get((low, high)), known.get((high, (objective, True, high[2])))
        parts.append(f"{objective}: {_collapse(fall)}; {_cure(gain)}")
    found = sum(one.found for one in tested)
    said = ". ".join([*parts, f"Of {len(tested)} comparisons {found} show a difference after correction"])
    return f"{said}." if parts else "Nothing can be said yet: no two cells can be compared."


def _collapse(fall: Paired | None) -> str:
    if fall is None:
        return "no collapse can be told, as cells at the smallest or the largest K are missing"
    span = f"from K = {fall.first[2]} to K = {fall.second[2]}"
    change = f"HR@1 {fall.hit_first:.4f} to {fall.hit_second:.4f}, p = {fall.corrected:.2g}"
    if not fall.found:
        return f"the plain form shows no collapse {span} ({change}), a change is {fall.says()}"
    word = "collapses" if fall.difference < 0 else "does not collapse but gains"
    return f"the plain form {word} {span} ({change})"


def _cure(gain: Paired | None) -> str:
    if gain is None:
        return "no cure can be told, as the dynamic cell at the largest K is missing"
    there = f"HR@1 {gain.hit_first:.4f} plain, {gain.hit_second:.4f} dynamic, p = {gain.corrected:.2g}"
    if not gain.found:
        return f"at K = {gain.second[2]} a difference of the dynamic form is {gain.says()} ({there})"
    word = "better" if gain.difference > 0 else "worse"
    return f"at K = {gain.second[2]} the dynamic form is {word} ({there})"
