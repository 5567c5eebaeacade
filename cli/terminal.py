"""What a terminal shows: progress on stderr, and a summary that reads well in 80 columns."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from dar_probe import ranks

if TYPE_CHECKING:
    from dar_probe.analysis import Analysis
    from dar_probe.metrics import Metric

COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}
SYMPTOMS = {
    "inflation": ("RMS inflation", "rms", "x"),
    "gradient_decay": ("gradient decay", "grad_rms", "x"),
    "redundancy": ("redundancy", "cosine", ""),
}
SPARK_WIDTH = 28


@contextmanager
def progress(what: str) -> Iterator[Callable[..., None]]:
    """Yield tell(done, total, note=""), drawn as a bar on stderr; silent without a terminal."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", style="dim"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=not console.is_terminal or not ranks.leads(),
        transient=True,
    )
    task = bar.add_task(what, total=None, note="")

    def tell(done: int, total: int, note: str = "") -> None:
        bar.update(task, completed=done, total=total, note=note if done < total else "writing")

    with bar:
        yield tell


def show(analysis: "Analysis", folder: Path, *, as_json: bool = False) -> None:
    """Print warnings, the verdict, the symptoms over depth, assumptions and where files are.

    With ``as_json`` print what summary.json holds, and nothing else.
    """
    if not ranks.leads():
        return
    if as_json:
        sys.stdout.write(json.dumps(analysis.summary, indent=2) + "\n")
        return
    console = Console(highlight=False, soft_wrap=False)
    manifest = analysis.manifest
    for warning in manifest["warnings"]:
        console.print(Text(f"WARNING  {printable(warning)}", style="bold red"))
        console.print()
    console.print(Text(printable(analysis.name), style="bold"), Text(_model(manifest["model"])))
    console.print(Text(_grid(analysis), style="dim"))
    console.print()
    status = analysis.verdict.status
    badge = Text(f" {status.upper()} ", style=f"bold reverse {COLOURS.get(status, 'cyan')}")
    console.print(badge, Text(printable(analysis.verdict.sentence)))
    console.print()
    console.print(_symptoms(analysis))
    if analysis.before is not None:
        console.print()
        console.print(_trained(manifest["training"]))
        console.print(_changes(analysis))
    for finding in analysis.verdict.findings:
        if finding.name not in SYMPTOMS and finding.sentence not in analysis.verdict.sentence:
            console.print(_bullet(finding.sentence, COLOURS.get(finding.status, "cyan")))
    for assumption in manifest["assumptions"]:
        console.print(_bullet(f"Assumed: {assumption}", "dim"))
    console.print()
    console.print(Text(f"Report   {printable(str(folder / 'report.html'))}", overflow="fold"))
    console.print(Text(f"Dataset  {printable(str(folder / 'analysis.nc'))}", overflow="fold"))


def show_sites(sites: list[dict[str, Any]]) -> None:
    """Print where the stream is read, blocks that are alike in one row."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("found", "module", "reads the stream for"):
        table.add_column(name, overflow="fold")
    groups: list[tuple[list[int], list[dict[str, Any]]]] = []
    for block in sorted({site["block"] for site in sites}):
        own = [site for site in sites if site["block"] == block]
        if groups and [_of_any_block(s) for s in groups[-1][1]] == [_of_any_block(s) for s in own]:
            groups[-1][0].append(block)
        else:
            groups.append(([block], own))
    for blocks, own in groups:
        many = f"blocks {blocks[0]} to {blocks[-1]}" if len(blocks) > 1 else f"block {blocks[0]}"
        label = "head" if own[-1]["kind"] == "head" else many
        for site in own:
            note = "" if site.get("normed", True) or site["kind"] == "block" else ", without a norm"
            kind = "(the stream is rewritten)" if site["kind"] == "fusion" else site["kind"] + note
            shown = site["module"]
            if len(blocks) > 1:
                shown = ".".join("*" if p.isdecimal() else p for p in shown.split("."))
            table.add_row(label, printable(shown), kind)
            label = ""
    console = Console(highlight=False)
    console.print(table)
    console.print(Text("Not so? Name them with --blocks and --readers.", style="dim"))
    console.print()


def _of_any_block(site: dict[str, Any]) -> tuple[Any, ...]:
    """Return what is the same of sites in blocks that are alike."""
    parts = [part for part in site["module"].split(".") if not part.isdecimal()]
    return site["kind"], ".".join(parts), site.get("normed")


def say(message: str) -> None:
    """Print one line on stderr."""
    Console(stderr=True, highlight=False).print(Text(printable(message)))


def printable(text: str) -> str:
    """Escape control characters, and what the terminal's encoding lacks."""
    kept = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    encoding = sys.stdout.encoding or "ascii"
    return kept.encode(encoding, "backslashreplace").decode(encoding)


