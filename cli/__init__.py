"""The command line: parses, calls the API, shows progress, sets the exit code."""

from dar_probe.cli.app import app, main

__all__ = ["app", "main"]
