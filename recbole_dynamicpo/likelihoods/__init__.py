"""What a title's log-probability is, and the losses of a stage: rows of the data set in, losses out."""
