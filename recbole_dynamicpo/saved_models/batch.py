"""Many users ranked from a file into files: bounded memory, and a killed run goes on where it stopped.

Rows of the input are taken in parts of a fixed number. A part is ranked and then written whole or not at all,
so that what was written before a kill is what an undisturbed run writes. Rows that cannot be ranked are set
aside beside their part, with their number and the reason.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.catalogue import Catalogue
from ..errors import DataError, SettingsError, short
from ..parallel import here
from ..serving.catalogue_ranking import stage_size
from ..serving.ranking import Question, Ranking, unknown_titles
from ..serving.recommender import Recommender
from ..storage import (
    atomic_file,
    check_can_be_made,
    load_json,
    locked,
    remove_partial,
    sha256_file,
    sha256_json,
    write_json,
)
from .users import UserRow, check_users, count_users, read_users

MANIFEST_FILE = "batch.json"
# Rows of a part, and of one call of the recommender.
PART_ROWS, AT_ONCE = 1000, 50
# Titles that are named of those that the catalogue does not have.
MOST_EXAMPLES = 3


@dataclass(frozen=True)
class BatchResult:
    """What a batch left.

    Attributes:
        parts: that were written.
        ranked, rejected: rows that were ranked or set aside in all of them.
        unknown: rows whose history has a title that the catalogue does not have.
        examples: the first such titles.
    """

    parts: int
    ranked: int
    rejected: int
    unknown: int = 0
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Wanted:
    """What decides a batch's output; one folder holds that of one."""

    input: str
    model: str
    k: int
    exclude_history: bool
    first_stage: int
    part_rows: int


def rank_file(
    recommender: Recommender,
    source: Path,
    out: Path,
    *,
    k: int = 10,
    exclude_history: bool = True,
    first_stage: int | None = None,
    part_rows: int = PART_ROWS,
    progress: bool = True,
) -> BatchResult:
    """Rank for every user of a file, or go on with it; the processes of torchrun take turns at the parts.

    Args:
        recommender: ranks.
        source: Parquet, CSV or JSON lines with columns ``user`` and ``history``: a list of titles (texts) and
            item ids; in CSV a JSON list.
        out: folder of ``part-00000.parquet`` and so on, one line a ranked title (user, rank, title, ids,
            score in nats), and of ``rejected-00000.jsonl`` beside a part with rows that were set aside: those
            that cannot be ranked, and lines that are no JSON object.
        k: titles a user.
        exclude_history: leave the history's titles out.
        first_stage: titles of the catalogue that the priors choose to be ranked; 0: all; None: as the model
            was made.
        part_rows: rows of a part.
        progress: show a bar with users/s and the time left.

    Raises:
        DataError: the file cannot be read.
        SettingsError: the folder cannot be made, or holds the output of another input, model or k.
        LockedError: another process ranks into the folder.
    """
    processes = here()
    if processes.first:
        check_batch(source, out)
    count = stage_size(recommender.card, first_stage)
    wanted = _Wanted(_digest(source), _identity(recommender), k, exclude_history, count, part_rows)
    with locked(out, wait=False) if processes.first else nullcontext():
        done = processes.decide(lambda: _begin(out, wanted))
        rows = read_users(source)
        sizes: list[int] = []
        foreign = _Foreign(recommender.catalogue)
        left = itertools.count()  # of the parts that are not there yet; the processes take turns at them
        shows = progress and processes.first
        with tqdm(
            total=count_users(source) if shows else None, unit="user", disable=not shows, desc="rank"
        ) as bar:
            while part := list(islice(rows, part_rows)):
                number = len(sizes)
                if number not in done and processes.has_turn(next(left)):
                    _write_part(out, number, part, recommender, wanted)
                sizes.append(len(part))
                foreign.see(part)
                bar.update(len(part))
        processes.wait()
        rejected = processes.decide(
            lambda: sum(_count_set_aside(out, number) for number in range(len(sizes)))
        )
    return BatchResult(
        len(sizes), sum(sizes) - rejected, rejected, foreign.rows, tuple(foreign.titles)[:MOST_EXAMPLES]
    )


def check_batch(source: Path, out: Path) -> None:
    """See what can be wrong with a batch before a model is loaded for it; nothing is left behind.

    Args:
        source, out: see ``rank_file``.

    Raises:
        DataError: the file cannot be read.
        SettingsError: the folder cannot be made.
    """
    check_users(source)
    check_can_be_made(out)


