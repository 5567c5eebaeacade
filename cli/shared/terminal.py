"""What a terminal shows: progress on stderr, and a summary that reads well in 80 columns."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote, split
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dar_probe.cli.shared.console import (
    GAP,
    aligned,
    console_on,
    printable,
    write,
)
from dar_probe.cli.shared.progress import progress
from dar_probe.files.text import SPARK_WIDTH, quantity, sparkline
from dar_probe.reports.pages import headline
from dar_probe.results.symptoms import SYMPTOMS, unit_of
from dar_probe.runtime import ranks

if TYPE_CHECKING:
    from dar_probe.analysis import Analysis
    from dar_probe.probe.estimate import Foreseen
    from dar_probe.results.verdict import Verdict

__all__ = [
    "COLOURS",
    "quantity",
    "printable",
    "progress",
    "say",
    "show",
    "show_files",
    "show_json",
    "show_sites",
    "sparkline",
]

COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}
SPARK_LEAST = 8
STEPS_MOST = 8


def show(
    analysis: "Analysis",
    *,
    checkpoint: Path | None = None,
    adapter: Path | None = None,
    folder: Path | None = None,
) -> None:
    """Print warnings, the verdict, the symptoms over depth and what was assumed.

    Args:
        analysis: what is shown.
        checkpoint: where the model lies,
        adapter: where what was merged into it lies, and
        folder: where the files are or will be, so that the commands run as they are printed.
    """
    from dar_probe.reports.style.palette import clean

    console = console_on(sys.stdout)
    ds, manifest, verdict = analysis.dataset, analysis.manifest, analysis.verdict
    for warning in manifest["warnings"]:
        write(console, Text(f"WARNING  {printable(warning)}", style="bold red"))
        console.print()
    name = Text(printable(clean(analysis.name)), style="bold")
    model = Text(printable(headline.model(manifest["model"])))
    if cell_len(name.plain) + 1 + cell_len(model.plain) <= console.width:
        name, model = Text.assemble(name, " ", model), Text("")
    for line in filter(None, (name, model)):
        write(console, line)
    data = printable(clean(str(manifest["data"]["name"])))
    write(console, Text(headline.grid(ds, data), style="dim"))
    console.print()
    badge = Text(f" {verdict.status.upper()} ", style=f"bold reverse {_colour(verdict.status)}")
    write(console, Text.assemble(badge, " ", printable(verdict.sentence)))
    console.print()
    _symptoms(console, analysis)
    if analysis.before is not None:
        console.print()
        write(console, _trained(manifest["training"]))
        _changes(console, analysis)
    if analysis.steps:
        console.print()
        _steps(console, analysis)
    if analysis.streams:
        console.print()
        _streams(console, analysis)
    for finding in verdict.findings:
        if finding.name not in SYMPTOMS and finding.sentence not in verdict.sentence:
            _bullet(console, finding.sentence, _colour(finding.status))
    places = {"DIR": str(folder)} if folder else {}
    if checkpoint is not None and manifest.get("checkpoint"):
        places[manifest["checkpoint"]["name"]] = str(checkpoint)
        if adapter is not None:
            places[manifest["checkpoint"]["adapter"]] = str(adapter)
    _advice(console, verdict, places)
    for assumption in manifest["assumptions"]:
        _bullet(console, f"Assumed: {assumption}", "dim")


def _advice(console: Console, verdict: "Verdict", places: Mapping[str, str]) -> None:
    """Print what each warning and failure means, how sure it is, and what finds out more.

    ``places`` are words of the commands, and what stands here in their place.
    """
    for finding in verdict.findings:
        if (advice := finding.advice) is None:
            continue
        console.print()
        title = Text(
            f"{finding.name.replace('_', ' ').capitalize()}. ", style=_colour(finding.status)
        )
        write(console, Text.assemble(title, printable(f"{advice.meaning} {advice.certainty}")))
        for command in advice.commands:
            if command.startswith("dp."):  # of a module: Python, not a shell's words
                write(console, Text(command, style="bold"), Text("  >>> ", style="dim"))
            else:
                _command(console, [places.get(word, word) for word in split(command)])
    if any(finding.advice for finding in verdict.findings):
        console.print()


def _command(console: Console, words: list[str]) -> None:
    """Print a command; one that takes several lines can be copied with all of them."""
    first, *rest = (printable(quote(word)) for word in words)
    lines = [first]
    for word in rest:
        if cell_len(f"  $ {lines[-1]} {word} \\") <= console.width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    for at, line in enumerate(lines):
        lead = "  $ " if at == 0 else "    "
        more = " \\" if at + 1 < len(lines) else ""
        write(console, Text(line + more, style="bold"), Text(lead, style="dim"))


def show_json(analysis: "Analysis") -> None:
    """Print what summary.json holds."""
    sys.stdout.write(json.dumps(analysis.summary, indent=2) + "\n")


def show_estimate(found: "Foreseen", *, as_json: bool = False) -> None:
    """Print what an analysis will need, and what to do where it does not fit."""
    if as_json:
        sys.stdout.write(json.dumps(found.summary, indent=2) + "\n")
        return
    console = console_on(sys.stdout)
    one = found.estimate
    rows = [
        ("cells", f"{one.cells} (samples times noise levels), {one.batch_size} in one pass"),
        ("time", f"about {_lasting(one.seconds)}; {_lasting(one.seconds_again)} with --recompute"),
        ("weights", _size(one.weights)),
        ("one pass", f"{_size(one.memory(recompute=False))}; "
         f"{_size(one.memory(recompute=True))} with --recompute"),
        ("available", f"{_size(found.available)} beside the weights"),
        ("dataset", f"{_size(one.disk)} on disk, at most"),
    ]  # fmt: skip
    aligned(console, [[Text(name, style="dim"), Text(text)] for name, text in rows], right=[])
    console.print()
    write(console, Text(found.sentence))
    write(console, Text(found.rests_on, style="dim"))


def _size(count: int) -> str:
    unit = next((u for u in ("GiB", "MiB") if count >= 2 ** (30 if u == "GiB" else 20)), "KiB")
    return f"{count / 2 ** {'GiB': 30, 'MiB': 20, 'KiB': 10}[unit]:.3g} {unit}"


def _lasting(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"


def show_files(folder: Path, *, figures: bool = True, report: bool = True) -> None:
    """Print where the files of an analysis are."""
    console = console_on(sys.stdout)
    later = f"dar-probe report {quote(str(folder))}"
    page = str(folder / "report.html") if report else f"none; write it with: {later}"
    lines = [("Report ", page), ("Dataset", str(folder / "analysis.nc"))]
    drawn = str(folder / "figures") if figures else f"none; draw them with: {later}"
    lines.append(("Figures", drawn))
    for label, text in lines:
        # Not folded: the terminal does that, and what is copied from it stays one path.
        console.print(Text(f"{label}  {printable(text)}"), soft_wrap=True)


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
    console = console_on(sys.stdout)
    console.print(table)
    console.print(Text("Not so? Name them with --blocks, --readers and --layout.", style="dim"))
    console.print()


def _of_any_block(site: dict[str, Any]) -> tuple[Any, ...]:
    """Return what is the same of sites in blocks that are alike."""
    parts = [part for part in site["module"].split(".") if not part.isdecimal()]
    return site["kind"], ".".join(parts), site.get("normed")


def say(message: str) -> None:
    """Print one line on stderr, in one process of a job."""
    if ranks.leads():
        console_on(sys.stderr).print(Text(printable(message)))


def _colour(status: str) -> str:
    return COLOURS.get(status, "cyan")


def _bullet(console: Console, sentence: str, style: str) -> None:
    write(console, Text(printable(sentence)), Text("- ", style=style))


def _symptoms(console: Console, analysis: "Analysis") -> None:
    found = headline.symptoms(analysis.dataset, analysis.metrics, analysis.verdict)
    blocks = analysis.dataset.sizes["block"] - 1
    heads = ["symptom", "value", "95 % interval", f"block 1 to {blocks}"]
    rows = [[Text(head, style="dim") for head in heads]]
    for item in found:
        value = Text(item.value, style=_colour(item.status))
        rows.append([Text(item.label), value, Text(item.interval)])
    taken = sum(max(cell_len(row[at].plain) for row in rows) + len(GAP) for at in range(3))
    width = min(SPARK_WIDTH, console.width - taken)
    if width < max(SPARK_LEAST, len(heads[3])):
        rows[0].pop()
    else:
        for row, item in zip(rows[1:], found, strict=True):
            row.append(Text(sparkline(item.curve, width)))
    aligned(console, rows, right=[1])


def _trained(training: dict[str, Any]) -> Text:
    steps = f"{training['steps']} step{'s' * (training['steps'] != 1)}"
    return Text(
        f"Judged: a copy, trained for {steps} of {training['batch_size']} samples "
        f"(lr {training['lr']:g})."
    )


def _steps(console: Console, analysis: "Analysis") -> None:
    """Print the symptoms at each training step, the first and the last among at most eight."""
    from dar_probe.reports.style.palette import evenly

    shown = [analysis.steps[at] for at in evenly(len(analysis.steps), STEPS_MOST)]
    _judged(console, "step", [(str(step), one) for step, one in shown], right=(0, 1, 2, 3))


def _streams(console: Console, analysis: "Analysis") -> None:
    """Print the symptoms of each stream, and what judges the text's."""
    _judged(console, "stream", list(analysis.streams.items()), right=(1, 2, 3))
    for name, one in analysis.streams.items():
        if one is analysis:
            continue
        _bullet(console, f"{name}: {one.verdict.sentence}", _colour(one.verdict.status))
        for assumption in one.manifest["assumptions"]:
            if assumption not in analysis.manifest["assumptions"]:
                _bullet(console, f"Assumed of the {name}: {assumption}", "dim")


