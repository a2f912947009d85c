"""Names that settings may take, for those who must not import what they name."""

OBJECTIVES = ("dmpo", "mppo", "sdpo")
