"""What is known of every routing scheme without torch: read from the ``@register`` of its class.

``train --help``, the study's plan and the docs' table take names, descriptions and options from
here, so that a scheme is one file in this folder and is named nowhere else.
"""

import ast
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, get_args

Query = Literal["static", "static+t", "dynamic"]
QUERIES: tuple[Query, ...] = get_args(Query)


@dataclass(frozen=True, kw_only=True)
class RoutingOptions:
    """How the sublayers of a model share their results, in a model's and a training run's config.

    Attributes:
        routing: the name of a scheme.
        query, chunk_size, streams, dilation, period, zero_time: options of the schemes that take
            them; the others ignore them.
    """

    routing: str = "residual"
    query: str = "static+t"
    chunk_size: int = 4
    streams: int = 4
    dilation: int = 1
    period: int = 1
    zero_time: bool = True

    def routing_settings(self) -> dict[str, Any]:
        """Return the fields of this class alone, by name, also of a config that has more."""
        return {f.name: getattr(self, f.name) for f in fields(RoutingOptions)}


ALL_OPTIONS = tuple(f.name for f in fields(RoutingOptions) if f.name != "routing")
OF_THE_START = ("zero_time",)  # decides how weights start; a file with weights does not tell it
OPTIONS = tuple(name for name in ALL_OPTIONS if name not in OF_THE_START)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One way of sharing results across depth.

    Attributes:
        name: what ``--routing`` takes.
        title: what pages call it.
        about: what a sublayer reads, in one line.
        label: what pictures call it; the title, unless that is too long there.
        options: those of ``ALL_OPTIONS`` that it takes.
        routes: a reader gets a sum of sources with scalar weights. Without, states alone can be
            measured.
    """

    name: str
    title: str
    about: str
    label: str = ""
    options: tuple[str, ...] = ()
    routes: bool = True

    def __post_init__(self) -> None:
        unknown = set(self.options) - set(ALL_OPTIONS)
        assert not unknown, f"{self.name}: RoutingOptions has no {', '.join(unknown)}"
        if not self.label:
            object.__setattr__(self, "label", self.title)


def known() -> dict[str, Scheme]:
    """Return the schemes of this folder by their names, in the order of files and classes."""
    return {scheme.name: scheme for scheme, _ in _read()}


def home_of(name: str) -> str | None:
    """Return the module that holds the scheme called ``name``; None for an unknown name."""
    return next((module for scheme, module in _read() if scheme.name == name), None)


def takers(option: str) -> str:
    """Return the names of the schemes that take an option: "dar, dar-uvit, sigmoid"."""
    return ", ".join(scheme.name for scheme in known().values() if option in scheme.options)


def table() -> str:
    """Return the table of all schemes in Markdown, as the docs show it."""
    rows = ["| routing | what a sublayer reads | options | routes |", "|---|---|---|---|"]
    for scheme in known().values():
        flags = [f"`{name}`" for name in scheme.options if name in OPTIONS]
        routes = "yes" if scheme.routes else "no: states alone"
        rows.append(f"| `{scheme.name}` | {scheme.about} | {', '.join(flags)} | {routes} |")
    return "\n".join(rows) + "\n"


@cache
def _read() -> tuple[tuple[Scheme, str], ...]:
    """Return every scheme with the module that holds it.

    Modules are parsed and not imported: they need torch, and ``train --help`` must not wait for it.
    """
    package = __name__.rpartition(".")[0]
    spec = find_spec(package)
    assert spec is not None
    found: list[tuple[Scheme, str]] = []
    for module in pkgutil.iter_modules(spec.submodule_search_locations, f"{package}."):
        for scheme in _registered(module.name):
            assert scheme.name not in {one.name for one, _ in found}, f"two schemes {scheme.name}"
            found.append((scheme, module.name))
    return tuple(found)


def _registered(module: str) -> Iterator[Scheme]:
    spec = find_spec(module)
    loader: Any = spec.loader if spec else None
    source = loader.get_source(module)
    if "@register(" not in source:
        return
    for node in ast.parse(source).body:
        for call in getattr(node, "decorator_list", ()):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "register":
                (name,) = map(ast.literal_eval, call.args)
                told = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
                yield Scheme(name=name, **told)
