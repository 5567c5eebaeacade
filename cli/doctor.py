"""``dar-probe doctor``: what is installed here, and whether it measures rightly."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from dar_probe.cli.shared import options, startup
from dar_probe.errors import ExitCode

if TYPE_CHECKING:
    from dar_probe.probe.self_test import Checkup
    from dar_probe.runtime.environment import Environment, Extra

    Row = tuple[str, str]

GIB = 2**30


def doctor(device: options.Device = "auto", as_json: options.Json = False) -> None:
    """Show versions, devices, optional extras, free memory and disk, and run a short self-test.

    The self-test measures two tiny models, for which the law of gate conservation must hold. Exit
    code 4: it does not, or nothing could be measured.

    Example: dar-probe doctor
    """
    with startup.imports():
        from dar_probe.cli.shared import terminal
        from dar_probe.runtime.environment import EXTRAS
    from dar_probe.probe.self_test import checkup

    with terminal.progress("testing", None):
        found = checkup(device)
    if as_json:
        extras = [
            {**asdict(one), "missing": one.missing, "installed": not one.missing} for one in EXTRAS
        ]
        facts = {**asdict(found.environment), "extras": extras, "self_test": _told(found)}
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        _show(found, EXTRAS)
    if not found.passed:
        raise typer.Exit(ExitCode.UNMEASURABLE)


def _told(found: "Checkup") -> dict[str, Any]:
    """Return what came of the self-test; why there is nothing, where it did not run."""
    parts = asdict(found.test) if found.test else {}
    values = {key: value if value == value else None for key, value in parts.items()}
    return {"passed": found.passed, "error": found.error, **values}


def _show(found: "Checkup", extras: "tuple[Extra, ...]") -> None:
    from rich.text import Text

    from dar_probe.cli.shared.console import console_on, write
    from dar_probe.cli.shared.terminal import printable

    console, machine = console_on(sys.stdout), found.environment
    groups: list[tuple[str, list[Row]]] = [
        ("", _versions(machine)),
        (
            "devices",
            [(one.name, f"{one.about}, {_size(one.free)} free") for one in machine.devices],
        ),
        ("disk", [("here", f"{_size(machine.disk_free)} free")]),
        ("extras", [_extra(one) for one in extras]),
    ]
    for title, rows in groups:
        if title:
            console.print(Text(title, style="bold"))
        width = max(len(name) for name, _ in rows) + 2
        for name, about in rows:
            write(console, Text(printable(about)), Text(f"  {name:<{width}}"))
    word, colour = ("PASS", "green") if found.passed else ("FAIL", "red")
    badge = Text(f" {word} ", style=f"bold reverse {colour}")
    write(console, Text.assemble(badge, " ", printable(found.sentence)))


def _versions(found: "Environment") -> list["Row"]:
    rows = [("dar-probe", found.dar_probe), ("python", f"{found.python} on {found.platform}")]
    return rows + [(name, version or "missing") for name, version in found.libraries.items()]


def _extra(one: "Extra") -> "Row":
    state = "installed" if not one.missing else f"missing: {one.install}"
    return one.name or one.needs[0], f"{one.purpose}; {state}"


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
