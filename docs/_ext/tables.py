"""Tables of the reference pages, as Markdown, from what the code itself uses."""

import re
from dataclasses import fields
from inspect import cleandoc

from catalogue import escaped
from dar_probe.errors import ExitCode
from dar_probe.results.schema import VARIABLES
from dar_probe.results.symptoms import SYMPTOMS
from dar_probe.routing import schemes as routing_schemes
from dar_probe.routing.schemes import RoutingOptions
from dar_probe.training.settings import TrainSettings


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines) + "\n"


def cell(text: str) -> str:
    """Return a text that ends neither its cell nor its row."""
    return " ".join(text.replace("|", "\\|").split())


def exit_codes() -> str:
    """Return the codes of ``dar_probe.errors.ExitCode``."""
    rows = [[str(code.value), code.name.lower(), code.sentence] for code in ExitCode]
    return table(["code", "name", "meaning"], rows)


def schemes() -> str:
    """Return what ``@register`` says of each routing scheme."""
    return routing_schemes.table()


def settings() -> str:
    """Return the settings of a training run with their defaults."""
    from dar_probe.cli.train import SETTINGS

    rows = []
    known = _attributes(RoutingOptions) | _attributes(TrainSettings)
    for field in fields(TrainSettings):
        own = SETTINGS.get(field.name)
        said = known[field.name]
        if own is not None:
            said = own.help() if callable(own.help) else own.help
        flag = f"`--{field.name.replace('_', '-')}`" if own is not None else ""
        rows.append([f"`{field.name}`", f"`{field.default!r}`", flag, said])
    return table(["setting", "default", "flag", "what it does"], rows)


def _attributes(cls: type) -> dict[str, str]:
    """Return what the docstring of a class says of each attribute."""
    text = cleandoc(cls.__doc__ or "").partition("Attributes:")[2]
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.*?)(?=^    \w|\Z)", text, re.M | re.S)
    return {
        name: escaped(" ".join(said.split()).rstrip(".")) + "."
        for names, said in entries
        for name in names.split(", ")
    }


def thresholds() -> str:
    """Return where each symptom becomes a warning and a failure."""
    rows = [
        [name.replace("_", " "), f"above {symptom.warn:g}", f"above {symptom.fail:g}"]
        for name, symptom in SYMPTOMS.items()
    ]
    return table(["symptom", "warning", "failure"], rows)


def variables() -> str:
    """Return one section for each variable of an analysis."""
    parts = []
    for name, variable in VARIABLES.items():
        dims = ", ".join(variable.all_dims)
        parts.append(
            f"## {name}\n\n{variable.long_name[:1].upper() + variable.long_name[1:]}. "
            f"{variable.definition}\n\n"
            + table(
                ["dims", "unit", "where the formula comes from"],
                [[f"`{dims}`", variable.units, variable.source]],
            )
        )
    return "\n".join(parts)
