"""Titles in, log-probabilities out."""
