"""``dar-probe compare``: what differs between models, paired over the same samples and noise."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dar_probe.cli.shared import options, panels, startup
from dar_probe.errors import ExitCode

if TYPE_CHECKING:
    from rich.console import Console

    from dar_probe.comparison import Comparison
    from dar_probe.results.fail_rule import Rule
    from dar_probe.results.paired import Pair


def compare(
    analyses: Annotated[
        list[Path],
        typer.Argument(
            help="Two or more analysis.nc, or their folders; the first is the reference.",
            metavar="ANALYSIS...",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the page, the tables and the figures.",
            metavar="DIR",
            show_default="no files are written",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            help="Exit 1 if e.g. 'inflation > 0.5 or loss > 0.01', of other minus reference.",
            metavar="RULE",
            show_default="nothing is judged",
            rich_help_panel=panels.JUDGEMENT,
        ),
    ] = None,
    names: options.Names = None,
    as_json: options.Json = False,
) -> None:
    """Compare analyses with the first one, over the same samples and noise.

    Exit code 1: a pair meets --fail-on. Exit code 4: something cannot be compared.

    Example: dar-probe compare dar-probe-out/digits-residual dar-probe-out/digits-dar-static
    """
    with startup.imports():
        from dar_probe.cli.shared.terminal import say
        from dar_probe.comparison import compare as open_and_compare
        from dar_probe.files.analysis_folder import check_target
        from dar_probe.results.fail_rule import parse_rule
        from dar_probe.results.paired import NUMBERS

    rule = parse_rule(fail_on, NUMBERS) if fail_on is not None else None
    if out is not None:
        check_target(out, "comparison")
    found = open_and_compare(*analyses, names=None if names is None else names.split(","))
    if out is not None:
        found.save(out)
    if as_json:
        sys.stdout.write(json.dumps(found.summary, indent=2) + "\n")
        for pair in found.pairs:
            if pair.reason:
                say(pair.sentence)
    else:
        _show(found, analyses, out)
    code = _judge(found, rule)
    if code:
        raise typer.Exit(code)


def _show(found: "Comparison", paths: list[Path], out: Path | None) -> None:
    """Print the models, the table and the sentences of every pair, and where the files are."""
    from rich.text import Text

    from dar_probe.cli.shared.console import console_on
    from dar_probe.cli.shared.terminal import COLOURS, printable

    console = console_on(sys.stdout)
    for analysis, name, path in zip(found.analyses, found.names, paths, strict=True):
        status = analysis.verdict.status
        badge = (f" {status.upper()} ", f"bold reverse {COLOURS.get(status, 'cyan')}")
        shown = badge, "  ", (printable(name), "bold"), "  ", (printable(str(path)), "dim")
        console.print(Text.assemble(*shown, overflow="fold"))
        for warning in analysis.manifest["warnings"]:
            console.print(Text(f"WARNING  {printable(str(warning))}", style="bold red"))
    for pair in found.pairs:
        console.print()
        _show_pair(console, pair)
    if out is not None:
        console.print()
        where = printable(str(out / "comparison.html"))
        console.print(Text(f"Report   {where}", overflow="fold"))


def _show_pair(console: "Console", pair: "Pair") -> None:
    from rich.text import Text

    from dar_probe.cli.shared.console import aligned, printable, write
    from dar_probe.results.paired import amount, signed
    from dar_probe.results.verdict import plain

    if pair.reason:
        write(console, Text(printable(pair.sentence), style="bold red"))
        return
    write(console, Text(printable(pair.sentence)))
    heads = ("number", "reference", "other", "difference, 95 % interval")
    rows = [[Text(head, style="dim") for head in heads]]
    for change in pair.changes:
        gap = change.difference.value
        cells = [_short(amount(metric, gap)) for metric in (change.reference, change.other)]
        row = [plain(change.name), *cells, _short(signed(change.difference))]
        rows.append([Text(cell) for cell in row])
    aligned(console, rows, right=(1, 2))
    for sentence in [*(change.sentence for change in pair.changes), *pair.notes]:
        write(console, Text(printable(sentence)), Text("  "))


def _short(text: str) -> str:
    return "n/a" if text == "not measurable" else text


def _judge(found: "Comparison", rule: "Rule | None") -> ExitCode:
    """Say on stderr what a rule finds, and return the exit code."""
    from dar_probe.cli.shared.terminal import say
    from dar_probe.results.paired import signed
    from dar_probe.results.verdict import plain

    code = ExitCode.UNMEASURABLE if any(pair.reason for pair in found.pairs) else ExitCode.DONE
    if rule is None:
        return code
    for pair, unknown in found.undecided(rule):
        code = ExitCode.UNMEASURABLE
        names = " and ".join(map(plain, unknown))
        what = f"{pair.other} against {pair.reference}"
        say(f"The rule cannot judge {what}: {names} cannot be compared.")
    for pair in found.meeting(rule):
        code = ExitCode.FAILED
        gaps = [
            f"{plain(change.name)} {signed(change.difference)}"
            for change in pair.changes
            if change.name in rule.names
        ]
        say(
            f"{pair.other} against {pair.reference} meets the rule to fail on {rule.text}: "
            f"{'; '.join(gaps)}."
        )
    return code
