"""How sublayers share their results across depth: one Stream per scheme."""

from dar_probe.routing import attnres, dense, hyper, scaled, skips, timemix  # noqa: F401  registers
from dar_probe.routing.dar import DAR
from dar_probe.routing.residual import Residual
from dar_probe.routing.stream import SCHEMES, Layout, Stream, make, register

__all__ = ["DAR", "SCHEMES", "Layout", "Residual", "Stream", "make", "register"]
