"""Trains the runs of a study one after the other, and publishes what is finished."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dar_probe.errors import UsageError
from dar_probe.files.analysis_folder import check_target
from dar_probe.runtime.device import find_device
from dar_probe.study import plan, run
from dar_probe.study.plan import PlannedRun
from dar_probe.study.publish import publish
from dar_probe.training.loop import Progress


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a study is doing.

    Attributes:
        kind: "run" where a run begins, "step" after each of its training steps, "prices" where
            the steps of a finished run are timed again, "busy" where another process does a run.
        run: which run.
        number, count: the how manieth of how many runs it is.
        step: of a "step", where the training is.
    """

    kind: Literal["run", "step", "prices", "busy"]
    run: PlannedRun
    number: int
    count: int
    step: Progress | None = None


OnEvent = Callable[[Event], None]


def reproduce(
    out: str | Path,
    *,
    scale: str = "digits",
    only: Sequence[str] = (),
    runs: int | None = None,
    prices: bool = False,
    data: str | None = None,
    device: str = "auto",
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Train what is not finished in ``out``, and write reproduce.html, reproduce.json, figures/.

    A finished run is not done again, and a run that was cut off continues. Several processes may
    share ``out``: each takes the next free run.

    Args:
        out: folder of the study.
        scale: a key of ``plan.SCALES``: smoke, digits or imagenet.
        only: names of entries, e.g. "dar-dynamic"; left out, all.
        runs: train at most so many; 0 only publishes. Left out, all.
        prices: time the steps of the finished runs again, and train nothing.
        data: in place of the scale's: digits, images:DIR, latents:PATH.
        device: "auto", "cpu", "cuda", ...
        on_event: called as the study goes on.

    Returns:
        What reproduce.json holds.

    Raises:
        UsageError: an unknown scale or name, missing data, a finished run of other settings, a
            folder with other things in it, or nothing that is finished.
        CheckpointError: a record cannot be read.

    Example:
        >>> reproduce("study", scale="smoke")["sentences"]
    """
    if runs is not None and runs < 0:
        raise UsageError(f"runs is {runs}; it must be at least 0")
    out = Path(out)
    planned = plan.runs(plan.scale_of(scale), only=only, data=data)
    check_target(out, "study")
    place = str(find_device(device))
    tell = on_event or _nobody
    left = run.pending(planned, out)
    if prices:
        finished = [one for one in planned if one not in left]
        for number, one in enumerate(finished, 1):
            tell(Event(kind="prices", run=one, number=number, count=len(finished)))
            run.reprice(one, out, device=place)
    else:
        first = len(planned) - len(left) + 1
        for number, one in enumerate(left[:runs], first):
            _train(one, out, place, number, len(planned), tell)
    return publish(out)


def _train(one: PlannedRun, out: Path, device: str, number: int, count: int, tell: OnEvent) -> None:
    def event(kind: Literal["run", "step", "busy"], step: Progress | None = None) -> None:
        tell(Event(kind=kind, run=one, number=number, count=count, step=step))

    found = run.perform(
        one,
        out,
        device=device,
        on_start=lambda _: event("run"),
        on_step=lambda _, step: event("step", step),
    )
    if found is None:
        event("busy")


def _nobody(event: Event) -> None:
    """Show nothing."""
