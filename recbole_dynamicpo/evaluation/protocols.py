"""The paper's evaluation: the model writes an answer, and the answer must name exactly one candidate.

An answer is *valid* if exactly one of the candidates' titles occurs in it as a substring. HR@1 is the share
of all rows whose valid answer names the true title, ValidRatio the share of valid answers. Judging works on
strings alone; decoding is greedy and apart from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .by_user import Users, share_interval

ANSWER_TOKENS = 20  # the paper's; a longer title is cut off and can no longer be named


@dataclass(frozen=True)
class Judgement:
    """What an answer says.

    Attributes:
        named: places of the candidates whose titles occur in the answer.
        valid: exactly one does.
        hit: it is the true title.
    """

    named: tuple[int, ...]
    valid: bool
    hit: bool


def judge(answer: str, candidates: Sequence[str], target: str) -> Judgement:
    """Judge one answer; letter case and white space count, as in the published evaluation.

    Two candidates of one title are named together, so an answer with that title is not valid.
    """
    named = tuple(place for place, title in enumerate(candidates) if title in answer)
    valid = len(named) == 1
    return Judgement(named, valid, valid and candidates[named[0]] == target)


def overlapping(candidates: Sequence[str]) -> bool:
    """Say whether a candidate's title is part of another's: then the longer one cannot be named alone."""
    return any(
        inner in outer for i, inner in enumerate(candidates) for j, outer in enumerate(candidates) if i != j
    )


def hides_target(candidates: Sequence[str], target: str) -> bool:
    """Say whether the true title holds another candidate's: then even the right answer is not valid."""
    return sum(title in target for title in candidates) > 1


@dataclass(frozen=True)
class Protocols:
    """Both evaluations of the same n rows.

    Attributes:
        rows: n.
        valid: rows with a valid answer.
        generated_hits: rows whose valid answer is right.
        likelihood_hits: rows whose true title has the highest log-probability.
        agreeing: rows whose valid answer is also the title of the highest log-probability.
        overlapping: rows in which one candidate's title is part of another's.
        hidden: of these, rows whose true title holds another candidate's, so that no answer can be right.
        cut: rows whose true title has more tokens than an answer may have.
        valid_interval, generated_interval, likelihood_interval: 95 %, of the shares of all rows.
    """

    rows: int
    valid: int
    generated_hits: int
    likelihood_hits: int
    agreeing: int
    overlapping: int
    hidden: int
    cut: int
    valid_interval: tuple[float, float]
    generated_interval: tuple[float, float]
    likelihood_interval: tuple[float, float]

    def table(self) -> str:
        """Return the figures as text."""
        return "\n".join(
            [
                f"rows                {self.rows}",
                _line("HR@1, generated", self.generated_hits, self.rows, self.generated_interval),
                _line("ValidRatio", self.valid, self.rows, self.valid_interval),
                _line("HR@1, likelihood", self.likelihood_hits, self.rows, self.likelihood_interval),
                f"agreement           {self.agreeing} of {self.valid} valid answers name the title that "
                "likelihood ranks first",
                f"ambiguous           in {self.overlapping} rows a candidate's title is part of another's; "
                f"in {self.hidden} of them the true title holds another one, so that no answer is right",
                f"too long            in {self.cut} rows the true title has more than {ANSWER_TOKENS} tokens",
            ]
        )


def _line(name: str, count: int, rows: int, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{name:<20}{count / rows:.4f}  95 % interval [{low:.4f}, {high:.4f}]  ({count} rows)"


def compare_protocols(
    candidates: Sequence[Sequence[str]],
    targets: Sequence[str],
    answers: Sequence[str],
    scores: NDArray[np.floating],
    title_tokens: Sequence[int],
    users: Users,
) -> Protocols:
    """Count what generated answers and likelihoods say of the same rows.

    Args:
        candidates: (n,) the titles of each row, in prompt order.
        targets: (n,) the true titles.
        answers: (n,) what was generated.
        scores: (n, C) log-probabilities of the candidates in prompt order; -inf where a row has fewer.
        title_tokens: (n,) tokens of the true titles, end of sequence not counted.
        users: (n,) whose row it is.

    Raises:
        DataError: there are no rows.
    """
    if not candidates:
        raise DataError("there are no rows to evaluate")
    judged = [judge(*row) for row in zip(answers, candidates, targets, strict=True)]
    first = [int(place) for place in scores.argmax(axis=1)]
    pairs = list(zip(candidates, targets, strict=True))
    valid, hits = [j.valid for j in judged], [j.hit for j in judged]
    likely = [titles[place] == target for (titles, target), place in zip(pairs, first, strict=True)]
    return Protocols(
        rows=len(pairs),
        valid=sum(valid),
        generated_hits=sum(hits),
        likelihood_hits=sum(likely),
        agreeing=sum(j.named == (place,) for j, place in zip(judged, first, strict=True)),
        overlapping=sum(map(overlapping, candidates)),
        hidden=sum(hides_target(titles, target) for titles, target in pairs),
        cut=sum(count > ANSWER_TOKENS for count in title_tokens),
        valid_interval=share_interval(valid, users),
        generated_interval=share_interval(hits, users),
        likelihood_interval=share_interval(likely, users),
    )
