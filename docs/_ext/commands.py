"""The reference of the command line, as Markdown, from the commands themselves."""

from importlib import import_module
from typing import Any

from typer.main import get_command

from catalogue import escaped
from dar_probe.cli import app
from dar_probe.cli.shared import help_page, panels
from tables import table


def reference() -> str:
    """Return one section a command: what it does, its usage, and its options by panel."""
    group: Any = get_command(app)
    by_panel = import_module("dar_probe.cli.app").COMMANDS  # the name "app" is Typer's object
    names = [function.__name__ for functions in by_panel.values() for function in functions]
    return "\n".join(_command(group.commands[name]) for name in names)


def _command(command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join(["dar-probe", command.name, "[OPTIONS]", *map(_metavar, arguments)])
    text, _, example = str(command.help).partition("Example: ")
    parts = [f"(command-{command.name})=", f"## {command.name}", escaped(text), ""]
    parts += ["```text", usage, "```", ""]
    if example:
        parts += ["For example:", "", "```text", example.strip(), "```", ""]
    if arguments:
        rows = [[f"`{_metavar(one)}`", one.help or ""] for one in arguments]
        parts.append(table(["argument", ""], rows))
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    for panel in panels.OF_OPTIONS:
        own = [o for o in options if (o.rich_help_panel or panels.OTHERS) == panel]
        if own:
            parts.append(table([panel, "", "default"], list(map(_option, own))))
    return "\n".join(parts)


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _option(option: Any) -> list[str]:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = f" {option.metavar}" if option.metavar and not option.is_flag else ""
    default = "required" if option.required else help_page.default_of(option)
    return [names + escaped(value), escaped(option.help or ""), escaped(default)]
