"""The help of a command as a page: what it does, then its options by panels, with every default.

Typer's own page gives a third of its width to the types of options, shows "bool" for flags and no
default where the code has None. Only documented attributes of commands and options are read here.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dar_probe.cli.shared import panels
from dar_probe.cli.shared.console import console_on

EXAMPLE = "Example: "
ARGUMENTS = "Arguments"
WIDEST_NAME = 28  # columns; a longer name is folded
MARGINS = 6  # columns around a line of an example

Row = tuple[Text, Text]


def show(command: Any, context: Any) -> None:
    """Print the help of a command, or of the group of all commands."""
    console = console_on(sys.stdout)
    lines = [Text(_usage(command, context), style="bold"), Text("")]
    for paragraph in (command.help or "").split("\n\n"):
        lines += [_paragraph(paragraph, console), Text("")]
    console.print(Padding(Group(*lines), (1, 1, 0, 1)))
    tables = {**_parameters(command, context), **_commands(command, context)}
    names = [name.cell_len for rows in tables.values() for name, _ in rows]
    width = min(max(names, default=0), WIDEST_NAME, console.width // 2)
    for title, rows in tables.items():
        console.print(_panel(title, rows, width))
    if command.epilog:
        console.print(Padding(Text(command.epilog), 1))


def _usage(command: Any, context: Any) -> str:
    parts = [f"Usage: {context.command_path}", "[OPTIONS]"]
    parts += [_bracketed(one) for one in command.get_params(context) if _is_argument(one)]
    if hasattr(command, "commands"):
        parts.append("COMMAND ...")
    return " ".join(parts)


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _bracketed(argument: Any) -> str:
    name = _argument_name(argument)
    return name if argument.required else f"[{name}]"


def _argument_name(argument: Any) -> str:
    name = str(argument.metavar or argument.name.upper())
    return name + "..." * (argument.nargs != 1 and not name.endswith("..."))


def _paragraph(paragraph: str, console: Console) -> Text:
    """Return a paragraph; an example, where it is too long, as lines that a shell takes."""
    text = " ".join(paragraph.split())
    if not text.startswith(EXAMPLE) or len(text) <= console.width - 2:
        return Text(text)
    lines = [""]
    # An option and its value stay together.
    for part in re.findall(r"-\S+(?: [^-]\S*)?|\S+", text.removeprefix(EXAMPLE)):
        if lines[-1] and len(f"{lines[-1]} {part}") > console.width - MARGINS:
            lines.append("  ")
        lines[-1] += f" {part}" if lines[-1].strip() else part
    return Text("\n  ".join([EXAMPLE.strip(), " \\\n  ".join(lines)]), overflow="fold")


def _parameters(command: Any, context: Any) -> dict[str, list[Row]]:
    """Return the rows of each panel, panels in the order of ``panels.OF_OPTIONS``."""
    found: dict[str, list[Row]] = defaultdict(list)
    for one in command.get_params(context):
        if getattr(one, "hidden", False):
            continue
        if _is_argument(one):
            found[ARGUMENTS].append((Text(_argument_name(one), style="bold cyan"), _about(one)))
        else:
            title = getattr(one, "rich_help_panel", None) or panels.OTHERS
            found[title].append((_option_name(one), _about(one)))
    order = [ARGUMENTS, *panels.OF_OPTIONS]
    return {title: found[title] for title in order if title in found}


def _commands(command: Any, context: Any) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for name in command.list_commands(context) if hasattr(command, "commands") else ():
        one = command.get_command(context, name)
        first = " ".join((one.help or "").partition("\n\n")[0].split())
        title = getattr(one, "rich_help_panel", None) or "Commands"
        found[title].append((Text(name, style="bold cyan"), Text(first)))
    return found


def _option_name(option: Any) -> Text:
    """Return "-h, --help", "--compile/--no-compile" or "--samples N"."""
    short_first = sorted(option.opts, key=lambda name: name.startswith("--"))
    names = ", ".join(short_first)
    name = Text("/".join([names, *option.secondary_opts]), style="bold cyan")
    if not option.is_flag:
        name = Text.assemble(name, " ", (str(option.metavar or "TEXT"), "yellow"))
    return name


def _about(parameter: Any) -> Text:
    """Return what a parameter is, its default and its range."""
    notes = []
    if parameter.required:
        notes.append("required")
    elif value := default_of(parameter):
        notes.append(f"default: {value}")
    notes += _range(parameter)
    text = Text(" ".join((parameter.help or "").split()))
    return Text.assemble(text, " ", (f"[{'; '.join(notes)}]", "dim")) if notes else text


def default_of(parameter: Any) -> str:
    """Return what stands where an option is left out, as its help shows it; "" for flags."""
    shown, value = getattr(parameter, "show_default", True), parameter.default
    if isinstance(shown, str):
        return shown
    if not shown or value is None or (parameter.param_type_name == "option" and parameter.is_flag):
        return ""
    values: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
    return ", ".join(map(str, values))


def _range(parameter: Any) -> list[str]:
    """Return the limits of a number; before its 0.27 Typer kept them on the option's type."""
    limits = []
    for name, word in (("min", "at least"), ("max", "at most")):
        limit = getattr(parameter, name, getattr(getattr(parameter, "type", None), name, None))
        if limit is not None:
            limits.append(f"{word} {limit}")
    return limits


def _panel(title: str, rows: list[Row], width: int) -> Panel:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(width=width, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return Panel(table, title=title, title_align="left", border_style="dim", padding=(0, 1))
