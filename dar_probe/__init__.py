"""dar-probe: how information travels across the depth of a diffusion transformer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dar_probe.errors import CheckpointError, DarProbeError, ProbeError, UsageError
from dar_probe.runtime.version import __version__

if TYPE_CHECKING:
    from dar_probe.analysis import Analysis, open_analysis
    from dar_probe.api import (
        ablate,
        analyze,
        audit,
        bench,
        build,
        doctor,
        estimate,
        evaluate,
        inspect,
        sample,
        train,
    )
    from dar_probe.comparison import Comparison, compare
    from dar_probe.probe.interactive import Probe
    from dar_probe.results.verdict import Thresholds
    from dar_probe.runtime.progress_bar import progress_bar
    from dar_probe.study.reproduce import reproduce

__all__ = [
    "Analysis",
    "CheckpointError",
    "Comparison",
    "DarProbeError",
    "Probe",
    "ProbeError",
    "Thresholds",
    "UsageError",
    "__version__",
    "ablate",
    "analyze",
    "audit",
    "bench",
    "build",
    "compare",
    "doctor",
    "estimate",
    "evaluate",
    "inspect",
    "open_analysis",
    "progress_bar",
    "reproduce",
    "sample",
    "train",
]

# Importing the package loads neither torch nor xarray: reports run where torch is absent.
_HOMES = {
    "Analysis": "dar_probe.analysis",
    "open_analysis": "dar_probe.analysis",
    "ablate": "dar_probe.api",
    "analyze": "dar_probe.api",
    "audit": "dar_probe.api",
    "bench": "dar_probe.api",
    "build": "dar_probe.api",
    "doctor": "dar_probe.api",
    "estimate": "dar_probe.api",
    "evaluate": "dar_probe.api",
    "inspect": "dar_probe.api",
    "sample": "dar_probe.api",
    "train": "dar_probe.api",
    "Comparison": "dar_probe.comparison",
    "compare": "dar_probe.comparison",
    "Probe": "dar_probe.probe.interactive",
    "progress_bar": "dar_probe.runtime.progress_bar",
    "Thresholds": "dar_probe.results.verdict",
    "reproduce": "dar_probe.study.reproduce",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dar_probe' has no attribute {name!r}")
    import_module("dar_probe.accessor")  # ds.dar is there wherever an analysis is
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
