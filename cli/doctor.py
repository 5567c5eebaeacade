"""``dar-probe doctor``: what is installed here, and whether it measures rightly."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dar_probe.cli.shared import options, startup
from dar_probe.errors import ExitCode

if TYPE_CHECKING:
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
        from dar_probe.runtime.environment import EXTRAS, look

    with terminal.progress("testing", None):
        found, test = look(Path.cwd()), _tested(device)
    if as_json:
        extras = [
            {**asdict(one), "missing": one.missing, "installed": not one.missing} for one in EXTRAS
        ]
        facts = {**asdict(found), "extras": extras, "self_test": test}
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        _show(found, EXTRAS, test)
    if not test["passed"]:
        raise typer.Exit(ExitCode.UNMEASURABLE)


def _tested(device: str) -> dict[str, Any]:
    """Return what came of the self-test; why there is nothing, where it did not run."""
    from dar_probe.errors import UsageError
    from dar_probe.probe.self_test import self_test

    try:
        test = self_test(device)
    except UsageError:
        raise  # of --device: there is nothing to test
    except Exception as error:  # a broken installation fails in any way it likes
        return {"passed": False, "error": f"{type(error).__name__}: {error}"}
    values = {key: value if value == value else None for key, value in asdict(test).items()}
    return {"passed": test.passed, "error": "", **values}


def _show(found: "Environment", extras: "tuple[Extra, ...]", test: dict[str, Any]) -> None:
    from rich.text import Text

    from dar_probe.cli.shared.console import console_on, write
    from dar_probe.cli.shared.terminal import printable

    console = console_on(sys.stdout)
    groups: list[tuple[str, list[Row]]] = [
        ("", _versions(found)),
        ("devices", [(one.name, f"{one.about}, {_size(one.free)} free") for one in found.devices]),
        ("disk", [("here", f"{_size(found.disk_free)} free")]),
        ("extras", [_extra(one) for one in extras]),
    ]
    for title, rows in groups:
        if title:
            console.print(Text(title, style="bold"))
        width = max(len(name) for name, _ in rows) + 2
        for name, about in rows:
            write(console, Text(printable(about)), Text(f"  {name:<{width}}"))
    badge = Text(" PASS " if test["passed"] else " FAIL ", style="bold reverse " + _colour(test))
    write(console, Text.assemble(badge, " ", printable(_sentence(test))))


def _versions(found: "Environment") -> list["Row"]:
    rows = [("dar-probe", found.dar_probe), ("python", f"{found.python} on {found.platform}")]
    return rows + [(name, version or "missing") for name, version in found.libraries.items()]


def _extra(one: "Extra") -> "Row":
    state = "installed" if not one.missing else f"missing: {one.install}"
    return one.name or one.needs[0], f"{one.purpose}; {state}"


def _colour(test: dict[str, Any]) -> str:
    return "green" if test["passed"] else "red"


def _sentence(test: dict[str, Any]) -> str:
    if test["error"]:
        return f"The self-test did not run: {test['error']}"
    values = [test[name] for name in ("gate_conservation", "read_residual")]
    gates, reads = ("NaN" if value is None else f"{value:.1g}" for value in values)
    return (
        f"Self-test on {test['device']} in {test['seconds']:.1f} s: gates cancel to {gates} of the "
        f"largest, routes rebuild what is read to {reads} (limit of both {test['limit']:g})."
    )


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