def sparkline(values: list[float], width: int = SPARK_WIDTH) -> str:
    """Return one character per value, lowest to highest; NaN is a gap."""
    encoding = (sys.stdout.encoding or "ascii").lower()
    ramp = "▁▂▃▄▅▆▇█" if encoding.startswith("utf") else ".:-=+*#@"
    step = max(1, -(-len(values) // width))
    values = values[::step]
    finite = [v for v in values if v == v]
    if not finite:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    return "".join(
        ramp[min(len(ramp) - 1, int((v - low) / span * len(ramp)))] if v == v else " "
        for v in values
    )


def _symptoms(analysis: "Analysis") -> Table:
    from dar_probe.metrics import profile

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("symptom", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    blocks = analysis.dataset.sizes["block"] - 1
    table.add_column(f"block 1 to {blocks}", no_wrap=True)
    status = {finding.name: finding.status for finding in analysis.verdict.findings}
    for name, (label, variable, unit) in SYMPTOMS.items():
        metric = analysis.metrics[name]
        curve = profile(analysis.dataset, variable, resamples=1)["value"].values[1:].tolist()
        table.add_row(
            label,
            Text(number(metric.value, unit), style=COLOURS.get(status[name], "cyan")),
            _interval(metric, unit),
            sparkline(curve),
        )
    return table


def _trained(training: dict[str, Any]) -> Text:
    steps = f"{training['steps']} step{'s' * (training['steps'] != 1)}"
    return Text(
        f"Judged: a copy, trained for {steps} of {training['batch_size']} samples "
        f"(lr {training['lr']:g})."
    )


def _changes(analysis: "Analysis") -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in ("", "before", "", "after", ""):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    statuses = [a.verdict.status for a in (analysis.before, analysis) if a]
    styled = [Text(status, style=COLOURS.get(status, "cyan")) for status in statuses]
    table.add_row("verdict", styled[0], "", styled[-1], "")
    for name, pair in analysis.changes.items():
        label, _, unit = SYMPTOMS.get(name, (name, "", ""))
        cells = [text for m in pair for text in (number(m.value, unit), _interval(m, unit))]
        table.add_row(label, *cells)
    return table


def _interval(metric: "Metric", unit: str) -> str:
    if metric.value != metric.value:
        return ""
    if metric.low != metric.low:
        return "one sample"
    return f"{number(metric.low, unit)} to {number(metric.high, unit)}"


def number(value: float, unit: str = "") -> str:
    """Return three significant digits, or "n/a" for NaN."""
    if value != value:
        return "n/a"
    return f"{value:.3f}" if not unit else f"{value:.3g}{unit}"


def _model(model: dict[str, object]) -> str:
    routing = str(model["routing"])
    if routing == "dar":
        routing = f"DAR {model['query']}, chunks of {model['chunk_size']}"
    elif routing == "residual":
        routing = "plain residuals"
    elif routing == "none":
        routing = "no pre-norm stack"
    return (
        f"{model['depth']} blocks x {model['width']}, {routing}, "
        f"{_millions(int(str(model['parameters'])))} parameters"
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 100_000 else f"{count:,}"


def _grid(analysis: "Analysis") -> str:
    sizes, data = analysis.dataset.sizes, analysis.manifest["data"]
    levels = analysis.dataset["noise_level"].values
    many = f"{sizes['noise_level']} noise levels from {levels[0]:.2f} to {levels[-1]:.2f}"
    if len(levels) == 1:
        many = f"noise level {levels[0]:.2f}"
    return f"{many} x {sizes['sample']} samples of {printable(data['name'])}"


def _bullet(sentence: str, style: str) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row(Text("-", style=style), Text(printable(sentence)))
    return grid