def _judged(
    console: Console, what: str, found: Sequence[tuple[str, "Analysis"]], *, right: Sequence[int]
) -> None:
    """Print one row for each analysis: the three symptoms, and the verdict."""
    heads = [what, *(symptom.label for symptom in SYMPTOMS.values()), "verdict"]
    rows = [[Text(head, style="dim") for head in heads]]
    for label, one in found:
        status = one.verdict.status
        row = [Text(label)]
        row += [
            Text(quantity(one.metrics[name].value, symptom.unit))
            for name, symptom in SYMPTOMS.items()
        ]
        rows.append([*row, Text(status, style=_colour(status))])
    aligned(console, rows, right=right)


def _changes(console: Console, analysis: "Analysis") -> None:
    rows = [[Text(head, style="dim") for head in ("", "before", "", "after", "")]]
    cells = [Text(a.verdict.status, style=_colour(a.verdict.status))
             for a in (analysis.before, analysis) if a]  # fmt: skip
    rows.append([Text("verdict"), cells[0], Text(""), cells[-1], Text("")])
    for name, pair in analysis.changes.items():
        label, unit = SYMPTOMS[name].label if name in SYMPTOMS else name, unit_of(name)
        numbers = [t for m in pair for t in (quantity(m.value, unit), headline.interval(m, unit))]
        rows.append([Text(label), *map(Text, numbers)])
    aligned(console, rows, right=[1, 3])
