"""Names of models, stages and objectives, for those who must not import what they name."""

STAGES = ("sft", "preference")
MODEL_NAMES = ("DynamicPO", "SFTRec", "DMPO", "MPPO", "SDPO")

OBJECTIVES = ("dmpo", "mppo", "sdpo")
