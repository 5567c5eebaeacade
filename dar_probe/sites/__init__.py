"""Where any module reads and writes its residual stream."""

from dar_probe.sites.family import Family, Identified
from dar_probe.sites.stack import Stack
from dar_probe.sites.subject import Reader, Source, Subject

__all__ = ["Family", "Identified", "Reader", "Source", "Stack", "Subject"]
