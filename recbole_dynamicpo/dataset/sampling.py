"""Seeded draws of a row: its candidates, their order, its template, and its order among rows.

Each row has a generator of its own, seeded by (seed, phase, row), so that a draw depends neither on
which other rows are used nor on their order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# Templates are drawn below this number and taken modulo how many there are.
TEMPLATE_DRAWS = 1 << 16
# Draws for each candidate before the items that are left are listed, which takes longer.
_TRIES = 64
# Batches whose rows are sorted by length together: enough to cut padding, few enough to stay random.
BUCKET_BATCHES = 16


def row_generator(seed: int, *path: int) -> np.random.Generator:
    """Return the generator that belongs to ``path`` (phase, row, ...) under ``seed``."""
    return np.random.default_rng([seed, *path])


def draw_candidates(
    positive: int,
    excluded: IntArray,
    titles: IntArray,
    count: int,
    draw: np.random.Generator,
    row: str,
    weights: FloatArray | None = None,
) -> IntArray:
    """Return ``count`` item ids of distinct titles in random order: the positive and negatives.

    The negatives are drawn without the positive's help. What the model reads are titles, so that another item
    of an excluded title is excluded too.

    Args:
        positive: the item really chosen.
        excluded: items that must not be a negative, beside the positive.
        titles: (items,) a number of each item's title, 1 to as many as there are; item 0 is none.
        count: candidates, the positive included.
        draw: the row's generator.
        row: what to call the row in a message.
        weights: (items,) running sums of the items' shares, the first of them 0; None: all alike.

    Raises:
        DataError: fewer titles are left than candidates are wanted.
    """
    banned = {int(titles[item]) for item in (positive, *excluded.tolist())}
    free = int(titles.max()) - len(banned)
    if free < count - 1:
        raise DataError(
            f"{row}: wanted {count - 1} negatives, but only {max(free, 0)} of {titles.max()} titles are "
            "outside the user's history; lower num_candidates"
        )
    chosen = [positive]
    # Rejection is slow where few items are left, or few have a share worth the name.
    tries = 0 if free < 4 * count else _TRIES * count
    while len(chosen) < count and tries:
        tries -= 1
        if weights is None:
            item = int(draw.integers(1, len(titles)))
        else:
            item = int(weights.searchsorted(draw.random() * weights[-1], side="right"))
        if titles[item] not in banned:
            banned.add(int(titles[item]))
            chosen.append(item)
    if len(chosen) < count:
        numbers, first = np.unique(titles[1:], return_index=True)
        left = np.sort(first[~np.isin(numbers, list(banned))]) + 1  # one item a title
        shares = None if weights is None else np.diff(weights, prepend=0.0)[left]
        share = None if shares is None else shares / shares.sum()
        chosen += draw.choice(left, size=count - len(chosen), replace=False, p=share).tolist()
    return draw.permutation(np.array(chosen, dtype=np.int64))


def popularity_weights(counts: IntArray) -> FloatArray:
    """Return (items,) running sums of the shares that popularity gives to items among drawn negatives.

    Args:
        counts: (items,) training interactions; one half is added, so that every item but 0 has a share.
    """
    shares = counts + 0.5
    shares[0] = 0.0
    sums: FloatArray = shares.cumsum()
    return sums


def draw_scored(
    positive: NDArray[np.bool_], present: NDArray[np.bool_], count: int, seed: int, epoch: int
) -> IntArray:
    """Return (n, 1 + count) candidate columns: the positive first, then random negatives.

    Args:
        positive: (n, C) true at each row's positive.
        present: (n, C) false where a row has fewer candidates; such columns are drawn last.
        count: K, negatives to draw without replacement.
        seed: of the run.
        epoch: every epoch draws anew.
    """
    keys = row_generator(seed, 7, epoch).random(positive.shape)
    keys[positive] = -1.0
    keys[~present] = 2.0
    order: IntArray = keys.argsort(axis=1, kind="stable")
    return order[:, : count + 1]


def epoch_order(lengths: IntArray, batch_size: int, seed: int, stage: int, epoch: int) -> IntArray:
    """Return the order of an epoch's rows: random, but rows of a batch are of similar length.

    Args:
        lengths: (n,) any measure of a row's length.
        batch_size: rows per batch.
        seed, stage, epoch: decide the draw.
    """
    draw = row_generator(seed, 11, stage, epoch)
    order = draw.permutation(len(lengths))
    batches: list[IntArray] = []
    span = batch_size * BUCKET_BATCHES
    for start in range(0, len(order), span):
        bucket = order[start : start + span]
        bucket = bucket[lengths[bucket].argsort(kind="stable")]
        full = [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
        batches.extend(full[i] for i in draw.permutation(len(full)))
    # A short batch in the middle would shift the loader's cuts, so it goes last.
    batches.sort(key=len, reverse=True)
    return np.concatenate(batches) if batches else order


def choose_rows(total: int, wanted: int, seed: int, phase: int, skip: int = 0) -> IntArray:
    """Return ``wanted`` of ``total`` rows (0: all), after passing over ``skip`` of the same draw.

    Rows that were passed over come back only where there are too few others.
    """
    order = row_generator(seed, 13, phase).permutation(total)
    if wanted == 0 or wanted >= total:
        return order
    return np.roll(order, -min(skip, total))[:wanted]
