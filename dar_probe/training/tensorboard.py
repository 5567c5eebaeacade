"""TensorBoard scalars of a training run, beside its own table of losses."""

from importlib import import_module
from pathlib import Path
from typing import Any

from dar_probe.errors import UsageError

SCALARS = ("loss", "lr", "grad_norm", "val_loss")
EVENTS = "events.out.tfevents.*"


def check() -> Any:
    """Return torch's module for TensorBoard.

    Raises:
        UsageError: the package tensorboard is not there.
    """
    try:
        return import_module("torch.utils.tensorboard")
    except ImportError:
        raise UsageError(
            "--tensorboard needs the package tensorboard, which is not installed",
            hint="pip install 'dar-probe[tensorboard]'; metrics.csv holds the same without it",
        ) from None


class Board:
    """Writes rows after step ``step`` into ``folder``; what it holds of later steps is void."""

    def __init__(self, folder: Path, step: int) -> None:
        self._writer = check().SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, row: dict[str, float]) -> None:
        """Write those of the scalars that a row of the table holds."""
        for name in SCALARS:
            if name in row:
                self._writer.add_scalar(name, row[name], int(row["step"]))

    def flush(self) -> None:
        """Put on disk what was added, so that a kill loses nothing before a checkpoint."""
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        self._writer.close()
