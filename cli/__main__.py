"""``python -m dar_probe.cli``."""

from dar_probe.cli.app import main

main()
