"""A small data set in the published format, whose right answers can be seen in the rows themselves."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

Row = dict[str, Any]
# The paper's protocol: lists and order as published.
AS_PUBLISHED = {"candidate_source": "published", "history_order": "time"}
CANDIDATES = 6
# Some titles are part of others, two hold what other readers take for a mark.
TITLES = [
    *("It", "It Follows", "Ash", "Ash Wednesday", '"Quoted"', "Fear :: Knossos"),
    *(
        f"{colour} {thing}"
        for colour in ("Red", "Blue", "Grey", "Gold")
        for thing in ("Fox", "Owl", "Elk", "Hen")
    ),
    *(f"Night {number}" for number in range(10, 40)),
]


def published_rows(users: int, seed: int) -> list[Row]:
    """Return four rows a user: a growing history of 3 to 6 titles and six candidates out of it."""
    draw = random.Random(seed)
    rows = []
    for _ in range(users):
        walk = draw.sample(TITLES, 7)
        for step in range(3, 7):
            others = draw.sample([title for title in TITLES if title not in walk], CANDIDATES - 1)
            items = draw.sample([*others, walk[step]], CANDIDATES)
            rows.append(
                {"historyList": "::".join(walk[:step]), "itemList": items, "trueSelection": walk[step]}
            )
    return rows


def write_published(folder: Path, name: str = "lastfm", **files: list[Row]) -> Path:
    """Write ``<name>-<role>.json`` for each role and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for role, rows in files.items():
        (folder / f"{name}-{role}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def small_published(folder: Path, name: str = "lastfm") -> Path:
    """Write a training and a validation file and return their folder."""
    return write_published(folder, name, train=published_rows(8, seed=1), val=published_rows(6, seed=2))
