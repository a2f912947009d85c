"""Packed tokens in, log-probabilities out: a causal language model with its adapters."""
