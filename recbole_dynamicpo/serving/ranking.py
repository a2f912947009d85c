"""What is asked and answered in a ranking, and lists that are longer than a prompt shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

from torch import Tensor

from ..data.catalogue import Catalogue
from ..errors import DataError, short
from ..scoring.batches import PromptRow

Source = Literal["given", "popular", "catalogue"]


@dataclass(frozen=True)
class Ranked:
    """One ranked title.

    Attributes:
        title: the title.
        ids: the catalogue's items of that title; empty for a title that it does not know.
        score: summed log-probability, nats.
        prior: the part of the score that counting models with their trained weights give alone, nats; None
            where it was not asked for.
        language_model: the rest, what the language model adds or takes, nats.
    """

    title: str
    ids: tuple[str, ...]
    score: float
    prior: float | None = None
    language_model: float | None = None


@dataclass(frozen=True)
class Ranking:
    """The best candidates, and what they were chosen from.

    Attributes:
        ranked: best first.
        source: whether the candidates were ``given``, the ``popular`` ones, or the whole ``catalogue``.
        num_candidates: distinct titles that were compared.
        likelihood: what their scores are normalised over: ``vocabulary``, or ``catalogue``.
    """

    ranked: list[Ranked]
    source: Source
    num_candidates: int
    likelihood: str = "vocabulary"


@dataclass(frozen=True)
class Question:
    """A request to rank that was found to be right.

    Attributes:
        history: titles that the user took, oldest first; none of a user who is new.
        shown: distinct titles to rank; none where the whole catalogue is.
        k: how many to return.
        source: where the titles come from, as in ``Ranking``.
        left_out: titles of the catalogue that are not ranked.
        first_stage: titles of the whole catalogue that the priors choose to be ranked; 0: all.
        explain: part the scores into prior and language model.
    """

    history: list[str]
    shown: list[str]
    k: int
    source: Source
    left_out: frozenset[str] = frozenset()
    first_stage: int = 0
    explain: bool = False


def titles_of(catalogue: Catalogue, name: str, entries: Any, at_least: int) -> list[str]:
    """Return the titles that the entries of an argument stand for; see ``Catalogue.named``.

    Args:
        catalogue: known items.
        name: of the argument, for messages.
        entries: titles and item ids.
        at_least: 0 where there may be none, else 1.

    Raises:
        DataError: no list, or an entry that is no title and no id.
    """
    if isinstance(entries, str) or not isinstance(entries, Sequence) or len(entries) < at_least:
        some = "of at least one title or item id" if at_least else "of titles and item ids"
        raise DataError(f"{name}: got {short(entries)}, wanted a list {some}")
    return [_title(catalogue, f"{name}[{place}]", entry) for place, entry in enumerate(entries)]


def _title(catalogue: Catalogue, place: str, entry: Any) -> str:
    if is_whole(entry):
        title = catalogue.named(int(entry))
        if title is None:
            raise DataError(f"{place}: got item id {short(entry)}, which the catalogue does not have")
        return title
    if not isinstance(entry, str) or not entry.strip() or not _encodable(entry):
        raise DataError(f"{place}: got {short(entry)}, wanted a non-empty title or an item id")
    return catalogue.named(entry) or entry


def unknown_titles(catalogue: Catalogue, entries: Any) -> list[str]:
    """Return the texts among some entries that are neither titles nor item ids of a catalogue, each once.

    Args:
        catalogue: known items.
        entries: titles and item ids; anything wrong has none.
    """
    texts = [entry for entry in entries if isinstance(entry, str)] if isinstance(entries, list) else []
    return [text for text in dict.fromkeys(texts) if not catalogue.items(catalogue.named(text) or text)]


def is_whole(value: Any) -> bool:
    """Say whether a value is a whole number, of whatever library."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _encodable(text: str) -> bool:
    """Return whether a text is one; JSON can bring half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def in_groups(titles: list[str], most: int) -> list[list[str]]:
    """Return groups of at most ``most`` titles (two, if that is less) that hold all of them.

    More than one group: the same first titles, a tenth of it and at least one, begin all of them.
    """
    if len(titles) <= most:
        return [titles]
    most = max(2, most)
    common = titles[: max(1, most // 10)]
    own = most - len(common)
    return [[*common, *titles[start : start + own]] for start in range(len(common), len(titles), own)]


def merge(groups: Sequence[PromptRow], scores: Tensor) -> dict[str, float]:
    """Return title -> score, in nats, of titles that were scored in groups.

    A title in every group has the mean of its scores, and the scores of a group are moved so that the mean
    of those titles is that of all groups.

    Args:
        groups: of ``in_groups``.
        scores: (G, C) of each group's titles, -inf where it has fewer.
    """
    titles = groups[0].candidates
    if len(groups) == 1:
        return dict(zip(titles, scores[0].tolist(), strict=False))
    common = sum(
        all(row.candidates[at : at + 1] == [title] for row in groups) for at, title in enumerate(titles)
    )
    known = scores[:, :common]
    moved = scores + (known.mean() - known.mean(dim=1, keepdim=True))
    found = dict(zip(titles[:common], known.mean(dim=0).tolist(), strict=True))
    for row, values in zip(groups, moved.tolist(), strict=True):
        found.update(zip(row.candidates[common:], values[common:], strict=False))
    return found
