"""The version of this package, where everything that records it can read it."""

__version__ = "0.2.0"
