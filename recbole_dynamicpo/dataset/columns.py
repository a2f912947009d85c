"""Names of the columns that rows carry beside RecBole's own."""

from __future__ import annotations

from recbole.data.interaction import Interaction

REFERENCE_LOGPS = "reference_logps"  # (n, C) column that the trainer adds to preference batches
# Fields that the rows of this data set carry beside RecBole's own.
ROW_ID = "row_id"  # index among all rows of the data set; stable for a data set and its settings
CANDIDATE_IDS = "candidate_ids"  # (n, C) in prompt order; 0 where a row has fewer
TEMPLATE = "template_id"
SCORED = "scored_columns"  # (n, 1 + K) columns of CANDIDATE_IDS that enter the loss, positive first
TOKENS = "row_tokens"  # (n,) size of each row in the present epoch
# Of windows, which are rows of many positions.
CHAIN, START, STOP = "chain", "window_start", "window_stop"  # which titles of which training sequence
NEGATIVES = "window_negatives"  # (n, W, K) items, 0 where a position has fewer


def is_dense(rows: Interaction) -> bool:
    """Say whether rows are windows."""
    return CHAIN in rows.interaction


def losses_of(rows: Interaction) -> int:
    """Return how many losses rows have: one each, or one a position of windows."""
    return int((rows[STOP] - rows[START]).sum()) if is_dense(rows) else len(rows)
