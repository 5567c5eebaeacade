"""The diagnosis during training: one growing trajectory of a model that is being trained."""

from operator import index
from pathlib import Path

from dar_probe.analysis import Analysis
from dar_probe.errors import UsageError
from dar_probe.files.atomic import make_folder
from dar_probe.probe.plan import Task
from dar_probe.results.trajectory_store import TrajectoryFile

# In steps. On a GPU, where a step may be quicker than writing the file, still about 1 % of a run.
EVERY = 1000


class Watch:
    """Measures a model at every ``every``-th step of its training; call it with each step.

    Measuring leaves the model bit for bit as it was, see ``api.audit``.

    Args:
        planned: what is measured; None in the processes of a job that do not lead it, which
            measure and write nothing.
        out: the file; a trajectory of the same model and grid is continued.
        every: steps from one measurement to the next; None: ``EVERY``.

    Attributes:
        path: the file.
        every: steps from one measurement to the next.

    Raises:
        CheckpointError, UsageError: the file is not ours to continue, or cannot be written.
    """

    def __init__(self, planned: Task | None, out: str | Path, *, every: int | None = None) -> None:
        self.every = _cadence(every)
        self.path = Path(out)
        self._planned = planned
        if planned is not None:
            self._file = TrajectoryFile(self.path)
            self._file.check(planned.manifest)
            make_folder(self.path.parent, self.path.parent)

    def __call__(self, step: int) -> Analysis | None:
        """Measure if ``step`` is due; return the analysis, whose metrics can be logged, else None.

        What the file has of this step and of later ones is replaced.

        Raises:
            ProbeError: the loss is not finite, or nothing could be measured.
            UsageError: the file cannot be written, or another process has changed it.
        """
        return self.measure(step) if index(step) % self.every == 0 else None

    def measure(self, step: int) -> Analysis | None:
        """Measure at ``step``, whether it is due or not; else as a call."""
        if index(step) < 0:
            raise UsageError(f"there is no training step {step}")
        if self._planned is None:
            return None
        found = Analysis(self._planned.again().measure())
        self._file.add(index(step), found.dataset)
        return found


def _cadence(every: int | None) -> int:
    """Return the cadence in steps.

    Raises:
        UsageError: it is below 1.
    """
    if every is not None and every < 1:
        raise UsageError(f"every is {every}; it must be at least 1")
    return EVERY if every is None else every
