"""Optimizer steps: their rows laid out ahead, taken without a wait for the device, read one step later."""
