"""What a data set gives away: can its targets be found without knowing anything of taste?

Rules that read nothing but the candidate list, or the order of titles, are learned from the training rows and
tried on the held-out ones. Each is held against its own control: the same rule, learned from rows in which
what it reads was dealt anew. So a rule that only finds popular titles is no finding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .global_order import agreement, chained_pairs, follows_one_order
from .rules import CompanyRule, OrderRule, PlaceAndCompanyRule, PlaceRule, Rows, hit_shares

RULES = ("place_rule", "company_rule", "place_and_company_rule", "order_rule")
# A rule is a finding if its hits would come about by its control less often than this.
SURE = 1e-3
# Of the pairs that a coin would leave against their majority, the share that must go with it: what users do
# changes with time, so that real histories too follow one order more often than a coin.
OF_THE_REST = 0.5
# Share of a user's neighbours at one time from which on figures depend on how ties are broken.
MANY_TIES = 0.1
_MEANING = {
    "place_rule": "a title stands at its own place of the list when it is the target",
    "company_rule": "a target comes with the same company in its list, row after row",
    "place_and_company_rule": "place and company of a list together name its target",
}
_NEW_LISTS = "draw lists anew: --candidate_source=fresh, or rank among all items"
# What an order that many users follow means: without times, and of histories in the order of times.
_ORDER = (
    "targets are the next titles of one global order that has nothing to do with users, sorted by something "
    "that is not time; rank with --history_order=shuffled, or find data with real times"
)
_ORDER_IN_TIME = (
    "the times may be none of when users chose; but an order that many users follow, such as that of a "
    "series, looks the same. See in some histories which it is; --history_order=shuffled ranks without it"
)


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

    def interval(self) -> tuple[float, float]:
        """Return the exact binomial interval of shares that its control would reach by luck.

        The control's own rate is measured on as many rows, so it is given a doubt of two standard errors.
        """
        from scipy.stats import binom  # takes long to import

        doubt = 2 * np.sqrt(self.chance * (1 - self.chance) / max(self.rows, 1))
        low = binom.ppf(SURE, self.rows, max(self.chance - doubt, 0.0))
        high = binom.isf(SURE, self.rows, min(self.chance + doubt, 1.0))
        return float(low / max(self.rows, 1)), float(high / max(self.rows, 1))

    def is_finding(self) -> bool:
        """Say whether the rule finds more than its control would by luck."""
        return round(self.hit_rate * self.rows) > round(self.interval()[1] * self.rows)


@dataclass(frozen=True)
class GiveAway:
    """The audit of one data set.

    Attributes:
        splits: ``valid``, ``test`` and ``all`` -> rule -> what it reaches; no rules where there are no lists,
            no split where there are no rows.
        targets_seen: split -> share of the targets that were a target in training.
        order_agreement: share of pairs within training rows, the target their last, in the order of their
            majority; None where no pair occurs often enough.
        order_coin: what a coin would reach at the same counts.
        target_order_agreement, target_order_coin: the same of pairs of a history's item and the target.
        time_ties: share of a user's neighbours that bear one time; None where there are no times.
        repeated: held-out rows that stand in training too, history and target.
        target_in_history: held-out rows whose target stands in their own history.
        target_nowhere: held-out rows whose target stands in no training row.
        rows: held-out rows.
        one_order: whether all neighbours in training rows follow one order, without a circle.
        in_time: whether histories are in the order of a time column.
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
    rows: int
    one_order: bool
    in_time: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        splits: dict[str, Any] = {
            split: {
                rule: {"hr_at_1": reached.hit_rate, "rows": reached.rows} for rule, reached in rules.items()
            }
            | {"targets_seen": self.targets_seen[split]}
            for split, rules in self.splits.items()
        }
        names = ("order_agreement", "order_coin", "target_order_agreement", "time_ties")
        return {**splits, **{name: getattr(self, name) for name in names}}

    def table(self) -> str:
        """Return what each rule reaches on each split, and at most by chance, as text."""
        lines = [f"{'HR@1':24}" + "".join(f"{split:>10}{'chance':>16}" for split in self.splits)]
        for rule in next(iter(self.splits.values()), {}):
            line = f"{rule.replace('_', ' '):24}"
            for reached in (rules[rule] for rules in self.splits.values()):
                low, high = reached.interval()
                line += f"{reached.hit_rate:10.4f}{f'{low:.3f} to {high:.3f}':>16}"
            lines.append(line)
        shares = (f"{self.targets_seen[split]:10.4f}{'':16}" for split in self.splits)
        lines.append(f"{'targets seen in training':24}" + "".join(shares))
        for what, share, coin in self._pairs():
            if share is not None:
                lines.append(f"{what} in their majority's order: {share:.4f}, a coin: {coin:.4f}")
        if self.time_ties is not None:
            lines.append(f"neighbours of a user at one time: {self.time_ties:.4f}")
        lines.append(
            f"of {self.rows} held-out rows: {self.repeated} stand in training too, {self.target_in_history} "
            f"have their target in their history, {self.target_nowhere} one that is in no training row"
        )
        return "\n".join(line.rstrip() for line in lines)

    def _pairs(self) -> tuple[tuple[str, float | None, float | None], ...]:
        return (
            ("pairs within histories", self.order_agreement, self.order_coin),
            ("pairs of history and target", self.target_order_agreement, self.target_order_coin),
        )

    def findings(self) -> list[str]:
        """Return a line for each finding: the figure, what it means, what to do."""
        lines = []
        for rule, reached in self.splits.get("all", {}).items():
            if rule in _MEANING and reached.is_finding():
                lines.append(
                    f"{rule.replace('_', ' ')}: HR@1 {reached.hit_rate:.3f} on {reached.rows} held-out rows, "
                    f"by chance at most {reached.interval()[1]:.3f}: {_MEANING[rule]}; {_NEW_LISTS}"
                )
        if order := self._measured_of_order():
            lines.append(f"order: {'; '.join(order)}: {_ORDER_IN_TIME if self.in_time else _ORDER}")
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

    def _measured_of_order(self) -> list[str]:
        """Return the figures that say that many users follow one order, none where they do not."""
        found = []
        rule = self.splits.get("all", {}).get("order_rule")
        if rule and rule.is_finding():
            found.append(
                f"HR@1 {rule.hit_rate:.3f} by the order rule on {rule.rows} held-out rows, by chance at most "
                f"{rule.interval()[1]:.3f}"
            )
        pairs = [
            f"{share:.1%} of {what} follow one direction, by a coin {coin:.1%}"
            for what, share, coin in self._pairs()
            if share is not None and coin is not None and share > coin + OF_THE_REST * (1 - coin)
        ]
        graph = ["one order holds all neighbours"] if pairs and self.one_order else []
        return [*found, *pairs, *graph]


