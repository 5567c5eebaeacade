"""The version of dar-probe, which files keep and packaging reads."""

__version__ = "0.1.0"
