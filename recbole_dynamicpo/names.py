"""Names of models, stages and objectives, for those who must not import what they name."""

STAGES = ("sft", "preference")  # that train
RECORDED = ("prepare", *STAGES, "evaluate")
DECIDES = (*RECORDED, "nothing")  # the first stage whose result depends on a setting
CANDIDATE_SOURCES = ("published", "fresh")
CANDIDATE_DISTRIBUTIONS = ("uniform", "popularity")
HISTORY_ORDERS = ("time", "given", "shuffled")
TIME_TIES = ("hash", "file")
LIKELIHOODS = ("vocabulary", "catalogue")
RANKED_AMONG = ("candidates", "all")
POSITIONS = ("last", "all")
NEGATIVE_SOURCES = ("uniform", "prior")
REDRAWS = ("epoch", "never")
PRIORS = ("popularity", "transitions", "cooccurrence")
MODEL_NAMES = ("DynamicPO", "SFTRec", "DMPO", "MPPO", "SDPO")

OBJECTIVES = ("dmpo", "mppo", "sdpo", "listwise")
REFERENCE_FREE = ("mppo", "listwise")  # those of them that no reference is computed for
