"""A grid of runs: number of negatives, objective, plain or dynamic, seeds; what they show together."""
