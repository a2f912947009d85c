"""What a data set gives away: can its targets be found without knowing anything of taste?

Rules that read nothing but the candidate list, or the order of titles, are learned from the training rows and
tried on the held-out ones. Each is held against its own control: the same rule, learned from rows in which
what it reads was dealt anew. So a rule that only finds popular titles is no finding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import binom, binomtest

from .rules import (
    CompanyRule,
    FloatArray,
    IntArray,
    OrderRule,
    PlaceAndCompanyRule,
    PlaceRule,
    Rows,
    hit_rate,
)

RULES = ("place_rule", "company_rule", "place_and_company_rule", "order_rule")
# Pairs of titles are judged by their order if they occur together so often.
LEAST_TOGETHER = 4
# A rule is a finding if its hits would come about by its control less often than this.
SURE = 1e-3
# More than a coin's share of pairs in their majority's order, from which on an order is a finding.
BEYOND_COIN = 0.05
MANY_TIES = 0.1
_MEANING = {
    "place_rule": "a title stands at its own place of the list when it is the target",
    "company_rule": "a target comes with the same company in its list, row after row",
    "place_and_company_rule": "place and company of a list together name its target",
    "order_rule": "targets are the next titles of one global order that has nothing to do with users",
}
_REMEDY = {
    "order_rule": "rank with --history_order=shuffled, or find data with real times",
    "place_rule": "draw lists anew: --candidate_source=fresh, or rank among all items",
}


@dataclass(frozen=True)
class Found:
    """What a rule reaches on some rows.

    Attributes:
        hit_rate: share of rows whose target the rule puts first.
        chance: the same of its control.
        rows: how many.
    """

    hit_rate: float
    chance: float
    rows: int

    def to_json(self) -> dict[str, float]:
        """Return the figures as JSON values."""
        return {"hr_at_1": self.hit_rate, "rows": self.rows, "chance": self.chance}

    def is_finding(self) -> bool:
        """Say whether the rule finds more than its control would by luck."""
        hits = round(self.hit_rate * self.rows)
        share = min(max(self.chance, 1e-9), 1 - 1e-9)
        # The control's own rate is measured on as many rows, so it is given its own doubt.
        doubt = 2 * np.sqrt(share * (1 - share) / max(self.rows, 1))
        p = binomtest(hits, self.rows, min(share + doubt, 1 - 1e-9), alternative="greater").pvalue
        return bool(p < SURE)


@dataclass(frozen=True)
class GiveAway:
    """The audit of one data set.

    Attributes:
        splits: ``valid``, ``test`` and ``all`` -> rule -> what it reaches; empty where there are no lists.
        targets_seen: split -> share of the targets that were a target in training.
        order_agreement: share of pairs within training histories in the order of their majority; None where
            no pair occurs often enough.
        order_coin: what a coin would reach at the same counts.
        target_order_agreement, target_order_coin: the same of pairs of a history's item and the target.
        time_ties: share of a user's neighbours that bear one time; None where there are no times.
        repeated: held-out rows that stand in training too, history and target.
        target_in_history: held-out rows whose target stands in their own history.
        target_nowhere: held-out rows whose target stands in no training row.
    """

    splits: dict[str, dict[str, Found]]
    targets_seen: dict[str, float]
    order_agreement: float | None
    order_coin: float | None
    target_order_agreement: float | None
    target_order_coin: float | None
    time_ties: float | None
    repeated: int
    target_in_history: int
    target_nowhere: int
    rows: int = field(default=0)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        splits = {
            split: {
                **{
                    rule: {"hr_at_1": f.hit_rate, "rows": f.rows, "chance": f.chance}
                    for rule, f in rules.items()
                },
                "targets_seen": self.targets_seen[split],
            }
            for split, rules in self.splits.items()
        }
        names = [
            *("order_agreement", "order_coin", "target_order_agreement", "target_order_coin", "time_ties"),
            *("repeated", "target_in_history", "target_nowhere"),
        ]
        return {**splits, **{name: getattr(self, name) for name in names}}

    def table(self) -> str:
        """Return what each rule reaches on each split, and by chance, as text."""
        lines = [f"{'':24}" + "".join(f"{split:>10}{'chance':>9}" for split in self.splits)]
        for rule in next(iter(self.splits.values()), {}):
            cells = (found[rule] for found in self.splits.values())
            lines.append(f"{rule:24}" + "".join(f"{c.hit_rate:10.4f}{c.chance:9.4f}" for c in cells))
        shares = (f"{self.targets_seen[split]:10.4f}{'':9}" for split in self.splits)
        return "\n".join([*lines, f"{'targets seen in training':24}" + "".join(shares)])

    def findings(self) -> list[str]:
        """Return a line for each finding: the figure, what it means, what to do."""
        lines = []
        for rule, found in self.splits["all"].items():
            if found.is_finding():
                lines.append(
                    f"{rule.replace('_', ' ')}: HR@1 {found.hit_rate:.3f} on {found.rows} held-out rows, "
                    f"{found.chance:.3f} by chance: {_MEANING[rule]}; "
                    f"{_REMEDY.get(rule, _REMEDY['place_rule'])}"
                )
        pairs = (
            ("pairs within histories", self.order_agreement, self.order_coin),
            (
                "pairs of history and target",
                self.target_order_agreement,
                self.target_order_coin,
            ),
        )
        for what, share, coin in pairs:
            if share is not None and coin is not None and share > coin + max(BEYOND_COIN, 0.5 * (1 - coin)):
                lines.append(
                    f"order: {share:.1%} of {what} follow one direction, a coin would give {coin:.1%}: they "
                    f"are sorted by something that is not time; {_REMEDY['order_rule']}"
                )
        if self.time_ties and self.time_ties > MANY_TIES:
            lines.append(
                f"ties in time: {self.time_ties:.0%} of a user's neighbours bear one time: the next item is "
                "decided by how ties are broken; --time_ties=hash draws, file keeps the file's order"
            )
        counts = (
            (self.repeated, "stand in training too: the row was seen; remove them from either side"),
            (self.target_in_history, "have their target in their own history: copying the history wins"),
        )
        lines += [f"{count} of {self.rows} held-out rows {text}" for count, text in counts if count]
        return lines


def audit_give_away(
    train: Rows, held_out: Mapping[str, Rows], items: int, seed: int, time_ties: float | None = None
) -> GiveAway:
    """Return what a data set gives away.

    Args:
        train: training rows.
        held_out: ``valid`` and ``test``.
        items: ids run from 1 to ``items`` - 1.
        seed: of the controls.
        time_ties: share of a user's neighbours that bear one time; None where there are no times.
    """
    splits = {**held_out, "all": _pooled(list(held_out.values()))}
    rules, controls = _learned(train, items), _learned(_dealt_anew(train, seed), items)
    found: dict[str, dict[str, Found]] = {}
    for split, rows in splits.items():
        if len(rows.targets):
            reached = {name: hit_rate(rule.scores(rows), rows) for name, rule in rules.items()}
            luck = {name: hit_rate(rule.scores(rows), rows) for name, rule in controls.items()}
            found[split] = {name: Found(reached[name], luck[name], len(rows.targets)) for name in rules}
    pairs = [_pairs(history) for history in train.histories]
    within = _agreement(train.users, [first for first, _ in pairs], [second for _, second in pairs])
    behind = [np.full(len(h), t) for h, t in zip(train.histories, train.targets, strict=True)]
    to_target = _agreement(train.users, train.histories, behind)
    every, seen = splits["all"], set(train.targets.tolist())
    known = {(tuple(h.tolist()), t) for h, t in zip(train.histories, train.targets.tolist(), strict=True)}
    anywhere = seen.union(*(set(history.tolist()) for history in train.histories))
    together = list(zip(every.histories, every.targets.tolist(), strict=True))
    return GiveAway(
        splits=found,
        targets_seen={split: float(np.isin(splits[split].targets, train.targets).mean()) for split in found},
        order_agreement=within[0],
        order_coin=within[1],
        target_order_agreement=to_target[0],
        target_order_coin=to_target[1],
        time_ties=time_ties,
        repeated=sum((tuple(history.tolist()), target) in known for history, target in together),
        target_in_history=sum(target in history for history, target in together),
        target_nowhere=sum(target not in anywhere for _, target in together),
        rows=len(together),
    )


def _learned(rows: Rows, items: int) -> dict[str, Any]:
    rules: dict[str, Any] = {}
    if rows.candidates.shape[1]:
        place, company = PlaceRule(rows, items), CompanyRule(rows, items)
        rules = dict(zip(RULES, (place, company, PlaceAndCompanyRule(place, company)), strict=False))
        rules["order_rule"] = OrderRule(rows, items)
    return rules


def _pooled(parts: list[Rows]) -> Rows:
    width = max((part.candidates.shape[1] for part in parts), default=0)
    lists = [np.pad(p.candidates, ((0, 0), (0, width - p.candidates.shape[1]))) for p in parts]
    histories = [history for part in parts for history in part.histories]
    columns = (np.concatenate([getattr(part, name) for part in parts]) for name in ("targets", "users"))
    return Rows(histories, np.concatenate(lists), *columns)


def _dealt_anew(rows: Rows, seed: int) -> Rows:
    """Return rows with everything kept that popularity knows, and dealt anew what the rules read.

    Each target gets the company of another row's list, at a drawn place; the titles of a history are put in a
    drawn order.
    """
    draw = np.random.default_rng([seed, 29])
    others = rows.candidates.copy()
    count = len(rows.targets)
    if others.shape[1]:
        own = others == rows.targets[:, None]
        companions = np.where(own, 0, others)[draw.permutation(count)]
        companions[companions == rows.targets[:, None]] = 0
        place = draw.integers(0, others.shape[1], count)
        moved = companions[np.arange(count), place]
        gap = (companions == 0).argmax(axis=1)  # where the other row's target stood
        companions[np.arange(count), gap] = moved
        companions[np.arange(count), place] = rows.targets
        others = companions
    histories = [draw.permutation(history) for history in rows.histories]
    return Rows(histories, others, rows.targets, rows.users)


def _pairs(history: IntArray) -> tuple[IntArray, IntArray]:
    first, second = np.triu_indices(len(history), 1)
    return history[first], history[second]


def _agreement(
    users: IntArray, firsts: list[IntArray], seconds: list[IntArray]
) -> tuple[float | None, float | None]:
    """Return the share of pairs in the direction of their majority, and what a coin gives at these counts.

    A pair counts once a user, however many rows of the user's hold it.

    Args:
        users: (N,) of each row.
        firsts, seconds: N arrays of items: each row's pairs, in order.
    """
    none = np.zeros(0, dtype=np.int64)
    first, second = np.concatenate([none, *firsts]), np.concatenate([none, *seconds])
    owner = np.repeat(users, [len(side) for side in firsts])
    differs = first != second
    size = int(max(first.max(initial=0), second.max(initial=0))) + 1
    once = np.unique(((owner * size + first) * size + second)[differs])
    first, second = np.divmod(once % size**2, size)
    if not len(first):
        return None, None
    low, high = np.minimum(first, second), np.maximum(first, second)
    _, pair, count = np.unique(low * size + high, return_inverse=True, return_counts=True)
    forward = np.bincount(pair, weights=first < second, minlength=len(count))
    often = count >= LEAST_TOGETHER
    if not often.any():
        return None, None
    count, forward = count[often], forward[often]
    agreement = np.maximum(forward, count - forward).sum() / count.sum()
    sizes, times = np.unique(count, return_counts=True)
    coin = sum(_coin(int(size)) * number for size, number in zip(sizes, times, strict=True)) / count.sum()
    return float(agreement), float(coin)


def _coin(size: int) -> float:
    """Return the expected larger count of ``size`` tosses of a coin."""
    heads = np.arange(size + 1)
    share: FloatArray = binom.pmf(heads, size, 0.5)
    return float((np.maximum(heads, size - heads) * share).sum())
