"""RecBole's case study on sequences: a score for everybody who was asked for, or an error.

RecBole looks up the test rows of the users and scores those; a user without one, or with two, silently shifts
the rows of the others. This module imports nothing of RecBole: it is handed the module to patch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ..dataset.columns import CANDIDATE_IDS
from ..errors import DataError, short


def answer_for_all(module: ModuleType) -> None:
    """Patch the module ``recbole.utils.case_study``; may be called any number of times."""
    patched: Any = module
    scores, topk = patched.full_sort_scores, patched.full_sort_topk
    if getattr(scores, "answers_for_all", False):
        return

    @functools.wraps(scores)
    def full_sort_scores(uid_series: Sequence[int], model: Any, test_data: Any, device: Any = None) -> Any:
        _require_a_row_each(uid_series, test_data)
        return scores(uid_series, model, test_data, device)

    @functools.wraps(topk)
    def full_sort_topk(
        uid_series: Sequence[int], model: Any, test_data: Any, k: int, device: Any = None
    ) -> Any:
        _require_a_row_each(uid_series, test_data)
        _require_candidates(uid_series, test_data, k)
        return topk(uid_series, model, test_data, k, device)

    full_sort_scores.answers_for_all = True  # type: ignore[attr-defined]
    patched.full_sort_scores, patched.full_sort_topk = full_sort_scores, full_sort_topk


def _rows_of(users: Any, data: Any) -> np.ndarray[Any, Any]:
    """Return (users, rows): which rows are whose."""
    found: np.ndarray[Any, Any] = users[:, None] == data.inter_feat[data.uid_field].numpy()
    return found


def _require_a_row_each(uid_series: Sequence[int], test_data: Any) -> None:
    """Refuse users of a sequential data set that have not one row each.

    Raises:
        DataError: naming the first such user.
    """
    if not getattr(test_data, "is_sequential", True):
        return
    data, users = test_data._dataset, np.asarray(uid_series)
    counts = _rows_of(users, data).sum(axis=1)
    bad = np.flatnonzero(counts != 1)
    if len(bad):
        user, count = users[bad[0]], counts[bad[0]]
        name = data.id2token(data.uid_field, [user])[0] if 0 < user < data.user_num else "unknown"
        raise DataError(
            f"data set '{data.dataset_name}': {len(bad)} of {len(users)} users have not one row each in this "
            f"split of {len(data.inter_feat)} rows, first user {user} ('{name}') with {count}; ask for users "
            "that have, or see eval_rows, valid_rows and eval_args"
        )


def _require_candidates(uid_series: Sequence[int], test_data: Any, k: int) -> None:
    """Refuse more items than were ranked for a user, where rows carry candidates.

    Raises:
        DataError: naming ``k`` and the candidates.
    """
    data = test_data._dataset
    if CANDIDATE_IDS not in data.inter_feat.interaction:
        return
    rows = _rows_of(np.asarray(uid_series), data).any(axis=0)
    fewest = int((data.inter_feat[CANDIDATE_IDS].numpy()[rows] > 0).sum(axis=1).min(initial=k))
    if k > fewest:
        raise DataError(f"k: got {short(k)}, but a row ranks {fewest} candidates; wanted at most {fewest}")