class _Foreign:
    """Counts the rows whose histories have titles that the catalogue does not have, and keeps some titles."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue, self.rows = catalogue, 0
        self.titles: dict[str, None] = {}

    def see(self, rows: Sequence[UserRow]) -> None:
        for row in rows:
            found = unknown_titles(self.catalogue, row.history)
            self.rows += bool(found)
            if len(self.titles) < MOST_EXAMPLES:
                self.titles.update(dict.fromkeys(found))


def _begin(out: Path, wanted: _Wanted) -> set[int]:
    """Return the numbers of the parts that are there, after a look at what the folder is for."""
    _agree(out, wanted)
    return {int(path.stem.partition("-")[2]) for path in out.glob("part-*.parquet")}


def _count_set_aside(out: Path, number: int) -> int:
    path = _set_aside(out, number)
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _part(out: Path, number: int) -> Path:
    return out / f"part-{number:05d}.parquet"


def _set_aside(out: Path, number: int) -> Path:
    return out / f"rejected-{number:05d}.jsonl"


def _agree(out: Path, wanted: _Wanted) -> None:
    """Write down what the folder is for, or see that it is for this."""
    path = out / MANIFEST_FILE
    if not path.is_file():
        write_json(path, asdict(wanted))
        return
    try:
        before = load_json(path)
        # What it does not know, an earlier version began.
        differs = [name for name, value in asdict(wanted).items() if before.get(name) != value]
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not the description of a batch ({error!r})") from error
    if differs:
        name = differs[0]
        now = short(getattr(wanted, name))
        raise SettingsError(
            f"{out}: holds a batch of another {name} ({short(before.get(name))}, now {now}); wanted an empty "
            "folder, or the batch that was begun there"
        )


def _write_part(
    out: Path, number: int, rows: Sequence[UserRow], recommender: Recommender, wanted: _Wanted
) -> None:
    """Rank a part and write it; what is set aside first, as the part says that all is done."""
    import pyarrow
    from pyarrow import parquet

    for path in (_part(out, number), _set_aside(out, number)):
        remove_partial(path)
    lines: dict[str, list[Any]] = {name: [] for name in ("user", "rank", "title", "ids", "score")}
    bad: list[str] = []
    for start in range(0, len(rows), AT_ONCE):
        for row, found in _rank(recommender, rows[start : start + AT_ONCE], wanted):
            if isinstance(found, str):
                bad.append(json.dumps({"row": row.number, "user": row.user, "reason": found}, default=str))
                continue
            for place, item in enumerate(found.ranked, start=1):
                values = (str(row.user), place, item.title, list(item.ids), item.score)
                for name, value in zip(lines, values, strict=True):
                    lines[name].append(value)
    if bad:
        with atomic_file(_set_aside(out, number)) as handle:
            handle.write("\n".join(bad) + "\n")
    text = pyarrow.string()
    kinds = (text, pyarrow.int32(), text, pyarrow.list_(text), pyarrow.float64())
    arrays = [pyarrow.array(column, kind) for column, kind in zip(lines.values(), kinds, strict=True)]
    with atomic_file(_part(out, number), "wb") as handle:
        parquet.write_table(pyarrow.table(arrays, names=list(lines)), handle)


def _rank(
    recommender: Recommender, rows: Sequence[UserRow], wanted: _Wanted
) -> list[tuple[UserRow, Ranking | str]]:
    """Return each row with its ranking, or with why there is none."""
    found: dict[int, Ranking | str] = {}
    asked: list[tuple[int, Question]] = []
    for place, row in enumerate(rows):
        try:
            if row.wrong or row.user is None or row.user == "":
                raise DataError(row.wrong or "user: missing")
            question = recommender.question(
                row.history,
                k=wanted.k,
                exclude_history=wanted.exclude_history,
                first_stage=wanted.first_stage,
            )
            recommender.check(question)
            asked.append((place, question))
        except DataError as error:
            found[place] = str(error)
    answers = recommender.answer([question for _, question in asked])
    found |= {place: answer for (place, _), answer in zip(asked, answers, strict=True)}
    return [(row, found[place]) for place, row in enumerate(rows)]


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _identity(recommender: Recommender) -> str:
    """Return what tells a recommender from another."""
    return sha256_json([asdict(recommender.card), list(recommender.catalogue.titles)])
