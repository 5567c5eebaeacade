"""The version of dar-probe, which files keep and packaging reads, and where it lives on the web."""

__version__ = "0.1.0"
HOME = "https://github.com/dar-probe/dar-probe"
SITE = "https://dar-probe.github.io/dar-probe"  # its versions are folders: stable, latest, v1.0
PAGES = f"{SITE}/stable"