def audit_give_away(
    train: Rows,
    held_out: Mapping[str, Rows],
    items: int,
    seed: int,
    time_ties: float | None = None,
    in_time: bool = False,
) -> GiveAway:
    """Return what a data set gives away.

    Args:
        train: training rows.
        held_out: ``valid`` and ``test``.
        items: ids run from 1 to ``items`` - 1.
        seed: of the controls.
        time_ties: share of a user's neighbours that bear one time; None where there are no times.
        in_time: whether histories are in the order of a time column.
    """
    every = _pooled(list(held_out.values()))
    ends = np.cumsum([0, *(len(rows.targets) for rows in held_out.values())])
    parts = {name: slice(ends[n], ends[n + 1]) for n, name in enumerate(held_out)} | {"all": slice(ends[-1])}
    parts = {name: part for name, part in parts.items() if len(every.targets[part])}
    shares, luck = (
        {name: hit_shares(rule.scores(every), every) for name, rule in _learned(rows, items).items()}
        for rows in (train, _dealt_anew(train, seed))
    )
    reached = {
        split: {
            name: Found(float(hits[part].mean()), float(luck[name][part].mean()), len(hits[part]))
            for name, hits in shares.items()
        }
        for split, part in parts.items()
    }
    seen = np.isin(every.targets, train.targets)
    windows = [np.append(h, t) for h, t in zip(train.histories, train.targets, strict=True)]
    sizes = [len(history) for history in train.histories]
    flat = np.concatenate([np.zeros(0, dtype=np.int64), *train.histories])
    with_target = np.repeat(train.users, sizes), flat, np.repeat(train.targets, sizes)
    return GiveAway(
        reached,
        {split: float(seen[part].mean()) for split, part in parts.items()},
        *agreement(*chained_pairs(train.users, train.histories, train.targets)),
        *agreement(*with_target),
        time_ties,
        **_repetitions(train, every),
        one_order=follows_one_order(windows, items),
        in_time=in_time,
    )


def _repetitions(train: Rows, held_out: Rows) -> dict[str, int]:
    """Return counts of held-out rows by what they share with training or with themselves."""
    known = {(tuple(h.tolist()), t) for h, t in zip(train.histories, train.targets.tolist(), strict=True)}
    anywhere = set(train.targets.tolist()).union(*(history.tolist() for history in train.histories))
    rows = list(zip(held_out.histories, held_out.targets.tolist(), strict=True))
    return {
        "repeated": sum((tuple(history.tolist()), target) in known for history, target in rows),
        "target_in_history": sum(target in history for history, target in rows),
        "target_nowhere": sum(target not in anywhere for _, target in rows),
        "rows": len(rows),
    }


def _learned(rows: Rows, items: int) -> dict[str, Any]:
    rules: dict[str, Any] = {}
    if rows.candidates.shape[1]:
        place, company = PlaceRule(rows, items), CompanyRule(rows, items)
        rules = dict(zip(RULES, (place, company, PlaceAndCompanyRule(place, company)), strict=False))
        rules["order_rule"] = OrderRule(rows, items)
    return rules


def _pooled(parts: list[Rows]) -> Rows:
    none = np.zeros(0, dtype=np.int64)
    width = max((part.candidates.shape[1] for part in parts), default=0)
    lists = [np.pad(part.candidates, ((0, 0), (0, width - part.candidates.shape[1]))) for part in parts]
    histories = [history for part in parts for history in part.histories]
    targets, users = ([getattr(part, name) for part in parts] for name in ("targets", "users"))
    return Rows(
        histories,
        np.concatenate([np.zeros((0, width), dtype=np.int64), *lists]),
        np.concatenate([none, *targets]),
        np.concatenate([none, *users]),
    )


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
