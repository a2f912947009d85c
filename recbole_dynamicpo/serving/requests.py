"""Requests to rank, as JSON brings them, and what they are answered with.

A text in ``history`` or ``candidates`` is a title of the catalogue, else an item id of it, else a title that
it lacks; a whole number is an item id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import DataError, nearest, short
from .ranking import Question, Ranking
from .recommender import DEFAULT_K, Recommender

# Of all requests of one call: a server that ranks so many holds up no other for longer than that takes.
MOST_TITLES = 10_000
# What a request for the whole catalogue counts as: it costs about as much as so many titles.
WHOLE_CATALOGUE = 100
# Rows of a data frame that are ranked together.
ROWS_AT_ONCE = 50


class RankRequest(BaseModel):
    """Whom to rank for and what.

    Attributes:
        history: what the user took, oldest first; titles that the catalogue lacks are allowed, and so is
            none at all.
        candidates: what to rank; None takes the whole catalogue, or its most popular titles where the
            model's likelihood is the vocabulary's.
        k: how many to return, 10 where it is left out.
        exclude_history: leave the history's titles out, where no candidates are given; so where left out.
        first_stage: where no candidates are given, titles of the catalogue that the priors choose to be
            ranked; 0: all; as the model was made where it is left out.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    history: list[str | int]
    candidates: list[str | int] | None = None
    k: int | None = None
    exclude_history: bool | None = None
    first_stage: int | None = None


class RankedTitle(BaseModel):
    """One ranked title: the catalogue's items that bear it, and its summed log-probability in nats."""

    title: str
    ids: list[str]
    score: float


class RankResponse(BaseModel):
    """The answer to one request.

    Attributes:
        ranked: the best titles, best first.
        candidates: ``given`` by the request, the ``popular`` ones, or the whole ``catalogue``.
        num_candidates: distinct titles that were compared.
        likelihood: what scores are normalised over: ``vocabulary`` or ``catalogue``.
    """

    ranked: list[RankedTitle]
    candidates: str
    num_candidates: int
    likelihood: str


_ENTRIES = "a list of titles (texts) and item ids (whole numbers)"
_WANTED = {
    "history": _ENTRIES,
    "candidates": _ENTRIES,
    "k": "a whole number of at least 1",
    "exclude_history": "true or false",
    "first_stage": "a whole number of at least 0",
}


def answer(recommender: Recommender, requests: object) -> list[RankResponse]:
    """Answer requests in order.

    Args:
        recommender: ranks.
        requests: a list of ``RankRequest`` or of objects of its form.

    Raises:
        DataError: one of them is wrong, or there is too much to rank; none is answered then.
    """
    if isinstance(requests, str) or not isinstance(requests, Sequence):
        raise DataError(
            f"inputs: got {type(requests).__name__}, wanted a list of objects with the key 'history'"
        )
    questions = []
    for index, request in enumerate(requests):
        with _numbered(index):
            questions.append(_question(recommender, _parse(request)))
    titles = sum(len(asked.shown) or WHOLE_CATALOGUE for asked in questions)
    if titles > MOST_TITLES:
        raise DataError(f"inputs: got {titles} titles to rank, wanted at most {MOST_TITLES} in one call")
    try:
        return [_response(found) for found in recommender.answer(questions)]
    except DataError:
        for index, question in enumerate(questions):
            with _numbered(index):
                recommender.check(question)
        raise


def answer_rows(recommender: Recommender, frame: Any) -> list[RankResponse]:
    """Answer the rows of a data frame, any number of them, as Spark hands them over.

    Args:
        recommender: ranks.
        frame: a pandas data frame with the keys of a request as columns; None and NaN are left out.

    Raises:
        DataError: as ``answer`` does; it names the row of the frame.
    """
    found: list[RankResponse] = []
    rows = [_request(row) for row in frame.to_dict("records")]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        try:
            found += answer(recommender, rows[start : start + ROWS_AT_ONCE])
        except DataError as error:
            raise DataError(f"rows from {start} on: {error}") from error
    return found


def _request(row: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a row of a data frame as JSON would have it."""
    plain = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in row.items()}
    # A column of whole numbers with gaps comes as one of floats.
    plain = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in plain.items()}
    return {key: value for key, value in plain.items() if value is not None and value == value}


@contextmanager
def _numbered(index: int) -> Iterator[None]:
    """Let an error say which request it is about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"inputs[{index}]: {error}") from error


def _question(recommender: Recommender, request: RankRequest) -> Question:
    k = DEFAULT_K if request.k is None else request.k
    return recommender.question(
        request.history,
        request.candidates,
        k,
        exclude_history=request.exclude_history is not False,
        first_stage=request.first_stage,
    )


def _response(found: Ranking) -> RankResponse:
    ranked = [RankedTitle(title=item.title, ids=list(item.ids), score=item.score) for item in found.ranked]
    return RankResponse(
        ranked=ranked,
        candidates=found.source,
        num_candidates=found.num_candidates,
        likelihood=found.likelihood,
    )


def _parse(request: object) -> RankRequest:
    if isinstance(request, RankRequest):
        return request
    if not isinstance(request, Mapping):
        raise DataError(f"got {type(request).__name__}, wanted an object with the key 'history'")
    try:
        return RankRequest.model_validate(dict(request))
    except ValidationError as error:
        problems = dict.fromkeys(_problem(item, request) for item in error.errors())
        raise DataError("; ".join(problems)) from error


def _problem(error: Any, request: Mapping[Any, Any]) -> str:
    """Return what is wrong with one field in one line; pydantic needs several."""
    name, *inside = error["loc"]
    if name not in _WANTED:
        return f"{name}: unknown{nearest(str(name), _WANTED)}"
    if error["type"] == "missing":
        return f"{name}: missing, wanted {_WANTED[name]}"
    if inside and isinstance(inside[0], int):
        value = request[name][inside[0]]
        return f"{name}[{inside[0]}]: got {short(value)}, wanted a title (text) or an item id (whole number)"
    return f"{name}: got {short(request[name])}, wanted {_WANTED[name]}"
