"""``dar-probe reproduce``: every way of sharing results across depth, trained and compared."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from dar_probe.cli.shared import options, panels


def reproduce(
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of the study: its finished runs and its page.",
            metavar="DIR",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = Path("dar-probe-out/reproduce"),
    scale: Annotated[
        str,
        typer.Option(
            help="smoke (two minutes), digits (hours) or imagenet (GPUs, --data).",
            metavar="NAME",
            rich_help_panel=panels.TRAINING,
            autocompletion=options.one_of("smoke", "digits", "imagenet"),
        ),
    ] = "digits",
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="A run's name, e.g. dar-dynamic; may be repeated.",
            metavar="NAME",
            show_default="all runs of the scale",
            rich_help_panel=panels.TRAINING,
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many runs.",
            metavar="N",
            min=0,
            show_default="when all are done",
            rich_help_panel=panels.TRAINING,
        ),
    ] = None,
    prices: Annotated[
        bool,
        typer.Option(
            "--prices",
            help="Time the steps of finished runs again; train nothing.",
            rich_help_panel=panels.TRAINING,
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, images:DIR or latents:PATH.",
            metavar="DATA",
            show_default="the scale's own",
            rich_help_panel=panels.GRID,
        ),
    ] = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Train every scheme at equal steps, and write one page about what came out.

    A finished run is a small JSON file in OUT/runs, and is not done again: a study that is cut off
    goes on where it was, on another machine too. Several processes may share OUT, each takes the
    next run. --runs 0 writes the page of what is there. What steps cost is timed before each run;
    where other work went on beside it, --prices does that again on an idle machine.

    Example: dar-probe reproduce --scale smoke --out study
    """
    from dar_probe.cli.shared import terminal
    from dar_probe.study.reproduce import Event
    from dar_probe.study.reproduce import reproduce as study

    with terminal.progress("training", "steps") if not prices else nullcontext() as tell:

        def on_event(event: Event) -> None:
            name, at = event.run.name, f"({event.number} of {event.count})"
            if event.kind == "run":
                terminal.say(f"Run {name} {at}")
            elif event.kind == "prices":
                terminal.say(f"Steps of {name} {at}")
            elif event.kind == "busy":
                terminal.say(f"{name} is being done by another process")
            elif event.step and tell:
                tell(event.step.step, event.step.steps, f"loss {event.step.loss:.4f}")

        results = study(
            out, scale=scale, only=only or (), runs=runs, prices=prices, data=data, device=device,
            on_event=on_event,
        )  # fmt: skip
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
