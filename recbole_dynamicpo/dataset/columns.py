"""Names of the columns that rows carry beside RecBole's own."""

REFERENCE_LOGPS = "reference_logps"  # (n, C) column that the trainer adds to preference batches
# Fields that the rows of this data set carry beside RecBole's own.
ROW_ID = "row_id"  # index among all rows of the data set; stable for a data set and its settings
CANDIDATE_IDS = "candidate_ids"  # (n, C) in prompt order; 0 where a row has fewer
TEMPLATE = "template_id"
SCORED = "scored_columns"  # (n, 1 + K) columns of CANDIDATE_IDS that enter the loss, positive first
TOKENS = "row_tokens"  # (n,) size of each row in the present epoch
