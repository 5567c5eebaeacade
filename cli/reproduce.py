"""``dar-probe reproduce``: every way of sharing results across depth, trained and compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dar_probe.cli.shared import options

if TYPE_CHECKING:
    from dar_probe.study.plan import Run
    from dar_probe.training.loop import Progress


def reproduce(
    out: Annotated[
        Path, typer.Option(help="Folder of the study: its finished runs and its page.")
    ] = Path("dar-probe-out/reproduce"),
    scale: Annotated[
        str, typer.Option(help="smoke (two minutes), digits (hours) or imagenet (GPUs, --data).")
    ] = "digits",
    only: Annotated[
        list[str] | None,
        typer.Option(help="A run's name, e.g. dar-dynamic; may be repeated.", show_default=False),
    ] = None,
    runs: Annotated[
        int | None, typer.Option(help="Stop after so many runs.", min=0, show_default=False)
    ] = None,
    prices: Annotated[
        bool, typer.Option("--prices", help="Time the steps of finished runs again; train nothing.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="In place of the scale's: digits, images:DIR, latents:FILE.")
    ] = None,
    device: options.Device = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print reproduce.json.")] = False,
) -> None:
    """Train every scheme at equal steps, and write one page about what came out.

    A finished run is a small JSON file in OUT/runs, and is not done again: a study that is cut off
    goes on where it was, on another machine too. Several processes may share OUT, each takes the
    next run. --runs 0 writes the page of what is there. What steps cost is timed before each run;
    where other work went on beside it, --prices does that again on an idle machine.

    Example: dar-probe reproduce --scale smoke --out study
    """
    from dar_probe.cli.shared import terminal
    from dar_probe.files.analysis_folder import check_target
    from dar_probe.runtime.device import find_device
    from dar_probe.study import plan
    from dar_probe.study import run as study
    from dar_probe.study.publish import publish

    planned = plan.runs(plan.scale_of(scale), only=only or (), data=data)
    check_target(out, "study")
    place = str(find_device(device))
    left = study.pending(planned, out)
    done = len(planned) - len(left)
    if prices:
        finished = [run for run in planned if run not in left]
        for number, run in enumerate(finished, 1):
            terminal.say(f"Steps of {run.name} ({number} of {len(finished)})")
            study.reprice(run, out, device=place)
        left = []
    for run in left[:runs]:

        def on_start(run: "Run", number: int = done + 1) -> None:
            terminal.say(f"Run {run.name} ({number} of {len(planned)})")

        with terminal.progress("training", "steps") as tell:

            def on_step(run: "Run", step: "Progress") -> None:
                tell(step.step, step.steps, f"loss {step.loss:.4f}")

            found = study.perform(run, out, device=place, on_start=on_start, on_step=on_step)
        done += 1
        if found is None:
            terminal.say(f"{run.name} is being done by another process")
    results = publish(out)
    if json:
        _print_json(results)
        return
    _show(results, out)


def _print_json(found: dict[str, object]) -> None:
    import json
    import sys

    sys.stdout.write(json.dumps(found, indent=2) + "\n")


def _signed(found: dict[str, float | None] | None) -> str:
    """Return "+0.0012"; nothing for the reference itself."""
    if found is None:
        return ""
    value = found["value"]
    return "n/a" if value is None else f"{value:+.4f}"


def _show(found: dict[str, object], out: Path) -> None:
    import sys

    from rich.text import Text

    from dar_probe.cli.shared.console import aligned, console_on, printable, write

    console = console_on(sys.stdout)
    lines = found["lines"]
    assert isinstance(lines, list)
    heads = ("scheme", "seeds", "loss", "against", "Fréchet", "step")
    rows = [[Text(head, style="dim") for head in heads]]
    for line in lines:
        loss, frechet = (line[name]["value"] for name in ("loss", "frechet"))
        deep = " (28)" * (line["group"] == "deep")
        cells = (
            printable(line["label"]) + deep, str(line["seeds"]), f"{loss:.4f}",
            _signed(line["loss_difference"]),
            "n/a" if frechet is None else f"{frechet:.3f}", f"{line['step_ratio']:.2f}x",
        )  # fmt: skip
        rows.append([Text(cell) for cell in cells])
    aligned(console, rows, right=[1, 2, 3, 4, 5])
    console.print()
    sentences = found["sentences"]
    assert isinstance(sentences, list)
    for sentence in sentences:
        write(console, Text(printable(sentence)))
    write(console, Text(f"Page  {printable(str(out / 'reproduce.html'))}"))
