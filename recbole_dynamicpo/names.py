"""Names of models, stages and objectives, for those who must not import what they name."""

import re

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
NEGATIVE_SOURCES = ("uniform", "prior", "moving", "own")
FROM_POLICY = ("moving", "own")  # those of them that the policy's own scores decide
REDRAWS = ("epoch", "never")
AUTO = "auto"  # what a device or a measurement decides
PRIORS = ("popularity", "transitions", "cooccurrence")
RETRIEVER = "recbole:"  # how a prior begins that is a model of RecBole's
MODEL_NAMES = ("DynamicPO", "SFTRec", "DMPO", "MPPO", "SDPO")

OBJECTIVES = ("dmpo", "mppo", "sdpo", "listwise", "recpo", "simpo")
REFERENCE_FREE = ("mppo", "listwise", "simpo")  # those of them that no reference is computed for
NEEDS = ("ratings", "times", "lengths")  # what an objective may ask for beside log-probabilities


def is_prior(name: str) -> bool:
    """Say whether a name is one of ``PRIORS``, or that of a retriever."""
    return name in PRIORS or re.fullmatch(rf"{RETRIEVER}[A-Za-z]\w*", name, re.ASCII) is not None
