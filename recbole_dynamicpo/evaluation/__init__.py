"""Scores and ranks in, intervals, tests and tables out."""
